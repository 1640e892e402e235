# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Flat networks: one host and its interface, and two hosts on one wire with a guest on each.

A host is a thread with namespaces of its own, network and mounts: the names below /run/netns are its own then too. The
wire is a bridge in the test's network namespace, which so stands for whatever else is on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple, TypeVar

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host import network as host_network
from ansible_collections.barestack.kvm.plugins.module_utils.host.netlink import Link
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import (
    Conflict,
    HostError,
    InvalidRequest,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    DhcpPort,
    FixedIP,
    Instance,
    Network,
    Port,
    SecurityGroup,
    SecurityGroupRule,
    Subnet,
)

from .conftest import _CLONE_NEWNET, _LIBC, Guest, Lab, shell
from .test_dhcp_phase import lease
from .test_firewall_phase import arp, frame, ipv4, mac, udp
from .test_networking_together import killed

T = TypeVar("T")
Rule = SecurityGroupRule
_CLONE_NEWNS = 0x00020000
OUT = (Rule("egress", "IPv4"), Rule("egress", "IPv6"))
OPEN = SecurityGroup("5e05", "open", (*OUT, Rule("ingress", "IPv4"), Rule("ingress", "IPv6")))
CLOSED = SecurityGroup("5e02", "closed", OUT)
MUTE = SecurityGroup("5e04", "mute", (Rule("ingress", "IPv4", "tcp", 80, 80), Rule("egress", "IPv4", "tcp", 1, 1)))
WEB = SecurityGroup("5e03", "web", (*OUT, Rule("ingress", "IPv4", "tcp", 80, 80, "10.9.0.0/24")))
MAPPINGS = {"physnet1": "eth1"}
DISCOVER, OFFER, REQUEST, INFORM = 1, 2, 3, 8
EVERYONE = "ff:ff:ff:ff:ff:ff"


def flat(lab: Lab, number: int = 0, **changes: Any) -> Network:
    return lab.network(number, **{"network_type": "flat", "physical_network": "physnet1", **changes})


def interface(name: str = "eth1", mtu: int = 1500) -> None:
    shell(f"ip link add {name} mtu {mtu} type veth peer name far{name}")


# The plan and the choice of the interface, pure


def declared(**changes: Any) -> Network:
    values = {"id": "2d1c4f6a-9b0e-4c55", "name": "n", "network_type": "flat", "mtu": 1400, "dns_domain": ""}
    subnets = (Subnet("a", "a", "10.0.0.0/24", "10.0.0.1"),)
    return Network(**{**values, "subnets": subnets, "physical_network": "physnet1", **changes})


def test_a_flat_network_has_no_gateway_here() -> None:
    assert host_network.plan(declared()) == host_network.Plan((), (), "physnet1")
    with pytest.raises(InvalidRequest, match="network_type flat needs a physical_network"):
        host_network.plan(declared(physical_network=""))


BRIDGE = "brq2d1c4f6a-9b"
LINKS = {
    "eth0": Link(2, "eth0", True, 1500, "02:00:00:00:00:02"),
    "eth1": Link(3, "eth1", False, 1500, "02:00:00:00:00:03"),
    "eth2": Link(4, "eth2", True, 1399, "02:00:00:00:00:04"),
    "eth3": Link(5, "eth3", True, 1500, "02:00:00:00:00:05", master=9),
    "br9": Link(9, "br9", True, 1500, "02:00:00:00:00:09", kind="bridge"),
}


def found(mapped: Any, links: Dict[str, Link] = LINKS) -> Link:
    return host_network.find_uplink(declared(), {"physnet1": mapped}, links, {2: ("192.0.2.5/24",), 9: ("10.7.0.1/8",)})


def test_the_interface_is_that_of_the_mapping() -> None:
    assert found("eth1") == LINKS["eth1"]


@pytest.mark.parametrize(
    ("mapped", "kind", "message"),
    [
        (None, HostError, "physical network physnet1: this host has no interface for it"),
        ("eth9", HostError, "interface eth9 does not exist on this host"),
        ("eth0", Conflict, "eth0 has the address 192.0.2.5/24, .* this host could lose its own connection"),
        ("eth2", Conflict, "the MTU of eth2 is 1399, the network's is 1400"),
        ("eth3", Conflict, "eth3 is in br9 already"),
        ("tap12345678-90", InvalidRequest, "has 'tap12345678-90', which is not a physical interface"),
        (["eth1"], InvalidRequest, r"has \['eth1'\], which is not a physical interface"),
    ],
)
def test_an_interface_that_cannot_be_it_is_refused(mapped: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=rf"network n \(2d1c4f6a-9b0e-4c55\), .*{message}"):
        found(mapped)


