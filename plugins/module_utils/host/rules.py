# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What one port lets through, as nft's text: Neutron's security group rules and anti-spoofing. Pure; nothing is run.

Three chains a port, in the table ``bridge barestack``:

* ``antispoof-<tap>`` sees a frame from the guest before connection tracking does: only the port's own MAC and
  addresses. A forged packet can so never touch another guest's connection.
* ``egress-<tap>`` sees it after connection tracking (br_netfilter runs between the two): the groups' egress rules.
* ``ingress-<tap>`` sees whatever leaves the bridge for the guest, bridged, routed or the host's own: ingress rules.

The bridge family has no connection tracking of its own on every kernel, so the chains of ``inet barestack`` mark
packets of known connections with ``ESTABLISHED``, a bit of the packet mark, and the port's chains look at that.

A limit that follows: a packet that the host routes to a guest is tracked before ``ingress-<tap>`` drops it. A guest
whose groups restrict egress, and a peer behind the host's routing that is in league with it, can so answer each other.
Bridged packets are dropped before they are tracked.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host.nft import TABLE, ChainKey, WantedChain
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Port, SecurityGroup, SecurityGroupRule

ESTABLISHED = 0x10000000
"""The packet mark's bit for packets of an established connection: the highest but three, which nobody we know uses."""

_KNOWN = f"meta mark & {ESTABLISHED:#x} == {ESTABLISHED:#x} accept"
_MARK = f"ct state established,related meta mark set meta mark | {ESTABLISHED:#x}"

PROTOCOLS = {
    "ah": 51, "dccp": 33, "egp": 8, "esp": 50, "gre": 47, "icmp": 1, "icmpv6": 58, "igmp": 2, "ipip": 4,
    "ipv6-encap": 41, "ipv6-frag": 44, "ipv6-icmp": 58, "ipv6-nonxt": 59, "ipv6-opts": 60, "ipv6-route": 43,
    "ospf": 89, "pgm": 113, "rsvp": 46, "sctp": 132, "tcp": 6, "udp": 17, "udplite": 136, "vrrp": 112,
}  # fmt: skip
"""neutron_lib.constants.IP_PROTOCOL_MAP."""
_WITH_PORTS = {"tcp": 6, "udp": 17, "dccp": 33, "sctp": 132, "udplite": 136}
_FAMILIES = {"IPv4": ("ip", "4", "icmp", 1), "IPv6": ("ip6", "6", "icmpv6", 58)}

_DHCP_ANSWERS = {4: "ether type ip udp sport 67 udp dport 68", 6: "ether type ip6 udp sport 547 udp dport 546"}

MAPS = {
    "antispoof": ("prerouting_antispoof", "prerouting priority -200", "iifname"),
    "egress": ("prerouting_egress", "prerouting priority 10", "iifname"),
    "ingress": ("postrouting_ingress", "postrouting priority 0", "oifname"),
}
"""Map from tap to the port's chain, named as the chain begins: (base chain, hook, what is looked up).

br_netfilter passes bridged packets to the inet hooks at priority 0 of prerouting: -200 is before it, 10 behind it.
"""


@dataclass(frozen=True)
class PortRules:
    """What one protected port puts into our tables."""

    port_id: str
    tap: str
    chains: Dict[ChainKey, WantedChain]
    members: Dict[str, Tuple[str, ...]]
    """Named set to this port's addresses in it: it is a member of these groups."""
    remotes: Tuple[str, ...]
    """Named sets that its rules look into."""


def base_chains() -> Dict[ChainKey, WantedChain]:
    """The chains that all ports share."""
    chains = {
        ("bridge", base): WantedChain((f"{key} vmap @{name}",), f"{{ type filter hook {hook}; policy accept; }}")
        for name, (base, hook, key) in MAPS.items()
    }
    for hook, key in (("prerouting", "iifname"), ("forward", "oifname"), ("output", "oifname")):
        header = f"{{ type filter hook {hook} priority mangle; policy accept; }}"
        chains["inet", f"established_{hook}"] = WantedChain((f'{key} "brq*" {_MARK}',), header)
    return chains


def declared_maps() -> List[str]:
    """The maps that the base chains look into."""
    return [f"add map bridge {TABLE} {name} {{ type ifname : verdict; }}" for name in MAPS]


def declared_set(name: str) -> str:
    """One group's set of addresses: ``sg4-<id>`` or ``sg6-<id>``."""
    return f"add set bridge {TABLE} {name} {{ type {'ipv4_addr' if name.startswith('sg4-') else 'ipv6_addr'}; }}"


