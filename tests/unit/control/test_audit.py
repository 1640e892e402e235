# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The comparison, on a site where nothing differs and then on each thing that can."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.audit import (
    DATA_GONE,
    DIFFERS,
    NOT_REACHED,
    ONLY_HOST,
    ONLY_RECORDS,
    UNKNOWN,
    Finding,
    Mend,
    PortRecord,
    Recorded,
    Report,
    Scope,
    VolumeRecord,
    table,
    uuids_spoken_of,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.audit_records import compare
from ansible_collections.barestack.kvm.plugins.module_utils.model.contents import (
    Contents,
    FoundDirectory,
    FoundDomain,
    FoundLease,
    FoundLink,
    FoundMark,
    FoundPart,
    FoundRules,
    FoundServer,
    Leftovers,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    BlockDevice,
    DhcpPort,
    FixedIP,
    Flavor,
    Image,
    Instance,
    Network,
    Port,
    Subnet,
)

HOST, OTHER = "kvm1", "kvm2"
NETWORK = "60a3df9d-d045-52bc-ae96-f16e37d01731"
BRIDGE = "brq60a3df9d-d0"
DHCP_PORT = "d1d1d1d1-0000-4000-8000-000000000001"
DHCP_TAP = "tapd1d1d1d1-00"
WEB, WEB_PORT, WEB_MAC, WEB_IP = (
    str(uuid.UUID(int=1)),
    "aaaaaaaa-0000-4000-8000-000000000001",
    "fa:16:3e:00:00:01",
    "10.0.0.11",
)
DB, DB_PORT, DB_MAC, DB_IP = (
    str(uuid.UUID(int=2)),
    "bbbbbbbb-0000-4000-8000-000000000002",
    "fa:16:3e:00:00:02",
    "10.0.0.12",
)
WEB_TAP, DB_TAP = "tapaaaaaaaa-00", "tapbbbbbbbb-00"
VOLUME, KEPT = str(uuid.UUID(int=16)), str(uuid.UUID(int=17))
NOBODY, NOBODYS_PORT, NOBODYS_TAP = str(uuid.UUID(int=99)), "cccccccc-0000-4000-8000-000000000099", "tapcccccccc-00"

NET = Network(
    NETWORK,
    "private",
    "local",
    1450,
    "",
    (Subnet("s4", "v4", "10.0.0.0/24", "10.0.0.1"),),
    DhcpPort(DHCP_PORT, "fa:16:3e:00:00:99", (FixedIP("s4", "10.0.0.2"),)),
)


def server(identifier: str, name: str, port: str, mac: str, address: str, **changes: Any) -> Instance:
    made = Instance(
        id=int(uuid.UUID(identifier)),
        uuid=identifier,
        name=name,
        hostname=name,
        project_id="p",
        user_id="u",
        flavor=Flavor("1", "tiny", 1, 64, 1),
        image=Image("i", "image", "/x", "sha256:0", "qcow2"),
        created_at="2026-01-01T00:00:00.000000Z",
        vm_state="ACTIVE",
        task_state=None,
        power_state="RUNNING",
        host=HOST,
        ports=(Port(port, NET, mac, (FixedIP("s4", address),)),),
    )
    return made.with_(**changes)


def found_domain(instance: Instance) -> FoundDomain:
    return FoundDomain(
        instance.uuid,
        instance.domain_name,
        True,
        "RUNNING",
        tuple(port.id for port in instance.ports),
        tuple(port.tap_device for port in instance.ports),
        tuple(port.mac_address for port in instance.ports),
        (f"/i/{instance.uuid}/disk",),
    )


