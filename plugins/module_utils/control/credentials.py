# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""``auth`` in openstacksdk's shape, completed from the environment."""

from __future__ import annotations

from typing import Any, Mapping

from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_objects import Project, User
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest

ENVIRONMENT = {
    "auth_url": "OS_AUTH_URL",
    "username": "OS_USERNAME",
    "user_id": "OS_USER_ID",
    "password": "OS_PASSWORD",
    "project_name": "OS_PROJECT_NAME",
    "project_id": "OS_PROJECT_ID",
    "user_domain_name": "OS_USER_DOMAIN_NAME",
    "user_domain_id": "OS_USER_DOMAIN_ID",
    "project_domain_name": "OS_PROJECT_DOMAIN_NAME",
    "project_domain_id": "OS_PROJECT_DOMAIN_ID",
}
"""The keys of ``auth``, as openstacksdk names them, and where a missing one is looked for."""

_SIBLINGS = {"username": "user_id", "user_id": "username", "project_name": "project_id", "project_id": "project_name"}
_DOMAINS = [name for name in ENVIRONMENT if "_domain_" in name]


def read_credentials(auth: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """``auth`` with what is missing filled in; a name given is not contradicted by an id in the environment."""
    unknown = sorted(set(auth) - set(ENVIRONMENT))
    if unknown:
        raise InvalidRequest(f"auth.{unknown[0]} is not supported. Allowed: {', '.join(ENVIRONMENT)}")
    given = {name: str(value) for name, value in auth.items() if value is not None}
    filled = dict(given)
    for name, variable in ENVIRONMENT.items():
        if name not in given and _SIBLINGS.get(name) not in given and environ.get(variable):
            filled[name] = environ[variable]
    return filled


def needed(credentials: Mapping[str, str], name: str, other: str) -> str:
    """The value of either option; InvalidRequest where both are missing."""
    value = credentials.get(name) or credentials.get(other)
    if not value:
        names = name if name == other else f"{name} or {other}"
        raise InvalidRequest(f"auth.{names} is missing: give it, or set {ENVIRONMENT[name]}")
    return value


def named(item: User | Project, credentials: Mapping[str, str], name: str, identifier: str) -> bool:
    """Whether the name and the id that are given are both the item's."""
    return credentials.get(name) in (None, item.name) and credentials.get(identifier) in (None, item.id)


def check_domains(credentials: Mapping[str, str]) -> None:
    """InvalidRequest for a domain other than Default."""
    for name in _DOMAINS:
        if credentials.get(name, "default").lower() != "default":
            raise InvalidRequest(f"auth.{name} is {credentials[name]!r}: the local identity has one domain, Default")