def chain_name(kind: str, tap: str) -> str:
    """``egress-tap01234567-89``."""
    return f"{kind}-{tap}"


def set_name(group_id: str, version: str) -> str:
    """The group's set for IP version ``"4"`` or ``"6"``; InvalidRequest for an id that nft could not take."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}", group_id):
        raise InvalidRequest(f"security group id {group_id!r} may hold letters, digits and _ . - only")
    return f"sg{version}-{group_id}"


def port_rules(port: Port) -> PortRules:
    """The port's chains and its groups' elements; InvalidRequest names the port, the group and the wrong value."""
    _check(port)
    addresses = {version: _addresses(port, version) for version in (4, 6)}
    members = {
        set_name(group.id, str(version)): found
        for group in port.security_groups
        for version, found in addresses.items()
        if found
    }
    made = {
        "antispoof": _antispoof(port, addresses[4], addresses[6]),
        "egress": _egress(port),
        "ingress": _ingress(port),
    }
    chains = {("bridge", chain_name(kind, port.tap_device)): WantedChain(tuple(rules)) for kind, rules in made.items()}
    remotes = tuple(sorted(set(re.findall(r"@(sg[46]-\S+)", "\n".join(made["egress"] + made["ingress"])))))
    return PortRules(port.id, port.tap_device, chains, members, remotes)


def link_local(mac: str) -> str:
    """The EUI-64 link-local address of a MAC."""
    octets = [int(part, 16) for part in mac.split(":")]
    octets = [octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]]
    return str(ipaddress.IPv6Address(bytes([0xFE, 0x80, 0, 0, 0, 0, 0, 0, *octets])))


def _check(port: Port) -> None:
    if not re.fullmatch(r"[A-Za-z0-9-]+", port.id):
        raise InvalidRequest(f"port id {port.id!r} may hold letters, digits and - only")
    for mac in [port.mac_address] + ([port.network.dhcp_port.mac_address] if port.network.dhcp_port else []):
        if not re.fullmatch(r"([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}", mac):
            raise InvalidRequest(f"port {port.id}: {mac!r} is not a MAC address")


def _addresses(port: Port, version: int) -> Tuple[str, ...]:
    try:
        found = [ipaddress.ip_address(fixed.ip_address) for fixed in port.fixed_ips]
    except ValueError as error:
        raise InvalidRequest(f"port {port.id}: fixed_ips: {error}") from None
    return tuple(str(address) for address in sorted(set(found), key=int) if address.version == version)


def _set(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{{ {', '.join(values)} }}"


def _antispoof(port: Port, v4: Sequence[str], v6: Sequence[str]) -> List[str]:
    mac = port.mac_address.lower()
    rules = [f"ether saddr != {mac} drop"]
    if v4:
        rules += [
            f"arp saddr ether {mac} arp saddr ip {_set(v4)} accept",
            f"ip saddr {_set(v4)} accept",
        ]
    rules.append("ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept")
    own = [*v6, link_local(mac)]
    targets = _set([f"0x{int(ipaddress.IPv6Address(address)):032x}" for address in own])
    rules += [
        f"icmpv6 type nd-neighbor-advert @th,64,128 != {targets} drop",
        f"ip6 saddr {_set(own)} accept",
        "ip6 saddr :: ip6 daddr ff02::/16 icmpv6 type { 131, 135, 143 } accept",
        "drop",
    ]
    return rules


def _egress(port: Port) -> List[str]:
    # Behind connection tracking fragments are whole again: a server's answer cannot hide in them.
    fixed = [
        "ether type ip udp sport 67 udp dport 68 drop",
        "ether type ip6 udp sport 547 udp dport 546 drop",
        "icmpv6 type { nd-router-advert, nd-redirect } drop",
        "ether type arp accept",
        "ether type ip udp sport 68 udp dport 67 accept",
        "ether type ip6 udp sport 546 udp dport 547 accept",
        "icmpv6 type { 131, 132, 133, 135, 136, 143 } accept",
        _KNOWN,
    ]
    return [*fixed, *_group_rules(port, "egress"), "drop"]


def _ingress(port: Port) -> List[str]:
    fixed = ["ether type arp accept", _KNOWN]
    server = port.network.dhcp_port
    if server:
        # On a wire that hosts share there may be other servers, and the port's groups may let their answers in.
        served = {subnet.version for subnet in port.network.subnets if subnet.enable_dhcp}
        answers = [answer for version, answer in _DHCP_ANSWERS.items() if version in served]
        fixed += [f"ether saddr {server.mac_address.lower()} {answer} accept" for answer in answers]
        fixed += [f"{answer} drop" for answer in answers]
    fixed.append("ip6 saddr fe80::/10 icmpv6 type { 130, 134 } accept")
    fixed.append("icmpv6 type { 135, 136 } accept")
    return [*fixed, *_group_rules(port, "ingress"), "drop"]


def _group_rules(port: Port, direction: str) -> List[str]:
    rules: List[str] = []
    for group in port.security_groups:
        for rule in group.rules:
            if rule.direction not in ("ingress", "egress"):
                raise _invalid(group, "direction", rule.direction, "ingress or egress")
            text = _group_rule(group, rule)
            if rule.direction == direction and text not in rules:
                rules.append(text)
    return rules


def _group_rule(group: SecurityGroup, rule: SecurityGroupRule) -> str:
    """One rule, as neutron.agent.linux.iptables_firewall._convert_sgr_to_iptables_rules reads it."""
    if rule.ethertype not in _FAMILIES:
        raise _invalid(group, "ethertype", rule.ethertype, "IPv4 or IPv6")
    family, version, _name, _number = _FAMILIES[rule.ethertype]
    parts = [f"ether type {family}"]
    side = "saddr" if rule.direction == "ingress" else "daddr"
    if rule.remote_ip_prefix is not None:
        prefix = _prefix(group, rule.remote_ip_prefix, int(version))
        parts += [f"{family} {side} {prefix}"] if prefix.prefixlen else []
    if rule.remote_group_id is not None:
        parts.append(f"{family} {side} @{set_name(rule.remote_group_id, version)}")
    return " ".join([*parts, *_protocol_match(group, rule), "accept"])


def _prefix(group: SecurityGroup, text: str, version: int) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        prefix = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise _invalid(group, "remote_ip_prefix", text, "a CIDR") from None
    if prefix.version != version:
        raise _invalid(group, "remote_ip_prefix", text, f"IPv{version}, as the rule's ethertype says")
    return prefix


def _protocol_match(group: SecurityGroup, rule: SecurityGroupRule) -> List[str]:
    low, high = rule.port_range_min, rule.port_range_max
    _family, _version, icmp, icmp_number = _FAMILIES[rule.ethertype]
    number = _protocol(group, rule.protocol, icmp_number)
    if number is None:
        if low is not None or high is not None:
            raise _invalid(group, "port_range_min", low, "used with a protocol only")
        return []
    if number == icmp_number:
        matches = [f"{icmp} type {_within(group, 'port_range_min', low, 255)}"] if low is not None else []
        matches += [f"{icmp} code {_within(group, 'port_range_max', high, 255)}"] if high is not None else []
        return matches or [f"meta l4proto {number}"]
    if low is None and high is None:
        return [f"meta l4proto {number}"]
    if number not in _WITH_PORTS.values():
        raise _invalid(group, "protocol", rule.protocol, f"one of {', '.join(_WITH_PORTS)} where a port range is given")
    first = _within(group, "port_range_min", low if low is not None else high, 65535)
    last = _within(group, "port_range_max", high if high is not None else low, 65535)
    if first > last:
        raise _invalid(group, "port_range_min", first, f"at most port_range_max {last}")
    return [f"meta l4proto {number}", f"th dport {first}" if first == last else f"th dport {first}-{last}"]


def _protocol(group: SecurityGroup, name: Optional[str], icmp: int) -> Optional[int]:
    """The protocol's number, None for any. Neutron reads ``icmp`` in an IPv6 rule as ICMPv6."""
    text = "any" if name is None else str(name).lower()
    if text in ("any", "0"):
        return None
    number = int(text) if text.isascii() and text.isdigit() else PROTOCOLS.get(text, -1)
    if not 0 < number <= 255:
        raise _invalid(group, "protocol", name, f"a number up to 255, any, or one of {', '.join(PROTOCOLS)}")
    return icmp if text == "icmp" else number


def _within(group: SecurityGroup, key: str, value: Optional[int], most: int) -> int:
    if not isinstance(value, int) or not 0 <= value <= most:
        raise _invalid(group, key, value, f"from 0 to {most}")
    return value


def _invalid(group: SecurityGroup, key: str, value: object, allowed: str) -> InvalidRequest:
    return InvalidRequest(f"security group {group.name} ({group.id}): {key} {value} must be {allowed}")