class World:
    """Two ACTIVE servers on one host, the first with a volume; and what their host has of them."""

    def __init__(self) -> None:
        device = BlockDevice("b", "blank", "volume", VOLUME, 1, volume_name="data")
        self.web = server(WEB, "web", WEB_PORT, WEB_MAC, WEB_IP, block_devices=(device,))
        self.db = server(DB, "db", DB_PORT, DB_MAC, DB_IP)
        self.recorded = Recorded(
            servers={WEB: self.web, DB: self.db},
            claims=((WEB, HOST), (DB, HOST)),
            ports=(
                PortRecord(WEB_PORT, NETWORK, WEB_MAC, "compute:", WEB, HOST, (WEB_IP,)),
                PortRecord(DB_PORT, NETWORK, DB_MAC, "compute:", DB, HOST, (DB_IP,)),
                PortRecord(DHCP_PORT, NETWORK, "fa:16:3e:00:00:99", "network:dhcp", f"dhcp-{HOST}", HOST),
            ),
            volumes=(VolumeRecord(VOLUME, "data", "in-use", HOST, WEB), VolumeRecord(KEPT, "kept", "available", HOST)),
        )
        self.contents = Contents(
            domains=(found_domain(self.web), found_domain(self.db)),
            directories=(FoundDirectory(WEB, ("disk", "disk.config")), FoundDirectory(DB, ("disk", "disk.config"))),
            volumes=(VOLUME, KEPT),
            consoles=(WEB, DB),
            networks=(NETWORK,),
            marks=(
                FoundMark(NETWORK, WEB_PORT, WEB, WEB_MAC),
                FoundMark(NETWORK, DB_PORT, DB, DB_MAC),
            ),
            servers=(
                FoundServer(
                    NETWORK,
                    files=True,
                    interface=DHCP_TAP,
                    entries=(FoundLease(WEB_MAC, WEB_IP), FoundLease(DB_MAC, DB_IP)),
                    running=True,
                    namespace=True,
                ),
            ),
            taps=(FoundLink(WEB_TAP, True, BRIDGE), FoundLink(DB_TAP, True, BRIDGE), FoundLink(DHCP_TAP, True, BRIDGE)),
            bridges=(FoundLink(BRIDGE, True, addresses=("10.0.0.1/24",)),),
            rules=(FoundRules(WEB_TAP, True), FoundRules(DB_TAP, True)),
            members=(WEB_PORT, DB_PORT),
            masquerades=(NETWORK,),
        )
        self.other: Contents | None = None
        self.unreached: dict[str, str] = {}

    def host(self, **changes: Any) -> World:
        """Change what the host has."""
        self.contents = replace(self.contents, **changes)
        return self

    def records(self, **changes: Any) -> World:
        """Change what the records hold."""
        self.recorded = replace(self.recorded, **changes)
        return self

    def server(self, instance: Instance, **changes: Any) -> Instance:
        """Change a server's record."""
        changed = instance.with_(**changes)
        self.records(servers={**self.recorded.servers, instance.uuid: changed})
        return changed

    def without(self, *uuids: str) -> World:
        """Delete servers from the records, with all that they own there, as a delete does."""
        return self.records(
            servers={key: item for key, item in self.recorded.servers.items() if key not in uuids},
            deleted={key: self.recorded.name(key) for key in uuids},
            claims=tuple(item for item in self.recorded.claims if item[0] not in uuids),
            ports=tuple(row for row in self.recorded.ports if row.device_id not in uuids),
            volumes=tuple(row for row in self.recorded.volumes if row.server not in uuids),
        )

    def look(self) -> Report:
        contents = {HOST: self.contents, **({OTHER: self.other} if self.other else {})}
        contents = {host: item for host, item in contents.items() if host not in self.unreached}
        return compare(self.recorded, Scope(contents, self.unreached))

    def leftovers(self, host: str = HOST) -> Leftovers:
        report = self.look()
        return report.clearances[host].leftovers() if host in report.clearances else Leftovers()


@pytest.fixture
def world() -> World:
    return World()


def told(report: Report) -> list[tuple[str, str, str]]:
    """(kind, finding, what is done or not) of each finding."""
    return [(item.kind, item.finding, item.cure or "left") for item in report.findings]


def one(report: Report) -> Finding:
    assert len(report.findings) == 1, table(report.findings)
    return report.findings[0]


def kinds(report: Report) -> set[str]:
    return {item.kind for item in report.findings}


def drop(items: tuple[Any, ...], *keys: str) -> tuple[Any, ...]:
    """The items that have none of these values in their first two fields."""
    return tuple(item for item in items if not set(keys) & set(list(dataclasses.astuple(item))[:2]))


def entries(world: World, *macs: str) -> tuple[FoundServer, ...]:
    (found,) = world.contents.servers
    return (replace(found, entries=tuple(item for item in found.entries if item.mac not in macs)),)


def test_nothing_differs(world: World) -> None:
    report = world.look()
    assert report.findings == [], table(report.findings)
    assert (report.differs, report.heal, report.mends, world.leftovers()) == (False, set(), [], Leftovers())


# What a server lacks on its host

LACKING: dict[str, tuple[Callable[[World], Any], str, str]] = {
    "domain": (
        lambda w: w.host(domains=w.contents.domains[1:], taps=drop(w.contents.taps, WEB_TAP)),
        "domain",
        ONLY_RECORDS,
    ),
    "shut off": (
        lambda w: w.host(
            domains=(replace(w.contents.domains[0], power_state="SHUTDOWN"), w.contents.domains[1]),
            taps=drop(w.contents.taps, WEB_TAP),
        ),
        "domain",
        DIFFERS,
    ),
    "config drive": (
        lambda w: w.host(directories=(FoundDirectory(WEB, ("disk",)), w.contents.directories[1])),
        "config drive",
        ONLY_RECORDS,
    ),
    "base of the root disk": (
        lambda w: w.host(
            directories=(FoundDirectory(WEB, ("disk", "disk.config"), ("disk",)), w.contents.directories[1])
        ),
        "image",
        ONLY_RECORDS,
    ),
    "mark": (lambda w: w.host(marks=w.contents.marks[1:]), "port mark", ONLY_RECORDS),
    "rules": (lambda w: w.host(rules=w.contents.rules[1:]), "rules", ONLY_RECORDS),
    "a part of the rules": (
        lambda w: w.host(rules=(FoundRules(WEB_TAP, False), w.contents.rules[1])),
        "rules",
        DIFFERS,
    ),
    "DHCP entry": (lambda w: w.host(servers=entries(w, WEB_MAC)), "DHCP entry", ONLY_RECORDS),
    "tap out of its bridge": (
        lambda w: w.host(taps=(FoundLink(WEB_TAP, True, ""), *w.contents.taps[1:])),
        "tap",
        DIFFERS,
    ),
    "tap down": (lambda w: w.host(taps=(FoundLink(WEB_TAP, False, BRIDGE), *w.contents.taps[1:])), "tap", DIFFERS),
}


