# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""No sequence of phases, faults, kills and reruns reaches a state that the rules don't allow.

Hypothesis drives boots and deletes phase by phase, several at once, as the playbooks order them: the real phases, on
real records in SQLite. What is made up is the hosts: which servers they have something of, and what fails there.
"""

from __future__ import annotations

import itertools
import random
import sqlite3
import subprocess
import uuid
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control import keeper, leasing, networking, process
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.identity import validate
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records, leases
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import leases as lease_table
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import update

from .conftest import Site

Handle = list[dict[str, Any]]
Steps = Generator[None, None, None]

HOSTS = ("kvm1", "kvm2", "kvm3")
ROOM = 2
"""Servers that each host has room for."""
REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {"flavor": "half"},
    "disk": {"flavor": "half", "volumes": [{"size": 1, "delete_on_termination": True}]},
    "address": {"flavor": "half", "network": None, "nics": [{"net-name": "private", "v4-fixed-ip": "192.0.2.77"}]},
    "narrow": {"flavor": "half", "network": "narrow"},
}
BUILDING = ("scheduling", "networking", "block_device_mapping", "spawning")
FAULT = st.sampled_from(["", "reach", "network", "volume_attachment", "disk", "vif", "undo_domain", "undo_disk"])
"""What fails on a host: all of it, a phase, or the undo of one."""
FAILING = {
    "network": ("reach", "network"),
    "volume_attachment": ("reach", "volume_attachment"),
    "disk": ("reach", "disk"),
    "vif": ("reach", "vif", "undo_domain", "undo_disk"),
}
STATES = {
    *(("BUILDING", task) for task in BUILDING),
    *((state, "deleting") for state in ("BUILDING", "ACTIVE", "ERROR")),
    ("ACTIVE", None),
    ("ERROR", None),
    ("DELETED", None),
    *(("ERROR", task) for task in BUILDING),  # given up, and not undone yet
}
OWNED = ("allocations", "ports", "ip_allocations", "volumes", "block_device_mappings", "leases", "residues")
"""The tables that are empty when there is no server."""
EVERY_TABLE = (*OWNED, "instances", "compute_nodes", "inventories", "instance_actions")


class World:
    """The compute hosts: which servers each has networks and guests of, and what is wrong with it."""

    def __init__(self) -> None:
        self.networks: set[tuple[str, str]] = set()
        self.guests: set[tuple[str, str]] = set()
        self.faults: dict[str, str] = {}
        """host -> ``FAULT``; the undos fail after ``vif`` did."""

    def networking(self, handle: Handle) -> Handle:
        return [self._build(item, "network", self.networks) for item in handle]

    def attach(self, handle: Handle) -> Handle:
        return [self._build(item, "volume_attachment", set()) if item["block_devices"] else item for item in handle]

    def guest(self, handle: Handle) -> Handle:
        handle = [self._build(self._build(item, "disk", set()), "vif", self.guests) for item in handle]
        return [Site.built(item) if item["host"] else item for item in handle]

    def _build(self, item: dict[str, Any], phase: str, made: set[tuple[str, str]]) -> dict[str, Any]:
        host = item["host"]
        if not host or item["fault"]:
            return item
        wrong = self.faults.get(host)
        if wrong != "reach":
            made.add((host, item["uuid"]))
        return {**item, "fault": _fault(phase, host)} if wrong in FAILING[phase] else item

    def undo(self, handle: Handle) -> Handle:
        return [self._undo(item) for item in handle]

    def _undo(self, item: dict[str, Any]) -> dict[str, Any]:
        host = item["host"]
        if not host or item["stuck"]:
            return item
        wrong = self.faults.get(host)
        if wrong not in ("reach", "undo_domain"):
            self.guests.discard((host, item["uuid"]))
            if wrong != "undo_disk":
                self.networks.discard((host, item["uuid"]))
                return item
        return {**item, "stuck": _fault("undo", host)}


def _fault(phase: str, host: str) -> dict[str, Any]:
    return {"phase": phase, "host": host, "message": f"{phase} failed", "code": 500}


class Run:
    """One ansible-playbook: a process, a token, and the phases that it has yet to do."""

    def __init__(self, site: Site, world: World, far: bool, kind: str) -> None:
        self.site, self.world, self.far, self.kind = site, world, far, kind
        self.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)  # ends with this test, whatever becomes of it
        self.secret = site._issue("root", "demo", False, {})
        self.owner = ""
        self.error = ""
        self.handle: Handle = []
        self.steps: Steps

    def describe(self) -> str:
        """The process as the leases have it: one on another control host means nothing here."""
        return "elsewhere/1 1 1" if self.far else _describe(self.process.pid)

    def end(self) -> None:
        """However it ended."""
        self.process.kill()
        self.process.communicate()

    def phase(self, name: str, **options: Any) -> dict[str, Any]:
        return self.site.phase(name, token=self.secret, **options)

    def boot(self, names: list[str]) -> Steps:
        """boot_instance.yml; it stands still after each phase."""
        requests = [{"name": name, "image": "demo", "network": "private", **REQUESTS[name]} for name in names]
        begun = self.phase("instance", requests=requests, lease_timeout=0)
        yield
        if begun["failures"]:
            yield from self.rollback(begun["to_undo"], [])
        handle: Handle = begun["instances"]
        earlier: Handle = []
        undone: Handle = []
        for _attempt in range(3):
            finish = yield from self.attempt(handle, earlier)
            earlier = finish["instances"]
            retry: Handle = []
            if finish["failures"]:
                answer = yield from self.rollback(finish["to_undo"], undone)
                retry, undone = answer["retry"], answer["instances"]
            if not retry:
                break
            handle = retry
        self.handle = earlier

    def attempt(self, handle: Handle, earlier: Handle) -> Generator[None, None, dict[str, Any]]:
        """plays/attempt.yml as far as its rollback."""
        handle = self.phase("schedule", instances=handle)["instances"]
        yield
        handle = self.phase("port", instances=handle)["instances"]
        yield
        return (yield from self.build(handle, earlier))

    def build(self, handle: Handle, earlier: Handle) -> Generator[None, None, dict[str, Any]]:
        """plays/build.yml."""
        handle = self.world.networking(handle)
        yield
        volume = self.phase("volume", instances=handle)
        handle = volume["instances"]
        yield
        if volume["attach_hosts"]:
            handle = self.world.attach(handle)
            yield
            handle = self.phase("instance", state="building", task_state="spawning", instances=handle)["instances"]
            yield
        handle = self.world.guest(handle)
        yield
        finish = self.phase("instance", state="active", instances=handle, earlier=earlier)
        yield
        return finish

    def rollback(self, handle: Handle, earlier: Handle) -> Generator[None, None, dict[str, Any]]:
        """plays/rollback.yml."""
        handle = self.world.undo(handle)
        yield
        for name in ("volume", "port", "schedule"):
            self.phase(name, state="rolled_back", instances=handle)
            yield
        answer = self.phase("instance", state="rolled_back", instances=handle, earlier=earlier)
        yield
        return answer

    def delete(self, names: list[str]) -> Steps:
        """delete_instance.yml."""
        begun = self.phase("instance", state="deleting", names=names, lease_timeout=0)
        yield
        if begun["failures"]:
            yield from self.rollback(begun["to_undo"], [])
        if begun["found"]:
            handle = self.world.undo(begun["instances"])
            yield
            for name in ("volume", "port", "schedule", "instance"):
                self.handle = self.phase(name, state="absent", instances=handle)["instances"]
                yield

    def recover(self, hosts: list[str]) -> Steps:
        """recover_hosts.yml, an administrator's; it undoes what was left of servers that are deleted, too."""
        begun = self.phase("instance", state="recorded", hosts=hosts, lease_timeout=0)
        yield
        handle = self.phase("port", instances=begun["instances"])["instances"]
        yield
        if begun["failures"]:
            yield from self.rollback(begun["to_undo"], [])
        finish = yield from self.build(handle, [])
        self.handle = finish["instances"]

    def step(self) -> bool:
        """The next phase. Whether there was one; a phase that fails ends the run, as it ends a playbook."""
        try:
            next(self.steps)
        except StopIteration:
            return False
        except BarestackError as error:
            self.error = str(error)
            return False
        return True


