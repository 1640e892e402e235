# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Eight runs at once, each a process of its own, that ask for twice of what there is: exactly that is given."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

RUNS = 8
LIMIT = 120
"""Seconds for all of one test's runs; they take a few."""

Answer = dict[str, Any]
Contend = Callable[..., list[Answer]]


@pytest.fixture(scope="module")
def contenders() -> Iterator[list[subprocess.Popen[str]]]:
    """The processes, ready to run."""
    program = Path(__file__).with_name("contender.py")
    processes = [
        subprocess.Popen([sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(RUNS)
    ]
    try:
        assert [_line(process) for process in processes] == ["ready\n"] * RUNS
        yield processes
    finally:
        for process in processes:
            assert process.stdin
            process.stdin.close()
        for process in processes:
            process.wait()
            assert process.stdout
            process.stdout.close()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


@pytest.fixture
def contend(contenders: list[subprocess.Popen[str]], site: Any) -> Contend:
    """Run these requests at once, each run with one of them; returns the answers."""

    def run(rounds: Callable[[int], list[list[dict[str, Any]]]], delete: bool = False) -> list[Answer]:
        site.token()  # the first run of a site makes its keys
        common = {
            "records_url": site.records_url,
            "directory": str(site.directory),
            "catalog": site.catalog,
            "hosts": site.hosts,
            "delete": delete,
        }
        for number, process in enumerate(contenders):
            assert process.stdin
            process.stdin.write(json.dumps({**common, "rounds": rounds(number)}) + "\n")
        for process in contenders:
            assert process.stdin
            process.stdin.flush()
        return [json.loads(_line(process)) for process in contenders]

    return run


def faults(answers: list[Answer]) -> list[str]:
    return [server["fault"]["message"] for answer in answers for server in answer["servers"] if server["fault"]]


def errors(answers: list[Answer]) -> Counter[str]:
    return Counter(answer["error"][0] for answer in answers if answer["error"])


def active(site: Any, answers: list[Answer]) -> list[dict[str, Any]]:
    """The servers that are ACTIVE, each as its run has it; the records say the same, and nothing is there twice."""
    told = [server for answer in answers for server in answer["servers"] if not server["fault"]]
    rows = [row for row in site.rows("instances") if row["vm_state"] == "ACTIVE"]
    assert sorted(server["uuid"] for server in told) == sorted(row["uuid"] for row in rows)
    assert set(site.claims()) == {row["name"] for row in rows}
    everyone = site.rows("instances")
    for key in ("id", "uuid", "name"):
        assert len({row[key] for row in everyone}) == len(everyone)
    ports = site.rows("ports")
    assert len({(row["network_id"], row["mac_address"]) for row in ports}) == len(ports)
    addresses = site.rows("ip_allocations")
    assert len({(row["subnet_id"], row["ip_address"]) for row in addresses}) == len(addresses)
    assert {row["port_id"] for row in addresses} <= {row["id"] for row in ports}
    assert sorted(port["device_id"] for port in site.ports()) == sorted(row["uuid"] for row in rows)
    host_of = {row["uuid"]: row["host"] for row in rows}
    assert all(port["binding_host"] == host_of[port["device_id"]] for port in site.ports())
    for server in told:
        (port,) = server["ports"]
        (row,) = (item for item in ports if item["id"] == port["id"])
        assert (port["mac_address"], server["host"]) == (row["mac_address"], row["binding_host"])
    return told


def test_exactly_the_capacity_is_sold(site: Any, contend: Contend) -> None:
    """Two hosts with room for four each; eight runs want two servers each."""
    site.record("kvm1", "kvm2", memory_mb=512 + 4 * 2048)
    site.catalog["projects"][0]["quota"] = {"instances": -1}
    answers = contend(lambda n: [[site.server(f"s{n}-{i}", flavor="half") for i in range(2)]])
    assert errors(answers) == Counter()
    sold = active(site, answers)
    assert Counter(server["host"] for server in sold) == {"kvm1": 4, "kvm2": 4}
    refused = faults(answers)
    assert len(refused) == 8
    assert all("No valid host" in message for message in refused)
    assert all("MEMORY_MB: 2048 wanted, 0 free of (8704 - 512 reserved)" in message for message in refused)
    assert Counter(row["vm_state"] for row in site.rows("instances")) == {"ACTIVE": 8, "ERROR": 8}


def test_exactly_the_addresses_of_a_pool_are_given(site: Any, contend: Contend) -> None:
    """Five addresses; eight runs want one each, and have a claim before they learn that there is none."""
    site.record("kvm1", memory_mb=512 + 16 * 128)
    answers = contend(lambda n: [[site.server(f"s{n}", network="narrow")]])
    assert errors(answers) == Counter()
    assert len(active(site, answers)) == len(site.rows("ip_allocations")) == 5
    refused = faults(answers)
    assert len(refused) == 3
    assert all("No more IP addresses available on network" in message for message in refused)


def test_exactly_the_quota_is_used(site: Any, contend: Contend) -> None:
    site.record("kvm1", memory_mb=512 + 16 * 128)
    site.catalog["projects"][0]["quota"] = {"instances": 8}
    answers = contend(lambda n: [[site.server(f"s{n}-{i}") for i in range(2)]])
    assert errors(answers) == {"QuotaExceeded": 4}
    assert len(active(site, answers)) == len(site.rows("instances")) == 8


def test_runs_that_come_and_go_leave_nothing(site: Any, contend: Contend) -> None:
    """Boots and deletes among each other, on two networks: every run gets all that it wants, and gives it back."""
    site.record("kvm1", "kvm2", memory_mb=512 + 16 * 128)
    networks = ("private", "narrow")
    answers = contend(lambda n: [[site.server(f"s{n}", network=networks[n % 2])]] * 2, delete=True)
    assert errors(answers) == Counter()
    assert faults(answers) == []
    rows = site.rows("instances")
    assert Counter((row["name"], row["vm_state"]) for row in rows) == {(f"s{n}", "DELETED"): 2 for n in range(RUNS)}
    assert len({row["uuid"] for row in rows}) == len(rows)
    for table in ("allocations", "ports", "ip_allocations", "volumes", "block_device_mappings"):
        assert site.rows(table) == []
    kinds = Counter(event["type"].removeprefix("barestack.kvm.instance.") for event in site.events())
    assert kinds == {"create.end": 2 * RUNS, "delete.end": 2 * RUNS}
