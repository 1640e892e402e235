# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Two runs on the same server, at once in an order that two processes may really take, or one after the other."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import argon2
import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.identity import authenticate
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records
from ansible_collections.barestack.kvm.plugins.module_utils.phase import execute
from sqlalchemy import Connection, text

SITE = Path(__file__).with_name("site.yml")
Handle = list[dict[str, Any]]


class Site:
    """The records as any number of runs share them."""

    def __init__(self, directory: Path) -> None:
        self.catalog = {**yaml.safe_load(SITE.read_text()), "keypairs": []}
        self.url = f"sqlite:///{directory}/records.db"
        self.keys = str(directory / "keys")
        self.notifications = directory / "notifications.jsonl"
        hashed = argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash("hush-hush")
        self.catalog["users"] = [{"name": "alice", "password_hash": hashed, "roles": {"demo": "member"}}]
        auth = {"username": "alice", "password": "hush-hush", "project_name": "demo"}
        self.token = authenticate(auth, Catalog.load(self.catalog), self.keys, 600, environ={}).secret

    def run(self, phase: str, **options: Any) -> Handle:
        """One phase of one run; returns its handle."""
        cls = importlib.import_module(f"ansible_collections.barestack.kvm.plugins.modules.{phase}").PHASE
        common = {"token": self.token, "catalog": self.catalog, "keys_directory": self.keys, "records_url": self.url}
        if phase == "instance":
            options["notification_file"] = str(self.notifications)
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

    def boot(self) -> Handle:
        """As far as the record; a host is given by hand."""
        request = {"name": "web", "flavor": "m1.tiny", "image": "demo", "network": "private"}
        return [{**item, "host": "kvm1"} for item in self.run("instance", requests=[request])]

    def delete(self) -> None:
        handle = self.run("instance", state="deleting", names=["web"])
        for phase in ("port", "schedule", "instance"):
            handle = self.run(phase, state="absent", instances=handle)


def faulty(handle: Handle, message: str = "no space") -> Handle:
    return [{**item, "fault": {"phase": "disk", "host": "kvm1", "message": message, "code": 500}} for item in handle]


def running(handle: Handle) -> Handle:
    return [{**item, "power_state": "RUNNING"} for item in handle]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.mark.parametrize("ended", [True, False], ids=["deleted", "being deleted"])
def test_a_build_notices_that_its_server_was_deleted_and_takes_nothing_for_it(site: Site, ended: bool) -> None:
    handle = site.boot()
    if ended:
        site.delete()
    else:
        site.run("instance", state="deleting", names=["web"])
    before = site.state()
    (after,) = site.run("port", instances=handle)
    assert "was deleted by another run" in after["fault"]["message"]
    assert site.sql("SELECT * FROM ports") == []
    for phase, options in (("volume", {}), ("instance", {"state": "building", "task_state": "spawning"})):
        site.run(phase, instances=handle, **options)
    assert site.state() == before


def test_a_build_that_was_deleted_is_undone_on_its_host_and_its_record_stays_deleted(site: Site) -> None:
    handle = running(site.run("port", instances=site.boot()))
    site.delete()
    site.run("instance", state="active", instances=handle)
    to_undo = site.result["to_undo"]
    assert [item["host"] for item in to_undo] == ["kvm1"]
    assert to_undo[0]["ports"], "without its ports nothing of its network is undone"
    actions = site.sql("SELECT action, message FROM instance_actions")
    site.run("instance", state="error", instances=to_undo)
    assert site.state() == ("DELETED", None, 1)
    assert site.sql("SELECT action, message FROM instance_actions") == actions
    assert site.told() == ["delete.end"]


def test_the_delete_that_goes_on_keeps_its_action(site: Site) -> None:
    handle = site.boot()
    site.run("instance", state="deleting", names=["web"])
    site.run("instance", state="active", instances=handle)
    site.run("instance", state="error", instances=site.result["to_undo"])
    assert site.state() == ("BUILDING", "deleting", 0)
    assert site.sql("SELECT action FROM instance_actions WHERE finish_time IS NULL") == [("delete",)]


def test_a_run_that_fails_does_not_undo_what_another_made_active(site: Site) -> None:
    one, other = site.boot(), site.boot()
    site.run("instance", state="active", instances=running(other))
    site.run("instance", state="active", instances=faulty(one))
    assert site.result["to_undo"] == []
    assert site.result["instances"][0]["fault"]["message"] == "no space"
    assert site.state() == ("ACTIVE", None, 0)


def test_a_run_that_is_behind_does_not_take_active_back(site: Site) -> None:
    one, other = site.boot(), site.boot()
    site.run("instance", state="active", instances=running(one))
    site.run("port", instances=other)
    site.run("volume", instances=other)
    site.run("instance", state="building", task_state="spawning", instances=other)
    assert site.state() == ("ACTIVE", None, 0)


def test_a_run_does_not_call_active_what_another_rolls_back(site: Site) -> None:
    one, other = site.boot(), site.boot()
    site.run("instance", state="active", instances=faulty(one))
    assert site.state()[0] == "ERROR"
    site.run("instance", state="active", instances=running(other))
    assert "another run" in site.result["to_undo"][0]["fault"]["message"]
    assert site.state()[0] == "ERROR"
    site.run("instance", state="error", instances=site.result["to_undo"])
    assert site.boot()[0]["vm_state"] == "BUILDING"


def test_a_server_becomes_active_and_is_told_once(site: Site) -> None:
    one, other = site.boot(), site.boot()
    for handle in (one, other):
        (after,) = site.run("instance", state="active", instances=running(handle))
        assert (after["vm_state"], after["fault"]) == ("ACTIVE", None)
    assert site.told() == ["create.end"]


def test_two_deletes_at_once_are_one(site: Site) -> None:
    site.boot()
    one, other = (site.run("instance", state="deleting", names=["web"]) for _ in range(2))
    for handle in (one, other):
        site.run("instance", state="absent", instances=handle)
    assert site.told() == ["delete.end"]
    assert site.sql("SELECT action FROM instance_actions") == [("create",), ("delete",)]


def corrected(site: Site) -> str:
    checksum = "sha256:" + "3" * 64
    site.catalog["images"][0] = {**site.catalog["images"][0], "checksum": checksum}
    return checksum


def fail(site: Site) -> None:
    site.run("instance", state="active", instances=faulty(site.boot()))
    site.run("instance", state="error", instances=site.result["to_undo"])


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