@pytest.mark.parametrize("case", LACKING)
def test_what_a_server_lacks_is_healed(world: World, case: str) -> None:
    change, kind, finding = LACKING[case]
    change(world)
    report = world.look()
    assert (one(report).kind, one(report).finding, one(report).server, one(report).uuid) == (kind, finding, "web", WEB)
    assert one(report).cure
    assert report.heal == {WEB}
    assert world.leftovers() == Leftovers()


SHARED: dict[str, tuple[Callable[[World], Any], set[str]]] = {
    "bridge": (lambda w: w.host(bridges=()), {"bridge"}),
    "bridge down": (lambda w: w.host(bridges=(replace(w.contents.bridges[0], up=False),)), {"bridge"}),
    "gateway": (lambda w: w.host(bridges=(FoundLink(BRIDGE, True),)), {"gateway"}),
    "masquerade": (lambda w: w.host(masquerades=()), {"masquerade"}),
    "dnsmasq": (lambda w: w.host(servers=(replace(w.contents.servers[0], running=False),)), {"DHCP server"}),
    "namespace": (
        lambda w: w.host(servers=(replace(w.contents.servers[0], running=False, namespace=False),)),
        {"DHCP server", "namespace"},
    ),
    "DHCP interface": (lambda w: w.host(taps=drop(w.contents.taps, DHCP_TAP)), {"DHCP interface"}),
    "DHCP interface out of its bridge": (
        lambda w: w.host(taps=(*w.contents.taps[:2], FoundLink(DHCP_TAP, True, ""))),
        {"DHCP interface"},
    ),
    "all of DHCP": (
        lambda w: w.host(servers=(), taps=drop(w.contents.taps, DHCP_TAP)),
        {"DHCP server", "namespace", "DHCP interface", "DHCP entry"},
    ),
}


@pytest.mark.parametrize("case", SHARED)
def test_what_a_network_lacks_is_healed_by_a_server_that_is_on_it(world: World, case: str) -> None:
    change, expected = SHARED[case]
    change(world)
    report = world.look()
    assert kinds(report) == expected
    assert report.heal
    assert all(item.cure and item.finding != ONLY_HOST for item in report.findings)


def test_a_flat_network_needs_its_interface_and_no_gateway(world: World) -> None:
    flat = replace(NET, network_type="flat", physical_network="physnet1")
    for instance in (world.web, world.db):
        world.server(instance, ports=(replace(instance.ports[0], network=flat),))
    world.host(bridges=(FoundLink(BRIDGE, True),), masquerades=())
    assert one(world.look()).kind == "uplink"
    world.host(bridges=(FoundLink(BRIDGE, True, members=("eth1",)),))
    assert world.look().findings == []


def test_a_running_guest_without_its_tap_is_told_what_to_do(world: World) -> None:
    report = world.host(taps=drop(world.contents.taps, WEB_TAP)).look()
    assert (one(report).kind, one(report).cure) == ("tap", "")
    assert "shut it off" in one(report).left


def test_a_tap_that_somebody_put_elsewhere_is_left(world: World) -> None:
    report = world.host(taps=(FoundLink(WEB_TAP, True, "br0"), *world.contents.taps[1:])).look()
    assert (one(report).kind, one(report).cure) == ("tap", "")


@pytest.mark.parametrize("lost", ["root", "volume", "base of ephemeral"])
def test_data_that_is_gone_is_never_made_anew_and_its_server_is_not_started(world: World, lost: str) -> None:
    domains, taps = world.contents.domains[1:], drop(world.contents.taps, WEB_TAP)
    world.host(domains=domains, taps=taps)
    if lost == "root":
        world.host(directories=world.contents.directories[1:])
    elif lost == "volume":
        world.host(volumes=(KEPT,))
    else:
        world.server(world.web, flavor=replace(world.web.flavor, ephemeral=1))
        files = FoundDirectory(WEB, ("disk", "disk.local", "disk.config"), ("disk.local",))
        world.host(directories=(files, world.contents.directories[1]))
    report = world.look()
    assert report.heal == set()
    assert all(not item.cure for item in report.findings)
    assert DATA_GONE in {item.left for item in report.findings}


def test_a_free_volume_that_is_gone_is_told(world: World) -> None:
    report = world.host(volumes=(VOLUME,)).look()
    assert (one(report).kind, one(report).left) == ("volume", DATA_GONE)


