# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What an entry of ``instances:`` may hold, in openstack.cloud.server's parameter names, and what it may not."""

from __future__ import annotations

from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_groups import DEFAULT_GROUP
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_spec import POLICIES, RULES

SPEC: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True, "description": "Unique in its project; with count the stem."},
    "flavor": {"type": "str", "required": True, "description": "Name or id."},
    "image": {"type": "str", "required": True, "description": "Name or id."},
    "count": {"type": "int", "default": 1, "description": "How many; above 1 they are named name-1, name-2, ..."},
    "network": {"type": "str", "description": "Name or id of the one network. Default: the only one there is."},
    "nics": {"type": "list", "elements": "raw", "description": "Mappings or strings, see NIC_KEYS; or none."},
    "security_groups": {
        "type": "list",
        "elements": "str",
        "default": [DEFAULT_GROUP],
        "description": "Names or ids.",
    },
    "key_name": {"type": "str", "description": "A keypair of the user's."},
    "userdata": {
        "type": "str",
        "aliases": ["user_data"],
        "no_log": True,
        "description": "Plain text for cloud-init, at most 65535 bytes in base64.",
    },
    "config_drive": {"type": "bool", "default": True, "description": "Whether the guest gets a config-2 disk."},
    "meta": {"type": "raw", "aliases": ["metadata"], "description": "A mapping or 'key1=value1,key2=value2'."},
    "availability_zone": {
        "type": "str",
        "description": "A zone of the aggregates, or nova; as admin zone:host forces a host past the filters.",
    },
    "host": {"type": "str", "description": "The only compute host that may do, as admin; all filters run."},
    "ignore_hosts": {"type": "list", "elements": "str", "default": [], "description": "Compute hosts that may not do."},
    "scheduler_hints": {"type": "dict", "default": {}, "description": "For the scheduler's filters, see below."},
    "volumes": {
        "type": "list",
        "elements": "raw",
        "default": [],
        "description": "Mappings as VOLUME for new ones; a string is the name or id of one that exists.",
    },
    "description": {"type": "str", "default": "", "description": "For people, at most 255 characters."},
    "wait_for": {"type": "raw", "description": "lease, console or ssh, or a mapping as WAIT_FOR."},
}

VOLUME: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "description": "With count the stem, as the server's name."},
    "size": {"type": "int", "required": True, "description": "GiB, at least 1."},
    "delete_on_termination": {"type": "bool", "default": False, "description": "Whether it goes with the server."},
}

GROUP: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True, "description": "Unique in the project."},
    "policy": {"type": "str", "required": True, "choices": [*POLICIES], "description": "How its servers are placed."},
    "rules": {"type": "dict", "default": {}, "options": RULES, "description": "Nova's rules."},
}
"""The hint ``group`` as a mapping, in openstack.cloud.server_group's parameter names."""

WAIT_FOR: dict[str, dict[str, Any]] = {
    "condition": {
        "type": "str",
        "choices": ["lease", "console", "ssh"],
        "required": True,
        "description": "An address leased, a text on the console, an ssh banner.",
    },
    "timeout": {"type": "float", "default": 300.0, "description": "Seconds."},
    "pattern": {"type": "str", "description": "For console, a regular expression; default 'login:'."},
}

NIC_KEYS = {
    "net-id": "network",
    "net-name": "network",
    "network": "network",
    "port-id": "port",
    "port-name": "port",
    "port": "port",
    "v4-fixed-ip": "fixed_ip",
    "v6-fixed-ip": "fixed_ip",
    "fixed_ip": "fixed_ip",
    "tag": "tag",
}
"""A NIC's keys, openstack.cloud.server's and the plain ones, to what they mean."""

NO_NICS = ["none"]
"""What says that a server has no NIC, as Nova's ``networks: none``."""

_FLOATING = "there are no floating IPs: a server's addresses are those of its networks"
_BOOT_VOLUME = "booting from a volume is not supported: the root disk is made from the image and the flavor's disk"
_CLOUD = "belongs to the connection: who asks is said by auth of barestack.kvm.token"

REFUSED: dict[str, str] = {
    **dict.fromkeys(("auto_ip", "auto_floating_ip", "public_ip", "floating_ips", "floating_ip_pools"), _FLOATING),
    **dict.fromkeys(("reuse_ips", "delete_fip", "delete_ips"), _FLOATING),
    **dict.fromkeys(
        ("boot_from_volume", "boot_volume", "root_volume", "volume_size", "terminate_volume"), _BOOT_VOLUME
    ),
    **dict.fromkeys(("auth", "auth_type", "cloud", "region_name", "interface", "validate_certs", "ca_cert"), _CLOUD),
    "flavor_ram": "a flavor is not searched by its ram: name it with flavor",
    "flavor_include": "a flavor is not searched: name it with flavor",
    "image_exclude": "an image is not searched: name it with image",
    "state": "the playbook says it: boot_instance.yml makes servers, delete_instance.yml deletes them",
    "wait": "a boot always waits until the server is ACTIVE; wait_for says what to wait for beyond that",
    "timeout": "deadlines are vif_plugging_timeout and wait_for.timeout",
    "tags": "server tags are not kept: use meta",
    "files": "file injection is not supported: use userdata",
    "admin_pass": "passwords are not set: use key_name or userdata",
}
"""openstack.cloud.server's and Nova's options that are refused, and why."""
