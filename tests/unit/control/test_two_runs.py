# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Two runs on the same server: one has its lease, and the other one has to leave it alone."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import argon2
import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.barestack.kvm.plugins.module_utils.control import keeper, leasing, process
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.identity import authenticate
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records, leases
from ansible_collections.barestack.kvm.plugins.module_utils.phase import execute
from sqlalchemy import Connection, text

SITE = Path(__file__).with_name("site.yml")
Handle = list[dict[str, Any]]


class Site:
    """The records as any number of runs share them."""

    def __init__(self, directory: Path, records_url: str) -> None:
        self.catalog = {**yaml.safe_load(SITE.read_text()), "keypairs": []}
        self.url = records_url
        self.keys = str(directory / "keys")
        self.notifications = directory / "notifications.jsonl"
        hashed = argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash("hush-hush")
        self.catalog["users"] = [{"name": "alice", "password_hash": hashed, "roles": {"demo": "member"}}]
        self.now = "one"
        """The run whose phases these are: each has a token and a process."""
        self._tokens: dict[str, str] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def token(self) -> str:
        """The present run's."""
        if self.now not in self._tokens:
            auth = {"username": "alice", "password": "hush-hush", "project_name": "demo"}
            self._tokens[self.now] = authenticate(auth, Catalog.load(self.catalog), self.keys, 600, environ={}).secret
        return self._tokens[self.now]

    def pid(self) -> int:
        """The present run's."""
        if self.now not in self.processes:
            self.processes[self.now] = subprocess.Popen(["sleep", "infinity"])
        return self.processes[self.now].pid

    def end(self, name: str) -> None:
        """The run's process ends, whatever it was at."""
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def run(self, phase: str, **options: Any) -> Handle:
        """One phase of the present run; returns its handle."""
        cls = importlib.import_module(f"ansible_collections.barestack.kvm.plugins.modules.{phase}").PHASE
        common = {"token": self.token(), "catalog": self.catalog, "keys_directory": self.keys, "records_url": self.url}
        if phase == "instance":
            options = {"notification_file": str(self.notifications), "lease_timeout": 0, **options}
        validated = ArgumentSpecValidator(cls.argument_spec).validate({**common, **options})
        assert not validated.error_messages
        self.result = execute(cls, validated.validated_parameters, False)
        handle: Handle = self.result["instances"]
        return handle

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        def ask(connection: Connection) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in connection.execute(text(query))]

        return Records(self.url).run(ask)

    def state(self) -> tuple[Any, ...]:
        return self.sql("SELECT vm_state, task_state, deleted != 0 FROM instances")[0]

    def told(self) -> list[str]:
        lines = self.notifications.read_text().splitlines() if self.notifications.exists() else []
        return [json.loads(line)["type"].removeprefix("barestack.kvm.instance.") for line in lines]

    def boot(self, **options: Any) -> Handle:
        """As far as the record; a host is given by hand, and in the records too."""
        request = {"name": "web", "flavor": "m1.tiny", "image": "demo", "network": "private"}
        handle = self.run("instance", requests=[request], **options)
        self.write("UPDATE instances SET host = 'kvm1' WHERE host IS NULL AND deleted = 0")
        return [{**item, "host": "kvm1"} for item in handle]

    def write(self, statement: str) -> None:
        Records(self.url).run(lambda connection: connection.execute(text(statement)) and None)

    def expire(self) -> None:
        """What happens to a lease whose keeper is away for long."""
        self.write("UPDATE leases SET expires_at = 1")

    def owners(self) -> set[str]:
        return {owner for (owner,) in self.sql("SELECT owner FROM leases")}

    def dump(self) -> list[Any]:
        tables = ("instances", "ports", "allocations", "volumes", "instance_actions", "residues", "leases")
        return [self.sql(f"SELECT * FROM {table}") for table in tables]

    def delete(self) -> None:
        handle = self.run("instance", state="deleting", names=["web"])
        for phase in ("port", "schedule", "instance"):
            handle = self.run(phase, state="absent", instances=handle)


