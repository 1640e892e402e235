# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""From a port to nft's text: golden, and every wrong value by name."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host import firewall, nft, rules
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    DhcpPort,
    FixedIP,
    Network,
    Port,
    SecurityGroup,
    SecurityGroupRule,
    Subnet,
)
from hypothesis import given, settings
from hypothesis import strategies as st

Rule = SecurityGroupRule
DEFAULT = SecurityGroup(
    "5e000000",
    "default",
    (
        Rule("egress", "IPv4"),
        Rule("egress", "IPv6"),
        Rule("ingress", "IPv4", remote_group_id="5e000000"),
        Rule("ingress", "IPv6", remote_group_id="5e000000"),
    ),
)
KNOWN = "meta mark & 0x10000000 == 0x10000000 accept"


def port(*groups: SecurityGroup, **changes: Any) -> Port:
    subnets = (Subnet("s4", "v4", "10.0.0.0/24", "10.0.0.1"), Subnet("s6", "v6", "2001:db8::/64", None))
    server = DhcpPort("d0", "FA:16:3E:00:00:02", (FixedIP("s4", "10.0.0.2"),))
    network = Network("2d1c4f6a", "n", "local", 1400, "", subnets, server)
    values = {"fixed_ips": (FixedIP("s4", "10.0.0.5"), FixedIP("s6", "2001:db8::5")), "security_groups": groups}
    return Port(
        **{**{"id": "51ee5d4-0000-4", "network": network, "mac_address": "FA:16:3E:00:00:05"}, **values, **changes}
    )


def chain(made: rules.PortRules, kind: str) -> list[str]:
    return list(made.chains["bridge", f"{kind}-tap51ee5d4-000"].rules)


def test_golden_default_group() -> None:
    made = rules.port_rules(port(DEFAULT))
    assert chain(made, "antispoof") == [
        "ether saddr != fa:16:3e:00:00:05 drop",
        "arp saddr ether fa:16:3e:00:00:05 arp saddr ip 10.0.0.5 accept",
        "ip saddr 10.0.0.5 accept",
        "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
        "icmpv6 type nd-neighbor-advert @th,64,128 != "
        "{ 0x20010db8000000000000000000000005, 0xfe80000000000000f8163efffe000005 } drop",
        "ip6 saddr { 2001:db8::5, fe80::f816:3eff:fe00:5 } accept",
        "ip6 saddr :: ip6 daddr ff02::/16 icmpv6 type { 131, 135, 143 } accept",
        "drop",
    ]
    assert chain(made, "egress") == [
        "ether type ip udp sport 67 udp dport 68 drop",
        "ether type ip6 udp sport 547 udp dport 546 drop",
        "icmpv6 type { nd-router-advert, nd-redirect } drop",
        "ether type arp accept",
        "ether type ip udp sport 68 udp dport 67 accept",
        "ether type ip6 udp sport 546 udp dport 547 accept",
        "icmpv6 type { 131, 132, 133, 135, 136, 143 } accept",
        KNOWN,
        "ether type ip accept",
        "ether type ip6 accept",
        "drop",
    ]
    assert chain(made, "ingress") == [
        "ether type arp accept",
        KNOWN,
        "ether saddr fa:16:3e:00:00:02 ether type ip udp sport 67 udp dport 68 accept",
        "ether saddr fa:16:3e:00:00:02 ether type ip6 udp sport 547 udp dport 546 accept",
        "ether type ip udp sport 67 udp dport 68 drop",
        "ether type ip6 udp sport 547 udp dport 546 drop",
        "ip6 saddr fe80::/10 icmpv6 type { 130, 134 } accept",
        "icmpv6 type { 135, 136 } accept",
        "ether type ip ip saddr @sg4-5e000000 accept",
        "ether type ip6 ip6 saddr @sg6-5e000000 accept",
        "drop",
    ]
    assert made.members == {"sg4-5e000000": ("10.0.0.5",), "sg6-5e000000": ("2001:db8::5",)}
    assert made.remotes == ("sg4-5e000000", "sg6-5e000000")