_describe = process.describe
RANDOM = random.Random()  # noqa: S311
"""Addresses and ids are the same each time that a sequence is carried out."""


class Machine(RuleBasedStateMachine):
    """Up to three runs at once, and what happens to them and to the hosts."""

    directories: Iterator[Path]
    migrated: bytes
    current: Run | None = None

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []
        self.dead: list[Run] = []
        """Killed, with leases that their keepers have not given back yet."""
        self.expired: set[str] = set()
        """The owners of leases that nobody gave back."""

    @initialize(faults=st.tuples(*(FAULT for _ in HOSTS)))
    def begin(self, faults: tuple[str, ...]) -> None:
        RANDOM.seed(0)
        directory = next(self.directories)
        directory.mkdir()
        (directory / "records.db").write_bytes(self.migrated)
        self.site = Site(directory, f"sqlite:///{directory}/records.db")
        subnet = self.site.catalog["networks"][0]["subnets"][0]
        subnet["allocation_pools"] = [
            {"start": "192.0.2.100", "end": "192.0.2.200"}
        ]  # not the address that one asks for
        self.site.record(*HOSTS, memory_mb=512 + ROOM * 2048)
        self.world = World()
        self.world.faults = dict(zip(HOSTS, faults))

    def _start(self, far: bool, kind: str, argument: list[str]) -> Run:
        run = Run(self.site, self.world, far, kind)
        run.steps = getattr(run, kind)(argument)
        self.runs.append(run)
        return run

    def _go(self, run: Run, phases: int) -> None:
        type(self).current = run
        for _ in range(phases):
            before = self._tables("instances", "leases")
            goes_on = run.step()
            self._keeps_to_its_own(run, before)
            if not goes_on:
                self.runs.remove(run)
                run.end()
                if not run.error and run.kind != "recover":  # which also undoes what deleted servers left
                    assert self._owner(run) not in {row["owner"] for row in self._rows("leases")}
                self._forget(run)
                return
            self.holds()

    def _keeps_to_its_own(self, run: Run, before: dict[str, list[dict[str, Any]]]) -> None:
        """A run changes a server only under its lease, except that any run may say that it is to be deleted."""
        after = self._tables("instances", "leases")
        held = {
            row["instance_uuid"] for row in (*before["leases"], *after["leases"]) if row["owner"] == self._owner(run)
        }
        earlier = {row["uuid"]: row for row in before["instances"]}
        for row in after["instances"]:
            if row != earlier.get(row["uuid"]) and row["task_state"] != "deleting":
                assert row["uuid"] in held, f"{row['name']} was changed by a run that does not have its lease"

    def _owner(self, run: Run) -> str:
        if not run.owner:
            run.owner = validate(run.secret, Catalog.load(self.site.catalog), self.site.keys).audit_id
        return run.owner

    def _forget(self, run: Run) -> None:
        """What its keeper does once the run is no more."""
        owner = self._owner(run)
        Records(self.site.records_url).run(lambda connection: leases.release(connection, owner))

    def _rows(self, table: str) -> list[dict[str, Any]]:
        return self._tables(table)[table]

    def _tables(self, *names: str) -> dict[str, list[dict[str, Any]]]:
        connection = sqlite3.connect(f"file:{self.site.directory}/records.db?mode=ro", uri=True)
        connection.row_factory = sqlite3.Row
        try:
            return {name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")] for name in names}
        finally:
            connection.close()

    names = st.lists(st.sampled_from(sorted(REQUESTS)), min_size=1, max_size=3, unique=True)
    far = st.booleans()
    phases = st.integers(1, 24)

    @precondition(lambda self: len(self.runs) < 3)
    @rule(names=names, far=far, phases=phases)
    def boot(self, names: list[str], far: bool, phases: int) -> None:
        self._go(self._start(far, "boot", names), phases)

    @precondition(lambda self: len(self.runs) < 3)
    @rule(names=names, far=far, phases=phases)
    def delete(self, names: list[str], far: bool, phases: int) -> None:
        self._go(self._start(far, "delete", names), phases)

    @precondition(lambda self: len(self.runs) < 3)
    @rule(hosts=st.lists(st.sampled_from(HOSTS), min_size=1, unique=True), phases=phases)
    def recover(self, hosts: list[str], phases: int) -> None:
        self._go(self._start(False, "recover", hosts), phases)

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 2), phases=phases)
    def go_on(self, which: int, phases: int) -> None:
        self._go(self.runs[which % len(self.runs)], phases)

    @precondition(lambda self: self.runs)
    @rule(which=st.integers(0, 2), host=st.sampled_from(("", *HOSTS)))
    def kill(self, which: int, host: str) -> None:
        """All that the run had in memory is gone, and its process with it; where it was one failure, a host too."""
        if host:
            self.world.faults[host] = "reach"
        run = self.runs.pop(which % len(self.runs))
        run.steps.close()
        run.end()
        self.dead.append(run)

    @precondition(lambda self: self.dead)
    @rule(with_keeper=st.booleans())
    def leases_of_a_killed_run_end(self, with_keeper: bool) -> None:
        """Its keeper gives them back; or that died with its control host, and they expire."""
        run = self.dead.pop(0)
        if not with_keeper:
            expire = update(lease_table).where(lease_table.c.owner == self._owner(run)).values(expires_at=0.0)
            Records(self.site.records_url).run(lambda connection: connection.execute(expire))
            self.expired.add(self._owner(run))
        else:
            self._forget(run)

    @rule(host=st.sampled_from(HOSTS), fault=FAULT, state=st.sampled_from(["enabled", "enabled", "disabled"]))
    def a_host_changes(self, host: str, fault: str, state: str) -> None:
        self.world.faults[host] = fault
        self.site.phase("compute_node", "root", state=state, names=[host], reason="test", project="demo")

    @invariant()
    def holds(self) -> None:
        """What holds after every phase."""
        tables = self._tables(*EVERY_TABLE)
        known = {row["uuid"]: row for row in tables["instances"]}
        live = {server: row for server, row in known.items() if not row["deleted"]}
        self._states(known, live, tables)
        self._claims(known, live, tables)
        self._ports(live, tables)
        self._hosts(live, tables)
        owners = {self._owner(run) for run in (*self.runs, *self.dead)} | self.expired
        if self.current and self.current not in (*self.runs, *self.dead):
            owners.add(self._owner(self.current))
        assert {row["owner"] for row in tables["leases"]} <= owners, "a lease whose owner is no more"
        assert {row["instance_uuid"] for row in tables["block_device_mappings"]} <= set(live)

    @staticmethod
    def _states(known: dict[str, Any], live: dict[str, Any], tables: dict[str, Any]) -> None:
        for row in known.values():
            assert (row["vm_state"], row["task_state"]) in STATES
            assert (row["vm_state"] == "DELETED") == bool(row["deleted"])
            assert not (row["vm_state"] == "ERROR" and row["fault"] == "null"), "an ERROR that nobody can explain"
        names = Counter((row["project_id"], row["name"]) for row in live.values())
        assert max(names.values(), default=1) == 1
        going = Counter(row["instance_uuid"] for row in tables["instance_actions"] if row["finish_time"] is None)
        for server, row in known.items():
            at_rest = row["task_state"] is None
            assert going[server] == (0 if at_rest else 1), f"{going[server]} actions go on in {row['vm_state']}"

    @staticmethod
    def _claims(known: dict[str, Any], live: dict[str, Any], tables: dict[str, Any]) -> None:
        numbers = {row["id"]: row["host"] for row in tables["compute_nodes"]}
        used: Counter[tuple[int, str]] = Counter()
        where: dict[str, set[str]] = {}
        for row in tables["allocations"]:
            used[row["compute_node_id"], row["resource_class"]] += row["used"]
            where.setdefault(row["consumer_id"], set()).add(numbers[row["compute_node_id"]])
        for row in tables["inventories"]:
            room = (row["total"] - row["reserved"]) * row["allocation_ratio"]
            assert used[row["compute_node_id"], row["resource_class"]] <= room, "over-committed"
            assert used[row["compute_node_id"], row["resource_class"]] == row["used"], "miscounted"
        for row in tables["compute_nodes"]:
            assert row["servers"] == sum(row["host"] in hosts for hosts in where.values()), "miscounted"
        assert set(where) <= set(live), "a claim of a deleted server"
        for server, hosts in where.items():
            assert len(hosts) == 1
            assert hosts == {live[server]["host"]}, f"{live[server]['name']} is claimed on {hosts}"
        for server, row in known.items():
            if row["vm_state"] == "ACTIVE" and row["task_state"] is None:
                assert where.get(server) == {row["host"]}, "ACTIVE without a claim on its host"

    @staticmethod
    def _ports(live: dict[str, Any], tables: dict[str, Any]) -> None:
        ports = tables["ports"]
        macs = Counter((row["network_id"], row["mac_address"]) for row in ports)
        addresses = Counter((row["subnet_id"], row["ip_address"]) for row in tables["ip_allocations"])
        assert max(macs.values(), default=1) == max(addresses.values(), default=1) == 1
        servers = [row for row in ports if row["device_owner"] == "compute:"]
        assert {row["device_id"] for row in servers} <= set(live), "a port of a deleted server"
        served = {(row["network_id"], row["binding_host"]) for row in servers}
        dhcp = Counter(
            (row["network_id"], row["binding_host"]) for row in ports if row["device_owner"] == "network:dhcp"
        )
        assert set(dhcp) <= served, "a DHCP port that serves nobody"
        assert max(dhcp.values(), default=1) == 1
        for row in servers:
            server = live[row["device_id"]]
            assert row["binding_host"] in (None, server["host"])
            if (server["vm_state"], server["task_state"]) == ("ACTIVE", None):
                assert (row["binding_host"], row["status"]) == (server["host"], "ACTIVE")
        bound = Counter(row["device_id"] for row in servers)
        for server, row in live.items():
            if row["vm_state"] == "ACTIVE":
                assert bound[server] == 1 or row["task_state"] == "deleting"

    def _hosts(self, live: dict[str, Any], tables: dict[str, Any]) -> None:
        expected = {(row["host"], server) for server, row in live.items() if row["host"]}
        expected |= {(row["host"], row["instance_uuid"]) for row in tables["residues"]}
        for what in (self.world.networks, self.world.guests):
            assert what <= expected, "something on a host that the records do not know of"
        guests = Counter(server for _host, server in self.world.guests)
        assert max(guests.values(), default=1) == 1, "one server's guest on two hosts"
        for server, row in live.items():
            if (row["vm_state"], row["task_state"]) == ("ACTIVE", None):
                assert {(row["host"], server)} <= self.world.networks & self.world.guests

    def teardown(self) -> None:
        """Whatever happened: the same commands, without faults, end where they should."""
        if not hasattr(self, "site"):
            return
        try:
            self._converge()
        finally:
            for run in self.runs:
                run.end()

    def _converge(self) -> None:
        while self.runs:
            self.kill(0, "")
        while self.dead:
            self.leases_of_a_killed_run_end(with_keeper=True)
        for host in HOSTS:
            self.a_host_changes(host, "", "enabled")
        going = [row["name"] for row in self._rows("instances") if row["task_state"] == "deleting"]
        if going:
            self._whole("delete", going)
        self._whole("boot", list(REQUESTS))
        states = {row["name"]: row["vm_state"] for row in self._rows("instances") if not row["deleted"]}
        assert states == dict.fromkeys(REQUESTS, "ACTIVE")
        self._whole("delete", list(REQUESTS))
        self._whole("recover", list(HOSTS))
        tables = self._tables(*OWNED)
        assert {name: rows for name, rows in tables.items() if rows} == {}
        assert (self.world.networks, self.world.guests) == (set(), set())

    def _whole(self, what: str, names: list[str]) -> None:
        run = self._start(False, what, names)
        self._go(run, 1000)
        assert run.error == ""
        assert [item["fault"] or item["stuck"] for item in run.handle if item["fault"] or item["stuck"]] == []