def faulty(handle: Handle, message: str = "no space", code: int = 500) -> Handle:
    return [{**item, "fault": {"phase": "disk", "host": "kvm1", "message": message, "code": code}} for item in handle]


def running(handle: Handle) -> Handle:
    return [{**item, "power_state": "RUNNING"} for item in handle]


@pytest.fixture
def site(tmp_path: Path, records_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site(tmp_path, records_url)
    monkeypatch.setattr(process, "run_pid", site.pid)
    monkeypatch.setattr(keeper, "start", lambda *_: None)
    monkeypatch.setattr(keeper, "GRACE", 0.0)
    monkeypatch.setattr(leasing, "_POLL", 0.01)
    yield site
    for name in list(site.processes):
        site.end(name)


BUILDING: list[tuple[str, dict[str, str]]] = [
    ("schedule", {}),
    ("port", {}),
    ("volume", {}),
    ("instance", {"state": "building", "task_state": "spawning"}),
    ("instance", {"state": "active"}),
]
UNDOING = [
    *((name, {"state": "rolled_back"}) for name in ("volume", "port", "schedule", "instance")),
    *((name, {"state": "absent"}) for name in ("volume", "port", "schedule", "instance")),
]


@pytest.mark.parametrize("ended", [True, False], ids=["deleted", "being deleted"])
def test_a_build_notices_that_its_server_was_deleted_and_takes_nothing_for_it(site: Site, ended: bool) -> None:
    """Deleted by a run that took the lease over; or marked by one that waits for the lease."""
    handle = site.boot()
    site.now = "two"
    if ended:
        site.expire()
        site.delete()
    else:
        site.run("instance", state="deleting", names=["web"])
    site.now = "one"
    before = site.state()
    (after,) = site.run("port", instances=handle)
    assert ("another run took it over" if ended else "another run is to delete") in after["fault"]["message"]
    assert after["fault"]["code"] == 409
    assert site.sql("SELECT * FROM ports") == []
    for phase, options in (("volume", {}), ("instance", {"state": "building", "task_state": "spawning"})):
        site.run(phase, instances=handle, **options)
    assert site.state() == before


def test_a_build_that_was_deleted_leaves_the_undoing_to_the_delete(site: Site) -> None:
    handle = running(site.run("port", instances=site.boot()))
    site.now = "two"
    site.expire()
    site.delete()
    site.now = "one"
    actions = site.sql("SELECT action, message FROM instance_actions")
    (after,) = site.run("instance", state="active", instances=handle)
    assert site.result["to_undo"] == [], "two that undo the same on a host would be in each other's way"
    assert after["fault"]["code"] == 409
    assert site.state() == ("DELETED", None, 1)
    assert site.sql("SELECT action, message FROM instance_actions") == actions
    assert site.told() == ["delete.end"]


def test_a_delete_that_waits_in_vain_leaves_the_server_marked_and_says_so(site: Site) -> None:
    handle = site.boot()
    before = site.sql("SELECT * FROM ports"), site.owners()
    site.now = "two"
    (mine,) = site.run("instance", state="deleting", names=["web"])
    assert mine["stuck"]["message"].startswith("another run is at work on the server, and still was after 0 s")
    assert (site.sql("SELECT * FROM ports"), site.owners()) == before
    for phase in ("volume", "port", "schedule", "instance"):
        (after,) = site.run(phase, state="absent", instances=[mine])
        assert after["stuck"] == mine["stuck"], "said once"
    assert site.state() == ("BUILDING", "deleting", 0)
    site.now = "one"
    site.run("instance", state="active", instances=running(handle))
    assert site.result["to_undo"] == []
    assert site.state() == ("BUILDING", "deleting", 0)
    assert site.sql("SELECT action FROM instance_actions WHERE finish_time IS NULL") == [("delete",)]
    assert site.owners() == set()
    site.now = "three"
    site.delete()
    assert site.state() == ("DELETED", None, 1)
    assert site.told() == ["delete.end"]


def test_a_boot_that_waits_in_vain_leaves_the_server_alone_and_says_so(site: Site) -> None:
    site.boot()
    before = site.dump()
    site.now = "two"
    started = time.monotonic()
    (left,) = site.boot(lease_timeout=0.3)
    assert time.monotonic() - started >= 0.3
    assert left["fault"] == {
        "phase": "instance",
        "host": None,
        "message": "another run is at work on the server, and still was after 0 s: it was left to that run; run again",
        "code": 409,
    }
    (warning,) = site.result["warnings"]
    assert re.fullmatch(r"waited \d s for another run, which was at work on web", warning)
    for phase, options in BUILDING:
        (after,) = site.run(phase, instances=[left], **options)
        assert after["fault"] == left["fault"], "said once"
    assert (site.result["to_undo"], site.result["failures"]) == ([], 0), "nothing of the other run's is undone"
    assert site.dump() == before


def test_the_lease_of_a_run_that_ended_is_taken_over_at_once(site: Site) -> None:
    handle = site.boot()
    one = site.owners()
    site.end("one")
    site.now = "two"
    (again,) = site.boot()
    assert (again["uuid"], again["fault"]) == (handle[0]["uuid"], None)
    assert len(site.owners()) == 1
    assert site.owners() != one
    assert "warnings" not in site.result, "it did not wait"
    site.run("instance", state="active", instances=running([again]))
    assert (site.state(), site.owners()) == (("ACTIVE", None, 0), set())


def test_the_end_of_a_dead_runs_modules_is_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "GRACE", 0.4)
    for expected in (False, True):
        started = time.monotonic()
        site.boot()
        assert (time.monotonic() - started >= 0.4) is expected
        site.end(site.now)
        site.now = "two"