def test_where_another_server_serves_the_groups_say_whether_its_answers_pass() -> None:
    served = port(DEFAULT).network
    outside = [dataclasses.replace(subnet, enable_dhcp=subnet.version == 6) for subnet in served.subnets]
    ingress = chain(
        rules.port_rules(port(DEFAULT, network=dataclasses.replace(served, subnets=tuple(outside)))), "ingress"
    )
    assert not [rule for rule in ingress if "sport 67" in rule]
    assert len([rule for rule in ingress if "sport 547" in rule]) == 2
    none = dataclasses.replace(served, dhcp_port=None)
    assert "dport" not in "".join(chain(rules.port_rules(port(DEFAULT, network=none)), "ingress"))


def test_no_group_lets_nothing_through() -> None:
    made = rules.port_rules(port())
    assert chain(made, "ingress")[-2:] == ["icmpv6 type { 135, 136 } accept", "drop"]
    assert chain(made, "egress")[-2:] == [KNOWN, "drop"]
    assert made.members == {}


def test_no_address_no_packet_but_dhcp() -> None:
    made = rules.port_rules(port(DEFAULT, fixed_ips=()))
    assert chain(made, "antispoof") == [
        "ether saddr != fa:16:3e:00:00:05 drop",
        "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
        "icmpv6 type nd-neighbor-advert @th,64,128 != 0xfe80000000000000f8163efffe000005 drop",
        "ip6 saddr fe80::f816:3eff:fe00:5 accept",
        "ip6 saddr :: ip6 daddr ff02::/16 icmpv6 type { 131, 135, 143 } accept",
        "drop",
    ]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (Rule("ingress", "IPv4", "tcp", 22, 22), "ether type ip meta l4proto 6 th dport 22 accept"),
        (Rule("ingress", "IPv4", "TCP", 1, 65535), "ether type ip meta l4proto 6 th dport 1-65535 accept"),
        (Rule("ingress", "IPv6", "17", 53), "ether type ip6 meta l4proto 17 th dport 53 accept"),
        (Rule("ingress", "IPv4", "udp"), "ether type ip meta l4proto 17 accept"),
        (Rule("ingress", "IPv4", "sctp", 5, 7), "ether type ip meta l4proto 132 th dport 5-7 accept"),
        (Rule("ingress", "IPv4", "112"), "ether type ip meta l4proto 112 accept"),
        (Rule("ingress", "IPv4", "vrrp"), "ether type ip meta l4proto 112 accept"),
        (Rule("ingress", "IPv4", "any"), "ether type ip accept"),
        (Rule("ingress", "IPv4", "0"), "ether type ip accept"),
        (Rule("ingress", "IPv4", "icmp"), "ether type ip meta l4proto 1 accept"),
        (Rule("ingress", "IPv4", "icmp", 8), "ether type ip icmp type 8 accept"),
        (Rule("ingress", "IPv4", "1", 3, 4), "ether type ip icmp type 3 icmp code 4 accept"),
        (Rule("ingress", "IPv6", "icmp"), "ether type ip6 meta l4proto 58 accept"),
        (Rule("ingress", "IPv6", "ipv6-icmp", 128, 0), "ether type ip6 icmpv6 type 128 icmpv6 code 0 accept"),
        (
            Rule("ingress", "IPv4", "tcp", 80, 80, "192.0.2.77/24"),
            "ether type ip ip saddr 192.0.2.0/24 meta l4proto 6 th dport 80 accept",
        ),
        (Rule("ingress", "IPv4", remote_ip_prefix="0.0.0.0/0"), "ether type ip accept"),
        (Rule("ingress", "IPv6", remote_ip_prefix="2001:DB8::1"), "ether type ip6 ip6 saddr 2001:db8::1/128 accept"),
        (Rule("egress", "IPv4", remote_ip_prefix="192.0.2.0/24"), "ether type ip ip daddr 192.0.2.0/24 accept"),
        (Rule("egress", "IPv4", remote_group_id="a-b"), "ether type ip ip daddr @sg4-a-b accept"),
    ],
)
def test_one_rule(rule: Rule, text: str) -> None:
    made = rules.port_rules(port(SecurityGroup("g", "g", (rule, rule))))
    found = chain(made, rule.direction)
    assert found[-2:] == [text, "drop"]
    assert found.count(text) == 1


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule("ingress", "IPv5"), "ethertype IPv5 must be IPv4 or IPv6"),
        (Rule("inward", "IPv4"), "direction inward must be ingress or egress"),
        (Rule("ingress", "IPv4", "tpc"), "protocol tpc must be a number up to 255"),
        (Rule("ingress", "IPv4", "256"), "protocol 256 must be"),
        (Rule("ingress", "IPv4", "-1"), "protocol -1 must be"),
        (Rule("ingress", "IPv4", "tcp", 23, 22), "port_range_min 23 must be at most port_range_max 22"),
        (Rule("ingress", "IPv4", "tcp", 1, 65536), "port_range_max 65536 must be from 0 to 65535"),
        (Rule("ingress", "IPv4", "tcp", -1, 5), "port_range_min -1 must be from 0 to 65535"),
        (Rule("ingress", "IPv4", None, 22, 22), "port_range_min 22 must be used with a protocol only"),
        (Rule("ingress", "IPv4", "gre", 22, 22), "protocol gre must be one of tcp"),
        (Rule("ingress", "IPv4", "icmp", 256), "port_range_min 256 must be from 0 to 255"),
        (Rule("ingress", "IPv4", remote_ip_prefix="10.0.0.300"), "remote_ip_prefix 10.0.0.300 must be a CIDR"),
        (Rule("ingress", "IPv4", remote_ip_prefix="::/0"), "remote_ip_prefix ::/0 must be IPv4"),
    ],
)
def test_wrong_values_are_named(rule: Rule, message: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(f"security group web (g1): {message}")):
        rules.port_rules(port(SecurityGroup("g1", "web", (rule,))))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (port(SecurityGroup("a; flush ruleset", "x", ())), "security group id 'a; flush ruleset'"),
        (port(SecurityGroup("g", "x", (Rule("ingress", "IPv4", remote_group_id="a b"),))), "security group id 'a b'"),
        (port(mac_address="fa:16:3e:00:00"), "is not a MAC address"),
        (port(id='x" }'), "port id"),
        (port(fixed_ips=(FixedIP("s4", "10.0.0.5; drop"),)), "port 51ee5d4-0000-4: fixed_ips: '10.0.0.5; drop'"),
    ],
)
def test_nothing_gets_into_nfts_text_unseen(made: Port, message: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        rules.port_rules(made)


def test_a_guards_link_local_address_follows_its_mac() -> None:
    assert rules.link_local("fa:16:3e:12:34:56") == "fe80::f816:3eff:fe12:3456"


@st.composite
def group_rules(draw: st.DrawFn) -> Rule:
    version = draw(st.sampled_from(["IPv4", "IPv6"]))
    protocol = draw(st.sampled_from([None, *rules.PROTOCOLS, "any", "200"]))
    low = high = None
    if protocol in ("tcp", "udp", "sctp", "dccp", "udplite"):
        low, high = draw(st.none() | st.integers(1, 65535)), draw(st.none() | st.integers(1, 65535))
        low, high = sorted((low, high)) if low is not None and high is not None else (low, high)
    elif protocol == ("icmp" if version == "IPv4" else "icmpv6"):
        low, high = draw(st.none() | st.integers(0, 255)), draw(st.none() | st.integers(0, 255))
    prefix = draw(st.none() | st.ip_addresses(v=int(version[-1])).map(str))
    length = draw(st.integers(0, 32 if version == "IPv4" else 128))
    group = draw(st.sampled_from([None, "g", "other"]))
    remote = f"{prefix}/{length}" if prefix else None
    return Rule(draw(st.sampled_from(["ingress", "egress"])), version, protocol, low, high, remote, group)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces")
@settings(max_examples=25, deadline=None)
@given(st.lists(group_rules(), max_size=12))
def test_whatever_neutron_allows_nft_takes_and_lists_the_same_again(given_rules: list[Rule]) -> None:
    wanted = [rules.port_rules(port(SecurityGroup("g", "g", tuple(given_rules))))]
    normal = nft.normalise(firewall.complete_script(wanted))
    held = {key: len(chain.rules) for key, chain in normal.chains.items()}
    texts = {**rules.base_chains(), **wanted[0].chains}
    assert held == {key: len(text.rules) for key, text in texts.items()}
    first = firewall.transaction(nft.Ruleset(), normal, wanted, [])
    loaded = nft.normalise(first.script)
    assert [step.effect for step in first.steps] == ["firewall.table", "firewall.port"]
    again = firewall.transaction(loaded, normal, wanted, [])
    assert (again.steps, again.script) == ([], "\n")
    last = firewall.transaction(loaded, nft.Ruleset(), [], [port()])
    assert nft.normalise(first.script + last.script) == nft.Ruleset()
