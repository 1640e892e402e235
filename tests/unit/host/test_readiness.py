# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The waits, with real files, inotify and sockets."""

from __future__ import annotations

import datetime
import os
import pathlib
import re
import socket
import threading
import time
import uuid
from typing import Any, Callable

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host import dnsmasq, readiness
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError, InvalidRequest, Timeout
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    FixedIP,
    Flavor,
    Image,
    Instance,
    Network,
    Port,
    Subnet,
    WaitFor,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import execute
from ansible_collections.barestack.kvm.plugins.modules.wait import Wait

MAC = "fa:16:3e:00:00:01"
SUBNETS = (
    Subnet("s6", "v6", "fd00::/64", None),
    Subnet("s0", "static", "10.9.0.0/24", None, enable_dhcp=False),
    Subnet("s4", "v4", "10.0.0.0/24", "10.0.0.1"),
)
NETWORK = Network("n1", "net", "local", 1450, "", SUBNETS)


@pytest.fixture
def paths(tmp_path: pathlib.Path) -> Paths:
    made = Paths(str(tmp_path / "i"), str(tmp_path / "s"), str(tmp_path / "l"))
    os.makedirs(made.dhcp_directory("n1"))
    os.makedirs(made.log_path)
    return made


def server(address: str = "10.0.0.5", subnet: str = "s4", wait_for: WaitFor | None = None) -> Instance:
    return Instance(
        id=1,
        uuid=str(uuid.uuid4()),
        name="vm1",
        hostname="vm1",
        project_id="p",
        user_id="u",
        flavor=Flavor("1", "f", 1, 64, 0),
        image=Image("i", "i", "/x", "sha256:0", "raw"),
        created_at=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        ports=(Port("p1", NETWORK, MAC, (FixedIP(subnet, address),)),),
        wait_for=wait_for,
    )


def soon(act: Callable[[], Any], seconds: float = 0.2) -> threading.Timer:
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


def lease(expires_in: float, mac: str = MAC, address: str = "10.0.0.5") -> str:
    return f"{int(time.time() + expires_in)} {mac} {address} vm1 01:{mac}\n"


def write_in_place(path: str, text: str) -> None:
    """As dnsmasq does: the same open file, never closed, truncated and written again."""
    stream = open(path, "a+")  # noqa: SIM115
    stream.seek(0)
    stream.truncate()
    stream.write(text)
    stream.flush()
    soon(stream.close, 3)


def test_a_lease_that_is_there(paths: Paths) -> None:
    pathlib.Path(paths.dhcp_directory("n1"), "leases").write_text(lease(dnsmasq.LEASE_DURATION, MAC.upper()))
    readiness.wait(server(), WaitFor("lease", 0.01), paths)


@pytest.mark.parametrize("way", ["in place", "renamed"])
def test_a_lease_that_comes(way: str, paths: Paths) -> None:
    path = f"{paths.dhcp_directory('n1')}/leases"
    pathlib.Path(path).write_text(f"0 {MAC} 10.0.0.5 * *\n")

    def act() -> None:
        text = f"0 {MAC} 10.0.0.6 * *\n" + lease(dnsmasq.LEASE_DURATION)
        if way == "in place":
            write_in_place(path, text)
        else:
            pathlib.Path(f"{path}.new").write_text(text)
            os.rename(f"{path}.new", path)

    started = time.monotonic()
    soon(act)
    readiness.wait(server(), WaitFor("lease", 20), paths)
    assert 0.15 < time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda: f"0 {MAC} 10.0.0.5 * *\n", "10.0.0.5 reserved, not yet asked for"),
        (lambda: lease(-30), "a lease of 10.0.0.5 that ran out 3[0-9] s ago"),
        (lambda: lease(dnsmasq.LEASE_DURATION - 600), "taken (599|6..) s before this server was created"),
        (
            lambda: lease(dnsmasq.LEASE_DURATION, "fa:16:3e:99:99:99"),
            f"10.0.0.5 leased to fa:16:3e:99:99:99, not to {MAC}",
        ),
        (lambda: lease(dnsmasq.LEASE_DURATION, address="10.0.0.55"), "no entry in the leases file"),
        (lambda: "duid 00:01\ngarbage\n", "no entry in the leases file"),
    ],
)
def test_not_this_guests_lease(make: Callable[[], str], seen: str, paths: Paths) -> None:
    pathlib.Path(paths.dhcp_directory("n1"), "leases").write_text(make())
    instance = server()
    with pytest.raises(Timeout, match=f"server vm1 \\({instance.uuid}\\): no lease within 0.1 s; last seen: .*{seen}"):
        readiness.wait(instance, WaitFor("lease", 0.1), paths)


@pytest.mark.parametrize(("address", "subnet"), [("fd00::5", "s6"), ("10.9.0.5", "s0")])
def test_no_lease_to_wait_for(address: str, subnet: str, paths: Paths) -> None:
    with pytest.raises(InvalidRequest, match="none of its ports has an IPv4 address from DHCP"):
        readiness.wait(server(address, subnet), WaitFor("lease", 5), paths)


def test_no_dhcp_directory(paths: Paths) -> None:
    os.rmdir(paths.dhcp_directory("n1"))
    with pytest.raises(HostError, match="cannot watch .*/dhcp/n1: No such file"):
        readiness.wait(server(), WaitFor("lease", 5), paths)


def test_console_that_is_written_piece_by_piece(paths: Paths) -> None:
    instance = server()

    def act() -> None:
        for piece in (b"booting\r\n\x1b[1;3", b"2mvm1\x1b[0m lo", b"gin: "):
            with open(paths.console_log(instance.uuid), "ab") as stream:
                stream.write(piece)
            time.sleep(0.1)

    started = time.monotonic()
    soon(act)
    readiness.wait(instance, WaitFor("console", 20, r"^vm1 login:"), paths)
    assert 0.3 < time.monotonic() - started < 2