def test_a_lease_that_nobody_renewed_is_taken_over(site: Site) -> None:
    """Where the other run's process cannot be asked: it is on another machine."""
    site.boot()
    site.write("UPDATE leases SET process = 'another machine/1 2 3'")
    site.now = "two"
    (left,) = site.boot()
    assert left["fault"]["code"] == 409
    site.expire()
    (again,) = site.boot()
    assert again["fault"] is None


def test_a_run_renews_only_what_is_its_own(site: Site) -> None:
    site.boot()
    (one,) = site.owners()
    records = Records(site.url)
    site.expire()
    assert records.run(lambda connection: leases.renew(connection, "someone else")) == 0
    assert records.run(lambda connection: leases.renew(connection, one)) == 1
    site.now = "two"
    assert site.boot()[0]["fault"]["code"] == 409, "it is renewed"


@pytest.mark.parametrize(("phase", "options"), [*BUILDING, *UNDOING])
def test_a_phase_of_a_run_that_lost_its_lease_changes_nothing(site: Site, phase: str, options: dict[str, str]) -> None:
    handle = running(site.run("port", instances=site.boot()))
    site.expire()
    site.now = "two"
    site.boot()
    before = site.dump()
    site.now = "one"
    (after,) = site.run(phase, instances=handle, **options)
    assert after["fault"] == {
        "phase": phase,
        "host": None,
        "message": "this run has no lease of the server, another run took it over: its records were left alone",
        "code": 409,
    }
    assert (site.result["effects"], site.result["hosts"], site.result.get("to_undo", [])) == ([], [], [])
    assert site.dump() == before
    for fault, stuck in ((None, True), ("no space", False)):
        first = {"phase": "disk", "host": "kvm1", "message": fault or "busy", "code": 500}
        given = {**handle[0], "stuck": first} if stuck else {**handle[0], "fault": first}
        (after,) = site.run(phase, instances=[given], **options)
        assert (after["fault"], after["stuck"]) == (given["fault"], given["stuck"]), "what went wrong first stays"
    assert site.dump() == before


def test_a_run_that_fails_does_not_undo_what_another_made_active(site: Site) -> None:
    one = site.boot()
    site.expire()
    site.now = "two"
    site.run("instance", state="active", instances=running(site.boot()))
    site.now = "one"
    site.run("instance", state="active", instances=faulty(one))
    assert site.result["to_undo"] == []
    assert site.result["instances"][0]["fault"]["message"] == "no space"
    assert site.state() == ("ACTIVE", None, 0)
    site.run("instance", state="active", instances=faulty(site.boot()))
    assert site.result["to_undo"] == [], "nor does a run that has the lease"
    assert site.state() == ("ACTIVE", None, 0)


