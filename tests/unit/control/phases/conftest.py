# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A site whose phases run as the playbooks run them: a real token, real records, one phase's handle into the next.

What happens on a compute host is not part of these tests: ``Site.built`` and ``Site.failed`` are the handle that the
host's phases give back, as data.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import argon2
import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.barestack.kvm.plugins.module_utils.control import keeper, leasing, process
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import HEAD, Records, residues
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import metadata
from ansible_collections.barestack.kvm.plugins.module_utils.phase import execute
from sqlalchemy import Connection, create_engine, delete, insert, inspect, select, text

PASSWORD = "hush-hush"
HASH = argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
CATALOG: dict[str, Any] = {
    "flavors": [
        {"name": "tiny", "vcpus": 1, "ram": 128, "disk": 1},
        {"name": "small", "vcpus": 2, "ram": 512, "disk": 2},
        {"name": "huge", "vcpus": 2, "ram": 65536, "disk": 2},
        {"name": "half", "vcpus": 1, "ram": 2048, "disk": 1},
        {"name": "pinned", "vcpus": 2, "ram": 128, "disk": 1, "extra_specs": {"hw:cpu_policy": "dedicated"}},
        {"name": "paged", "vcpus": 1, "ram": 512, "disk": 1, "extra_specs": {"hw:mem_page_size": "2MB"}},
        {"name": "gpu", "vcpus": 1, "ram": 128, "disk": 1, "extra_specs": {"pci_passthrough:alias": "gpu:1"}},
        {"name": "licensed", "vcpus": 1, "ram": 128, "disk": 1, "extra_specs": {"resources:CUSTOM_LICENSE": "1"}},
    ],
    "images": [{"name": "demo", "url": "/srv/demo.qcow2", "checksum": f"sha256:{'1' * 64}"}],
    "networks": [
        {"name": "private", "subnets": [{"name": "v4", "cidr": "192.0.2.0/24"}]},
        {"name": "narrow", "subnets": [{"name": "v4", "cidr": "198.51.100.0/29", "enable_dhcp": False}]},
    ],
    "security_groups": [{"name": "web", "rules": [{"protocol": "tcp", "port_range_min": 80, "port_range_max": 80}]}],
    "keypairs": [],
    "projects": [{"name": "demo", "quota": {"ram": 262144}}, {"name": "other"}],
    "users": [
        {"name": "alice", "password_hash": HASH, "roles": {"demo": "member"}},
        {"name": "bob", "password_hash": HASH, "roles": {"other": "member"}},
        {"name": "rita", "password_hash": HASH, "roles": {"demo": "reader"}},
        {"name": "root", "password_hash": HASH, "roles": {"demo": "admin", "other": "admin"}},
    ],
    "aggregates": [],
}
HYPERVISOR: dict[str, Any] = {
    "hostname": "kvm",
    "host_ip": "192.0.2.250",
    "hypervisor_type": "QEMU",
    "hypervisor_version": 7002000,
    "libvirt_version": 9000000,
    "virt_type": "kvm",
    "vcpus": 4,
    "memory_mb": 4608,
    "disk_gb": 100,
    "disk_available_gb": 90,
    "running_domains": 0,
    "numa_cells": [],
    "cpu_info": {"arch": "x86_64", "model": "Any", "features": []},
    "supported_instances": [["x86_64", "kvm", "hvm"]],
    "machine_types": {"x86_64": ["pc", "q35"]},
    "firmware": ["bios"],
}
"""A host with room for two servers of the flavor ``half``."""

NUMA: dict[str, Any] = {
    "numa_topology": {
        "cells": [
            {
                "id": cell,
                "cpuset": [8 + cell],
                "pcpuset": [4 * cell, 4 * cell + 1, 4 * cell + 2, 4 * cell + 3],
                "memory": 2048,
                "siblings": [[4 * cell, 4 * cell + 1], [4 * cell + 2, 4 * cell + 3]],
                "pages": [{"size_kb": 4, "total": 262144}, {"size_kb": 2048, "total": 512}],
                "socket": cell,
            }
            for cell in (0, 1)
        ]
    },
    "vcpus": 10,
}
"""What a host reports besides that has two cells with two cores of two CPUs each for servers' own, and one to share."""


def devices(number: int) -> dict[str, Any]:
    """What a host reports besides that has so many cards."""
    card = {"vendor_id": "10de", "product_id": "1eb8", "dev_type": "type-PCI", "numa_node": None}
    return {"pci_devices": [{"address": f"0000:{bus:02x}:00.0", **card} for bus in range(number)]}


