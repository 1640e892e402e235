# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The audit from its playbook, on a site of its own on this machine: each kind of difference planted, seen, cured.

The tests are one story, in their order. Other tests have servers on this machine at the same time: the site says so,
and looks at what is its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import argon2
import pytest
import yaml

ROOT = Path(__file__).parents[2]
INSTANCES = Path("/var/lib/libvirt/images/barestack-audit")
STATE = Path("/var/lib/barestack-audit")
LOGS = Path("/var/log/libvirt/barestack-audit")
PASSWORD = "audit-only"
HASH = argon2.PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash(PASSWORD)
SERVERS = [
    {"name": "one", "volumes": [{"size": 1, "delete_on_termination": True}]},
    {"name": "two"},
    {"name": "three"},
]
UNKNOWN = str(uuid.UUID(int=0xABCDEF))


def sh(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@dataclass
class Run:
    rc: int
    output: str
    comparisons: list[list[dict[str, Any]]]
    """The findings of each comparison: a repair has two."""

    @property
    def findings(self) -> list[dict[str, Any]]:
        """Of the last comparison."""
        return self.comparisons[-1]

    @property
    def changed(self) -> int:
        return sum(int(number) for number in re.findall(r"changed=(\d+)", self.output))

    @property
    def differences(self) -> list[tuple[str, str, str]]:
        """(kind, finding, server) of those that count, after all."""
        return counted(self.comparisons[-1])

    @property
    def kinds(self) -> set[str]:
        """Of the differences before any repair."""
        return {kind for kind, _, _ in counted(self.comparisons[0])}


def counted(findings: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(item["kind"], item["finding"], item["server"]) for item in findings if item["differs"]]


class Site:
    """Records and keys in a directory of the test, guests that boot nothing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        image = directory / "blank.qcow2"
        sh("qemu-img", "create", "-q", "-f", "qcow2", str(image), "1M")
        self.records = directory / "records.db"
        variables = {
            "records_url": f"sqlite:///{self.records}",
            "keys_directory": f"{directory}/keys",
            "notification_file": f"{directory}/notifications.jsonl",
            "instances_path": str(INSTANCES),
            "state_path": str(STATE),
            "log_path": str(LOGS),
            "auth": {"username": "boss", "password": PASSWORD, "project_name": "audit"},
            "projects": [{"name": "audit"}],
            "users": [
                {"name": name, "password_hash": HASH, "roles": {"audit": role}}
                for name, role in (("boss", "admin"), ("rita", "reader"))
            ],
            "flavors": [{"name": "nano", "vcpus": 1, "ram": 64, "disk": 1}],
            "images": [
                {
                    "name": "blank",
                    "url": str(image),
                    "checksum": f"sha256:{hashlib.sha256(image.read_bytes()).hexdigest()}",
                    "disk_format": "qcow2",
                }
            ],
            "networks": [
                {
                    "name": "audit-net",
                    "subnets": [{"name": "audit-v4", "cidr": "10.174.0.0/24", "gateway_ip": "10.174.0.1"}],
                }
            ],
            "instances": [{"flavor": "nano", "image": "blank", "network": "audit-net", **item} for item in SERVERS],
        }
        host = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "cpu_allocation_ratio": 16.0,
            "shared_host": True,
        }
        inventory = {"all": {"vars": variables}, "compute": {"hosts": {"kvm-audit": host}}}
        (directory / "hosts.yml").write_text(json.dumps(inventory))

    def play(self, playbook: str, *arguments: str, **variables: Any) -> Run:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "OS_"))}
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "ansible-playbook"),
                *("-i", str(self.directory / "hosts.yml"), str(ROOT / "playbooks" / playbook), "-v", *arguments),
                *("-e", json.dumps(variables)),
            ],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**kept, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        )
        return Run(done.returncode, done.stdout + done.stderr, _comparisons(done.stdout))

    def audit(self, *arguments: str, **variables: Any) -> Run:
        return self.play("audit.yml", *arguments, **variables)

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.records)
        try:
            with connection:
                return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def uuid(self, name: str) -> str:
        return str(self.sql("SELECT uuid FROM instances WHERE name = ? ORDER BY id DESC", name)[0][0])

    def domain(self, name: str) -> str:
        return f"instance-{self.sql('SELECT id FROM instances WHERE name = ? ORDER BY id DESC', name)[0][0]:08x}"

    def port(self, name: str) -> tuple[str, str, str]:
        """(id, MAC, network)."""
        query = "SELECT id, mac_address, network_id FROM ports WHERE device_id = ?"
        return self.sql(query, self.uuid(name))[0]  # type: ignore[return-value]


def _comparisons(output: str) -> list[list[dict[str, Any]]]:
    """The findings of each comparison, as ``-v`` shows its result."""
    found: list[list[dict[str, Any]]] = []
    for task in re.split(r"^TASK \[", output, flags=re.MULTILINE):
        if task.startswith("Comparison]"):
            _, _, result = task.partition(" => \n")
            body = "\n".join(line for line in result.splitlines() if line.startswith("    "))
            found.append((yaml.safe_load(body) or {}).get("findings", []))
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    for path in (INSTANCES, STATE, LOGS):
        shutil.rmtree(path, ignore_errors=True)
    directory = tmp_path_factory.mktemp("audit")
    for parent in (directory, *directory.parents):
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(0o755)
    made = Site(directory)
    boot = made.play("boot_instance.yml")
    try:
        assert boot.rc == 0, boot.output
        yield made
    finally:
        made.play("audit.yml", repair=True)
        made.play("delete_instance.yml", names=[server["name"] for server in SERVERS])
        for path in (INSTANCES, STATE, LOGS):
            shutil.rmtree(path, ignore_errors=True)


def domains() -> list[str]:
    return sh("virsh", "-q", "list", "--all", "--name").split()


def test_a_fresh_site_does_not_differ(site: Site) -> None:
    looked = site.audit()
    assert (looked.rc, looked.differences, looked.changed) == (0, [], 0), looked.output


def test_the_hosts_part_is_an_ordinary_module_too(site: Site) -> None:
    looked = site.audit("-vvv", ansible_become=True, ansible_become_method="su", ansible_become_user="root")
    assert looked.rc == 0, looked.output
    assert re.search(r"^Using module file .*/contents\.py", looked.output, re.MULTILINE)


def test_a_reader_may_look_and_not_repair(site: Site) -> None:
    auth = {"username": "rita", "password": PASSWORD, "project_name": "audit"}
    assert site.audit(auth=auth).rc == 0
    refused = site.audit(auth=auth, repair=True)
    assert refused.rc == 2
    assert "needs the role admin" in refused.output


def test_a_host_that_does_not_answer_is_told(site: Site) -> None:
    looked = site.audit(ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=1)
    assert looked.rc == 2
    assert looked.differences == [("host", "not reached", "")]


# Leftovers, on the host and in the records


@pytest.fixture(scope="module")
def lost(site: Site) -> Iterator[dict[str, str]]:
    """The server "two" is gone from the records as if a delete had forgotten the host; and more of the kind."""
    known = {"uuid": site.uuid("two"), "domain": site.domain("two"), "port": site.port("two")[0]}
    site.sql("UPDATE instances SET deleted = id, vm_state = 'DELETED', host = NULL WHERE name = 'two'")
    (INSTANCES / site.uuid("one") / "disk.part").touch()
    (INSTANCES / UNKNOWN).mkdir()
    (INSTANCES / UNKNOWN / "disk").touch()
    (INSTANCES / "volumes" / f"volume-{UNKNOWN}").touch()
    with (INSTANCES / "_base" / "held.part").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield known


def test_leftovers_are_seen(site: Site, lost: dict[str, str]) -> None:
    looked = site.audit()
    assert looked.rc == 2
    assert looked.changed == 0
    assert {kind for kind, finding, server in looked.differences if server == "two"} == {
        "domain", "directory", "console log", "port mark", "rules", "DHCP entry", "claim", "port",
    }  # fmt: skip
    assert [item["object"] for item in looked.findings if item["kind"] == "temporary file"] == [
        f"{INSTANCES}/{site.uuid('one')}/disk.part"
    ]
    unknown = [item for item in looked.findings if UNKNOWN in item["object"]]
    assert {item["kind"] for item in unknown} == {"directory", "volume"}
    assert not any(item["differs"] or item["cure"] for item in unknown)
    for text in (
        lost["domain"],
        "cure: stopped and removed",
        "unknown to these records",
        "no difference on a shared host",
    ):
        assert text in looked.output


def test_on_a_host_of_ones_own_the_unknown_counts(site: Site, lost: dict[str, str]) -> None:
    looked = site.audit(shared_host=False)
    assert ("volume", "only on the host", "") in looked.differences


def test_check_mode_tells_the_repair_and_touches_nothing(site: Site, lost: dict[str, str]) -> None:
    before = [site.sql(f"SELECT * FROM {table}") for table in ("instances", "ports", "allocations", "leases")]
    planned = site.audit("--check", "--diff", repair=True)
    assert planned.rc == 2
    assert planned.changed > 0
    assert f"domain.running {lost['domain']}" in planned.output
    assert lost["domain"] in domains()
    assert (INSTANCES / lost["uuid"] / "disk").exists()
    assert before == [site.sql(f"SELECT * FROM {table}") for table in ("instances", "ports", "allocations", "leases")]


def test_the_repair_removes_them_and_nothing_else(site: Site, lost: dict[str, str]) -> None:
    repaired = site.audit(repair=True)
    assert (repaired.rc, repaired.differences) == (0, []), repaired.output
    assert lost["domain"] not in domains()
    assert not (INSTANCES / lost["uuid"]).exists()
    assert lost["port"][:11] not in sh("nft", "list", "ruleset")
    assert not (LOGS / f"{lost['uuid']}.console.log").exists()
    assert not list(STATE.rglob(lost["port"]))
    assert site.sql("SELECT * FROM ports WHERE id = ?", lost["port"]) == []
    assert site.sql("SELECT * FROM allocations WHERE consumer_id = ?", lost["uuid"]) == []
    assert site.sql("SELECT * FROM leases") == []
    for kept in (f"{UNKNOWN}/disk", f"volumes/volume-{UNKNOWN}", "_base/held.part", f"{site.uuid('one')}/disk"):
        assert (INSTANCES / kept).exists(), kept
    assert {site.domain("one"), site.domain("three")} <= set(domains())


def test_a_second_repair_changes_nothing(site: Site, lost: dict[str, str]) -> None:
    again = site.audit(repair=True)
    assert (again.rc, again.changed) == (0, 0), again.output


# What servers lack


def break_domain(site: Site) -> None:
    sh("virsh", "destroy", site.domain("one"))
    sh("virsh", "undefine", site.domain("one"))


def break_tap(site: Site) -> None:
    sh("ip", "link", "set", f"tap{site.port('one')[0][:11]}", "nomaster")


def break_rules(site: Site) -> None:
    sh("nft", "flush", "chain", "bridge", "barestack", f"egress-tap{site.port('one')[0][:11]}")


def break_mark(site: Site) -> None:
    port, _, network = site.port("one")
    (STATE / "networks" / network / port).unlink()


def break_entry(site: Site) -> None:
    _, mac, network = site.port("one")
    path = STATE / "dhcp" / network / "host"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if mac not in line))


def break_namespace(site: Site) -> None:
    sh("ip", "netns", "delete", f"qdhcp-{site.port('one')[2]}")


def break_bridge(site: Site) -> None:
    sh("ip", "link", "delete", f"brq{site.port('one')[2][:11]}")


def break_gateway(site: Site) -> None:
    sh("ip", "address", "delete", "10.174.0.1/24", "dev", f"brq{site.port('one')[2][:11]}")


def break_config_drive(site: Site) -> None:
    (INSTANCES / site.uuid("one") / "disk.config").unlink()


def break_base(site: Site) -> None:
    for path in (INSTANCES / "_base").glob("*"):
        if not path.name.endswith(".part"):
            path.unlink()


BROKEN = {
    break_domain: {"domain"},
    break_tap: {"tap"},
    break_rules: {"rules"},
    break_mark: {"port mark"},
    break_entry: {"DHCP entry"},
    break_namespace: {"namespace", "DHCP server"},
    break_bridge: {"bridge", "tap", "DHCP interface"},
    break_gateway: {"gateway"},
    break_config_drive: {"config drive"},
    break_base: {"image"},
}


def test_all_that_servers_lack_is_seen_each_thing_by_its_kind(site: Site) -> None:
    """One after the other, and only then the repair: that is what takes time."""
    expected: set[str] = set()
    for number, act in enumerate((break_rules, break_mark, break_entry, break_gateway, break_config_drive, break_base)):
        act(site)
        expected |= BROKEN[act]
        if number in (1, 5):
            looked = site.audit()
            assert (looked.rc, looked.kinds) == (2, expected), looked.output
            assert all(
                item["cure"] and item["finding"] != "only on the host" for item in looked.findings if item["differs"]
            )


def test_the_repair_puts_it_back(site: Site) -> None:
    repaired = site.audit(repair=True)
    assert (repaired.rc, repaired.differences) == (0, []), repaired.output


@pytest.mark.parametrize("acts", [(break_domain, break_namespace), (break_bridge,), (break_tap,)])
def test_a_guest_and_a_network_that_are_gone_come_back(site: Site, acts: Any) -> None:
    for act in acts:
        act(site)
    repaired = site.audit(repair=True)
    assert set.union(*(BROKEN[act] for act in acts)) <= repaired.kinds, repaired.output
    assert (repaired.rc, repaired.differences) == (0, []), repaired.output
    assert site.domain("one") in domains()


def test_a_lost_claim_and_a_lost_binding_are_put_back(site: Site) -> None:
    claims = site.sql("SELECT consumer_id, resource_class, used FROM allocations ORDER BY 1, 2")
    site.sql("DELETE FROM allocations WHERE consumer_id = ?", site.uuid("one"))
    site.sql("UPDATE volumes SET status = 'attaching'")
    repaired = site.audit(repair=True)
    assert (repaired.rc, repaired.kinds) == (0, {"claim", "volume", "inventory"}), repaired.output
    assert site.sql("SELECT consumer_id, resource_class, used FROM allocations ORDER BY 1, 2") == claims


def test_a_disk_that_is_gone_is_not_made_anew(site: Site) -> None:
    disk = INSTANCES / site.uuid("three") / "disk"
    away = disk.with_name("disk.away")
    disk.rename(away)
    sh("virsh", "destroy", site.domain("three"))
    try:
        repaired = site.audit(repair=True)
        assert repaired.rc == 2
        assert ("root disk", "only in the records", "three") in repaired.differences
        assert not disk.exists()
        assert "never made anew" in repaired.output
    finally:
        away.rename(disk)
    assert site.audit(repair=True).rc == 0


def test_after_a_delete_nothing_is_left(site: Site) -> None:
    deleted = site.play("delete_instance.yml", names=[server["name"] for server in SERVERS])
    assert deleted.rc == 0, deleted.output
    looked = site.audit()
    assert (looked.rc, looked.differences) == (0, []), looked.output
