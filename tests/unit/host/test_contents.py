# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What the audit's look finds on a host, whole and with things missing."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host import contents as host_contents
from ansible_collections.barestack.kvm.plugins.module_utils.model.contents import (
    FoundDirectory,
    FoundLease,
    FoundLink,
    FoundMark,
    FoundRules,
)

from .audited_host import AuditedHost, host  # noqa: F401 - the fixture
from .conftest import shell

# ruff: noqa: F811


def test_an_empty_host_has_nothing_and_is_left_as_it_is(host: AuditedHost) -> None:
    before = host.lab.state_files()
    found = host.look()
    assert [domain.ours for domain in found.domains] == [False]  # the test driver's own
    assert found.machine
    empty = {**found.__dict__, "domains": (), "machine": ""}
    assert not any(empty.values())
    assert host.lab.state_files() == before
    assert not Path(f"{host.paths.state_path}/network.lock").exists()


def test_all_of_a_server_is_found(host: AuditedHost) -> None:
    server = host.server("web")
    host.start(server)
    (port,) = server.ports
    network = port.network
    assert network.dhcp_port
    found = host.look(shared_host=True)
    assert found.shared
    (domain,) = (item for item in found.domains if item.ours)
    assert (domain.uuid, domain.name, domain.power_state) == (server.uuid, server.domain_name, "RUNNING")
    assert (domain.ports, domain.taps, domain.macs) == ((port.id,), (port.tap_device,), (port.mac_address,))
    assert domain.files == (host.paths.disk(server.uuid, "disk"),)
    assert found.directories == (FoundDirectory(server.uuid, ("disk",)),)
    assert found.consoles == (server.uuid,)
    assert found.marks == (FoundMark(network.id, port.id, server.uuid, port.mac_address),)
    assert found.networks == (network.id,)
    (dhcp,) = found.servers
    assert (dhcp.network_id, dhcp.interface) == (network.id, network.dhcp_port.tap_device)
    assert (dhcp.files, dhcp.running, dhcp.namespace, dhcp.others, dhcp.stale) == (True, True, True, False, ())
    assert dhcp.entries == (FoundLease(port.mac_address, port.fixed_ips[0].ip_address),)
    taps = {port.tap_device, network.dhcp_port.tap_device}
    assert set(found.taps) == {FoundLink(name, True, network.bridge) for name in taps}
    assert found.bridges == (FoundLink(network.bridge, True, addresses=("10.9.0.1/24",)),)
    assert found.rules == (FoundRules(port.tap_device, True),)
    assert (found.members, found.masquerades) == ((port.id,), (network.id,))


def test_a_mark_of_an_earlier_version_says_nothing(host: AuditedHost) -> None:
    host.write(f"{host.paths.network_directory('n')}/p", "")
    assert host.look().marks == (FoundMark("n", "p"),)


@pytest.mark.parametrize(
    "broken",
    [
        "flush chain bridge barestack egress-{tap}",
        'delete element bridge barestack ingress {{ "{tap}" }}',
        "flush chain bridge barestack prerouting_antispoof",
    ],
)
def test_rules_that_lack_a_part_are_not_whole(host: AuditedHost, broken: str) -> None:
    tap = host.server("web").ports[0].tap_device
    shell(f"nft '{broken.format(tap=tap)}'")
    assert host.look().rules == (FoundRules(tap, False),)


def test_the_state_of_links(host: AuditedHost) -> None:
    (port,) = host.server("web").ports
    shell(f"ip link set {port.tap_device} nomaster; ip link add uplink0 type veth peer name uplink1")
    shell(f"ip link set uplink0 master {port.network.bridge}; ip link set {port.network.bridge} down")
    found = host.look()
    assert FoundLink(port.tap_device, True, "") in found.taps
    assert [(link.up, link.members) for link in found.bridges] == [(False, ("uplink0",))]


def test_links_of_others_are_not_listed(host: AuditedHost) -> None:
    shell("ip link add tap0 type veth peer name tap1; ip link add brqtest type bridge; ip link add virbr0 type bridge")
    assert (host.look().taps, host.look().bridges) == ((), ())


def test_a_dhcp_server_that_died_and_one_in_a_lost_namespace_do_not_run(host: AuditedHost) -> None:
    network = host.server("web").ports[0].network
    shell(f"ip netns delete {network.namespace}; ip netns add {network.namespace}")
    (found,) = host.look().servers
    assert (found.running, found.namespace) == (False, True)
    pid = int(Path(f"{host.paths.dhcp_directory(network.id)}/pid").read_text())
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while host_contents.dnsmasq_processes(host.paths) and time.monotonic() < deadline:
        time.sleep(0.02)
    (found,) = host.look().servers
    assert not found.running