def test_a_run_that_is_behind_does_not_take_active_back(site: Site) -> None:
    one = site.boot()
    site.run("instance", state="active", instances=running(one))
    other = site.boot()
    site.run("port", instances=other)
    site.run("volume", instances=other)
    site.run("instance", state="building", task_state="spawning", instances=other)
    assert site.state() == ("ACTIVE", None, 0)


def test_a_task_state_never_goes_back(site: Site) -> None:
    """What a killed run may have started on the host is still there, whatever the next run is at."""
    handle = site.boot()
    for task_state in ("spawning", "networking", "scheduling", "block_device_mapping"):
        (after,) = site.run("instance", state="building", task_state=task_state, instances=handle)
        assert after["task_state"] == "spawning"
    site.end("one")
    site.now = "two"
    handle = site.boot()
    for phase in ("port", "volume"):
        assert site.run(phase, instances=handle)[0]["task_state"] == "spawning"
    assert site.state() == ("BUILDING", "spawning", 0)


def test_a_run_does_not_call_active_what_another_rolls_back(site: Site) -> None:
    """Given up, with something left on its host: it is built again only after that is undone."""
    site.run("instance", state="active", instances=faulty(site.boot()), max_attempts=1)
    assert site.state()[0] == "ERROR"
    to_undo = site.result["to_undo"]
    (other,) = running(to_undo)
    (after,) = site.run("instance", state="active", instances=[{**other, "fault": None, "vm_state": "BUILDING"}])
    assert after["fault"]["message"] == "no space"
    assert site.result["to_undo"] == []
    assert site.state()[0] == "ERROR"
    site.end("one")
    site.now = "two"
    (again,) = site.boot()
    assert [item["host"] for item in site.result["to_undo"]] == ["kvm1"]
    assert again["vm_state"] == "BUILDING"
    site.run("instance", state="rolled_back", instances=site.result["to_undo"])
    assert site.state() == ("BUILDING", "scheduling", 0)


def test_a_server_becomes_active_and_is_told_once(site: Site) -> None:
    for name in ("one", "two"):
        site.now = name
        (after,) = site.run("instance", state="active", instances=running(site.boot()))
        assert (after["vm_state"], after["fault"]) == ("ACTIVE", None)
    assert site.told() == ["create.end"]


def test_two_deletes_at_once_are_one(site: Site) -> None:
    site.run("instance", state="active", instances=running(site.boot()))
    one = site.run("instance", state="deleting", names=["web"])
    site.now = "two"
    two = site.run("instance", state="deleting", names=["web"])
    assert two[0]["stuck"]["message"].startswith("another run is at work on the server")
    for name, handle in (("one", one), ("two", two)):
        site.now = name
        site.run("instance", state="absent", instances=handle)
    assert site.told() == ["create.end", "delete.end"]
    assert site.sql("SELECT action FROM instance_actions") == [("create",), ("delete",)]


def corrected(site: Site) -> str:
    checksum = "sha256:" + "3" * 64
    site.catalog["images"][0] = {**site.catalog["images"][0], "checksum": checksum}
    return checksum


def fail(site: Site) -> None:
    site.run("instance", state="active", instances=faulty(site.boot()), max_attempts=1)
    site.run("instance", state="rolled_back", instances=site.result["to_undo"])
    assert site.state() == ("ERROR", None, 0)


def test_a_corrected_catalogue_is_what_the_retry_uses(site: Site) -> None:
    fail(site)
    checksum = corrected(site)
    (again,) = site.boot()
    assert (again["vm_state"], again["fault"], again["image"]["checksum"]) == ("BUILDING", None, checksum)
    (killed,) = site.boot()
    assert killed["image"]["checksum"] == checksum, "the records do not hold it"


def test_a_server_that_is_being_built_keeps_what_it_began_with(site: Site) -> None:
    (before,) = site.boot()
    corrected(site)
    (again,) = site.boot()
    assert again["image"] == before["image"]
