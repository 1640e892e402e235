# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A server that failed on its host is undone there and tried on the next; killed anywhere, the next run ends right."""

from __future__ import annotations

from typing import Any

import pytest

from .conftest import RunKilled, Site

ANY_DATABASE = pytest.mark.parametrize("records_url", ["sqlite"], indirect=True)
"""For what no database has a part in."""


class World:
    """What the hosts have: (host, uuid) of all that was made there and not undone.

    The first ``failing`` hosts that a server comes to fail for it, now and ever; those ``unreachable`` undo nothing.
    """

    def __init__(self, site: Site, failing: int = 0, unreachable: tuple[str, ...] = ()) -> None:
        self.site, self.failing, self.unreachable = site, failing, unreachable
        self.made: set[tuple[str, str]] = set()
        self.bad: dict[str, list[str]] = {}
        self.built: list[str] = []
        self.undone: list[str] = []

    def build(self, instance: dict[str, Any]) -> dict[str, Any]:
        host, uuid = instance["host"], instance["uuid"]
        assert {made for made in self.made if made[1] == uuid} <= {(host, uuid)}, "it is on another host, too"
        self.built.append(host)
        self.made.add((host, uuid))
        bad = self.bad.setdefault(uuid, [])
        if len(bad) < self.failing and host not in bad:
            bad.append(host)
        if host in (*bad, *self.unreachable):
            return self.site.failed(instance, f"{host} is full")
        return self.site.built(instance)

    def undo(self, instance: dict[str, Any]) -> dict[str, Any]:
        host = instance["host"]
        if host in self.unreachable:
            return self.site.stuck(instance, "unreachable")
        self.undone.append(host)
        self.made.discard((host, instance["uuid"]))
        return instance

    def boot(self, *requests: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
        return self.site.play(*requests, hosts=self.build, undo=self.undo, **options)


def test_a_server_that_failed_is_tried_on_the_next_host(site: Site) -> None:
    site.record("kvm1", "kvm2")
    world = World(site, failing=1)
    (instance,) = world.boot(site.server(volumes=[{"size": 1, "name": "data"}]))
    first, second = world.built
    assert first != second
    assert (instance["vm_state"], instance["host"], instance["fault"]) == ("ACTIVE", second, None)
    assert world.undone == [first]
    assert world.made == {(second, instance["uuid"])}
    (decision,) = site.results["schedule"]["decisions"].values()
    assert decision["removed"] == [{"host": first, "filter": "Retry", "reason": f"disk on {first}: {first} is full"}]
    assert site.claims() == {"web": {"VCPU": 1, "MEMORY_MB": 128, "DISK_GB": 2}}
    assert [(row["status"], row["host"]) for row in site.rows("volumes")] == [("in-use", second)]
    assert {row["host"]: row["failed_builds"] for row in site.rows("compute_nodes")} == {first: 1, second: 0}
    assert site.rows("residues") == site.rows("leases") == []
    assert site.row()["attempts"] == []
    assert [(row["action"], row["message"]) for row in site.rows("instance_actions")] == [("create", None)]
    assert [event["type"].rsplit(".", 2)[1:] for event in site.events()] == [["create", "end"]]


def test_a_server_keeps_its_addresses_and_its_dhcp_port_moves(site: Site) -> None:
    site.record("kvm1", "kvm2")
    (before,) = site.boot(site.server(), last="building")
    (port,) = before["ports"]
    (dhcp,) = site.ports("network:dhcp")
    first = before["host"]
    site.step("active", [site.failed(before)], [], {})
    site.undo(site.results["active"]["to_undo"], twice=True)
    assert site.results["undone"]["retrying"] == 1
    assert site.states() == ("BUILDING", "scheduling", "NOSTATE")
    assert (site.row()["host"], site.row()["availability_zone"]) == (None, None)
    assert site.claims() == {}
    (unbound,) = site.ports()
    assert (unbound["id"], unbound["binding_host"], unbound["status"]) == (port["id"], None, "DOWN")
    assert site.ports("network:dhcp") == [], "it was the last server of its network there"
    (again,) = site.results["undone"]["retry"]
    handle = [again]
    for step in ("schedule", "port", "volume", "building", "active"):
        if step == "active":
            handle = [site.built(item) for item in handle]
        handle = site.step(step, handle, [], {"twice": True})
    (after,) = handle
    assert after["host"] not in (None, first)
    assert (after["vm_state"], after["availability_zone"]) == ("ACTIVE", "nova")
    for key in ("id", "mac_address", "fixed_ips"):
        assert after["ports"][0][key] == port[key]
    (moved,) = site.ports("network:dhcp")
    assert moved["binding_host"] == after["host"]
    assert after["ports"][0]["network"]["dhcp_port"]["id"] == moved["id"] != dhcp["id"]


def test_when_all_attempts_failed_the_server_has_the_faults_of_all(site: Site) -> None:
    site.record("kvm1", "kvm2", "kvm3", "kvm4")
    world = World(site, failing=4)
    bad, good = site.server(volumes=[{"size": 1, "delete_on_termination": True}]), site.server("db")
    (web,) = world.boot(bad)
    one, two, three = world.built
    assert len({one, two, three}) == 3
    assert (web["vm_state"], web["host"], world.made) == ("ERROR", None, set())
    told = "; ".join(f"{n}. disk on {host}: {host} is full" for n, host in enumerate((one, two, three), 1))
    assert web["fault"]["message"] == f"{three} is full (all attempts: {told})"
    assert site.row()["fault"]["message"] == web["fault"]["message"]
    assert site.states() == ("ERROR", None, "NOSTATE")
    for table in ("allocations", "ports", "ip_allocations", "residues", "leases"):
        assert site.rows(table) == [], table
    assert [(row["status"], row["host"]) for row in site.rows("volumes")] == [("creating", None)]
    assert [row["message"] for row in site.rows("instance_actions")] == ["Error"]
    assert [event["type"].rsplit(".", 2)[1:] for event in site.events()] == [["create", "error"]]
    world.failing, world.bad = 0, {}
    (web, db) = world.boot(bad, good)
    assert (web["vm_state"], db["vm_state"], web["attempts"]) == ("ACTIVE", "ACTIVE", []), "a new boot begins anew"


def test_when_no_host_is_left_the_server_has_the_faults_of_all(site: Site) -> None:
    site.record("kvm1")
    (web,) = World(site, failing=1).boot(site.server())
    assert web["fault"]["message"] == (
        "No valid host was found: 1 host entered; Retry removed kvm1 (disk on kvm1: kvm1 is full) "
        "(all attempts: 1. disk on kvm1: kvm1 is full)"
    )
    assert site.states() == ("ERROR", None, "NOSTATE")
    assert site.rows("ports") == site.rows("allocations") == site.rows("leases") == []


@ANY_DATABASE
def test_of_several_servers_only_those_that_failed_are_tried_again(site: Site) -> None:
    site.record("kvm1", "kvm2", vcpus=64, memory_mb=65536)
    requests = [site.server(f"s{number}") for number in range(6)]
    built: list[tuple[str, str]] = []

    def build(instance: dict[str, Any]) -> dict[str, Any]:
        built.append((instance["name"], instance["host"]))
        return site.failed(instance) if instance["host"] == "kvm1" else site.built(instance)

    handle = site.play(*requests, hosts=build)
    assert {(item["vm_state"], item["host"]) for item in handle} == {("ACTIVE", "kvm2")}
    names = sorted(request["name"] for request in requests)
    assert sorted(item["name"] for item in handle) == sorted(name for name, host in built if host == "kvm2") == names
    assert 0 < len([host for _, host in built if host == "kvm1"]) < 6
    assert site.steps.count("active") == 2
    assert site.rows("leases") == site.rows("residues") == []


@pytest.mark.parametrize(
    ("fault", "attempts"),
    [({"code": 400}, 1), ({"host": None}, 0), ({}, 2)],
    ids=["a request that can be right nowhere", "one that no host had a part in", "any other"],
)
@ANY_DATABASE
def test_what_is_tried_again(site: Site, fault: dict[str, Any], attempts: int) -> None:
    site.record("kvm1", "kvm2")

    def build(instance: dict[str, Any]) -> dict[str, Any]:
        failed = site.failed(instance)
        return {**failed, "fault": {**failed["fault"], **fault}}

    (web,) = site.play(site.server(), hosts=build, max_attempts=2)
    assert site.steps.count("active") == max(attempts, 1)
    assert (len(web["attempts"]), web["vm_state"]) == (attempts, "ERROR")
    assert site.rows("ports") == site.rows("allocations") == site.rows("residues") == site.rows("leases") == []


@ANY_DATABASE
@pytest.mark.parametrize("max_attempts", [1, 2, 3])
def test_max_attempts_is_how_many_hosts_are_tried(site: Site, max_attempts: int) -> None:
    site.record("kvm1", "kvm2", "kvm3", "kvm4")
    world = World(site, failing=4)
    world.boot(site.server(), max_attempts=max_attempts)
    assert len(world.built) == len(set(world.built)) == max_attempts


def test_a_server_that_may_run_on_a_host_out_of_reach_stays_there(site: Site) -> None:
    """No other host may have a domain of it: two of them would write to the same addresses."""
    site.record("kvm1", "kvm2")
    world = World(site)
    (before,) = site.boot(site.server(), last="building")
    world.unreachable = (before["host"],)
    site.kill()
    (web,) = world.boot(site.server())
    assert (web["vm_state"], web["host"], world.built) == ("ERROR", before["host"], [before["host"]])
    assert site.results["undone"]["warnings"] == [
        f"{before['host']} has yet to undo what it made of web: unreachable",
    ]
    assert set(site.claims()) == {"web"}
    assert [port["binding_host"] for port in site.ports()] == [before["host"]]
    assert site.residues() == [("web", before["host"])]
    assert site.rows("leases") == []
    (web,) = world.boot(site.server())
    assert (web["vm_state"], world.built) == ("ERROR", [before["host"]]), "it waits for its host"
    world.unreachable = ()
    (web,) = world.boot(site.server())
    assert (web["vm_state"], world.undone) == ("ACTIVE", [before["host"]])
    assert world.made == {(web["host"], web["uuid"])}
    assert site.residues() == []
    assert web["ports"][0]["mac_address"] == before["ports"][0]["mac_address"]


def test_a_server_that_cannot_run_there_yet_leaves_a_host_out_of_reach(site: Site) -> None:
    site.record("kvm1", "kvm2")
    handle = site.boot(site.server(), last="port")
    first = handle[0]["host"]
    site.step("active", [site.failed(item, "unreachable", "network") for item in handle], [], {})
    site.undo([site.stuck(item, "unreachable") for item in site.results["active"]["to_undo"]])
    assert site.results["undone"]["retrying"] == 1
    assert site.residues() == [("web", first)]
    assert site.claims() == {}
    site.kill()

    world = World(site, unreachable=(first,))
    (web,) = world.boot(site.server())
    assert (web["vm_state"], web["host"] not in (None, first)) == ("ACTIVE", True)
    assert site.residues() == [("web", first)], "it has yet to undo its part"
    site.play(site.server())
    assert site.residues() == [], "the next run that reaches it has it undone"
    assert site.states() == ("ACTIVE", None, "RUNNING"), "and what runs elsewhere is left alone"
    assert site.row()["host"] == web["host"]
    assert (len(site.ports()), set(site.claims())) == (1, {"web"})


def test_a_host_is_out_until_it_undid_what_an_earlier_boot_left_there(site: Site) -> None:
    site.record("kvm1")
    handle = site.boot(site.server(), last="port")
    site.step("active", [site.failed(item, "unreachable", "network") for item in handle], [], {"max_attempts": 1})
    site.undo([site.stuck(item, "unreachable") for item in site.results["active"]["to_undo"]])
    assert site.states() == ("ERROR", None, "NOSTATE")
    assert site.residues() == [("web", "kvm1")]
    assert site.row()["host"] is None
    assert site.rows("allocations") == site.rows("ports") == []
    (web,) = World(site, unreachable=("kvm1",)).boot(site.server())
    assert "Retry removed kvm1 (it has yet to undo what an earlier attempt left there)" in web["fault"]["message"]
    assert site.residues() == [("web", "kvm1")]
    (web,) = World(site).boot(site.server())
    assert (web["vm_state"], web["host"], site.residues()) == ("ACTIVE", "kvm1", [])


def test_a_delete_takes_what_failed_attempts_left_on_other_hosts_too(site: Site) -> None:
    site.record("kvm1", "kvm2")
    handle = site.boot(site.server(), last="port")
    first = handle[0]["host"]
    site.step("active", [site.failed(item, "unreachable", "network") for item in handle], [], {})
    site.undo([site.stuck(item, "unreachable") for item in site.results["active"]["to_undo"]])
    (web,) = World(site, unreachable=(first,)).boot(site.server())
    (going,) = site.delete("web", last="deleting")
    assert going["host"] == web["host"]
    assert [item["host"] for item in site.results["deleting"]["to_undo"]] == [first]
    assert site.results["deleting"]["undo_hosts"] == [first]
    site.undo(site.results["deleting"]["to_undo"])
    assert site.residues() == []
    assert (site.states()[:2], len(site.ports())) == (("ACTIVE", "deleting"), 1), "that is the delete's part"
    site.undo([going], ("volume_absent", "port_absent", "schedule_absent", "absent"))
    assert site.states()[:2] == ("DELETED", None)
    for table in ("allocations", "ports", "ip_allocations", "residues", "leases"):
        assert site.rows(table) == [], table


@ANY_DATABASE
def test_what_a_deleted_server_left_on_a_host_out_of_reach_is_undone_with_the_hosts_recovery(site: Site) -> None:
    site.record("kvm1")
    handle = site.boot(site.server(), last="port")
    site.step("active", [site.failed(item, "unreachable", "network") for item in handle], [], {"max_attempts": 1})
    site.undo([site.stuck(item, "unreachable") for item in site.results["active"]["to_undo"]])
    (going,) = site.delete("web", last="deleting")
    site.undo([site.stuck(item, "unreachable") for item in site.results["deleting"]["to_undo"]])
    site.undo([going], ("volume_absent", "port_absent", "schedule_absent", "absent"))
    assert site.states()[:2] == ("DELETED", None)
    assert site.residues() == [("web", "kvm1")]
    site.kill()
    found = site.phase("instance", "root", state="recorded", hosts=["kvm1"])
    assert (found["instances"], [item["name"] for item in found["to_undo"]]) == ([], ["web"])
    site.undo(found["to_undo"], user="root")
    assert site.residues() == []
    assert site.states()[:2] == ("DELETED", None)


@ANY_DATABASE
def test_a_delete_during_a_rollback_gets_the_server_once_that_is_over(site: Site) -> None:
    site.boot(site.server(), host=site.failed)
    to_undo = site.results["active"]["to_undo"]
    site.run = "the delete"
    site.phase("instance", state="deleting", names=["web"], lease_timeout=0)
    site.run = "the first run"
    site.undo(to_undo)
    assert site.results["undone"]["retrying"] == 0, "it is not tried elsewhere"
    assert site.rows("leases") == site.rows("residues") == []
    assert (set(site.claims()), len(site.ports())) == ({"web"}, 1), "the delete gives those back"
    site.run = "the delete"
    site.delete("web")
    assert site.states()[:2] == ("DELETED", None)
    assert site.rows("allocations") == site.rows("ports") == site.rows("leases") == []


@pytest.mark.parametrize("killed_after", range(1, 17))
@ANY_DATABASE
def test_a_boot_with_a_retry_killed_after_any_step(site: Site, killed_after: int) -> None:
    """3 steps before the first attempt, 5 in it, 4 for its rollback, and those of the next but the last.

    The next run first undoes what is left, then goes on; no two hosts ever have the server.
    """
    site.record("kvm1", "kvm2")
    world = World(site, failing=1)
    requests = [site.server(volumes=[{"size": 1}]), site.server("db")]
    with pytest.raises(RunKilled):
        world.boot(*requests, kill_after=killed_after)
    handle = world.boot(*requests)
    assert [(item["vm_state"], item["fault"], item["attempts"]) for item in handle] == [("ACTIVE", None, [])] * 2
    hosts = {item["uuid"]: item["host"] for item in handle}
    assert world.made == {(host, uuid) for uuid, host in hosts.items()}
    assert all([hosts[uuid]] != bad for uuid, bad in world.bad.items())
    assert sum(map(len, world.bad.values())) == 2, "each was tried twice"
    assert {row["uuid"]: row["host"] for row in site.rows("instances")} == hosts
    assert {port["device_id"]: port["binding_host"] for port in site.ports()} == hosts
    assert {port["binding_host"] for port in site.ports("network:dhcp")} == set(hosts.values())
    assert set(site.claims()) == {"web", "db"}
    assert [(row["status"], row["host"]) for row in site.rows("volumes")] == [("in-use", site.row("web")["host"])]
    assert site.rows("leases") == site.rows("residues") == []
    assert [(row["action"], row["message"]) for row in site.rows("instance_actions")] == [("create", None)] * 2
    assert len(site.events()) == 2


@ANY_DATABASE
def test_each_run_that_takes_leases_has_a_keeper(site: Site) -> None:
    site.boot(site.server(), last="instance")
    ((owner, pid),) = site.kept
    assert (owner, pid) == (site.rows("leases")[0]["owner"], site.pid())
    site.phase("instance", requests=[], check=True)
    site.boot(site.server("db"), check=True, last="instance")
    assert len(site.kept) == 1, "check mode takes none"


@ANY_DATABASE
def test_servers_that_run_are_handed_out_as_they_are_recorded(site: Site) -> None:
    """What carries a host's servers through its phases again."""
    site.record("kvm1", "kvm2")
    site.boot(site.server(), site.server("db"), site.server("bad", flavor="huge"))
    site.boot(site.server("late"), last="port")
    hosts = {name: site.row(name)["host"] for name in ("web", "db")}
    found = site.phase("instance", "root", state="recorded", hosts=["kvm1", "kvm2"], lease_timeout=0)["instances"]
    assert {item["name"]: item["host"] for item in found} == hosts
    assert {row["owner"] for row in site.rows("leases")} >= {site.kept[-1][0]}
    before = site.dump()
    site.run = "another"
    (left,) = site.phase("instance", "root", state="recorded", names=["web"], lease_timeout=0)["instances"]
    assert left["fault"]["message"].startswith("another run is at work on the server")
    assert site.dump() == before