STEPS = ("instance", "stale", "compute_node", "schedule", "port", "volume", "building", "active")
"""boot_instance.yml's tasks on the control host, in its order."""
ATTEMPT = ("schedule", "port", "volume", "building", "active")
UNDO = ("volume_back", "port_back", "schedule_back", "undone")
DELETE = ("deleting", "volume_absent", "port_absent", "schedule_absent", "absent")
LAST = ("undone", "absent")
"""After these the run has no lease any more, and nothing is left for a second time."""
UNDOS = {
    "volume_back": ("volume", "rolled_back"),
    "port_back": ("port", "rolled_back"),
    "schedule_back": ("schedule", "rolled_back"),
    "undone": ("instance", "rolled_back"),
    "volume_absent": ("volume", "absent"),
    "port_absent": ("port", "absent"),
    "schedule_absent": ("schedule", "absent"),
    "absent": ("instance", "absent"),
}


class Site:
    """The catalogue, the keys, the records; and what the playbooks do with them."""

    def __init__(self, directory: Path, records_url: str) -> None:
        self.directory = directory
        self.records_url = records_url
        self.keys = str(directory / "keys")
        self.notifications = directory / "notifications.jsonl"
        self.catalog = copy.deepcopy(CATALOG)
        self.hosts = ["kvm1"]
        self.scheduler: dict[str, Any] = {}
        """The site's options of the scheduler."""
        self.results: dict[str, dict[str, Any]] = {}
        """The last run's results by step."""
        self.run = "the first run"
        """Which run the next phases are part of: each has a token and a process of its own."""
        self.steps: list[str] = []
        """Every step so far, of all runs."""
        self.kept: list[tuple[str, int]] = []
        """Owner and process of each keeper that was asked for."""
        self._pid = os.getpid()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._tokens: dict[str, str] = {}

    def pid(self) -> int:
        """The process that stands for ansible-playbook: a child of the tests' process is a run itself."""
        if os.getpid() != self._pid:
            return os.getpid()
        if self.run not in self._processes:
            self._processes[self.run] = subprocess.Popen(["sleep", "infinity"])
        return self._processes[self.run].pid

    def kill(self) -> None:
        """The run is killed here, with its keeper; what follows is another run."""
        self.end(self.run)
        self.run += ", and one after it"

    def end(self, run: str) -> None:
        """End a run's process."""
        if run in self._processes:
            ended = self._processes.pop(run)
            ended.kill()
            ended.wait()

    def close(self) -> None:
        """End what there is."""
        for run in list(self._processes):
            self.end(run)

    def token(self, user: str = "alice", project: str = "", check: bool = False, **options: Any) -> str:
        """The token phase's token, asked for once by each run; bob's is for his own project."""
        project = project or ("other" if user == "bob" else "demo")
        key = json.dumps([self.run, user, project, check, options])
        if key not in self._tokens:
            self._tokens[key] = self._issue(user, project, check, options)
        return self._tokens[key]

    def _issue(self, user: str, project: str, check: bool, options: dict[str, Any]) -> str:
        auth = {"username": user, "password": PASSWORD, "project_name": project}
        given = {"auth": auth, "catalog": self.catalog, "keys_directory": self.keys, **options}
        return str(self._run("token", given, check)["token"])

    def phase(self, name: str, user: str = "alice", check: bool = False, **options: Any) -> dict[str, Any]:
        """One phase's result, by the way that Ansible's action goes: the argument spec, then ``execute``."""
        if name == "instance":
            options.setdefault("notification_file", str(self.notifications))
        if name in ("schedule", "why") or (name == "instance" and options.get("state", "present") == "present"):
            options.setdefault("scheduler", self.scheduler)
        token = options.pop("token", None) or self.token(user, options.pop("project", ""), check)
        given = {"catalog": self.catalog, "keys_directory": self.keys, "records_url": self.records_url}
        return self._run(name, {"token": token, **given, **options}, check)

    def _run(self, name: str, given: dict[str, Any], check: bool) -> dict[str, Any]:
        phase = importlib.import_module(f"ansible_collections.barestack.kvm.plugins.modules.{name}").PHASE
        validated = ArgumentSpecValidator(phase.argument_spec).validate(given)
        assert validated.error_messages == []
        result = execute(phase, validated.validated_parameters, check)
        carried: dict[str, Any] = json.loads(json.dumps(result))  # what Ansible carries on is JSON
        return carried

    def report(self, name: str, **changes: Any) -> dict[str, Any]:
        """What a boot gives compute_node for a host."""
        return {"name": name, "hypervisor": {**HYPERVISOR, "hostname": name, **changes}}

    def record(self, *names: str, settings: dict[str, Any] | None = None, **changes: Any) -> None:
        """Compute hosts in the records, before any boot; ``settings`` are the inventory's for them."""
        self.hosts = list(names)
        self.phase("compute_node", reports=[{**self.report(name, **changes), **(settings or {})} for name in names])

    @staticmethod
    def server(name: str = "web", **changes: Any) -> dict[str, Any]:
        """A request."""
        return {"name": name, "flavor": "tiny", "image": "demo", "network": "private", **changes}

    def boot(self, *requests: dict[str, Any], last: str = "active", **options: Any) -> list[dict[str, Any]]:
        """boot_instance.yml's first attempt as far as the control host goes, up to the step ``last``, no rollback.

        ``user``, ``check``, ``max_attempts``; ``twice``: each step is done again at once, which must change nothing and
        answer the same;
        ``host``: what the host makes of an instance, by default :meth:`built`.
        """
        self.results = {}
        handle: list[dict[str, Any]] = []
        for step in STEPS[: STEPS.index(last) + 1]:
            if step == "active":
                handle = [options.get("host", self.built)(instance) for instance in handle]
            handle = self.step(step, handle, list(requests), options)
        return handle

    def step(
        self, step: str, handle: list[dict[str, Any]], requests: list[dict[str, Any]], options: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """One of ``STEPS`` with the handle of the one before."""
        reports = [self.report(name) for name in self.results.get("stale", {}).get("stale", [])]
        given: dict[str, dict[str, Any]] = {
            "instance": {"requests": requests},
            "stale": {"state": "stale", "names": self.hosts},
            "compute_node": {"reports": reports},
            "schedule": {"instances": handle, "reports": reports},
            "building": {"state": "building", "task_state": "spawning", "instances": handle},
            "active": {"state": "active", "instances": handle, "max_attempts": options.get("max_attempts", 3)},
        }
        name = {"stale": "compute_node", "building": "instance", "active": "instance"}.get(step, step)
        found = self._do(step, name, given.get(step, {"instances": handle}), options)
        return list(found.get("instances", handle))

    def undo(self, handle: list[dict[str, Any]], steps: tuple[str, ...] = UNDO, **options: Any) -> list[dict[str, Any]]:
        """The control host's part of a rollback, or of a delete after its first step."""
        for step in steps:
            phase, state = UNDOS[step]
            found = self._do(step, phase, {"state": state, "instances": handle}, options)
        return list(found["instances"])

    def delete(self, *names: str, **options: Any) -> list[dict[str, Any]]:
        """delete_instance.yml as far as the control host goes; ``last`` as in :meth:`boot`."""
        self.results = {}
        last = options.pop("last", "absent")
        found = self._do("deleting", "instance", {"state": "deleting", "names": list(names)}, options)
        steps = DELETE[1 : DELETE.index(last) + 1]
        return self.undo(found["instances"], steps, **options) if found["instances"] and steps else found["instances"]

    def _do(self, step: str, name: str, given: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        user, check = options.get("user", "alice"), options.get("check", False)
        leased = self.rows("leases") if options.get("twice") else []
        self.results[step] = self.phase(name, user, check, **given)
        self.steps.append(step)
        if options.get("twice"):
            if step == "active":
                self._lease(leased)
            again = self.phase(name, user, check, **given)
            assert again["effects"] == [], f"{step} is not repeatable"
            if step not in LAST:
                assert _essence(step, again) == _essence(step, self.results[step])
        return self.results[step]

    def _lease(self, leased: list[dict[str, Any]]) -> None:
        """Put leases that a step gave back in again, as the same run would have them that comes a second time."""

        def put(connection: Connection) -> None:
            table = metadata.tables["leases"]
            connection.execute(delete(table))
            if leased:
                connection.execute(insert(table), leased)

        Records(self.records_url).run(put)

    def play(
        self,
        *requests: dict[str, Any],
        hosts: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        undo: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        kill_after: int | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """boot_instance.yml with its rollbacks and attempts. Returns the servers as its summary has them.

        ``hosts`` and ``undo``: what a host makes of an instance, and what its undos do. ``kill_after``: the run is
        killed after so many steps; RunKilled then, and what comes next is another run.
        """
        self.results, self.steps = {}, []
        play = _Play(self, list(requests), hosts or self.built, undo or (lambda instance: instance), options)
        play.kill_after = kill_after
        return play.boot()

    def residues(self) -> list[tuple[str, str]]:
        """(server, host) of what hosts have yet to undo."""
        return [(left.name, str(left.host)) for left in Records(self.records_url).run(residues.of)]

    def changed(self) -> set[str]:
        """The steps of the last run that changed anything."""
        return {step for step, result in self.results.items() if result["changed"]}

    def rows(self, table: str) -> list[dict[str, Any]]:
        """A table's rows."""
        return self._read(table)[table]

    def _read(self, *tables: str) -> dict[str, list[dict[str, Any]]]:
        def read(connection: Connection) -> dict[str, list[dict[str, Any]]]:
            found = {}
            for name in tables:
                table = metadata.tables[name]
                rows = connection.execute(select(table).order_by(*table.primary_key))
                found[name] = [dict(row._mapping) for row in rows]
            return found

        return Records(self.records_url).run(read)

    def row(self, name: str = "web") -> dict[str, Any]:
        """The newest row of a server with this name, deleted or not."""
        return sorted((row for row in self.rows("instances") if row["name"] == name), key=lambda row: row["id"])[-1]

    def states(self, name: str = "web") -> tuple[str, str | None, str]:
        """The server's three states."""
        row = self.row(name)
        return row["vm_state"], row["task_state"], row["power_state"]

    def claims(self) -> dict[str, dict[str, int]]:
        """Server's name -> what it holds."""
        names = {row["uuid"]: row["name"] for row in self.rows("instances")}
        found: dict[str, dict[str, int]] = {}
        for row in self.rows("allocations"):
            found.setdefault(names[row["consumer_id"]], {})[row["resource_class"]] = row["used"]
        return found

    def used(self) -> dict[tuple[str, str], int]:
        """(host, resource class) -> what is kept as used, where it is anything."""
        hosts = {row["id"]: row["host"] for row in self.rows("compute_nodes")}
        return {
            (hosts[row["compute_node_id"]], row["resource_class"]): row["used"]
            for row in self.rows("inventories")
            if row["used"]
        }

    def ports(self, owner: str = "compute:") -> list[dict[str, Any]]:
        """The servers' ports, or another owner's."""
        return [row for row in self.rows("ports") if row["device_owner"] == owner]

    def events(self) -> list[dict[str, Any]]:
        """The notifications in the file."""
        text = self.notifications.read_text() if self.notifications.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def dump(self) -> dict[str, list[dict[str, Any]]]:
        """Every table, to compare; without the leases, the heartbeats, the times and the counts of the last writes."""
        passing = ("updated_at", "generation")
        return {
            table: [{key: value for key, value in row.items() if key not in passing} for row in rows]
            for table, rows in self._read(*metadata.tables).items()
            if table != "leases"
        }

    @staticmethod
    def built(instance: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """The instance as its host's phases return it: volumes connected, guest running, ports ACTIVE."""
        if instance["fault"]:
            return instance
        devices = [
            {**device, "connection_info": {"data": {"device_path": f"/pool/{device['volume_id']}"}}}
            for device in instance["block_devices"]
        ]
        times = {"start_time": "2026-01-01T00:00:00.000000Z", "finish_time": "2026-01-01T00:00:01.000000Z"}
        event = {"event": "domain", **times, "result": "Success", "host": instance["host"], "traceback": None}
        return {
            **instance,
            "block_devices": devices,
            "disks": [{"role": "root", "path": "/disk", "format": "qcow2", "serial": None, "boot_index": 0}],
            "ports": [{**port, "status": "ACTIVE"} for port in instance["ports"]],
            "power_state": "RUNNING",
            "events": [*instance["events"], event],
            **changes,
        }

    @staticmethod
    def failed(instance: dict[str, Any], message: str = "no space left", phase: str = "disk") -> dict[str, Any]:
        """The instance as its host's phases return it when one of them fails."""
        return {**instance, "fault": {"phase": phase, "host": instance["host"], "message": message, "code": 500}}

    @staticmethod
    def stuck(instance: dict[str, Any], message: str = "device is busy") -> dict[str, Any]:
        """The instance as its host's undos return it when one of them fails."""
        return {**instance, "stuck": {"phase": "disk", "host": instance["host"], "message": message, "code": 500}}


class RunKilled(Exception):
    """``Site.play`` came to where the run is killed."""


class _Play:
    """One run of boot_instance.yml."""

    def __init__(
        self,
        site: Site,
        requests: list[dict[str, Any]],
        hosts: Callable[[dict[str, Any]], dict[str, Any]],
        undo: Callable[[dict[str, Any]], dict[str, Any]],
        options: dict[str, Any],
    ) -> None:
        self.site, self.requests, self.hosts, self.undo = site, requests, hosts, undo
        self.max_attempts = options.pop("max_attempts", 3)
        self.options = options
        self.kill_after: int | None = None
        self.finish: dict[str, Any] = {}
        self.undone: dict[str, Any] = {}

    def boot(self) -> list[dict[str, Any]]:
        begun = self.do("instance", "instance", {"requests": self.requests})
        stale = self.do("stale", "compute_node", {"state": "stale", "names": self.site.hosts})
        self.roll_back(begun)
        reports = [self.site.report(name) for name in stale["stale"]]
        self.do("compute_node", "compute_node", {"reports": reports})
        self.attempt(begun["instances"], reports)
        while self.undone.get("retrying") and self.undone["at"] > self.finish["at"]:
            self.attempt(self.undone["retry"], reports)
        gone = {item["uuid"]: item for item in self.undone.get("instances", [])}
        return [gone.get(item["uuid"], item) for item in self.finish["instances"]]

    def attempt(self, handle: list[dict[str, Any]], reports: list[dict[str, Any]]) -> None:
        earlier = self.finish.get("instances", [])
        for step in ATTEMPT:
            given: dict[str, dict[str, Any]] = {
                "schedule": {"reports": reports},
                "building": {"state": "building", "task_state": "spawning"},
                "active": {"state": "active", "earlier": earlier, "max_attempts": self.max_attempts},
            }
            if step == "active":
                handle = [item if item["fault"] else self.hosts(item) for item in handle]
            name = {"building": "instance", "active": "instance"}.get(step, step)
            result = self.do(step, name, {"instances": handle, **given.get(step, {})})
            handle = result["instances"]
        self.finish = result
        self.roll_back(result)

    def roll_back(self, failed: dict[str, Any]) -> None:
        if not failed["failures"]:
            return
        handle = [self.undo(item) if item["host"] else item for item in failed["to_undo"]]
        for step in UNDO:
            name, state = UNDOS[step]
            earlier = {"earlier": self.undone.get("instances", [])} if step == "undone" else {}
            result = self.do(step, name, {"state": state, "instances": handle, **earlier})
        self.undone = result

    def do(self, step: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
        result = self.site._do(step, name, given, self.options)
        if len(self.site.steps) == self.kill_after:
            self.site.kill()
            raise RunKilled
        return result


def _essence(step: str, result: dict[str, Any]) -> Any:
    """What the next step makes use of."""
    keys = ("uuid", "host", "vm_state", "task_state", "power_state", "ports", "block_devices", "fault", "stuck")
    if step in UNDOS:  # the other undos still need to know what there was
        keys = ("uuid", "fault", "stuck")
    return [{key: instance[key] for key in keys} for instance in result.get("instances", [])], result.get("hosts")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fresh: on records that no run has been at yet")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SQLite's records as a first run leaves them, to copy."""
    path = tmp_path_factory.mktemp("records") / "records.db"
    Records(f"sqlite:///{path}").run(lambda _: None)
    return path


@pytest.fixture(scope="session")
def database(postgresql: str) -> str:
    """One database for all of these tests: making one takes longer than most of them."""
    engine = create_engine(postgresql.format("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE phases"))
    engine.dispose()
    return postgresql.format("phases")


@pytest.fixture(params=["sqlite", "postgresql"])
def records_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Empty records of each kind; for a test marked ``fresh`` there are none at all."""
    fresh = request.node.get_closest_marker("fresh") is not None
    if request.param == "sqlite":
        if not fresh:
            shutil.copy(request.getfixturevalue("migrated"), tmp_path / "records.db")
        return f"sqlite:///{tmp_path}/records.db"
    url: str = request.getfixturevalue("database")
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if not fresh and inspect(connection).has_table("alembic_version"):
            connection.execute(text(f"TRUNCATE {', '.join(metadata.tables)} CASCADE"))
            connection.execute(text(f"UPDATE alembic_version SET version_num = '{HEAD}'"))
        else:
            connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    engine.dispose()
    return url


@pytest.fixture
def site(tmp_path: Path, records_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Its runs have processes; keepers for them would outlive the tests, and have their own in test_keeper.py."""
    for name in [name for name in os.environ if name.startswith("OS_")]:
        monkeypatch.delenv(name)
    site = Site(tmp_path, records_url)
    monkeypatch.setattr(process, "run_pid", site.pid)
    monkeypatch.setattr(keeper, "start", lambda _url, owner, pid: site.kept.append((owner, pid)))
    monkeypatch.setattr(keeper, "GRACE", 0.0)
    monkeypatch.setattr(leasing, "_POLL", 0.02)
    yield site
    site.close()