def test_an_interface_that_is_in_its_place_stays_whatever_addresses_it_got_since() -> None:
    bridge = Link(7, BRIDGE, True, 1400, "02:00:00:00:00:03", kind="bridge")
    inside = dataclasses.replace(LINKS["eth0"], master=7)
    assert found("eth0", {**LINKS, BRIDGE: bridge, "eth0": inside}) == inside


def test_a_second_way_out_of_the_bridge_is_refused() -> None:
    bridge = Link(7, BRIDGE, True, 1400, "02:00:00:00:00:03", kind="bridge")
    links = {**LINKS, BRIDGE: bridge, "tapx": Link(8, "tapx", True, 1400, "", master=7)}
    assert found("eth1", links)
    links["eth8"] = Link(6, "eth8", True, 1400, "", master=7)
    with pytest.raises(Conflict, match=f"{BRIDGE} has eth8 in it, and with eth1 it would join two wires"):
        found("eth1", links)


# One host


def rules() -> str:
    return shell("nft list ruleset")


def test_present_again_check_and_absent_twice(lab: Lab) -> None:
    interface()
    net = flat(lab)
    first, second = lab.instance(lab.port(net)), lab.instance(lab.port(net))
    before = lab.links()

    planned = lab.must("network", first, second, check=True, physical_interface_mappings=MAPPINGS)
    assert lab.links() == before
    assert not rules()
    assert not lab.state_files()
    assert lab.must("network", first, second, physical_interface_mappings=MAPPINGS) == planned
    assert planned == [
        *(f"network.port {port}" for port in sorted([first.ports[0].id, second.ports[0].id])),
        f"network.bridge {net.bridge}",
        f"network.uplink {net.bridge}",
    ]
    links = lab.links()
    assert (links["eth1"]["master"], "UP" in links["eth1"]["flags"]) == (net.bridge, True)
    assert (links[net.bridge]["mtu"], links[net.bridge]["address"]) == (1400, links["eth1"]["address"])
    assert "inet" not in shell(f"ip addr show {net.bridge}")
    assert "masquerade" not in rules()
    assert lab.must("network", first, second, physical_interface_mappings=MAPPINGS) == []

    assert lab.must("network", first, state="absent") == [f"network.port {first.ports[0].id}"]
    assert lab.links()["eth1"]["master"] == net.bridge
    planned = lab.must("network", second, state="absent", check=True)
    assert lab.links()["eth1"]["master"] == net.bridge
    # Without the mapping: a host that lost it, or maps another interface now, lets go all the same.
    assert lab.must("network", second, state="absent") == planned
    assert planned == [
        f"network.port {second.ports[0].id}",
        f"network.uplink {net.bridge}",
        f"network.bridge {net.bridge}",
    ]
    assert set(lab.links()) == set(before)
    assert "master" not in lab.links()["eth1"]
    assert not rules()
    assert not lab.state_files()
    assert lab.must("network", first, second, state="absent") == []


def test_only_what_differs_is_mended(lab: Lab) -> None:
    interface()
    net = flat(lab)
    server = lab.instance(lab.port(net))
    uplink = [f"network.uplink {net.bridge}"]
    chain = f"netdev barestack {net.bridge}"
    lab.must("network", server, physical_interface_mappings=MAPPINGS)
    for damage in (
        "ip link set eth1 nomaster",
        "ip link set eth1 down",
        "nft delete table netdev barestack",
        f"nft add rule {chain} accept",
        f"nft 'add chain {chain} {{ type filter hook ingress device {net.bridge} priority 0; policy accept; }}'",
    ):
        shell(damage)
        assert lab.must("network", server, physical_interface_mappings=MAPPINGS) == uplink, damage
        assert lab.must("network", server, physical_interface_mappings=MAPPINGS) == []
        assert f'hook ingress device "{net.bridge}" priority filter; policy drop;\n\t}}' in rules()
    shell(f"ip link del {net.bridge}")
    lab.must("network", server, physical_interface_mappings=MAPPINGS)
    assert lab.must("network", server, physical_interface_mappings=MAPPINGS) == []
    assert lab.links()["eth1"]["master"] == net.bridge