def test_expected_disks_follow_the_flavor(world: World) -> None:
    world.server(world.db, flavor=replace(world.db.flavor, swap=64, ephemeral=1), config_drive=False)
    report = world.look()
    assert sorted(kinds(report)) == ["ephemeral disk", "file", "swap disk"]  # the config drive is now too many


# What is on a host of servers that are no more, or elsewhere


def test_all_of_a_deleted_server_goes(world: World) -> None:
    report = world.without(DB).look()
    assert {(item.kind, item.finding) for item in report.findings} == {
        (kind, ONLY_HOST) for kind in ("domain", "directory", "console log", "port mark", "rules", "DHCP entry")
    }
    assert all(item.cure and item.server == "db" for item in report.findings if item.kind != "DHCP entry")
    gone = world.leftovers()
    assert [(guest.uuid, guest.name, guest.disks) for guest in gone.guests] == [(DB, world.db.domain_name, True)]
    (port,) = gone.ports
    assert (port.id, port.network.id, port.mac_address) == (DB_PORT, NETWORK, DB_MAC)
    assert [fixed.ip_address for fixed in port.fixed_ips] == [DB_IP]
    assert (gone.networks, gone.taps, gone.parts) == ((), (), ())
    assert report.touched == set()


def test_with_the_last_server_its_network_goes(world: World) -> None:
    world.without(WEB, DB).host(volumes=(KEPT,))
    report = world.look()
    network = next(item for item in report.findings if item.kind == "network")
    assert network.cure
    assert "bridge, DHCP server, namespace, masquerade, state" in network.object
    # the records still hold a DHCP port of that host
    assert ("DHCP port", ONLY_RECORDS, "deleted") in told(report)
    assert report.mends == [Mend("release_dhcp", (NETWORK, HOST))]
    assert [item.id for item in world.leftovers().networks] == [NETWORK]


ALONE: dict[str, Callable[[World], Any]] = {
    "directory": lambda w: w.host(directories=(FoundDirectory(NOBODY, ("disk",)), *w.contents.directories)),
    "a half removed directory": lambda w: w.host(
        directories=(FoundDirectory(f"{NOBODY}_del"), *w.contents.directories)
    ),
    "console": lambda w: w.host(consoles=(NOBODY, *w.contents.consoles)),
    "mark": lambda w: w.host(marks=(FoundMark(NETWORK, NOBODYS_PORT, NOBODY), *w.contents.marks)),
    "temporary file": lambda w: w.host(parts=(FoundPart(f"/i/{NOBODY}/disk.part", NOBODY),)),
}


@pytest.mark.parametrize("case", ALONE)
def test_each_thing_of_a_deleted_server_goes_and_of_an_unknown_one_stays(world: World, case: str) -> None:
    ALONE[case](world)
    stays = one(world.look())
    assert (stays.cure, stays.left, stays.differs) == ("", UNKNOWN, True)
    assert world.leftovers() == Leftovers()
    world.records(deleted={NOBODY: "old"})
    goes = one(world.look())
    assert (bool(goes.cure), goes.left, goes.server) == (True, "", "old")
    assert world.leftovers() != Leftovers()


PORTS_ALONE: dict[str, Callable[[World], Any]] = {
    "rules": lambda w: w.host(rules=(FoundRules(NOBODYS_TAP, False), *w.contents.rules)),
    "member": lambda w: w.host(members=(NOBODYS_PORT, *w.contents.members)),
    "tap": lambda w: w.host(taps=(FoundLink(NOBODYS_TAP, True, BRIDGE), *w.contents.taps)),
    "DHCP entry": lambda w: w.host(
        servers=(
            replace(w.contents.servers[0], entries=(*w.contents.servers[0].entries, FoundLease("02:00", "10.0.0.9"))),
        )
    ),
}


@pytest.mark.parametrize("case", PORTS_ALONE)
def test_each_thing_of_a_port_goes_where_its_mark_says_whose_it_was(world: World, case: str) -> None:
    PORTS_ALONE[case](world)
    stays = one(world.look())
    assert (stays.cure, stays.left) == ("", UNKNOWN)
    world.host(marks=(FoundMark(NETWORK, NOBODYS_PORT, NOBODY, "02:00"), *world.contents.marks))
    world.records(deleted={NOBODY: "old"})
    report = world.look()
    assert len(report.findings) == 2
    assert all(item.cure and item.server == "old" for item in report.findings)
    (port,) = world.leftovers().ports
    assert (port.id, port.network.id, port.mac_address) == (NOBODYS_PORT, NETWORK, "02:00")
    assert world.leftovers().taps == ((NOBODYS_TAP,) if case == "tap" else ())


def test_a_known_port_that_no_server_has_any_more_is_taken_off(world: World) -> None:
    """A port that was made on its own outlives its server."""
    row = PortRecord(NOBODYS_PORT, NETWORK, "02:00", "", "", "", ("10.0.0.9",))
    world.records(ports=(*world.recorded.ports, row))
    assert world.look().findings == []
    world.host(rules=(FoundRules(NOBODYS_TAP, True), *world.contents.rules))
    assert one(world.look()).cure
    assert [port.id for port in world.leftovers().ports] == [NOBODYS_PORT]


