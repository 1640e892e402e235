# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The wait for real taps, and a guest of libvirt's test driver that is let run afterwards."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any, List

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import driver
from ansible_collections.barestack.kvm.plugins.module_utils.host.netlink import Link, LinkWatcher
from ansible_collections.barestack.kvm.plugins.module_utils.host.vif import missing
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    Instance,
    Network,
    Port,
    PortStatus,
    PowerState,
    SecurityGroup,
    SecurityGroupRule,
)

from .conftest import Lab, shell

URI = "test:///default"
OUT = SecurityGroup("5e01", "out", (SecurityGroupRule("egress", "IPv4"),))


@pytest.fixture
def hypervisor() -> Iterator[driver.Hypervisor]:
    """Kept open, so that the test driver keeps its domains between the phases' own connections."""
    with driver.connect(URI) as made:
        yield made


def started(hypervisor: driver.Hypervisor, lab: Lab, *ports: Port) -> Instance:
    """An instance whose guest is there and paused."""
    server = lab.instance(*ports)
    xml = f"<domain type='test'><name>{server.uuid}</name><uuid>{server.uuid}</uuid><memory>1024</memory>"
    hypervisor.define(f"{xml}<os><type>hvm</type></os></domain>")
    domain = hypervisor._domain(server.uuid)
    domain.create()  # the test driver does not start paused
    domain.suspend()
    return server


def wired(lab: Lab, port: Port) -> None:
    shell(f"ip link add {port.tap_device} type veth peer name x{port.id[:8]}")
    shell(f"ip link set {port.tap_device} master {port.network.bridge} up")


@pytest.fixture
def servers(lab: Lab, hypervisor: driver.Hypervisor) -> List[Instance]:
    net = lab.network()
    found = [started(hypervisor, lab, lab.port(net, (OUT,))) for _ in range(3)]
    lab.must("network", *found)
    lab.must("firewall", *found)
    return found


def run(lab: Lab, *servers: Instance, timeout: float = 5, **options: Any) -> Any:
    return lab.run("vif", *servers, libvirt_uri=URI, vif_plugging_timeout=timeout, **options)


@contextlib.contextmanager
def meanwhile(*commands: str) -> Iterator[None]:
    """Runs the commands, a moment apart, in a thread: it is in this thread's network namespace."""

    def work() -> None:
        for command in commands:
            time.sleep(0.05)
            shell(command)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


def test_a_wired_guest_runs_and_its_port_is_active(
    lab: Lab, hypervisor: driver.Hypervisor, servers: List[Instance]
) -> None:
    for server in servers:
        wired(lab, server.ports[0])
    result = run(lab, *servers)
    assert result["effects"] == [f"vif.resume {server.domain_name}" for server in servers]
    for server in result["instances"]:
        assert [port.status for port in server.ports] == [PortStatus.ACTIVE]
        assert server.power_state == PowerState.RUNNING
        assert hypervisor.power_state(server.uuid) == PowerState.RUNNING
    assert run(lab, *servers)["effects"] == []


def test_a_guest_that_has_ended_is_not_waited_for(
    lab: Lab, hypervisor: driver.Hypervisor, servers: List[Instance]
) -> None:
    hypervisor.destroy(servers[0].uuid)
    before = time.monotonic()
    result = run(lab, servers[0], timeout=60)
    assert time.monotonic() - before < 10
    assert "has ended before its ports were plugged" in result["instances"][0].fault.message


@pytest.mark.parametrize("damage", ["ip link set {tap} nomaster", "ip link set {tap} down", "ip link del {bridge}"])
def test_a_tap_that_fell_out_of_its_bridge_is_put_back_under_the_running_guest(
    lab: Lab, servers: List[Instance], damage: str
) -> None:
    (port,) = servers[0].ports
    wired(lab, port)
    run(lab, servers[0])
    shell(damage.format(tap=port.tap_device, bridge=port.network.bridge))
    lab.must("network", *servers)
    assert run(lab, servers[0], check=True)["effects"] == [f"vif.plug {port.tap_device}"]
    again = run(lab, servers[0])
    assert (again["effects"], again["instances"][0].fault) == ([f"vif.plug {port.tap_device}"], None)
    assert run(lab, servers[0])["effects"] == []


