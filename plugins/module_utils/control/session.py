# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What every phase in the records takes, and the first thing each does: ask whose token it is."""

from __future__ import annotations

from typing import Any, Mapping

from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import IDENTITY_SECTIONS, Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_spec import SPEC
from ansible_collections.barestack.kvm.plugins.module_utils.control.identity import Identity, validate
from ansible_collections.barestack.kvm.plugins.module_utils.control.keys import DEFAULT_DIRECTORY

# Ansible has to know where the hashes are, so that it masks them; the sections' entries are checked by the catalogue.
_USER: dict[str, Any] = {
    "name": {"type": "str"},
    "id": {"type": "str"},
    "description": {"type": "str"},
    "password_hash": {"type": "str", "no_log": True},
    "enabled": {"type": "raw"},
    "roles": {"type": "raw"},
}

CATALOG_SPEC: dict[str, Any] = {
    "catalog": {
        "type": "dict",
        "required": True,
        "options": {
            section: {"type": "list", "elements": "dict", "no_log": False}
            | ({"options": _USER} if section == "users" else {})
            for section in SPEC
        },
    },
    "keys_directory": {"type": "path", "default": DEFAULT_DIRECTORY, "no_log": False},
}

CONTROL_SPEC: dict[str, Any] = {
    "token": {"type": "str", "required": True, "no_log": True},
    **CATALOG_SPEC,
    "records_url": {"type": "str", "default": "", "no_log": True},
}


def identify(params: Mapping[str, Any], role: str, check_mode: bool = False) -> Identity:
    """Whose token ``params`` hold; Unauthorized where it is not valid, Forbidden where it lacks the role.

    ``check_mode`` lets the tokens in that check mode issues on a control host without keys.
    """
    catalog = Catalog.load(params["catalog"], IDENTITY_SECTIONS)
    identity = validate(params["token"], catalog, params["keys_directory"], check_mode=check_mode)
    identity.require(role)
    return identity