def test_a_stale_lease_is_given_back(world: World) -> None:
    found = replace(world.contents.servers[0], stale=(FoundLease("02:00", "10.0.0.9"),))
    report = world.host(servers=(found,)).look()
    assert (one(report).kind, one(report).cure) == ("DHCP lease", "given back")
    (port,) = world.leftovers().ports
    assert (port.network.id, port.mac_address, port.fixed_ips[0].ip_address) == (NETWORK, "02:00", "10.0.0.9")


def test_two_stale_leases_are_two(world: World) -> None:
    stale = (FoundLease("02:00", "10.0.0.9"), FoundLease("02:01", "10.0.0.8"))
    world.host(servers=(replace(world.contents.servers[0], stale=stale),))
    assert len(world.leftovers().ports) == 2


def test_what_is_left_of_a_server_that_lives_elsewhere_goes_but_not_from_there(world: World) -> None:
    world.server(world.db, host=OTHER)
    world.records(
        claims=((WEB, HOST), (DB, OTHER)),
        ports=tuple(replace(row, host=OTHER) if row.device_id == DB else row for row in world.recorded.ports)
        + (PortRecord(str(uuid.UUID(int=50)), NETWORK, "02:99", "network:dhcp", "dhcp", OTHER),),
    )
    world.other = World().contents
    world.other = replace(
        world.other,
        domains=world.other.domains[1:],
        directories=world.other.directories[1:],
        volumes=(),
        consoles=(DB,),
        marks=world.other.marks[1:],
        taps=world.other.taps[1:],
        rules=world.other.rules[1:],
        members=(DB_PORT,),
        servers=entries(World(), WEB_MAC),
    )
    report = world.look()
    assert {item.host for item in report.findings} == {HOST}
    assert all(item.cure for item in report.findings)
    assert [guest.uuid for guest in world.leftovers().guests] == [DB]
    assert world.leftovers(OTHER) == Leftovers()
    assert report.touched == {DB}


def test_a_shared_file_system_shows_the_directory_of_a_server_that_lives_elsewhere(world: World) -> None:
    world.server(world.db, host=OTHER)
    world.unreached = {OTHER: "timed out"}
    world.host(shared_storage=True)
    assert "directory" not in kinds(world.look())
    assert [guest.disks for guest in world.leftovers().guests] == [False]  # its domain and console go, its disks do not


def test_two_names_of_one_machine_conclude_nothing(world: World) -> None:
    world.without(DB).host(machine="m")
    world.other = world.contents
    report = world.look()
    assert {(item.kind, item.host) for item in report.findings} == {("host", HOST), ("host", OTHER)}
    assert report.clearances == {}


def test_a_rest_of_an_earlier_removal_goes_beside_the_servers_directory(world: World) -> None:
    world.host(directories=(*world.contents.directories, FoundDirectory(f"{WEB}_del")))
    assert one(world.look()).cure
    assert world.leftovers() == Leftovers(doomed=(WEB,))


def test_a_temporary_file_of_a_server_that_runs_goes(world: World) -> None:
    world.host(parts=(FoundPart(f"/i/{WEB}/disk.part", WEB), FoundPart("/i/_base/x.part")))
    assert world.leftovers().parts == (f"/i/{WEB}/disk.part", "/i/_base/x.part")


def test_what_an_interrupted_boot_fetched_is_kept_for_its_next_run(world: World) -> None:
    world.server(world.db, vm_state="BUILDING", task_state="spawning")
    world.host(parts=(FoundPart("/i/_base/x.part"), FoundPart(f"/i/{DB}/disk.part", DB)))
    assert world.leftovers().parts == ()


# Strangers


def stranger() -> Instance:
    return server(NOBODY, "stranger", NOBODYS_PORT, "02:00", "10.9.0.9")


def test_another_sites_server_is_one_line_with_all_that_is_its(world: World) -> None:
    made = stranger()
    world.host(
        domains=(*world.contents.domains, replace(found_domain(made), files=(f"/v/volume-{DB}",))),
        directories=(*world.contents.directories, FoundDirectory(NOBODY, ("disk",))),
        consoles=(*world.contents.consoles, NOBODY),
        volumes=(*world.contents.volumes, DB),
        marks=(*world.contents.marks, FoundMark("other-net", NOBODYS_PORT)),
        networks=(NETWORK, "other-net"),
        rules=(*world.contents.rules, FoundRules(NOBODYS_TAP, True)),
        members=(*world.contents.members, NOBODYS_PORT),
        taps=(*world.contents.taps, FoundLink(NOBODYS_TAP, True, "brqother-net")),
        servers=(*world.contents.servers, FoundServer("other-net", True, "", (FoundLease("02:00", "10.9.0.9"),))),
    )
    report = world.look()
    assert (one(report).kind, one(report).left, one(report).differs) == ("domain", UNKNOWN, True)
    assert world.leftovers() == Leftovers()


