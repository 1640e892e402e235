# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Which server group a request's hint ``group`` names: a declared one, or one that a request made on its first use."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_objects import DeclaredGroup
from ansible_collections.barestack.kvm.plugins.module_utils.control.checks import unknown
from ansible_collections.barestack.kvm.plugins.module_utils.control.identity import Identity
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import server_groups
from ansible_collections.barestack.kvm.plugins.module_utils.control.request import Requested
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict, InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance, ServerGroup
from sqlalchemy import Connection


def key(hints: Mapping[str, Any]) -> str:
    """What requests that name one group have alike."""
    return json.dumps(hints.get("group"), sort_keys=True)


def resolve(
    connection: Connection, catalog: Catalog, identity: Identity, servers: Iterable[Requested], now: str
) -> dict[str, ServerGroup]:
    """:func:`key` -> the group, for all servers whose hints name one. A mapping's is made where there is none.

    InvalidRequest where a name or an id is no group's, Conflict where a mapping's group has another policy.
    """
    found: dict[str, ServerGroup] = {}
    known: list[ServerGroup] | None = None
    for server in servers:
        hint, name = server.scheduler_hints.get("group"), key(server.scheduler_hints)
        if hint is None or name in found:
            continue
        if known is None:
            declared = [_group(item) for item in catalog.server_groups_for(identity.project_id)]
            known = [*declared, *server_groups.of_project(connection, identity.project_id)]
        group = _find(server.name, hint, known)
        if group is None:
            most = hint["rules"].get("max_server_per_host")
            group = ServerGroup(str(uuid.uuid4()), hint["name"], hint["policy"], most)
            server_groups.create(connection, group, identity.project_id, identity.user_id, now)
            known.append(group)
        found[name] = group
    return found


def _find(server: str, hint: Any, known: Sequence[ServerGroup]) -> ServerGroup | None:
    """The group that a hint means; None for one that is to be made."""
    made = isinstance(hint, Mapping)
    reference = hint["name"] if made else hint
    group = next((item for item in known if item.uuid == reference), None) if not made else None
    group = group or next((item for item in known if item.name == reference), None)
    where = f"Server {server}: scheduler_hints.group"
    if group is None and not made:
        told = unknown("server group", reference, (item.name for item in known))
        raise InvalidRequest(f"{where}: {told}; declare it in server_groups, or give a mapping with name and policy")
    if group and made:
        there = (group.policy, group.max_server_per_host or 1)
        wanted = (hint["policy"], hint["rules"].get("max_server_per_host") or 1)
        if there != wanted:
            raise Conflict(
                f"{where}: group {group.name} exists with policy {there[0]} and max_server_per_host {there[1]}, "
                f"not {wanted[0]} and {wanted[1]}: a group's policy does not change; choose another name"
            )
    return group


def current(catalog: Catalog, instances: Iterable[Instance]) -> dict[str, ServerGroup]:
    """uuid of a group -> the group as it is now, of all that these servers are in: a declared one may have changed."""
    declared = {item.id: _group(item) for item in catalog.server_groups}
    groups = {item.server_group.uuid: item.server_group for item in instances if item.server_group}
    return {identifier: declared.get(identifier, group) for identifier, group in groups.items()}


def _group(declared: DeclaredGroup) -> ServerGroup:
    return ServerGroup(declared.id, declared.name, declared.policy, declared.max_server_per_host)
