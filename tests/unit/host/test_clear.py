# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What goes when it is named, and what stays all the same."""

from __future__ import annotations

import fcntl
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any, Dict

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.model.contents import LeftoverGuest
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import FixedIP, Instance, Network, Port
from ansible_collections.barestack.kvm.plugins.module_utils.phase import execute
from ansible_collections.barestack.kvm.plugins.modules import clear

from .audited_host import AuditedHost, host  # noqa: F401 - the fixture
from .conftest import shell

# ruff: noqa: F811


def bare(port: Port) -> Port:
    """A port of which no more is known than the audit finds."""
    network = Network(port.network.id, "", "local", 0, "", ())
    fixed = tuple(FixedIP("", item.ip_address) for item in port.fixed_ips)
    return Port(port.id, network, port.mac_address, fixed)


def all_of(server: Instance) -> Dict[str, Any]:
    return {
        "guests": (LeftoverGuest(server.uuid, server.domain_name),),
        "ports": tuple(bare(port) for port in server.ports),
    }


def gone(host: AuditedHost, server: Instance) -> None:
    """The test driver has no QEMU: its guest's tap goes with the guest."""
    shell(f"ip netns delete bsguest-{server.ports[0].id[:8]}")


def test_all_of_one_server_goes_and_its_neighbour_stays_as_it_is(host: AuditedHost) -> None:
    web, db = host.server("web"), host.server("db")
    host.start(web)
    host.start(db)
    after = host.look()
    gone(host, web)
    effects, problems = host.clear(**all_of(web))
    assert problems == []
    assert {effect.split()[0] for effect in effects} == {
        "domain.running", "domain.definition", "domain.console_log", "disk.directory", "firewall.port", "dhcp.files",
        "dhcp.server", "network.port",
    }  # fmt: skip
    found = host.look()
    (port,) = db.ports
    assert [item for item in found.domains if item.ours] == [item for item in after.domains if item.uuid == db.uuid]
    assert [item.name for item in found.directories] == [db.uuid]
    assert found.consoles == (db.uuid,)
    assert [mark.port_id for mark in found.marks] == [port.id]
    assert [item.tap for item in found.rules] == [port.tap_device]
    assert found.members == (port.id,)
    assert [entry.mac for entry in found.servers[0].entries] == [port.mac_address]
    assert (found.servers[0].running, found.bridges) == (True, after.bridges)
    assert host.clear(**all_of(web)) == ([], [])


def test_with_the_last_port_its_network_goes(host: AuditedHost) -> None:
    server = host.server("web")
    gone(host, server)
    _, problems = host.clear(**all_of(server), networks=(server.ports[0].network,))
    assert problems == []
    found = host.look()
    assert not any({**found.__dict__, "domains": (), "machine": ""}.values())


def test_check_mode_tells_it_all_and_touches_nothing(host: AuditedHost) -> None:
    server = host.server("web")
    part = host.write(host.paths.disk(server.uuid, "disk.part"))
    before = host.look()
    planned, problems = host.clear(check=True, **all_of(server), parts=(part,))
    assert problems == []
    assert host.look() == before
    gone(host, server)
    done, _ = host.clear(**all_of(server), parts=(part,))
    ends = {"network.bridge", "network.masquerade"}  # as long as the guest's tap is there it is not the last
    assert {effect.split()[0] for effect in done} - ends <= {effect.split()[0] for effect in planned}
    assert len(planned) >= 9


def test_a_domain_that_is_not_ours_stays_with_all_that_is_its(host: AuditedHost) -> None:
    server = host.server("web")
    host.hypervisor.undefine(server.uuid)
    host.define(server, ours=False)
    effects, problems = host.clear(**all_of(server), taps=(server.ports[0].tap_device,))
    assert effects == []
    assert "not ours" in problems[0]
    assert Path(host.paths.disk(server.uuid, "disk")).exists()
    assert host.look().rules


def test_one_that_does_not_go_stops_no_other(host: AuditedHost) -> None:
    web, db = host.server("web"), host.server("db")
    host.hypervisor.undefine(web.uuid)
    host.define(web, ours=False)
    gone(host, db)
    both = {name: (*all_of(web)[name], *all_of(db)[name]) for name in ("guests", "ports")}
    _, problems = host.clear(**both)
    assert len(problems) == 1
    assert [item.name for item in host.look().directories] == [web.uuid]
    assert [mark.port_id for mark in host.look().marks] == [web.ports[0].id]


def test_a_guest_whose_disks_are_also_elsewhere_keeps_them(host: AuditedHost) -> None:
    server = host.server("web")
    host.clear(guests=(LeftoverGuest(server.uuid, "web", disks=False),))
    found = host.look()
    assert [item.name for item in found.directories] == [server.uuid]
    assert (found.consoles, [item for item in found.domains if item.ours]) == ((), [])


@pytest.mark.parametrize("name", ["../../etc", "volumes", ""])
def test_a_guest_is_named_by_its_uuid_and_by_nothing_else(host: AuditedHost, name: str) -> None:
    kept = host.write(f"{host.paths.instances_path}/volumes/volume-{uuid.uuid4()}")
    _, problems = host.clear(guests=(LeftoverGuest(name, "x"),))
    assert problems
    assert Path(kept).exists()