def test_on_a_shared_host_what_is_unknown_is_no_difference(world: World) -> None:
    world.host(
        shared=True,
        domains=(*world.contents.domains, found_domain(stranger())),
        volumes=(*world.contents.volumes, DB),
    )
    report = world.look()
    assert [item.differs for item in report.findings] == [False, False]
    assert not report.differs
    world.without(DB)
    assert world.look().differs  # what these records knew counts there too


@pytest.mark.parametrize(
    "change", [{"uuid": WEB, "name": "mine"}, {"uuid": NOBODY, "name": "instance-00000001"}], ids=["uuid", "name"]
)
def test_a_domain_that_is_not_ours_is_told_only_where_it_is_in_the_way(world: World, change: dict[str, str]) -> None:
    bystander = FoundDomain(str(uuid.UUID(int=77)), "router", False)
    assert world.host(domains=(*world.contents.domains, bystander)).look().findings == []
    world.host(
        domains=(FoundDomain(ours=False, **change), world.contents.domains[1], bystander),
        taps=drop(world.contents.taps, WEB_TAP),
    )
    report = world.look()
    collision = next(item for item in report.findings if item.finding == DIFFERS)
    assert (collision.kind, collision.cure, collision.server) == ("domain", "", "web")
    assert world.leftovers() == Leftovers()


def test_an_unknown_volume_is_never_removed(world: World) -> None:
    report = world.host(volumes=(*world.contents.volumes, DB)).look()
    assert one(report).cure == ""
    assert world.records(deleted={DB: "x"}).leftovers() == Leftovers()


def test_a_volume_on_another_host_than_recorded_is_left(world: World) -> None:
    rows = (world.recorded.volumes[0], replace(world.recorded.volumes[1], host=OTHER))
    world.unreached = {OTHER: "timed out"}
    report = world.records(volumes=rows).look()
    found = next(item for item in report.findings if item.kind == "volume")
    assert (found.finding, found.cure) == (DIFFERS, "")


def test_a_networks_bridge_with_somebodys_tap_stays(world: World) -> None:
    world.without(WEB, DB).host(
        domains=(), directories=(), volumes=(KEPT,), consoles=(), marks=(), rules=(), members=(),
        taps=(FoundLink(NOBODYS_TAP, True, BRIDGE), FoundLink(DHCP_TAP, True, BRIDGE)),
        servers=(replace(world.contents.servers[0], entries=()),),
    )  # fmt: skip
    report = world.look()
    network = next(item for item in report.findings if item.kind == "network")
    assert (network.cure, network.left) == ("", UNKNOWN)
    assert world.leftovers() == Leftovers()


def test_a_namespace_with_somebody_elses_process_stays(world: World) -> None:
    world.without(WEB, DB).host(
        domains=(), directories=(), volumes=(KEPT,), consoles=(), marks=(), rules=(), members=(), taps=(),
        servers=(FoundServer(NETWORK, namespace=True, others=True),), networks=(), bridges=(), masquerades=(),
    )  # fmt: skip
    assert world.leftovers() == Leftovers()


def test_a_dhcp_end_whose_name_is_lost_goes_with_its_network(world: World) -> None:
    world.without(WEB, DB).host(
        domains=(), directories=(), volumes=(KEPT,), consoles=(), marks=(), rules=(), members=(), servers=(),
        taps=(FoundLink(DHCP_TAP, True, BRIDGE),),
    )  # fmt: skip
    assert world.leftovers().taps == (DHCP_TAP,)
    assert [item.id for item in world.leftovers().networks] == [NETWORK]


# Servers that nothing is concluded about


@pytest.mark.parametrize("uuids", [(WEB,), (WEB, DB)])
def test_busy_servers_are_passed_over(world: World, uuids: tuple[str, ...]) -> None:
    """Whatever is, or is not, there of them."""
    whole = world.contents
    world.records(busy=dict.fromkeys(uuids, "run x is at work on it"))
    bare = (FoundServer(NETWORK, True, DHCP_TAP, (FoundLease(DB_MAC, DB_IP),), running=True, namespace=True),)
    nothing = {
        "domains": whole.domains[1:], "directories": whole.directories[1:], "volumes": (KEPT,), "consoles": (DB,),
        "marks": whole.marks[1:], "rules": whole.rules[1:], "members": (DB_PORT,), "servers": bare,
        "taps": whole.taps[1:],
    }  # fmt: skip
    for changes in ({}, nothing):
        world.host(**changes)
        assert world.look().findings == [], table(world.look().findings)
        assert world.leftovers() == Leftovers()
    world.records(claims=((WEB, OTHER), (DB, HOST)))
    assert world.look().findings == []


def test_a_server_deleted_while_the_hosts_were_looked_at_is_passed_over(world: World) -> None:
    world.without(DB).records(busy={DB: "it changed while the hosts were looked at"})
    assert world.look().findings == []