def test_a_tap_in_another_bridge_is_left_there_and_a_running_guest_is_not_waited_for_long(
    lab: Lab, servers: List[Instance]
) -> None:
    (port,) = servers[0].ports
    wired(lab, port)
    run(lab, servers[0])
    shell(f"ip link add brother type bridge; ip link set {port.tap_device} nomaster")
    shell(f"ip link set {port.tap_device} master brother")
    before = time.monotonic()
    (server,) = run(lab, servers[0], timeout=60)["instances"]
    assert "is in brother, not in" in server.fault.message
    assert time.monotonic() - before < 10


def test_it_waits_for_the_tap_its_bridge_and_its_being_up(lab: Lab, servers: List[Instance]) -> None:
    port = servers[0].ports[0]
    steps = (
        f"ip link add {port.tap_device} type veth peer name peer",
        f"ip link set {port.tap_device} master {port.network.bridge}",
        f"ip link set {port.tap_device} up",
    )
    before = time.monotonic()
    with meanwhile(*steps):
        result = run(lab, servers[0])
    assert result["instances"][0].fault is None
    assert 0.15 < time.monotonic() - before < 5


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        ("", "{tap} does not exist"),
        ("ip link add {tap} type veth peer name p; ip link set {tap} up", "{tap} is in no bridge, not in {bridge}"),
        (
            "ip link add other type bridge; ip link add {tap} master other type veth peer name p",
            "{tap} is in other, not in {bridge}",
        ),
        ("ip link add {tap} master {bridge} type veth peer name p", "{tap} is in {bridge}, but down"),
        ("ip link add {tap} type veth peer name p; ip link del {bridge}", "{tap} exists, bridge {bridge} does not"),
    ],
)
def test_a_timeout_says_what_it_saw_last_and_the_guest_stays_paused(
    lab: Lab, hypervisor: driver.Hypervisor, servers: List[Instance], damage: str, seen: str
) -> None:
    (port,) = servers[0].ports
    names = {"tap": port.tap_device, "bridge": port.network.bridge}
    wired(lab, servers[1].ports[0])
    if damage:
        shell(damage.format(**names))
    late, *_ = run(lab, servers[0], timeout=0.1)["instances"]
    assert late.fault.message == (
        f"not plugged within 0.1 s: port {port.id}: {seen.format(**names)}. Is the domain started?"
    )
    assert hypervisor.power_state(late.uuid) == PowerState.PAUSED


def test_ones_timeout_is_not_its_neighbours(lab: Lab, servers: List[Instance]) -> None:
    wired(lab, servers[1].ports[0])
    late, well, late_too = run(lab, *servers, timeout=0.1)["instances"]
    assert late.fault
    assert late_too.fault
    assert well.power_state == PowerState.RUNNING


def test_where_it_is_not_fatal_the_port_is_down_and_the_guest_runs(
    lab: Lab, hypervisor: driver.Hypervisor, servers: List[Instance]
) -> None:
    result = run(lab, servers[0], timeout=0.1, vif_plugging_is_fatal=False)
    (server,) = result["instances"]
    assert server.fault is None
    assert server.ports[0].status == PortStatus.DOWN
    assert hypervisor.power_state(server.uuid) == PowerState.RUNNING


@pytest.mark.parametrize("fatal", [True, False])
def test_no_guest_runs_without_its_rules(
    lab: Lab, hypervisor: driver.Hypervisor, servers: List[Instance], fatal: bool
) -> None:
    port = servers[0].ports[0]
    wired(lab, port)
    shell(f"nft flush chain bridge barestack ingress-{port.tap_device}")
    (server,) = run(lab, servers[0], vif_plugging_is_fatal=fatal)["instances"]
    assert server.fault.message == f"the rules of port {port.id} are not loaded: run the firewall phase"
    assert hypervisor.power_state(server.uuid) == PowerState.PAUSED