@pytest.mark.parametrize("lost", ["ip link set eth1 nomaster", "ip link del eth1", "ip link del {bridge}"])
def test_what_is_left_of_it_goes(lab: Lab, lost: str) -> None:
    interface()
    net = flat(lab)
    server = lab.instance(lab.port(net))
    lab.must("network", server, physical_interface_mappings=MAPPINGS)
    shell(lost.format(bridge=net.bridge))
    lab.must("network", server, state="absent")
    assert net.bridge not in lab.links()
    assert not rules()
    assert not lab.state_files()


def test_another_network_keeps_its_own(lab: Lab) -> None:
    interface("eth1")
    interface("eth2")
    mappings = {"physnet1": "eth1", "physnet2": "eth2"}
    nets = [flat(lab, 1), flat(lab, 2, physical_network="physnet2"), lab.network(3)]
    servers = [lab.instance(lab.port(net)) for net in nets]
    lab.must("network", *servers, physical_interface_mappings=mappings)
    lab.must("network", servers[0], state="absent")
    assert lab.must("network", *servers[1:], physical_interface_mappings=mappings) == []
    assert f'"{nets[1].bridge}"' in rules()
    lab.must("network", servers[2], state="absent")
    assert lab.must("network", servers[1], physical_interface_mappings=mappings) == []
    lab.must("network", servers[1], state="absent")
    assert not rules()


@pytest.mark.parametrize(
    ("prepare", "mappings", "message"),
    [
        ("true", {}, "this host has no interface for it"),
        ("true", {"physnet1": "eth7"}, "interface eth7 does not exist"),
        ("ip addr add 192.0.2.5/24 dev eth1", MAPPINGS, "eth1 has the address 192.0.2.5/24"),
        ("ip link add other type bridge; ip link set eth1 master other", MAPPINGS, "eth1 is in other already"),
        ("ip link set eth1 mtu 1399", MAPPINGS, "the MTU of eth1 is 1399, the network's is 1400"),
    ],
)
def test_a_refusal_changes_nothing_and_spares_the_neighbour(
    lab: Lab, prepare: str, mappings: Dict[str, str], message: str
) -> None:
    interface()
    shell(prepare)
    bad, good = lab.instance(lab.port(flat(lab, 1))), lab.instance(lab.port(lab.network(2)))
    before = lab.links()
    for check in (True, False):
        result = lab.run("network", bad, good, check=check, physical_interface_mappings=mappings)
        assert message in result["instances"][0].fault.message
        assert result["instances"][1].fault is None
        assert not [effect for effect in result["effects"] if bad.ports[0].network.bridge in effect]
    assert {name: lab.links()[name] for name in before} == before
    assert bad.ports[0].network.bridge not in lab.links()
    assert not Path(lab.paths.network_directory(bad.ports[0].network.id)).exists()


@pytest.mark.parametrize("part", range(6))
@pytest.mark.parametrize("state", ["present", "absent"])
def test_a_call_killed_anywhere_is_finished_by_the_next(lab: Lab, state: str, part: int) -> None:
    interface()
    net = flat(lab)
    server = lab.instance(lab.port(net))
    before = set(lab.links())

    def walk(to: str) -> List[str]:
        return lab.must("network", server, state=to, physical_interface_mappings=MAPPINGS)

    took = {}
    for to in ("present", "absent"):
        begun = time.monotonic()
        walk(to)
        took[to] = time.monotonic() - begun
    if state == "absent":
        walk("present")
    killed(lambda: walk(state), took[state] * (part + 0.5) / 6)
    walk(state)
    assert walk(state) == []
    if state == "present":
        assert lab.links()["eth1"]["master"] == net.bridge
    else:
        assert set(lab.links()) == before
        assert not rules()
        assert not lab.state_files()


# Two hosts


class Host:
    """A compute host whose interface eth1 leads to the wire."""

    def __init__(self, number: int) -> None:
        self._thread = ThreadPoolExecutor(1)
        path = self.do(_entered)
        uplink = f"wire{number}"
        shell(f"ip link add {uplink} type veth peer name eth1 netns {path}")
        shell(f"ip link set {uplink} master wire up")
        self.do(lambda: shell("ip link set lo up; sysctl -qw net.ipv4.ip_forward=1"))
        state_path = tempfile.mkdtemp(prefix="barestack-test-")
        os.chmod(state_path, 0o755)  # noqa: S103
        self.lab = Lab(state_path)

    def do(self, work: Callable[[], T]) -> T:
        return self._thread.submit(work).result()

    def close(self) -> None:
        try:
            self.do(self.lab.close)
        finally:
            self._thread.shutdown()
            shutil.rmtree(self.lab.paths.state_path, ignore_errors=True)

    def boot(self, port: Port, phases: Tuple[str, ...] = ("network", "dhcp", "firewall")) -> Instance:
        server = self.lab.instance(port, hostname=f"vm{port.id[:4]}")
        for phase in phases:
            self.do(lambda phase=phase: self.lab.must(phase, server, physical_interface_mappings=MAPPINGS))
        return server

    def plug(self, port: Port, **options: Any) -> Guest:
        return self.do(lambda: self.lab.plug(port, **options))