@pytest.mark.parametrize("dropped", [False, True])
def test_while_a_server_is_deleted_what_it_may_have_left_is_passed_over(world: World, dropped: bool) -> None:
    """Its rows go one after the other, and the hosts were looked at before."""
    found = world.contents.servers[0]
    world.host(
        volumes=(*world.contents.volumes, NOBODY),
        rules=(*world.contents.rules, FoundRules(NOBODYS_TAP, True)),
        servers=(replace(found, stale=(FoundLease("02:00", "10.0.0.9"),)),),
    )
    assert len(world.look().findings) == 3
    world.records(busy={DB: "run x is at work on it"})
    assert len(world.look().findings) == 3
    if dropped:
        world.without(DB)
    else:
        world.server(world.db, task_state="deleting")
    assert world.look().findings == []


@pytest.mark.parametrize(
    ("state", "advice"),
    [
        ({"vm_state": "BUILDING", "task_state": "scheduling", "host": None}, "boot was interrupted"),
        ({"vm_state": "BUILDING", "task_state": "spawning"}, "boot was interrupted"),
        ({"vm_state": "ACTIVE", "task_state": "deleting"}, "delete was interrupted"),
        ({"vm_state": "ERROR", "task_state": "deleting", "host": None}, "delete was interrupted"),
        ({"vm_state": "ERROR"}, "undo did not end"),
    ],
)
def test_an_interrupted_server_is_for_its_next_run(world: World, state: dict[str, Any], advice: str) -> None:
    world.server(world.db, **state)
    report = world.look()
    assert (one(report).kind, one(report).finding, one(report).server) == ("server", DIFFERS, "db")
    assert advice in one(report).left
    assert (report.heal, report.mends, world.leftovers()) == (set(), [], Leftovers())


def test_a_failed_server_that_left_nothing_is_no_difference(world: World) -> None:
    world.without(DB)
    world.records(deleted={}, servers={WEB: world.web, DB: world.db.with_(vm_state="ERROR", host=None, ports=())})
    whole = World().contents
    world.host(
        domains=whole.domains[:1], directories=whole.directories[:1], consoles=(WEB,), marks=whole.marks[:1],
        rules=whole.rules[:1], members=(WEB_PORT,), servers=entries(World(), DB_MAC), taps=drop(whole.taps, DB_TAP),
    )  # fmt: skip
    assert world.look().findings == []


def test_what_a_failed_server_left_all_the_same_goes_under_its_lease(world: World) -> None:
    world.without(DB)
    world.records(deleted={}, servers={WEB: world.web, DB: world.db.with_(vm_state="ERROR", host=None, ports=())})
    report = world.look()
    assert [guest.uuid for guest in world.leftovers().guests] == [DB]
    assert report.touched == {DB}


def test_a_residue_explains_what_is_there(world: World) -> None:
    left = world.db
    world.without(DB)
    world.records(deleted={}, servers={WEB: world.web, DB: left.with_(vm_state="ERROR", host=None, ports=())})
    world.records(residues=(left,))
    report = world.look()
    assert (one(report).kind, one(report).host, one(report).cure) == ("server", HOST, "undone")
    assert (report.undo_hosts, world.leftovers()) == ({HOST}, Leftovers())


def test_a_host_that_is_not_reached_undoes_nothing(world: World) -> None:
    world.records(residues=(world.db.with_(host=OTHER),))
    world.unreached = {OTHER: "timed out"}
    report = world.look()
    assert [item.cure for item in report.findings] == ["", ""]
    assert report.undo_hosts == set()


# Hosts


def test_nothing_is_concluded_about_a_host_that_was_not_reached(world: World) -> None:
    world.unreached = {HOST: "timed out"}
    report = world.look()
    assert (one(report).kind, one(report).finding, one(report).host) == ("host", NOT_REACHED, HOST)
    assert "timed out" in one(report).left
    assert report.differs


def test_a_host_that_the_inventory_lacks_is_told_with_its_servers(world: World) -> None:
    report = compare(world.recorded, Scope({}))
    assert (one(report).kind, one(report).finding, one(report).host) == ("host", ONLY_RECORDS, HOST)
    for name in ("db", "web", "volume data", "volume kept"):
        assert name in one(report).left


# The records


@pytest.mark.parametrize(
    ("claims", "mend"),
    [
        (((WEB, HOST),), Mend("claim", (DB,))),
        (((WEB, HOST), (DB, OTHER)), Mend("claim", (DB,))),
        (((WEB, HOST), (DB, HOST), (DB, OTHER)), Mend("claim", (DB,))),
        (((WEB, HOST), (DB, HOST), (NOBODY, HOST)), Mend("release_claim", (NOBODY,))),
    ],
    ids=["none", "elsewhere", "two", "of a deleted server"],
)
def test_claims(world: World, claims: Any, mend: Mend) -> None:
    report = world.records(claims=claims, deleted={NOBODY: "old"}).look()
    assert (one(report).kind, bool(one(report).cure)) == ("claim", True)
    assert report.mends == [mend]