def test_a_port_without_port_security_needs_no_rules(lab: Lab, hypervisor: driver.Hypervisor) -> None:
    port = lab.port(lab.network(), port_security_enabled=False)
    server = started(hypervisor, lab, port)
    lab.must("network", server)
    wired(lab, port)
    (server,) = run(lab, server)["instances"]
    assert server.power_state == PowerState.RUNNING


def test_check_mode_waits_for_nothing_and_needs_no_domain(lab: Lab, hypervisor: driver.Hypervisor) -> None:
    server = lab.instance(lab.port(lab.network()))
    result = run(lab, server, timeout=60, check=True)
    assert result["effects"] == [f"vif.resume {server.domain_name}"]
    (planned,) = result["instances"]
    assert (planned.ports[0].status, planned.power_state) == (PortStatus.ACTIVE, PowerState.RUNNING)
    paused = started(hypervisor, lab, lab.port(lab.network(1)))
    assert run(lab, paused, check=True)["effects"] == [f"vif.resume {paused.domain_name}"]
    assert hypervisor.power_state(paused.uuid) == PowerState.PAUSED
    hypervisor.resume(paused.uuid, 5)
    assert run(lab, paused, check=True)["effects"] == []


def test_without_a_domain_it_says_so(lab: Lab) -> None:
    (server,) = run(lab, lab.instance())["instances"]
    assert server.fault.code == 404


def test_absent_tells_the_handle_only(lab: Lab, hypervisor: driver.Hypervisor, servers: List[Instance]) -> None:
    wired(lab, servers[0].ports[0])
    (active,) = run(lab, servers[0])["instances"]
    result = run(lab, active, state="absent")
    assert result["effects"] == []
    assert result["instances"][0].ports[0].status == PortStatus.DOWN
    assert hypervisor.power_state(active.uuid) == PowerState.RUNNING


def test_the_watcher_follows_every_change(lab: Lab) -> None:
    shell("ip link add brqtest type bridge; ip link add before type veth peer name other")

    def comes(accept: Any, *commands: str) -> bool:
        with meanwhile(*commands):
            return bool(accept(watcher.wait(accept, time.monotonic() + 10)))

    with LinkWatcher() as watcher:
        assert comes(lambda links: "before" in links)
        assert comes(lambda links: "after" in links and "before" not in links, "ip link set before name after")
        bridge = watcher.wait(lambda links: True, 0)["brqtest"].index
        assert comes(lambda links: links["after"].master == bridge, "ip link set after master brqtest")
        # Leaving a bridge is told as a deletion too, of the link's place in it.
        assert comes(lambda links: links["after"].master is None, "ip link set after nomaster")
        assert comes(lambda links: links["after"].up, "ip link set after up")
        assert comes(lambda links: "after" not in links, "ip link del after")


def test_a_wait_ends_at_its_deadline_with_what_there_is(lab: Lab) -> None:
    with LinkWatcher() as watcher:
        before = time.monotonic()
        links = watcher.wait(lambda found: False, before + 0.2)
        assert 0.2 <= time.monotonic() - before < 5
        assert "lo" in links


def test_what_is_missing_in_words() -> None:
    network = Network("2d1c4f6a-9b0", "n", "local", 1400, "", ())
    port = Port("51ee5d4-0000-4", network, "fa:16:3e:00:00:05", ())
    bridge = Link(2, "brq2d1c4f6a-9b", True, 1400, "")
    tap = Link(3, "tap51ee5d4-000", True, 1400, "", master=2)
    assert missing(port, {"brq2d1c4f6a-9b": bridge, "tap51ee5d4-000": tap}) is None
    assert missing(port, {"brq2d1c4f6a-9b": bridge}) == "tap51ee5d4-000 does not exist"