@pytest.fixture(autouse=True)
def _made_up(tmp_path: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that are processes of the machine's, without keepers; ids and addresses that can be had again."""
    monkeypatch.setattr(keeper, "start", lambda *_: None)
    monkeypatch.setattr(keeper, "GRACE", 0)
    monkeypatch.setattr(leasing, "_POLL", 0)
    monkeypatch.setattr(networking, "_RANDOM", RANDOM)
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=RANDOM.getrandbits(128), version=4))
    monkeypatch.setattr(process, "describe", lambda _pid: Machine.current.describe() if Machine.current else "")
    monkeypatch.setattr(Machine, "directories", (tmp_path / str(number) for number in itertools.count()), raising=False)
    monkeypatch.setattr(Machine, "migrated", migrated.read_bytes(), raising=False)
    monkeypatch.setattr(Machine, "current", None)


def test_no_sequence_leads_astray() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=16,
            stateful_step_count=25,
            derandomize=True,
            deadline=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def machine() -> Iterator[Machine]:
    """By hand, for a sequence that chance seldom finds; it ends as they all do."""
    machine = Machine()
    machine.begin(("", "", ""))
    yield machine
    machine.teardown()


def begin(machine: Machine, phases: int) -> str:
    """Boot a server so far; its host."""
    machine.boot(["plain"], False, phases)
    return str(machine._rows("instances")[0]["host"])