def _entered() -> str:
    """Gives this thread its namespaces; returns the path of that of its network."""
    assert _LIBC.unshare(_CLONE_NEWNET | _CLONE_NEWNS) == 0
    os.makedirs("/run/netns", exist_ok=True)
    shell("mount --make-rprivate /; mount -t tmpfs none /run/netns")
    return f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"


class Wire:
    """Two hosts, a network as each of them has it, and a guest on each."""

    def __init__(self, outside: Lab) -> None:
        self.outside = outside
        self.hosts: List[Host] = []
        self.net = flat(outside)
        outside.networks.clear()  # it is the hosts'
        shell("ip link add wire type bridge forward_delay 0 mcast_snooping 0; ip link set wire up promisc on")

    def add_hosts(self) -> None:
        for number in range(2):
            self.hosts.append(Host(number))

    def on(self, number: int) -> Network:
        """The network with the DHCP port that the records have for this host: 10.9.0.2 or 10.9.0.3."""
        fixed = (FixedIP(self.net.subnets[0].id, f"10.9.0.{number + 2}"),)
        server = DhcpPort(f"{number:08x}-{uuid.uuid4()}", f"fa:16:3e:ff:00:{number:02x}", fixed)
        made = self.hosts[number].lab.networks.get(self.net.id) or dataclasses.replace(self.net, dhcp_port=server)
        self.hosts[number].lab.networks[made.id] = made
        return made

    def port(self, number: int, *groups: SecurityGroup) -> Port:
        return self.outside.port(self.on(number), groups)

    def guest(self, number: int, *groups: SecurityGroup, **options: Any) -> Guest:
        port = self.port(number, *groups)
        self.hosts[number].boot(port)
        return self.hosts[number].plug(port, **options)

    def inside(self, number: int, work: Callable[[], T]) -> T:
        return self.hosts[number].do(work)

    def ping(self, number: int, guest: Guest, address: str) -> bool:
        """Whether a guest of this host gets an answer."""
        command = f"ip netns exec {guest.name} ping -n -c 1 -W 2 {address} >/dev/null && echo yes || echo no"
        return self.inside(number, lambda: shell(command)) == "yes\n"

    def reached(self, client: Tuple[int, Guest], server: Tuple[int, Guest], number: int, seconds: float = 5) -> bool:
        """Whether a TCP connection comes about and carries data both ways."""
        (here, asker), (there, answerer) = client, server
        listening, calling = self.inside(there, lambda: answerer.tcp(number)), self.inside(here, asker.tcp)
        with listening, calling:
            listening.listen()
            calling.settimeout(seconds)
            try:
                calling.connect((answerer.address, number))
            except OSError:
                return False
            answering, peer = listening.accept()
            with answering:
                assert peer[0] == asker.address
                calling.sendall(b"question")
                assert answering.recv(100) == b"question"
                answering.sendall(b"answer")
                return calling.recv(100) == b"answer"

    def packets(self) -> socket.socket:
        """Frames from and to the wire itself."""
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind(("wire", 0))
        made.settimeout(10)
        return made

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for host in self.hosts:
                stack.callback(host.close)


@pytest.fixture
def wire(lab: Lab) -> Iterator[Wire]:
    made = Wire(lab)
    try:
        made.add_hosts()
        yield made
    finally:
        made.close()


def test_guests_of_two_hosts_reach_each_other_as_their_groups_say(wire: Wire) -> None:
    one, two, closed = wire.guest(0, OPEN), wire.guest(1, WEB), wire.guest(1, CLOSED)
    assert wire.reached((0, one), (1, two), 80)
    assert not wire.reached((0, one), (1, two), 81, 0.3)
    assert not wire.reached((0, one), (1, closed), 80, 0.3)
    assert wire.reached((1, two), (0, one), 4000)
    # The answers of a guest that may send nothing else, to one that nothing else may be sent to.
    assert wire.reached((1, closed), (0, wire.guest(0, MUTE)), 80)
    assert wire.ping(1, two, one.address)
    assert wire.ping(1, closed, one.address)
    assert not wire.ping(0, one, two.address)