def test_a_failed_server_has_no_claim(world: World) -> None:
    failed = world.db.with_(vm_state="ERROR", host=None, ports=())
    world.without(DB).records(deleted={}, servers={WEB: world.web, DB: failed}, claims=((WEB, HOST), (DB, HOST)))
    assert Mend("release_claim", (DB,)) in world.look().mends


def test_ports_of_a_server_that_is_no_more_are_released(world: World) -> None:
    row = PortRecord(NOBODYS_PORT, NETWORK, "02:00", "compute:", NOBODY, HOST, ("10.0.0.9",))
    report = world.records(ports=(*world.recorded.ports, row), deleted={NOBODY: "old"}).look()
    assert (one(report).kind, one(report).finding, one(report).server) == ("port", ONLY_RECORDS, "old")
    assert "10.0.0.9" in one(report).object
    assert report.mends == [Mend("release_ports", (NOBODY,))]


def test_a_port_bound_to_another_host_than_its_server_is_bound_again(world: World) -> None:
    rows = tuple(replace(row, host=OTHER) if row.id == DB_PORT else row for row in world.recorded.ports)
    dhcp = PortRecord(str(uuid.UUID(int=50)), NETWORK, "02:99", "network:dhcp", "dhcp", OTHER)
    report = world.records(ports=(*rows, dhcp)).look()
    assert (one(report).kind, one(report).finding) == ("port", DIFFERS)
    assert report.mends == [Mend("bind_ports", (DB,))]


def test_a_dhcp_port_without_ports_is_deleted(world: World) -> None:
    dhcp = PortRecord(str(uuid.UUID(int=50)), NETWORK, "02:99", "network:dhcp", "dhcp", OTHER)
    report = world.records(ports=(*world.recorded.ports, dhcp)).look()
    assert (one(report).kind, one(report).host) == ("DHCP port", OTHER)
    assert report.mends == [Mend("release_dhcp", (NETWORK, OTHER))]


def test_a_network_without_its_dhcp_port_gets_one(world: World) -> None:
    for instance in (world.web, world.db):
        world.server(instance, ports=(replace(instance.ports[0], network=replace(NET, dhcp_port=None)),))
    world.records(ports=world.recorded.ports[:2])
    report = world.look()
    assert (kinds(report), bool(report.heal)) == ({"DHCP port"}, True)


@pytest.mark.parametrize(
    ("row", "mend"),
    [
        (VolumeRecord(KEPT, "kept", "in-use", HOST), Mend("free_volume", (KEPT,))),
        (VolumeRecord(KEPT, "kept", "attaching", HOST), Mend("free_volume", (KEPT,))),
        (VolumeRecord(KEPT, "kept", "creating", ""), Mend("drop_volume", (KEPT,))),
        (VolumeRecord(KEPT, "kept", "in-use", HOST, NOBODY), Mend("release_volumes", (NOBODY,))),
        (VolumeRecord(KEPT, "kept", "reserved", HOST, DB), Mend("use_volume", (KEPT,))),
        (VolumeRecord(KEPT, "kept", "in-use", OTHER, DB), None),
    ],
    ids=["in-use", "attaching", "creating", "of a deleted server", "of an active one", "elsewhere"],
)
def test_volumes_in_the_records(world: World, row: VolumeRecord, mend: Mend | None) -> None:
    world.records(volumes=(world.recorded.volumes[0], row), deleted={NOBODY: "old"})
    if not row.host:
        world.host(volumes=(VOLUME,))
    world.unreached = {OTHER: "timed out"}
    report = world.look()
    found = [item for item in report.findings if item.kind == "volume"]
    assert {bool(item.cure) for item in found} == {mend is not None}
    assert report.mends == ([mend] if mend else [])


@pytest.mark.parametrize(("uuid_", "told_of"), [(WEB, True), (NOBODY, True), (DB, False)])
def test_leases_of_runs_that_are_no_more(world: World, uuid_: str, told_of: bool) -> None:
    world.server(world.db, vm_state="BUILDING", task_state="spawning")  # its next run takes its lease over
    report = world.records(dead_leases=(uuid_,), deleted={NOBODY: "old"}).look()
    assert ("lease" in kinds(report)) == told_of
    assert report.mends == ([Mend("drop_lease", (uuid_,))] if told_of else [])


# For people


def test_the_table_has_a_line_each_and_aligned_columns(world: World) -> None:
    lines = table(world.without(DB).look().findings)
    assert len(lines) == 1 + len(world.look().findings)
    column = lines[0].index("finding")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)
    assert any("cure: stopped and removed" in line for line in lines)


def test_an_object_with_line_breaks_stays_one_line() -> None:
    assert len(table([Finding("h", "file", "a\nb", ONLY_HOST, left="x\ny")])) == 2


def test_the_uuids_that_are_asked_for_are_those_that_hosts_speak_of() -> None:
    contents = Contents(
        domains=(FoundDomain("d", "x", True),),
        directories=(FoundDirectory("e_del"),),
        consoles=("f",),
        marks=(FoundMark("n", "p", "g"),),
    )
    assert uuids_spoken_of({HOST: contents}) == {"d", "e", "f", "g"}