def test_only_the_rest_of_a_removal_goes(host: AuditedHost) -> None:
    server = host.server("web")
    host.write(f"{host.paths.instance_directory(server.uuid)}_del/disk")
    effects, problems = host.clear(doomed=(server.uuid,))
    assert ([effect.split()[0] for effect in effects], problems) == (["disk.directory"], [])
    assert [item.name for item in host.look().directories] == [server.uuid]


def test_temporary_files_go_unless_they_are_being_written(host: AuditedHost) -> None:
    idle, held = (host.write(f"{host.paths.base_directory}/{name}.part") for name in ("idle", "held"))
    with open(held) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert host.clear(parts=(idle, held)) == ([f"leftover.part {idle}"], [])
    assert (Path(idle).exists(), Path(held).exists()) == (False, True)


def test_only_a_temporary_file_below_our_directories_is_one(host: AuditedHost, tmp_path: Path) -> None:
    outside = host.write(f"{tmp_path}/elsewhere/x.part")
    os.makedirs(host.paths.instances_path)
    os.symlink(f"{tmp_path}/elsewhere", f"{host.paths.instances_path}/link")
    volume = host.write(f"{host.paths.volumes_directory}/volume-{uuid.uuid4()}")
    disk = host.write(host.paths.disk(str(uuid.uuid4()), "disk"))
    os.utime(disk, (0, 0))
    wrong = (outside, f"{host.paths.instances_path}/link/x.part", f"{host.paths.instances_path}/../elsewhere/x.part")
    effects, problems = host.clear(parts=(*wrong, volume, disk))
    assert effects == []
    assert len(problems) == len(wrong)
    assert all(Path(path).exists() for path in (outside, volume, disk))


def test_a_tap_that_no_guest_has_goes_and_one_that_a_guest_has_stays(host: AuditedHost) -> None:
    tap = host.server("web").ports[0].tap_device
    shell("ip link add tap01234567-89 type veth peer name other")
    effects, problems = host.clear(taps=("tap01234567-89", tap, "tapffffffff-ff"))
    assert (effects, problems) == (["leftover.tap tap01234567-89"], [])
    assert [link.name for link in host.look().taps if link.name == tap]


def test_a_port_that_is_only_known_by_its_tap_loses_its_rules(host: AuditedHost) -> None:
    server = host.server("web")
    gone(host, server)
    host.hypervisor.undefine(server.uuid)
    known = Port(server.ports[0].id[:11], Network("", "", "local", 0, "", ()), "", ())
    effects, problems = host.clear(ports=(known,))
    assert problems == []
    assert {effect.split()[0] for effect in effects} == {"firewall.port", "firewall.table"}  # it was the last
    assert host.look().rules == ()


def test_a_stale_lease_is_given_back_and_no_port_is_lost(host: AuditedHost) -> None:
    (port,) = host.server("web").ports
    leases = Path(f"{host.paths.dhcp_directory(port.network.id)}/leases")
    leases.write_text("9999999999 02:00:00:00:00:09 10.9.0.99 * *\n")
    before = host.look()
    stale = Port("", bare(port).network, "02:00:00:00:00:09", (FixedIP("", "10.9.0.99"),))
    effects, problems = host.clear(ports=(stale,))
    assert (effects, problems) == (["dhcp.lease 10.9.0.99"], [])
    after = host.look()
    assert (after.marks, after.rules, after.servers[0].entries) == (
        before.marks, before.rules, before.servers[0].entries,
    )  # fmt: skip


def test_a_network_with_ports_stays(host: AuditedHost) -> None:
    before = host.server("web").ports[0].network
    found = host.look()
    assert host.clear(networks=(before,)) == ([], [])
    assert host.look() == found


def test_a_namespace_that_others_are_in_stays(host: AuditedHost) -> None:
    name = str(uuid.uuid4())
    shell(f"ip netns add qdhcp-{name}")
    with subprocess.Popen(
        ["ip", "netns", "exec", f"qdhcp-{name}", "sh", "-c", "echo; exec sleep 60"], stdout=-1
    ) as other:
        try:
            assert other.stdout
            other.stdout.readline()
            assert host.clear(networks=(Network(name, "", "local", 0, "", ()),)) == ([], [])
        finally:
            other.kill()
    try:
        effects, _ = host.clear(networks=(Network(name, "", "local", 0, "", ()),))
        assert effects == [f"dhcp.namespace qdhcp-{name}"]
    finally:
        if os.path.exists(f"/run/netns/qdhcp-{name}"):
            shell(f"ip netns delete qdhcp-{name}")


def test_what_the_audit_never_says_is_refused() -> None:
    spec = {name: option.get("default") for name, option in clear.PHASE.argument_spec.items()}
    with pytest.raises(InvalidRequest, match="leftovers: this is nothing that the audit returned"):
        execute(clear.PHASE, {**spec, "leftovers": {"volumes": ["x"]}, "libvirt_uri": "test:///default"}, True)