def test_console_already_there_and_rotated_away(paths: Paths) -> None:
    instance = server()
    log = pathlib.Path(paths.console_log(instance.uuid))
    log.write_text("later\n")
    pathlib.Path(f"{log}.1").write_text("vm1 login:\n")
    pathlib.Path(f"{log}.0").write_text("between\n")
    readiness.wait(instance, WaitFor("console", 0.01), paths)


def test_console_rotated_and_truncated_meanwhile(paths: Paths) -> None:
    instance = server()
    log = paths.console_log(instance.uuid)
    pathlib.Path(log).write_text("a long line of the boot before\n")

    def act() -> None:
        os.truncate(log, 0)
        pathlib.Path(log).write_text("x\n")
        time.sleep(0.1)
        os.rename(log, f"{log}.0")
        pathlib.Path(log).write_text("new file\n")
        time.sleep(0.1)
        with open(log, "a") as stream:
            stream.write("vm1 login: ")

    soon(act)
    readiness.wait(instance, WaitFor("console", 20), paths)


def test_console_that_never_says_it(paths: Paths) -> None:
    instance = server()
    with pytest.raises(Timeout, match="last seen: an empty console"):
        readiness.wait(instance, WaitFor("console", 0.1), paths)
    pathlib.Path(paths.console_log(instance.uuid)).write_text("Kernel panic - not syncing\r\n\r\n")
    with pytest.raises(Timeout, match="last seen: console line 'Kernel panic - not syncing'"):
        readiness.wait(instance, WaitFor("console", 0.1), paths)


def test_console_of_a_neighbour_wakes_nobody(paths: Paths) -> None:
    mine, other = paths.console_log("mine"), paths.console_log("other")
    pathlib.Path(mine).write_text("")
    with readiness.Watch(mine) as watch:
        pathlib.Path(other).write_text("noise")
        assert not watch.wait(time.monotonic() + 0.1)
        pathlib.Path(mine).write_text("signal")
        assert watch.wait(time.monotonic() + 5)


@pytest.mark.parametrize(
    ("wait_for", "message"),
    [(WaitFor("console", 1, "["), r"wait_for pattern '\['"), (WaitFor("coffee"), "wait_for 'coffee' is not one of")],
)
def test_bad_request(wait_for: WaitFor, message: str, paths: Paths) -> None:
    with pytest.raises(InvalidRequest, match=message):
        readiness.wait(server(), wait_for, paths)


def listener(*answers: bytes) -> int:
    """A server on this machine that greets each caller with the next of ``answers``."""
    bound = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with bound:
            for answer in answers:
                connection, _ = bound.accept()
                with connection:
                    connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return int(bound.getsockname()[1])


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", ""),
        (b"welcome\r\nSSH-2.0-x\r\n", ""),
        (b"", "closed without an SSH banner"),
        (b"220 mail SSH-less\r\n", "closed without an SSH banner"),
        (b"x" * 5000, "speaks something else than SSH"),
    ],
)
def test_ssh_banner(answer: bytes, state: str) -> None:
    found = readiness._ssh_state("127.0.0.1", 2, listener(answer))
    assert bool(found) == bool(state)
    assert state in found


def test_ssh_silence_and_refusal() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "timed out" in readiness._ssh_state("127.0.0.1", 0.2, silent.getsockname()[1])
        port = silent.getsockname()[1]
    assert "refused" in readiness._ssh_state("127.0.0.1", 1, port)


def test_ssh_is_tried_until_the_deadline(paths: Paths) -> None:
    if not readiness._ssh_state("127.9.9.9", 1):
        pytest.skip("this machine answers SSH on every address of its own")
    started = time.monotonic()
    with pytest.raises(Timeout, match=r"no ssh within 0.5 s; last seen: port 22 of 127\.9\.9\.9: Connection refused"):
        readiness.wait(server("127.9.9.9"), WaitFor("ssh", 0.5), paths)
    assert 0.45 < time.monotonic() - started < 2


def run(paths: Paths, *instances: Instance, check: bool = False, state: str = "present") -> list[Instance]:
    roots = {"instances_path": paths.instances_path, "state_path": paths.state_path, "log_path": paths.log_path}
    params = {"instances": to_wire(list(instances)), "state": state, "max_concurrent_builds": 1, **roots}
    result = execute(Wait, params, check)
    assert not result["changed"]
    return [from_wire(Instance, item) for item in result["instances"]]


def test_phase_waits_side_by_side(paths: Paths) -> None:
    """Whatever max_concurrent_builds says, here 1; and a failed wait is a fault of its own instance only."""
    many = [server(wait_for=WaitFor("console", 0.5)) for _ in range(30)]
    lucky = server(wait_for=WaitFor("console", 5))
    soon(lambda: pathlib.Path(paths.console_log(lucky.uuid)).write_text("login:"))
    started = time.monotonic()
    *failed, well, idle = run(paths, *many, lucky, server())
    assert time.monotonic() - started < 3
    assert all(re.search("no console within 0.5 s", str(one.fault)) and one.fault.phase == "wait" for one in failed)
    assert (well.fault, idle.fault) == (None, None)


def test_phase_waits_for_nothing_in_check_mode_or_when_absent(paths: Paths) -> None:
    one = server(wait_for=WaitFor("console", 30))
    assert run(paths, one, check=True)[0].fault is None
    assert run(paths, one, state="absent")[0].stuck is None