def test_a_router_outside_is_the_guests_gateway(wire: Wire) -> None:
    shell("ip addr add 10.9.0.1/24 dev wire; ip addr add 192.0.2.1/32 dev lo")
    one = wire.guest(0, CLOSED)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as world, wire.inside(0, one.udp) as asking:
        world.bind(("192.0.2.1", 5000))
        world.settimeout(10)
        asking.sendto(b"question", ("192.0.2.1", 5000))
        text, sender = world.recvfrom(100)
        assert (text, sender[0]) == (b"question", one.address)
        world.sendto(b"answer", sender)
        assert asking.recv(100) == b"answer"


def test_each_hosts_server_serves_its_own_guests_alone(wire: Wire) -> None:
    ports = [wire.port(number, CLOSED) for number in range(2)]
    for number, port in enumerate(ports):
        wire.hosts[number].boot(port)
    for number, port in enumerate(ports):
        guest = wire.hosts[number].plug(port, addresses=False)
        with wire.packets() as seen:
            given = wire.inside(number, lambda guest=guest, number=number: lease(wire.hosts[number].lab, guest))
            seen.setblocking(False)
            answers = [item for item in drained(seen) if item[12:14] == b"\x08\x00" and item[34:36] == b"\x00\x43"]
        assert given["ip"] == port.fixed_ips[0].ip_address
        assert given["serverid"] == f"10.9.0.{number + 2}"
        assert {item[6:12] for item in answers} <= {mac(f"fa:16:3e:ff:00:{number:02x}")}


def drained(seen: socket.socket) -> List[bytes]:
    frames = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frames.append(seen.recv(2000))
    return frames


def dhcp(kind: int, guest: str, *, client: str = "0.0.0.0", operation: int = 1, server: str = "") -> bytes:
    """A DHCP message of this type, whose answer is broadcast."""
    head = bytes([operation, 1, 6, 0]) + b"bare" + b"\0\0\x80\0" + socket.inet_aton(client) + bytes(12)
    head += mac(guest) + bytes(10 + 64 + 128) + bytes.fromhex("63825363")
    chosen = b"\x36\x04" + socket.inet_aton(server) if server else b""
    return head + b"\x35\x01" + bytes([kind]) + chosen + b"\xff" + bytes(40)


def test_a_server_is_silent_about_a_guest_that_it_does_not_know(wire: Wire) -> None:
    """One that rebinds, or has an address and asks for the rest, asks every server on the wire."""
    known, other = wire.guest(1, CLOSED).port, wire.guest(0, CLOSED)
    assert wire.ping(0, other, "10.9.0.3")  # so that the server has the guest's MAC and could answer at once
    asked = [
        ipv4(other.address, "255.255.255.255", udp(68, 67, dhcp(kind, other.port.mac_address, client=other.address)))
        for kind in (REQUEST, INFORM)
    ]
    last = ipv4("0.0.0.0", "255.255.255.255", udp(68, 67, dhcp(DISCOVER, known.mac_address)))
    server, answers = mac("fa:16:3e:ff:00:01"), []
    with wire.packets() as link, wire.inside(0, other.packet) as out:
        for message in asked:
            out.send(frame(EVERYONE, other.port.mac_address, 0x0800, message))
        link.send(frame(EVERYONE, known.mac_address, 0x0800, last))
        while not any(mac(known.mac_address) in item for item in answers):
            item = link.recv(2000)
            answers += [item[42:]] if item[6:12] == server and item[34:36] == b"\x00\x43" else []
    assert not [item for item in answers if mac(other.port.mac_address) in item]


def test_offers_of_other_servers_end_at_the_tap(wire: Wire) -> None:
    guest = wire.guest(0, OPEN)
    own, target = guest.port.mac_address, guest.address

    def offer(server: str, source: str, ports: Tuple[int, int] = (67, 68)) -> bytes:
        message = dhcp(OFFER, own, operation=2, server=source)
        return frame(own, server, 0x0800, ipv4(source, target, udp(*ports, message)))

    foreign, rogue = offer("fa:16:3e:ff:00:01", "10.9.0.3"), offer("02:66:66:66:66:66", "10.9.0.66")
    last = offer("02:66:66:66:66:66", "10.9.0.66", (7000, 7001))
    with wire.packets() as link, wire.inside(0, guest.packet) as seen:
        for item in (foreign, rogue, last):
            link.send(item)
        arrived: List[bytes] = []
        while last not in arrived:
            arrived.append(seen.recv(2000))
    assert foreign not in arrived
    assert rogue not in arrived