def test_somebody_elses_process_in_the_namespace_is_noticed(host: AuditedHost) -> None:
    network = host.server("web").ports[0].network
    with subprocess.Popen(["ip", "netns", "exec", network.namespace, "sleep", "60"]) as stranger:
        try:
            deadline = time.monotonic() + 10
            while not host.look().servers[0].others and time.monotonic() < deadline:
                time.sleep(0.02)
            assert host.look().servers[0].others
            assert host.look().servers[0].running
        finally:
            stranger.kill()
    assert not host.look().servers[0].others


def test_a_namespace_without_files_is_found(host: AuditedHost) -> None:
    name = str(uuid.uuid4())
    host.mine.append(name)
    shell(f"ip netns add qdhcp-{name}")
    try:
        (found,) = host.look().servers
        assert (found.files, found.running, found.namespace) == (False, False, True)
    finally:
        shell(f"ip netns delete qdhcp-{name}")


def test_leases_without_an_entry_are_stale(host: AuditedHost) -> None:
    (port,) = host.server("web").ports
    leases = Path(f"{host.paths.dhcp_directory(port.network.id)}/leases")
    address = port.fixed_ips[0].ip_address
    leases.write_text(f"9 {port.mac_address} {address} * *\n9 02:00:00:00:00:09 10.9.0.99 * *\n")
    assert host.look().servers[0].stale == (FoundLease("02:00:00:00:00:09", "10.9.0.99"),)


def test_files_are_known_by_their_names(host: AuditedHost) -> None:
    one, volume = str(uuid.uuid4()), str(uuid.uuid4())
    for name in (
        f"{one}_del/disk",
        "lost+found/disk",
        "notes.txt",
        f"volumes/volume-{volume}",
        "volumes/other",
        "_base/x",
    ):
        host.write(f"{host.paths.instances_path}/{name}")
    for name in (f"{one}.console.log", f"{one}.console.log.0", "other.log"):
        host.write(f"{host.paths.log_path}/{name}")
    found = host.look()
    assert found.directories == (FoundDirectory(f"{one}_del", ("disk",)),)
    assert (found.volumes, found.consoles, found.parts) == ((volume,), (one,), ())


def test_an_overlay_whose_base_is_gone(host: AuditedHost) -> None:
    one = str(uuid.uuid4())
    base, disk = host.write(f"{host.paths.base_directory}/b", ""), host.write(host.paths.disk(one, "disk"))
    shell(f"qemu-img create -q -f raw {base} 1M; qemu-img create -q -f qcow2 -b {base} -F raw {disk}")
    assert host.look().directories == (FoundDirectory(one, ("disk",)),)
    os.unlink(base)
    assert host.look().directories == (FoundDirectory(one, ("disk",), ("disk",)),)


@pytest.fixture
def parts(host: AuditedHost) -> Iterator[list[str]]:
    """A temporary file everywhere where one can be."""
    one = str(uuid.uuid4())
    places = (
        host.paths.disk(one, "disk.part"),
        f"{host.paths.base_directory}/0123.part",
        f"{host.paths.base_directory}/.0123.json.part",
        f"{host.paths.volumes_directory}/volume-{one}.part",
        f"{host.paths.dhcp_directory(one)}/.host.part",
    )
    yield [host.write(path) for path in places]


def test_temporary_files_that_nobody_holds_are_found_with_their_owner(host: AuditedHost, parts: list[str]) -> None:
    found = host.look().parts
    assert {part.path for part in found} == set(parts)
    assert [part.owner for part in found if part.owner] == [parts[0].split("/")[-2]]


def test_temporary_files_that_are_being_written_are_not(host: AuditedHost, parts: list[str]) -> None:
    with open(parts[1]) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert {part.path for part in host.look().parts} == set(parts) - {parts[1]}


def test_a_probe_for_direct_io_is_one_once_it_is_old(host: AuditedHost) -> None:
    path = host.write(host.paths.disk(str(uuid.uuid4()), ".directio.x"))
    assert host.look().parts == ()
    os.utime(path, (0, 0))
    assert [part.path for part in host.look().parts] == [path]


def test_a_link_is_no_temporary_file_of_ours(host: AuditedHost) -> None:
    path = host.paths.disk(str(uuid.uuid4()), "disk.part")
    Path(path).parent.mkdir(parents=True)
    os.symlink("/etc/passwd", path)
    assert host.look().parts == ()


def test_the_kind_of_file_system(host: AuditedHost, monkeypatch: pytest.MonkeyPatch) -> None:
    table = (
        "1 0 0:1 / / rw - ext4 /dev/a rw\n"
        "2 1 0:2 / /srv/a\\040b rw shared:1 - nfs4 server:/x rw\n"
        "3 1 0:3 / /srv/c rw - xfs /d rw\n"
    )
    monkeypatch.setattr(host_contents.system, "read_file", lambda path: table)
    assert host_contents._is_shared("/srv/a b/instances")
    assert not host_contents._is_shared("/srv/c/instances")
    assert not host_contents._is_shared("/srv/a bc/instances")
    assert not host_contents._is_shared("/var/lib")
