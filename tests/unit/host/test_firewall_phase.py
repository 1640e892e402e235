# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What gets through and what does not, between real namespaces; and what the kernel holds before and after.

That a frame was dropped is shown by the one sent after it, which arrives alone.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import socket
import struct
from pathlib import Path
from typing import Any, List, Tuple

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host.firewall import port_is_protected, protected
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    FixedIP,
    SecurityGroup,
    SecurityGroupRule,
    Subnet,
)

from .conftest import Guest, Lab, shell

Rule = SecurityGroupRule
OUT = (Rule("egress", "IPv4"), Rule("egress", "IPv6"))
DEFAULT = SecurityGroup(
    "5e01",
    "default",
    (*OUT, Rule("ingress", "IPv4", remote_group_id="5e01"), Rule("ingress", "IPv6", remote_group_id="5e01")),
)
CLOSED = SecurityGroup("5e02", "closed", OUT)
WEB = SecurityGroup("5e03", "web", (*OUT, Rule("ingress", "IPv4", "tcp", 80, 81), Rule("ingress", "IPv4", "udp", 9, 9)))
MUTE = SecurityGroup("5e04", "mute", (Rule("ingress", "IPv4", "tcp", 80, 80),))
OPEN = SecurityGroup("5e05", "open", (*OUT, Rule("ingress", "IPv4"), Rule("ingress", "IPv6")))


def guests(lab: Lab, *groups: SecurityGroup, **options: Any) -> List[Guest]:
    """A guest for each group, all on one network, with their rules loaded before they have a tap."""
    net = lab.network(**options)
    ports = [lab.port(net, (group,)) for group in groups]
    servers = [lab.instance(port) for port in ports]
    lab.must("network", *servers)
    lab.must("firewall", *servers)
    return [lab.plug(port) for port in ports]


def blocked(client: Guest, server: Guest, number: int) -> bool:
    """Whether no TCP connection comes about in a time in which it otherwise does."""
    return not reached(client, server, number, 0.3)


def reached(client: Guest, server: Guest, number: int, seconds: float = 5) -> bool:
    """Whether a TCP connection comes about and carries data both ways."""
    with server.tcp(number) as listening, client.tcp() as calling:
        listening.listen()
        calling.settimeout(seconds)
        try:
            calling.connect((server.address, number))
        except (socket.timeout, OSError):
            return False
        answering, peer = listening.accept()
        with answering:
            if client.port.network == server.port.network:
                assert peer[0] == client.address
            calling.sendall(b"question")
            assert answering.recv(100) == b"question"
            answering.sendall(b"answer")
            return calling.recv(100) == b"answer"


def heard(listening: socket.socket, send: Any, last: Any) -> List[bytes]:
    """What arrives of ``send`` before ``last`` does."""
    send()
    last()
    found: List[bytes] = []
    while not found or found[-1] != b"last":
        found.append(listening.recv(2000))
    return found[:-1]


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(source: str, target: str, payload: bytes, protocol: int = 17) -> bytes:
    head = [0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0]
    ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(target).packed
    head[-1] = checksum(struct.pack("!BBHHHBBH", *head) + ends)
    return struct.pack("!BBHHHBBH", *head) + ends + payload


