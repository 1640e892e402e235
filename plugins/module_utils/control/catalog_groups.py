# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Security groups of the catalogue: Neutron's checks of rules, and its default group."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any, Mapping

from ansible_collections.barestack.kvm.plugins.module_utils.control.checks import Problems
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import SecurityGroupRule

DEFAULT_GROUP = "default"
PROTOCOLS = (
    *("ah", "dccp", "egp", "esp", "gre", "icmp", "icmpv6", "igmp", "ipip", "ipv6-encap", "ipv6-frag"),
    *("ipv6-icmp", "ipv6-nonxt", "ipv6-opts", "ipv6-route", "ospf", "pgm", "rsvp", "sctp", "tcp", "udp", "udplite"),
    "vrrp",
)
_WITH_PORTS = ("tcp", "udp", "udplite", "sctp", "dccp", "6", "17", "136", "132", "33")
_ICMP = {"IPv4": ("icmp", "1"), "IPv6": ("icmp", "icmpv6", "ipv6-icmp", "58")}


@dataclass(frozen=True)
class GroupRule:
    """A rule whose ``remote_group`` is still a name: the default group is another one in every project."""

    rule: SecurityGroupRule
    remote_group: str | None = None


@dataclass(frozen=True)
class Group:
    """A security group as declared."""

    id: str
    name: str
    rules: tuple[GroupRule, ...]


EGRESS_ANY = tuple(GroupRule(SecurityGroupRule("egress", version)) for version in ("IPv4", "IPv6"))
DEFAULT_RULES = EGRESS_ANY + tuple(
    GroupRule(SecurityGroupRule("ingress", version), DEFAULT_GROUP) for version in ("IPv4", "IPv6")
)


def build_group(
    entry: dict[str, Any], identifier: str, groups: Mapping[str, str], path: str, problems: Problems
) -> Group:
    """The group; ``groups`` maps the names and ids that a rule may give to names."""
    rules = tuple(
        _build_rule(item, groups, f"{path}.rules[{index}]", problems) for index, item in enumerate(entry["rules"])
    )
    if not any(item.rule.direction == "egress" for item in rules):
        rules += EGRESS_ANY
    return Group(identifier, entry["name"], rules)


def _build_rule(entry: dict[str, Any], groups: Mapping[str, str], path: str, problems: Problems) -> GroupRule:
    version, group, prefix = entry["ether_type"], entry.get("remote_group"), entry.get("remote_ip_prefix")
    if group is not None and prefix is not None:
        problems.add(path, "remote_group and remote_ip_prefix exclude each other")
    if group is not None and group not in groups:
        problems.add_unknown(f"{path}.remote_group", "security group", group, set(groups.values()))
    protocol = _protocol(entry.get("protocol"), version, f"{path}.protocol", problems)
    low, high = (None if entry.get(key) in (None, -1) else entry[key] for key in ("port_range_min", "port_range_max"))
    _check_ports(protocol, low, high, path, problems)
    rule = SecurityGroupRule(
        direction=entry["direction"],
        ethertype=version,
        protocol=protocol,
        port_range_min=low,
        port_range_max=high,
        remote_ip_prefix=_prefix(prefix, version, f"{path}.remote_ip_prefix", problems),
    )
    return GroupRule(rule, group)


def _protocol(value: str | None, version: str, path: str, problems: Problems) -> str | None:
    """In Neutron's canonical name; None for any."""
    name = (value or "any").lower()
    if name == "any":
        return None
    if name in _ICMP["IPv6"] + _ICMP["IPv4"]:
        if name not in _ICMP[version]:
            problems.add(path, f"{value!r} is not a protocol of {version}")
        return "icmp" if version == "IPv4" else "ipv6-icmp"
    if name not in PROTOCOLS and not (name.isascii() and name.isdigit() and int(name) <= 255):
        problems.add(
            path, f"{value!r} is not a protocol: a number from 0 to 255, any, or one of {', '.join(PROTOCOLS)}"
        )
    return name


def _check_ports(protocol: str | None, low: int | None, high: int | None, path: str, problems: Problems) -> None:
    if low is None and high is None:
        return
    if protocol in ("icmp", "ipv6-icmp"):
        if low is None:
            problems.add(path, f"ICMP code (port_range_max) {high} is given but ICMP type (port_range_min) is missing")
        for key, value in (("port_range_min", low), ("port_range_max", high)):
            if value is not None and not 0 <= value <= 255:
                problems.add(f"{path}.{key}", f"{value} is not an ICMP type or code, it must be between 0 and 255")
    elif protocol not in _WITH_PORTS:
        problems.add(path, f"port_range_min and port_range_max need a protocol with ports, not {protocol or 'any'}")
    elif low is None or high is None:
        problems.add(path, "port_range_min and port_range_max go together: give both")
    elif not 1 <= low <= high <= 65535:
        problems.add(path, f"ports {low} to {high} are no range: 1 to 65535, port_range_min <= port_range_max")


def _prefix(value: str | None, version: str, path: str, problems: Problems) -> str | None:
    if value is None:
        return None
    try:
        prefix = ipaddress.ip_network(value, strict=False)
    except ValueError:
        problems.add(path, f"{value!r} is not an address or a network such as 192.0.2.0/24")
        return None
    if prefix.version != int(version[-1]):
        problems.add(path, f"{prefix} is IPv{prefix.version}, but ether_type is {version}")
    return str(prefix)
