# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What the catalogue's sections may hold: for each section an Ansible argument spec of one entry.

Names are those of openstack.cloud's modules. ``id`` is optional everywhere: the default follows from the name and
never changes, so a file without ids means the same objects on every site and in every run.
"""

from __future__ import annotations

from typing import Any

_NAME: dict[str, Any] = {"type": "str", "required": True, "description": "Unique in its section."}
_ID: dict[str, Any] = {"type": "str", "description": "Letters, digits, '_', '.', '-'. Default: made from the name."}
_DESCRIPTION: dict[str, Any] = {"type": "str", "description": "For people."}

_FLAVOR: dict[str, Any] = {
    "name": _NAME,
    "id": _ID,
    "description": _DESCRIPTION,
    "vcpus": {"type": "int", "required": True, "description": "Virtual CPUs, at least 1."},
    "ram": {"type": "int", "required": True, "description": "MiB, at least 1."},
    "disk": {"type": "int", "default": 0, "description": "Root disk in GiB; 0: as large as the image."},
    "ephemeral": {"type": "int", "default": 0, "description": "Ephemeral disk in GiB."},
    "swap": {"type": "int", "default": 0, "description": "Swap disk in MiB."},
    "extra_specs": {"type": "dict", "default": {}, "description": "Nova's extra specs."},
}

_IMAGE: dict[str, Any] = {
    "name": _NAME,
    "id": _ID,
    "description": _DESCRIPTION,
    "url": {
        "type": "str",
        "required": True,
        "aliases": ["filename"],
        "description": "An absolute path, file:///path, http:// or https:// address.",
    },
    "checksum": {"type": "str", "required": True, "description": "sha256:<64 hex digits> or sha512:<128>."},
    "disk_format": {"type": "str", "choices": ["raw", "qcow2"], "default": "qcow2", "description": "What the file is."},
    "min_disk": {"type": "int", "default": 0, "description": "GiB that a flavor's disk must have."},
    "min_ram": {"type": "int", "default": 0, "description": "MiB that a flavor's ram must have."},
    "properties": {"type": "dict", "default": {}, "description": "Glance's image properties (hw_*, os_*)."},
}

_SUBNET: dict[str, Any] = {
    "name": {"type": "str", "required": True, "description": "Unique in its network."},
    "id": _ID,
    "description": _DESCRIPTION,
    "cidr": {"type": "str", "required": True, "description": "192.0.2.0/24 or 2001:db8::/64."},
    "gateway_ip": {"type": "str", "description": "Default: the network's first address."},
    "disable_gateway_ip": {"type": "bool", "default": False, "description": "No gateway at all."},
    "enable_dhcp": {"type": "bool", "default": True, "description": "Whether dnsmasq answers here."},
    "dns_nameservers": {"type": "list", "elements": "str", "default": [], "description": "Addresses."},
    "host_routes": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "description": "Further routes for the guests.",
        "options": {
            "destination": {"type": "str", "required": True, "description": "A network address."},
            "nexthop": {"type": "str", "required": True, "description": "An address."},
        },
    },
    "allocation_pool_start": {"type": "str", "description": "First address to give out."},
    "allocation_pool_end": {"type": "str", "description": "Last address to give out."},
    "allocation_pools": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "description": "Default: everything but network, broadcast and gateway address.",
        "options": {
            "start": {"type": "str", "required": True, "description": "First address to give out."},
            "end": {"type": "str", "required": True, "description": "Last address to give out."},
        },
    },
}

_NETWORK: dict[str, Any] = {
    "name": _NAME,
    "id": _ID,
    "description": _DESCRIPTION,
    "network_type": {
        "type": "str",
        "choices": ["local", "flat"],
        "default": "local",
        "aliases": ["provider_network_type"],
        "description": "local: a bridge of the host with the gateway on it, masqueraded. "
        "flat: a wire that hosts share, routed outside.",
    },
    "physical_network": {
        "type": "str",
        "aliases": ["provider_physical_network"],
        "description": "Of a flat network, required: the wire's name in the hosts' `physical_interface_mappings`.",
    },
    "mtu": {"type": "int", "default": 1500, "description": "68 to 65535; 1280 and more with an IPv6 subnet."},
    "dns_domain": {"type": "str", "default": "openstacklocal", "description": "The guests' domain."},
    "shared": {"type": "bool", "default": True, "description": "Whether every project may use it."},
    "project": {"type": "str", "description": "Whose network it is, by name or id; needed where shared is false."},
    "subnets": {"type": "list", "elements": "dict", "default": [], "options": _SUBNET, "description": "At least one."},
}

_RULE: dict[str, Any] = {
    "direction": {
        "type": "str",
        "choices": ["ingress", "egress"],
        "default": "ingress",
        "description": "Guest's view.",
    },
    "ether_type": {"type": "str", "choices": ["IPv4", "IPv6"], "default": "IPv4", "description": "Which IP."},
    "protocol": {"type": "str", "description": "Neutron's names or a number from 0 to 255; default: any."},
    "port_range_min": {"type": "int", "description": "First port; for ICMP the type."},
    "port_range_max": {"type": "int", "description": "Last port; for ICMP the code."},
    "remote_ip_prefix": {"type": "str", "description": "The other side's addresses."},
    "remote_group": {"type": "str", "description": "The other side's security group, by name or id."},
    "description": _DESCRIPTION,
}

_SECURITY_GROUP: dict[str, Any] = {
    "name": _NAME,
    "id": _ID,
    "description": _DESCRIPTION,
    "rules": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": _RULE,
        "description": "What is let through. Without any egress rule all egress is, as in Neutron.",
    },
}

_KEYPAIR: dict[str, Any] = {
    "name": {"type": "str", "required": True, "description": "Unique for its user."},
    "public_key": {"type": "str", "required": True, "description": "One line in OpenSSH's form."},
    "user": {"type": "str", "description": "Whose key it is, by name or id; default: everybody's."},
}

_PROJECT: dict[str, Any] = {
    "name": _NAME,
    "id": _ID,
    "description": _DESCRIPTION,
    "enabled": {"type": "bool", "default": True, "description": "Whether tokens for it are issued and accepted."},
    "quota": {
        "type": "dict",
        "default": {},
        "description": "Nova's quota; -1 is unlimited.",
        "options": {
            "instances": {"type": "int", "default": 10, "description": "Servers."},
            "cores": {"type": "int", "default": 20, "description": "Virtual CPUs."},
            "ram": {"type": "int", "default": 51200, "description": "MiB."},
        },
    },
}

_USER: dict[str, Any] = {
    "name": _NAME,
    "id": _ID,
    "description": _DESCRIPTION,
    "password_hash": {"type": "str", "required": True, "no_log": True, "description": "$argon2id$v=19$..."},
    "enabled": {"type": "bool", "default": True, "description": "Whether the user may get and use tokens."},
    "roles": {
        "type": "dict",
        "default": {},
        "description": "Project (name or id) to reader, member, admin, or a list.",
    },
}

_AGGREGATE: dict[str, Any] = {
    "name": _NAME,
    "id": _ID,
    "description": _DESCRIPTION,
    "hosts": {"type": "list", "elements": "str", "default": [], "description": "Names of compute hosts."},
    "metadata": {"type": "dict", "default": {}, "description": "Nova's aggregate metadata."},
    "availability_zone": {"type": "str", "description": "The zone that its hosts make up."},
}

POLICIES = ("affinity", "anti-affinity", "soft-affinity", "soft-anti-affinity")
"""Nova's policies of server groups."""

RULES: dict[str, Any] = {
    "max_server_per_host": {"type": "int", "description": "For anti-affinity: so many may share a host. Default: 1."},
}
"""A server group's rules; a request that makes a group on its first use gives the same."""

_SERVER_GROUP: dict[str, Any] = {
    "name": _NAME,
    "id": _ID,
    "description": _DESCRIPTION,
    "policy": {"type": "str", "required": True, "choices": [*POLICIES], "description": "How its servers are placed."},
    "rules": {"type": "dict", "default": {}, "options": RULES, "description": "Nova's rules."},
    "project": {"type": "str", "description": "Whose group it is, by name or id; default: everybody's."},
}

SPEC: dict[str, dict[str, Any]] = {
    "flavors": _FLAVOR,
    "images": _IMAGE,
    "networks": _NETWORK,
    "security_groups": _SECURITY_GROUP,
    "keypairs": _KEYPAIR,
    "projects": _PROJECT,
    "users": _USER,
    "aggregates": _AGGREGATE,
    "server_groups": _SERVER_GROUP,
}