def udp(source: int, target: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", source, target, 8 + len(payload), 0) + payload


def frame(target: str, source: str, kind: int, payload: bytes) -> bytes:
    return mac(target) + mac(source) + struct.pack("!H", kind) + payload


def arp(operation: int, sender_mac: str, sender: str, target: str) -> bytes:
    ends = mac(sender_mac) + ipaddress.ip_address(sender).packed + bytes(6) + ipaddress.ip_address(target).packed
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + ends


class Wire:
    """Frames from one guest, watched on another's eth0."""

    def __init__(self, sender: Guest, watcher: Guest) -> None:
        self.sender, self.watcher = sender, watcher
        self.out, self.seen = sender.packet(), watcher.packet()

    def passed(self, sent: bytes) -> bool:
        """Whether the frame arrives before one that may."""
        self.out.send(sent)
        return sent in self.until_sentinel()

    def until_sentinel(self) -> List[bytes]:
        """Sends a frame that may pass, and returns those that arrive before it."""
        last = self.udp_frame(b"sentinel")
        self.out.send(last)
        found = []
        while last not in found:
            found.append(self.seen.recv(2000))
        return found[:-1]

    def udp_frame(
        self, payload: bytes, *, source: str = "", ip: str = "", ports: Tuple[int, int] = (7000, 7001)
    ) -> bytes:
        packet = ipv4(ip or self.sender.address, self.watcher.address, udp(*ports, payload))
        return frame(self.watcher.port.mac_address, source or self.sender.port.mac_address, 0x0800, packet)

    def close(self) -> None:
        self.out.close()
        self.seen.close()


@pytest.fixture
def wire(lab: Lab) -> Any:
    made = Wire(*guests(lab, OPEN, OPEN))
    yield made
    made.close()


def test_its_own_address_passes(wire: Wire) -> None:
    assert wire.passed(wire.udp_frame(b"mine"))


def test_another_ip_is_dropped(wire: Wire) -> None:
    assert not wire.passed(wire.udp_frame(b"forged", ip="10.9.0.99"))
    assert not wire.passed(wire.udp_frame(b"forged", ip=wire.watcher.address))
    assert not wire.passed(wire.udp_frame(b"forged", ip="10.9.0.1"))


def test_another_mac_is_dropped(wire: Wire) -> None:
    assert not wire.passed(wire.udp_frame(b"forged", source="fa:16:3e:66:66:66"))


def test_arp_may_only_tell_the_truth(wire: Wire) -> None:
    own, target, everyone = wire.sender.port.mac_address, wire.watcher.address, "ff:ff:ff:ff:ff:ff"
    for operation in (1, 2):
        assert wire.passed(frame(everyone, own, 0x0806, arp(operation, own, wire.sender.address, target)))
        assert not wire.passed(frame(everyone, own, 0x0806, arp(operation, own, "10.9.0.1", target)))
        assert not wire.passed(
            frame(everyone, own, 0x0806, arp(operation, "fa:16:3e:66:66:66", wire.sender.address, target))
        )


def test_a_guest_is_no_dhcp_server(wire: Wire) -> None:
    assert not wire.passed(wire.udp_frame(b"offer", ports=(67, 68)))


def test_a_dhcp_answer_does_not_hide_in_fragments(wire: Wire) -> None:
    def arrives(ports: Tuple[int, int]) -> bool:
        datagram = udp(*ports, b"marker" * 200)
        for offset, more in ((0, 0x2000), (800, 0)):
            packet = bytearray(
                ipv4(wire.sender.address, wire.watcher.address, datagram[offset:][: 800 if more else None])
            )
            packet[4:8] = struct.pack("!HH", ports[0], more | offset // 8)
            packet[10:12] = bytes(2)
            packet[10:12] = struct.pack("!H", checksum(bytes(packet[:20])))
            wire.out.send(frame(wire.watcher.port.mac_address, wire.sender.port.mac_address, 0x0800, bytes(packet)))
        return any(b"marker" in item for item in wire.until_sentinel())

    assert arrives((7000, 7001))
    assert not arrives((67, 68))


def test_the_unspecified_address_is_for_dhcp_only(wire: Wire) -> None:
    own, everyone = wire.sender.port.mac_address, "ff:ff:ff:ff:ff:ff"

    def packet(target: str, ports: Tuple[int, int]) -> bytes:
        return frame(everyone, own, 0x0800, ipv4("0.0.0.0", target, udp(*ports, b"x")))

    assert wire.passed(packet("255.255.255.255", (68, 67)))
    assert not wire.passed(packet("255.255.255.255", (68, 69)))
    assert not wire.passed(packet("10.9.0.255", (68, 67)))


def test_frames_of_other_kinds_are_dropped(wire: Wire) -> None:
    own, other = wire.sender.port.mac_address, wire.watcher.port.mac_address
    assert not wire.passed(frame(other, own, 0x88CC, b"lldp"))
    tagged = struct.pack("!H", 5) + struct.pack("!H", 0x0800) + ipv4("10.9.0.1", wire.watcher.address, udp(1, 2, b"x"))
    assert not wire.passed(frame(other, own, 0x8100, tagged))


def ipv6(source: str, target: str, kind: int, body: bytes) -> bytes:
    ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(target).packed
    message = struct.pack("!BBH", kind, 0, 0) + body
    message = struct.pack("!BBH", kind, 0, checksum(ends + struct.pack("!II", len(message), 58) + message)) + body
    return struct.pack("!IHBB", 0x60000000, len(message), 58, 255) + ends + message


def test_neighbour_discovery_may_only_tell_the_truth(wire: Wire) -> None:
    own, everyone = wire.sender.port.mac_address, "33:33:00:00:00:01"
    local = "fe80::f816:3eff:fe00:" + own[-2:]

    def advert(source: str, target: str) -> bytes:
        body = struct.pack("!I", 0x20000000) + ipaddress.ip_address(target).packed
        return frame(everyone, own, 0x86DD, ipv6(source, "ff02::1", 136, body))

    assert wire.passed(advert(local, local))
    assert not wire.passed(advert(local, "fe80::1"))
    assert not wire.passed(advert("fe80::1", local))
    assert not wire.passed(frame(everyone, own, 0x86DD, ipv6(local, "ff02::1", 134, bytes(12))))
    solicit = bytes(4) + ipaddress.ip_address(local).packed
    assert wire.passed(frame(everyone, own, 0x86DD, ipv6("::", "ff02::1:ff00:1", 135, solicit)))
    assert not wire.passed(frame(everyone, own, 0x86DD, ipv6("::", local, 128, bytes(4))))


def test_a_group_speaks_among_itself_and_others_do_not(lab: Lab) -> None:
    one, two, stranger = guests(lab, DEFAULT, DEFAULT, CLOSED)
    assert reached(one, two, 4000)
    assert reached(two, one, 4001)
    assert blocked(stranger, one, 4002)
    assert blocked(one, stranger, 4003)


def test_a_port_range_is_that_range(lab: Lab) -> None:
    server, client = guests(lab, WEB, CLOSED)
    assert all(reached(client, server, number) for number in (80, 81))
    assert all(blocked(client, server, number) for number in (79, 82))


def test_answers_pass_where_nothing_else_may_go_out(lab: Lab) -> None:
    server, client, open_one = guests(lab, MUTE, CLOSED, OPEN)
    assert reached(client, server, 80)
    assert blocked(server, open_one, 80)


def test_a_forged_packet_does_not_end_anothers_connection(lab: Lab) -> None:
    server, client, forger = guests(lab, WEB, CLOSED, OPEN)
    with server.tcp(80) as listening, client.tcp() as calling, client.packet() as seen, forger.packet() as out:
        listening.listen()
        calling.connect((server.address, 80))
        answering, peer = listening.accept()
        # The forger even knows the sequence number: it is in the handshake's last segment.
        segments = iter(lambda: seen.recv(2000), b"")
        segment = next(item for item in segments if item[12:14] == b"\x08\x00" and item[47:48] == b"\x10")
        fields = [peer[1], 80, struct.unpack("!I", segment[38:42])[0], 0, 0x50, 0x04, 0, 0, 0]
        ends = ipaddress.ip_address(client.address).packed + ipaddress.ip_address(server.address).packed
        fields[-2] = checksum(ends + struct.pack("!HH", 6, 20) + struct.pack("!HHIIBBHHH", *fields))
        reset = struct.pack("!HHIIBBHHH", *fields)
        with answering:
            packet = ipv4(client.address, server.address, reset, 6)
            out.send(frame(server.port.mac_address, client.port.mac_address, 0x0800, packet))
            out.send(frame(server.port.mac_address, forger.port.mac_address, 0x0800, packet))
            calling.sendall(b"still here")
            assert answering.recv(100) == b"still here"
            tracked = Path("/proc/thread-self/net/nf_conntrack").read_text().splitlines()
            assert ["ESTABLISHED" in line for line in tracked if f"sport={peer[1]}" in line] == [True]
            answering.sendall(b"me too")
            assert calling.recv(100) == b"me too"


def test_the_host_gets_in_only_where_a_rule_says_so(lab: Lab) -> None:
    (server,) = guests(lab, WEB)
    host = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server.udp(9) as allowed, server.udp(10) as denied, host:
        host.settimeout(10)
        host.sendto(b"denied", (server.address, 10))
        host.sendto(b"allowed", (server.address, 9))
        text, sender = allowed.recvfrom(100)
        assert text == b"allowed"
        denied.setblocking(False)
        with pytest.raises(BlockingIOError):
            denied.recv(100)
        allowed.sendto(b"answer", sender)
        assert host.recv(100) == b"answer"


def test_a_guest_asks_the_host_and_gets_its_answer(lab: Lab) -> None:
    (client,) = guests(lab, CLOSED)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host, client.udp() as asking:
        host.bind(("10.9.0.1", 5353))
        host.settimeout(10)
        asking.sendto(b"question", ("10.9.0.1", 5353))
        text, sender = host.recvfrom(100)
        host.sendto(b"answer", sender)
        assert (text, asking.recv(100)) == (b"question", b"answer")


def test_between_networks_the_rules_hold_too(lab: Lab) -> None:
    nets = [lab.network(1), lab.network(2)]
    ports = [lab.port(nets[0], (CLOSED,)), lab.port(nets[1], (WEB,))]
    servers = [lab.instance(port) for port in ports]
    lab.must("network", *servers)
    lab.must("firewall", *servers)
    client, server = (lab.plug(port) for port in ports)
    assert reached(client, server, 80)
    assert blocked(client, server, 4000)
    assert blocked(server, client, 80)


def test_ipv6_goes_by_the_same_rules(lab: Lab) -> None:
    net = lab.network()
    net = dataclasses.replace(net, subnets=(*net.subnets, Subnet("s6", "v6", "fd00:9::/64", "fd00:9::1")))
    ports = [lab.port(net, (group,)) for group in (DEFAULT, DEFAULT, CLOSED)]
    ports = [
        dataclasses.replace(port, fixed_ips=(FixedIP("s6", f"fd00:9::{number}"),))
        for number, port in enumerate(ports, 11)
    ]
    servers = [lab.instance(port) for port in ports]
    lab.must("network", *servers)
    lab.must("firewall", *servers)
    one, two, stranger = (lab.plug(port) for port in ports)
    with two.udp(4000, "::") as listening, stranger.udp(0, "::") as outsider, one.udp(0, "::") as friend:

        def foreign() -> None:
            outsider.sendto(b"foreign", (two.address, 4000))

        def last() -> None:
            friend.sendto(b"last", (two.address, 4000))

        assert heard(listening, foreign, last) == []
    assert lab.must("firewall", *servers) == []


def test_without_port_security_nothing_is_filtered(lab: Lab) -> None:
    net = lab.network()
    free, strict = lab.port(net, port_security_enabled=False), lab.port(net, (OPEN,))
    servers = [lab.instance(free), lab.instance(strict)]
    lab.must("network", *servers)
    lab.must("firewall", *servers)
    made = Wire(lab.plug(free), lab.plug(strict))
    assert made.passed(made.udp_frame(b"forged", ip="10.9.0.99"))
    made.close()
    assert free.tap_device not in shell("nft list ruleset")
    lab.must("firewall", lab.instance(dataclasses.replace(strict, port_security_enabled=False)))
    assert "table bridge" not in shell("nft list ruleset")


def ruleset() -> str:
    return shell("nft list ruleset")


def servers_of(lab: Lab, count: int, *groups: SecurityGroup) -> List[Any]:
    net = lab.network()
    return [lab.instance(lab.port(net, groups)) for _ in range(count)]


def test_present_again_check_and_absent_twice(lab: Lab) -> None:
    servers = servers_of(lab, 3, DEFAULT)
    planned = lab.must("firewall", *servers, check=True)
    assert not ruleset()
    assert not lab.state_files()
    assert lab.must("firewall", *servers) == planned
    ids = sorted(server.ports[0].id for server in servers)
    assert planned == ["firewall.table barestack", *(f"firewall.port {port_id}" for port_id in ids)]
    assert lab.must("firewall", *servers) == []
    before = ruleset()
    assert lab.must("firewall", servers[0], state="absent", check=True)
    assert ruleset() == before
    lab.must("firewall", servers[0], state="absent")
    assert servers[0].ports[0].tap_device not in ruleset()
    assert f"{servers[0].ports[0].fixed_ips[0].ip_address} " not in ruleset()
    assert lab.must("firewall", *servers[1:]) == []
    lab.must("firewall", *servers, state="absent")
    assert not ruleset()
    assert lab.must("firewall", *servers, state="absent") == []
    assert not lab.state_files()


def test_what_was_tampered_with_is_mended_and_nothing_else(lab: Lab) -> None:
    servers = servers_of(lab, 2, DEFAULT)
    lab.must("firewall", *servers)
    whole = ruleset()
    port = servers[0].ports[0]
    tap = port.tap_device
    mine = [f"firewall.port {port.id}"]
    rule = next(
        item["rule"]["handle"]
        for item in json.loads(shell(f"nft -j list chain bridge barestack ingress-{tap}"))["nftables"]
        if "rule" in item and "5e01" in json.dumps(item)
    )
    for damage in (
        f"delete rule bridge barestack ingress-{tap} handle {rule}",
        f"insert rule bridge barestack ingress-{tap} accept",
        f"flush chain bridge barestack antispoof-{tap}",
        f"delete element bridge barestack egress {{ {tap} }}",
        f"delete element bridge barestack sg4-5e01 {{ {port.fixed_ips[0].ip_address} }}",
    ):
        shell(f"nft '{damage}'")
        assert lab.must("firewall", *servers) == mine, damage
        assert lab.must("firewall", *servers) == []
        assert sorted(ruleset().split()) == sorted(whole.split())
    for damage in (
        "flush chain bridge barestack postrouting_ingress",
        "flush chain inet barestack established_forward",
        "delete table inet barestack",
    ):
        shell(f"nft '{damage}'")
        assert lab.must("firewall", *servers) == ["firewall.table barestack"], damage
        assert sorted(ruleset().split()) == sorted(whole.split())
    shell("nft delete table bridge barestack")
    assert len(lab.must("firewall", *servers)) == 3
    assert sorted(ruleset().split()) == sorted(whole.split())


def test_the_diff_says_what_was_and_what_is(lab: Lab) -> None:
    (server,) = servers_of(lab, 1, DEFAULT)
    lab.must("firewall", server)
    chain = f"ingress-{server.ports[0].tap_device}"
    shell(f"nft flush chain bridge barestack {chain}")
    (entry,) = lab.run("firewall", server, check=True)["diff"]
    assert entry["before"] == f"bridge {chain}"
    assert "ether type ip ip saddr @sg4-5e01 accept" in entry["after"]


def test_a_changed_group_changes_the_port(lab: Lab) -> None:
    (server,) = servers_of(lab, 1, DEFAULT)
    lab.must("firewall", server)
    port = server.ports[0]
    moved = server.with_(ports=(dataclasses.replace(port, security_groups=(WEB,)),))
    assert lab.must("firewall", moved) == ["firewall.table barestack", f"firewall.port {port.id}"]
    found = ruleset()
    assert "sg4-5e01" not in found
    assert "sg4-5e03" in found
    assert "tcp dport 80-81" in found
    assert lab.must("firewall", moved) == []


def test_a_group_that_nobody_here_is_in_is_an_empty_set(lab: Lab) -> None:
    far = SecurityGroup("5e06", "far", (Rule("ingress", "IPv4", remote_group_id="elsewhere"),))
    (server,) = servers_of(lab, 1, far)
    lab.must("firewall", server)
    assert "set sg4-elsewhere" in ruleset()
    assert lab.must("firewall", server) == []


def test_one_bad_group_leaves_its_neighbour_alone(lab: Lab) -> None:
    bad = SecurityGroup("5e07", "bad", (Rule("ingress", "IPv4", "tpc"),))
    net = lab.network()
    wrong, right = lab.instance(lab.port(net, (bad,))), lab.instance(lab.port(net, (DEFAULT,)))
    result = lab.run("firewall", wrong, right)
    assert "security group bad (5e07): protocol tpc" in result["instances"][0].fault.message
    assert result["instances"][1].fault is None
    assert protected([*wrong.ports, *right.ports]) == {right.ports[0].id}


def test_protected_is_what_the_kernel_says(lab: Lab) -> None:
    servers = servers_of(lab, 2, DEFAULT)
    ports = [server.ports[0] for server in servers]
    assert protected(ports) == set()
    lab.must("firewall", servers[0])
    assert port_is_protected(ports[0])
    assert not port_is_protected(ports[1])
    shell(f"nft flush chain bridge barestack antispoof-{ports[0].tap_device}")
    assert not port_is_protected(ports[0])


def test_network_and_firewall_go_in_either_order(lab: Lab) -> None:
    for order in (("network", "firewall"), ("firewall", "network")):
        (server,) = servers_of(lab, 1, DEFAULT)
        lab.must("network", server)
        lab.must("firewall", server)
        lab.must(order[0], server, state="absent")
        assert "table inet barestack" in ruleset()
        lab.must(order[1], server, state="absent")
        assert not ruleset()


def test_without_br_netfilter_it_says_so(lab: Lab) -> None:
    (server,) = servers_of(lab, 1, DEFAULT)
    shell("sysctl -qw net.bridge.bridge-nf-call-iptables=0")
    fault = lab.run("firewall", server)["instances"][0].fault
    assert "net.bridge.bridge-nf-call-iptables is 0, must be 1" in fault.message
    assert not ruleset()


def test_anothers_tables_are_left_alone(lab: Lab) -> None:
    shell("nft add table bridge theirs")
    (server,) = servers_of(lab, 1, DEFAULT)
    lab.must("firewall", server)
    lab.must("firewall", server, state="absent")
    assert ruleset().split() == ["table", "bridge", "theirs", "{", "}"]
