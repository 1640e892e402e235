# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A real dnsmasq that leases to a real client."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import shutil
import signal
import socket
import struct
import time
from pathlib import Path
from typing import Any, Dict, List

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host import netlink
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    Instance,
    Network,
    SecurityGroup,
    SecurityGroupRule,
    Subnet,
)

from .conftest import Guest, Lab, shell

OUT = SecurityGroup("5e01", "out", (SecurityGroupRule("egress", "IPv4"),))


def directory(lab: Lab, network: Network) -> Path:
    return Path(lab.paths.dhcp_directory(network.id))


def pid(lab: Lab, network: Network) -> int:
    found = int((directory(lab, network) / "pid").read_text())
    assert network.id in Path(f"/proc/{found}/cmdline").read_text()
    return found


def gone(process: int) -> bool:
    """Whether it has ended, though perhaps nobody has asked for its exit status."""
    try:
        return not Path(f"/proc/{process}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return True


def booted(lab: Lab, network: Network, *names: str) -> List[Instance]:
    servers = [lab.instance(lab.port(network, (OUT,)), hostname=name) for name in names]
    lab.must("network", *servers)
    lab.must("dhcp", *servers)
    return servers


def lease(lab: Lab, guest: Guest, tries: int = 4) -> Dict[str, str]:
    """What udhcpc was given, or nothing after as many seconds as tries."""
    script = Path(lab.paths.state_path) / "udhcpc"
    answer = Path(lab.paths.state_path) / "answer"
    answer.unlink(missing_ok=True)
    script.write_text(f'#!/bin/sh\n[ "$1" = bound ] && env > {answer} || true\n')
    script.chmod(0o755)
    command = f"ip netns exec {guest.name} busybox udhcpc -i eth0 -n -q -f -t {tries} -T 1 -O mtu -O domain -s {script}"
    shell(f"{command} 2>&1 || true")
    lines = answer.read_text().splitlines() if answer.exists() else []
    return dict(line.split("=", 1) for line in lines if "=" in line)


def eventually(condition: Any, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def resolved(guest: Guest, server: str, name: str) -> Any:
    """The A record that ``server`` has for ``name``, or the DNS error's number."""
    question = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0\0\1\0\1"
    with guest.udp() as asking:
        asking.sendto(struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + question, (server, 53))
        answer = asking.recv(512)
    answers, code = struct.unpack("!H", answer[6:8])[0], answer[3] & 15
    return ".".join(map(str, answer[-4:])) if answers else code


def test_a_guest_gets_its_address_name_router_and_mtu(lab: Lab) -> None:
    net = lab.network()
    (server,) = booted(lab, net, "web1")
    lab.must("firewall", server)
    guest = lab.plug(server.ports[0], addresses=False)
    given = lease(lab, guest)
    assert given["ip"] == server.ports[0].fixed_ips[0].ip_address
    assert (given["mask"], given["router"], given["dns"]) == ("24", "10.9.0.1", "10.9.0.2")
    assert (given["mtu"], given["domain"], given["lease"]) == ("1400", "example.org", "86400")
    assert given["serverid"] == "10.9.0.2"
    guest.shell(f"ip addr add {given['ip']}/24 dev eth0")
    assert resolved(guest, "10.9.0.2", "web1.example.org") == given["ip"]
    assert resolved(guest, "10.9.0.2", "web1") == given["ip"]
    assert resolved(guest, "10.9.0.2", "elsewhere.net") == 5
    (line,) = (directory(lab, net) / "leases").read_text().splitlines()[:1]
    assert line.split()[1:4] == [server.ports[0].mac_address, given["ip"], "web1"]


def test_a_stranger_gets_nothing(lab: Lab) -> None:
    net = lab.network()
    (server,) = booted(lab, net, "web1")
    guest = lab.plug(server.ports[0], mac="fa:16:3e:66:66:66", addresses=False)
    assert lease(lab, guest, 1) == {}


def test_present_again_check_and_absent_twice(lab: Lab) -> None:
    net = lab.network()
    servers = [lab.instance(lab.port(net), hostname=name) for name in ("one", "two")]
    lab.must("network", *servers)
    before, links = lab.state_files(), set(lab.links())
    planned = lab.must("dhcp", *servers, check=True)
    assert (lab.state_files(), set(lab.links())) == (before, links)
    assert not netlink.namespace_exists(net.namespace)

    assert lab.must("dhcp", *servers) == planned
    where = str(directory(lab, net))
    assert planned == [
        f"dhcp.namespace {net.namespace}",
        f"dhcp.interface {net.dhcp_port.tap_device}",
        f"dhcp.files {where}",
        f"dhcp.server {net.id}",
    ]
    assert lab.must("dhcp", *servers) == []
    assert sorted(os.listdir(where)) == ["addn_hosts", "host", "interface", "leases", "opts", "pid"]
    assert {oct((directory(lab, net) / name).stat().st_mode & 0o777) for name in ("host", "opts", "leases")} == {
        "0o644"
    }
    tap = lab.links()[net.dhcp_port.tap_device]
    assert (tap["master"], tap["mtu"]) == (net.bridge, 1400)
    inside = shell(f"ip -n {net.namespace} addr show {net.dhcp_port.namespace_device}")
    assert f"link/ether {net.dhcp_port.mac_address}" in inside
    assert "10.9.0.2/24" in inside

    process = pid(lab, net)
    lab.must("dhcp", servers[0], state="absent")
    assert pid(lab, net) == process
    assert "one" not in (directory(lab, net) / "host").read_text()
    assert lab.must("dhcp", servers[0], state="absent") == []
    assert lab.must("dhcp", servers[1]) == []
    assert lab.must("dhcp", servers[1], state="absent", check=True)
    assert pid(lab, net) == process
    lab.must("dhcp", servers[1], state="absent")
    assert gone(process)
    assert not netlink.namespace_exists(net.namespace)
    assert (lab.state_files(), set(lab.links())) == (before, links)
    assert lab.must("dhcp", *servers, state="absent") == []
    lab.must("network", *servers, state="absent")
    assert not lab.state_files()


def test_a_new_entry_is_served_by_the_same_process(lab: Lab) -> None:
    net = lab.network()
    booted(lab, net, "one")
    process = pid(lab, net)
    (second,) = booted(lab, net, "two")
    assert pid(lab, net) == process
    assert lease(lab, lab.plug(second.ports[0], addresses=False))["ip"] == second.ports[0].fixed_ips[0].ip_address


def test_twenty_instances_are_one_start_or_one_reload(lab: Lab) -> None:
    net = lab.network()
    booted(lab, net, "first")
    servers = [lab.instance(lab.port(net), hostname=f"vm{number}") for number in range(20)]
    lab.must("network", *servers)
    assert lab.must("dhcp", *servers) == [f"dhcp.files {directory(lab, net)}", f"dhcp.server {net.id}"]
    assert (directory(lab, net) / "host").read_text().count("\n") == 21


def test_a_dead_server_is_started_and_knows_its_guests(lab: Lab) -> None:
    net = lab.network()
    (server,) = booted(lab, net, "one")
    process = pid(lab, net)
    os.kill(process, signal.SIGKILL)
    assert eventually(lambda: gone(process))
    (directory(lab, net) / "leases").unlink()
    assert lab.must("dhcp", server) == [f"dhcp.server {net.id}"]
    assert pid(lab, net) != process
    port = server.ports[0]
    entry = f"0 {port.mac_address} {port.fixed_ips[0].ip_address} "
    assert eventually(lambda: entry in (directory(lab, net) / "leases").read_text())
    assert lab.must("dhcp", server) == []


def test_a_guest_that_has_not_asked_has_no_lease(lab: Lab) -> None:
    net = lab.network()
    (server,) = booted(lab, net, "one")
    assert server.ports[0].mac_address not in (directory(lab, net) / "leases").read_text()


def test_a_call_killed_before_the_reload_is_made_good(lab: Lab) -> None:
    net = lab.network()
    (server,) = booted(lab, net, "one")
    process = pid(lab, net)
    # What a call leaves that was killed between its files and its signal.
    (directory(lab, net) / ".reload").touch()
    assert lab.must("dhcp", server) == [f"dhcp.server {net.id}"]
    assert pid(lab, net) == process
    assert lab.must("dhcp", server) == []


def test_changed_subnets_mean_another_command_line(lab: Lab) -> None:
    net = lab.network()
    (server,) = booted(lab, net, "one")
    process = pid(lab, net)
    told = dataclasses.replace(net, subnets=(dataclasses.replace(net.subnets[0], dns_nameservers=("192.0.2.53",)),))
    changed = server.with_(ports=(dataclasses.replace(server.ports[0], network=told),))
    assert lab.must("dhcp", changed) == [f"dhcp.files {directory(lab, net)}", f"dhcp.server {net.id}"]
    assert pid(lab, net) == process
    assert lease(lab, lab.plug(server.ports[0], addresses=False))["dns"] == "192.0.2.53"
    more = Subnet("s4-more", "v4", "10.99.0.0/24", None)
    wider = server.with_(
        ports=(dataclasses.replace(server.ports[0], network=dataclasses.replace(told, subnets=(*told.subnets, more))),)
    )
    assert f"dhcp.server {net.id}" in lab.must("dhcp", wider)
    assert pid(lab, net) != process
    assert gone(process)
    assert lab.must("dhcp", wider) == []


def test_a_lease_is_given_back_so_that_the_address_is_free_at_once(lab: Lab) -> None:
    net = lab.network()
    first, _other = booted(lab, net, "first", "other")
    address = first.ports[0].fixed_ips[0].ip_address
    assert lease(lab, lab.plug(first.ports[0], addresses=False))["ip"] == address
    leases = directory(lab, net) / "leases"
    assert address in leases.read_text()
    assert lab.must("dhcp", first, state="absent")[0] == f"dhcp.lease {address}"
    assert eventually(lambda: address not in leases.read_text())
    heir = lab.instance(lab.port(net, fixed_ips=first.ports[0].fixed_ips), hostname="heir")
    lab.must("network", heir)
    lab.must("dhcp", heir)
    given = lease(lab, lab.plug(heir.ports[0], addresses=False))
    assert given["ip"] == address


def test_a_broken_interface_is_mended(lab: Lab) -> None:
    net = lab.network()
    (server,) = booted(lab, net, "one")
    port = net.dhcp_port
    assert port
    mended = [f"dhcp.interface {port.tap_device}"]
    for damage in (
        f"ip link set {port.tap_device} nomaster",
        f"ip link set {port.tap_device} down",
        f"ip -n {net.namespace} addr del 10.9.0.2/24 dev {port.namespace_device}",
        f"ip -n {net.namespace} addr add 10.9.0.77/24 dev {port.namespace_device}",
        f"ip -n {net.namespace} link set {port.namespace_device} down",
        f"ip -n {net.namespace} link set lo down",
        f"ip link del {port.tap_device}",
    ):
        shell(damage)
        assert lab.must("dhcp", server) == mended, damage
        assert lab.must("dhcp", server) == []
    assert lease(lab, lab.plug(server.ports[0], addresses=False))["ip"]


def test_a_deleted_namespace_is_made_again_and_its_server_with_it(lab: Lab) -> None:
    net = lab.network()
    (server,) = booted(lab, net, "one")
    process = pid(lab, net)
    shell(f"ip netns delete {net.namespace}")
    effects = [effect.split()[0] for effect in lab.must("dhcp", server)]
    assert effects == ["dhcp.namespace", "dhcp.interface", "dhcp.server"]
    assert gone(process)
    assert lease(lab, lab.plug(server.ports[0], addresses=False))["ip"]
    assert lab.must("dhcp", server) == []


@pytest.mark.parametrize("state", ["present", "absent"])
def test_a_server_whose_files_are_lost_is_still_found(lab: Lab, state: str) -> None:
    net = lab.network()
    (server,) = booted(lab, net, "one")
    process = pid(lab, net)
    shutil.rmtree(directory(lab, net))
    lab.must("dhcp", server, state=state)
    assert gone(process)
    if state == "present":
        assert pid(lab, net) != process
        assert lease(lab, lab.plug(server.ports[0], addresses=False))["ip"]


def test_what_a_killed_call_left_of_a_namespace_is_no_namespace(lab: Lab) -> None:
    net = lab.network()
    Path(f"/run/netns/{net.namespace}").parent.mkdir(exist_ok=True)
    Path(f"/run/netns/{net.namespace}").touch()
    (server,) = booted(lab, net, "one")
    assert netlink.namespace_exists(net.namespace)
    lab.must("dhcp", server, state="absent")
    assert not Path(f"/run/netns/{net.namespace}").exists()


def solicited(guest: Guest) -> str:
    """The address that a DHCPv6 SOLICIT with rapid commit is answered with."""

    def option(number: int, data: bytes = b"") -> bytes:
        return struct.pack("!HH", number, len(data)) + data

    client = struct.pack("!HH", 3, 1) + bytes.fromhex(guest.port.mac_address.replace(":", ""))
    message = b"\1abc" + option(1, client) + option(3, struct.pack("!III", 9, 0, 0)) + option(14) + option(8, b"\0\0")
    with guest.udp(546, "::") as asking:
        asking.sendto(message, ("ff02::1:2", 547, 0, guest.inside(lambda: socket.if_nametoindex("eth0"))))
        answer = asking.recv(1500)
    assert answer[:4] == b"\7abc"
    at = answer.index(struct.pack("!HH", 5, 24)) + 4
    return str(ipaddress.IPv6Address(answer[at : at + 16]))


def test_dhcpv6(lab: Lab) -> None:
    plain = lab.network()
    assert plain.dhcp_port
    six = Subnet("s6", "v6", "fd00:9::/64", None)
    fixed = dataclasses.replace(plain.dhcp_port.fixed_ips[0], subnet_id="s6", ip_address="fd00:9::2")
    both = dataclasses.replace(plain.dhcp_port, fixed_ips=(*plain.dhcp_port.fixed_ips, fixed))
    net = dataclasses.replace(plain, subnets=(*plain.subnets, six), dhcp_port=both)
    guest_fixed = dataclasses.replace(fixed, ip_address="fd00:9::11")
    server = lab.instance(lab.port(net, fixed_ips=(guest_fixed,)), hostname="six")
    lab.must("network", server)
    lab.must("dhcp", server)
    guest = lab.plug(server.ports[0], addresses=False)
    guest.shell("ip addr add fe80::11/64 dev eth0 nodad")
    assert solicited(guest) == "fd00:9::11"
    assert eventually(lambda: "fd00:9::11" in (directory(lab, net) / "leases").read_text())
    lab.must("dhcp", lab.instance(lab.port(net), hostname="stays"))
    assert "dhcp.lease fd00:9::11" in lab.must("dhcp", server, state="absent")
    assert eventually(lambda: "fd00:9::11" not in (directory(lab, net) / "leases").read_text())


def test_no_dhcp_no_server(lab: Lab) -> None:
    net = lab.network(subnets=(Subnet("s", "s", "10.9.0.0/24", "10.9.0.1", enable_dhcp=False),), dhcp_port=None)
    server = lab.instance(lab.port(net))
    assert lab.must("dhcp", server) == []
    assert lab.must("dhcp", server, state="absent") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [({"dhcp_port": None}, "has DHCP subnets but no dhcp_port"), ({}, "is missing: run the network phase")],
)
def test_what_is_missing_is_said_and_spares_the_neighbour(lab: Lab, change: Dict[str, Any], message: str) -> None:
    (good,) = booted(lab, lab.network(1), "good")
    bad = lab.instance(lab.port(lab.network(2, **change)))
    result = lab.run("dhcp", bad, good)
    assert message in result["instances"][0].fault.message
    assert result["instances"][1].fault is None


def test_another_process_with_that_pid_is_left_alone(lab: Lab) -> None:
    net = lab.network()
    (server,) = booted(lab, net, "one")
    process = pid(lab, net)
    (directory(lab, net) / "pid").write_text(f"{os.getpid()}\n")
    os.kill(process, signal.SIGKILL)
    assert eventually(lambda: gone(process))
    lab.must("dhcp", server, state="absent")
    assert not directory(lab, net).exists()