def test_a_guest_cannot_forge_onto_the_wire(wire: Wire) -> None:
    guest = wire.guest(0, OPEN)
    own = guest.port.mac_address
    forged = [
        frame(EVERYONE, own, 0x0800, ipv4("10.9.0.99", "10.9.0.255", udp(1, 2, b"x"))),
        frame(EVERYONE, "fa:16:3e:66:66:66", 0x0800, ipv4(guest.address, "10.9.0.255", udp(1, 2, b"x"))),
        frame(EVERYONE, own, 0x0806, arp(2, own, "10.9.0.1", "10.9.0.12")),
        frame(EVERYONE, own, 0x0800, ipv4(guest.address, "255.255.255.255", udp(67, 68, b"x"))),
    ]
    last = frame(EVERYONE, own, 0x0800, ipv4(guest.address, "10.9.0.255", udp(1, 2, b"last")))
    with wire.packets() as seen, wire.inside(0, guest.packet) as out:
        for item in (*forged, last):
            out.send(item)
        arrived: List[bytes] = []
        while last not in arrived:
            arrived.append(seen.recv(2000))
    assert not [item for item in forged if item in arrived]


def test_the_host_itself_is_not_on_the_wire(wire: Wire) -> None:
    """By default Linux answers for all its addresses, and forwards, on every link that is up."""
    guest = wire.guest(0, OPEN)
    address = "198.51.100.7"
    wire.inside(0, lambda: shell(f"ip addr add {address}/32 dev lo; ip route add default dev lo"))
    bridge = wire.inside(0, lambda: wire.hosts[0].lab.links()[wire.net.bridge]["address"])
    host = wire.inside(0, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with host, wire.inside(0, guest.packet) as out, wire.packets() as link:
        host.bind((address, 5000))
        packet = ipv4(guest.address, address, udp(7000, 5000, b"x"))
        probe = arp(1, guest.port.mac_address, guest.address, address)
        out.send(frame(EVERYONE, guest.port.mac_address, 0x0806, probe))
        out.send(frame(bridge, guest.port.mac_address, 0x0800, packet))
        outside = "02:66:66:66:66:66"
        link.send(frame(EVERYONE, outside, 0x0806, arp(1, outside, "0.0.0.0", address)))
        link.send(frame(bridge, outside, 0x0800, ipv4("10.9.0.66", address, udp(7000, 5000, b"y"))))
        assert wire.ping(0, guest, "10.9.0.2")
        host.setblocking(False)
        with pytest.raises(BlockingIOError):
            host.recv(100)
        out.setblocking(False)
        link.setblocking(False)
        # The interface's own IPv6 makes itself known to everyone there; it hears nothing. An answer is to who asked.
        askers = (mac(guest.port.mac_address), mac(outside))
        sent = [item for item in (*drained(out), *drained(link)) if item[6:12] == mac(bridge)]
        answers = [item for item in sent if item[:6] in askers]
    assert answers == []


def test_hosts_do_not_share_a_mac_on_the_wire(wire: Wire) -> None:
    for number in range(2):
        wire.guest(number, OPEN)
    links = [wire.inside(number, wire.hosts[number].lab.links) for number in range(2)]
    assert links[0][wire.net.bridge]["address"] != links[1][wire.net.bridge]["address"]


def test_a_host_that_lets_go_leaves_the_other_alone(wire: Wire) -> None:
    shell("ip addr add 10.9.0.1/24 dev wire")
    guests = [wire.guest(number, OPEN) for number in range(2)]
    host = wire.hosts[0]
    server = host.lab.instance(guests[0].port, hostname=f"vm{guests[0].port.id[:4]}")
    host.do(lambda: shell(f"ip netns delete {guests[0].name}"))
    for phase in ("firewall", "dhcp", "network"):
        host.do(lambda phase=phase: host.lab.must(phase, server, state="absent"))
    assert not host.do(lambda: shell("nft list ruleset"))
    assert host.do(lambda: sorted(host.lab.links())) == ["eth1", "lo"]
    assert wire.ping(1, guests[1], "10.9.0.1")