GUEST_RUNS = 6
"""Phases of a boot until the guest runs: instance, schedule, port, network, volume, guest."""


def test_a_guest_that_may_run_on_a_host_that_is_away_is_built_nowhere_else(machine: Machine) -> None:
    host = begin(machine, GUEST_RUNS)
    machine.kill(0, host)
    machine.leases_of_a_killed_run_end(True)
    machine.boot(["plain"], False, 100)
    (row,) = machine._rows("instances")
    assert (row["vm_state"], row["host"]) == ("ERROR", host)


def test_what_an_earlier_attempt_left_is_undone_without_touching_the_present_one(machine: Machine) -> None:
    first = begin(machine, 2)
    machine.a_host_changes(first, "reach", "enabled")
    machine.go_on(0, 4 + 5 + GUEST_RUNS - 1)
    (row,) = machine._rows("instances")
    assert row["host"] != first
    assert [left["host"] for left in machine._rows("residues")] == [first]
    machine.kill(0, "")
    machine.leases_of_a_killed_run_end(True)
    machine.a_host_changes(first, "", "enabled")
    machine.boot(["plain"], False, 100)
    (again,) = machine._rows("instances")
    assert (again["vm_state"], again["host"]) == ("ACTIVE", row["host"])
    assert machine._rows("residues") == []


def test_a_server_that_no_host_took_at_its_second_attempt_still_has_its_own_address(machine: Machine) -> None:
    """Killed when it was given up, before its port was given back: the address is not another server's."""
    for host in HOSTS[1:]:
        machine.a_host_changes(host, "", "disabled")
    machine.a_host_changes(HOSTS[0], "network", "enabled")
    machine.boot(["address"], False, 7 + 5 + 6)
    (row,) = machine._rows("instances")
    assert (row["vm_state"], row["host"], len(machine.site.ports())) == ("ERROR", None, 1)
    machine.kill(0, "")
    machine.leases_of_a_killed_run_end(True)
    machine.a_host_changes(HOSTS[1], "", "enabled")
    machine.boot(["address"], False, 100)
    (row,) = machine._rows("instances")
    assert row["vm_state"] == "ACTIVE"
