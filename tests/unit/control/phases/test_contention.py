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

from .conftest import NUMA, devices

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
            "scheduler": site.scheduler,
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
    assert all("ram: 2048 wanted, 0 free of (8704 - 512 reserved)" in message for message in refused)
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


def group(**rules: int) -> dict[str, Any]:
    """A hint that makes a group on its first use, and whoever comes later joins."""
    return {"group": {"name": "apart", "policy": "anti-affinity", "rules": rules}}


def test_a_host_has_one_server_of_an_anti_affinity_group(site: Any, contend: Contend) -> None:
    """Five hosts with room for everybody; eight runs want one server of the same group each."""
    site.record(*(f"kvm{n}" for n in range(5)), memory_mb=512 + 16 * 128)
    answers = contend(lambda n: [[site.server(f"s{n}", scheduler_hints=group())]])
    assert errors(answers) == Counter()
    assert Counter(server["host"] for server in active(site, answers)) == {f"kvm{n}": 1 for n in range(5)}
    refused = faults(answers)
    assert len(refused) == 3
    assert all("at most 1 of group apart wanted, 1 there already" in message for message in refused)
    assert len(site.rows("server_groups")) == 1
    assert len(site.rows("server_group_members")) == 8, "those without a host are members, too"


def test_a_host_has_two_servers_of_a_group_that_allows_two(site: Any, contend: Contend) -> None:
    site.record("kvm1", "kvm2", "kvm3", memory_mb=512 + 16 * 128)
    answers = contend(lambda n: [[site.server(f"s{n}", scheduler_hints=group(max_server_per_host=2))]])
    assert errors(answers) == Counter()
    assert Counter(server["host"] for server in active(site, answers)) == {"kvm1": 2, "kvm2": 2, "kvm3": 2}
    assert len(faults(answers)) == 2


def test_servers_of_an_affinity_group_meet_on_one_host(site: Any, contend: Contend) -> None:
    """Eight runs start at once, and none knows where the others will be; the host has room for five."""
    site.record("kvm1", "kvm2", "kvm3", memory_mb=512 + 5 * 128)
    hints = {"group": {"name": "together", "policy": "affinity"}}
    answers = contend(lambda n: [[site.server(f"s{n}", scheduler_hints=hints)]])
    assert errors(answers) == Counter()
    assert sorted(Counter(server["host"] for server in active(site, answers)).values()) == [5]
    assert len(faults(answers)) == 3


def test_no_cpu_is_two_servers_own(site: Any, contend: Contend) -> None:
    """Two hosts with eight CPUs each; eight runs want two servers with two CPUs of their own each."""
    site.record("kvm1", "kvm2", **NUMA)
    site.catalog["projects"][0]["quota"] = {"instances": -1, "cores": -1}
    answers = contend(lambda n: [[site.server(f"s{n}-{i}", flavor="pinned") for i in range(2)]])
    assert errors(answers) == Counter()
    sold = active(site, answers)
    assert Counter(server["host"] for server in sold) == {"kvm1": 4, "kvm2": 4}
    pins = [(s["host"], pin[1]) for s in sold for cell in s["numa_topology"]["cells"] for pin in cell["cpu_pinning"]]
    assert sorted(pins) == [(host, cpu) for host in ("kvm1", "kvm2") for cpu in range(8)]
    assert len(site.rows("pinned_cpus")) == 16
    assert len(faults(answers)) == 8


def test_no_device_is_two_servers(site: Any, contend: Contend) -> None:
    site.record("kvm1", "kvm2", **devices(3))
    site.scheduler = {"pci_alias": [{"name": "gpu", "vendor_id": "10de", "product_id": "1eb8"}]}
    answers = contend(lambda n: [[site.server(f"s{n}", flavor="gpu")]])
    assert errors(answers) == Counter()
    sold = active(site, answers)
    held = [(server["host"], device["address"]) for server in sold for device in server["pci_devices"]]
    assert sorted(held) == [(host, f"0000:0{bus}:00.0") for host in ("kvm1", "kvm2") for bus in range(3)]
    assert {row["consumer_id"] for row in site.rows("pci_devices")} == {server["uuid"] for server in sold}
    assert len(faults(answers)) == 2


def test_exactly_what_there_is_of_a_class_of_the_sites_own_is_given(site: Any, contend: Contend) -> None:
    site.record("kvm1", "kvm2", memory_mb=512 + 16 * 128, settings={"resources": {"CUSTOM_LICENSE": {"total": 3}}})
    answers = contend(lambda n: [[site.server(f"s{n}", flavor="licensed")]])
    assert errors(answers) == Counter()
    assert Counter(server["host"] for server in active(site, answers)) == {"kvm1": 3, "kvm2": 3}
    refused = faults(answers)
    assert len(refused) == 2
    assert all("CUSTOM_LICENSE: 1 wanted, 0 free of 3 x 1.0" in message for message in refused)


def test_what_is_used_is_what_is_claimed_after_all_that(site: Any, contend: Contend) -> None:
    """Boots and deletes of servers that claim cells, devices and licenses: nothing is used in the end."""
    settings = {"resources": {"CUSTOM_LICENSE": 8}}
    site.record("kvm1", "kvm2", settings=settings, **NUMA, **devices(4))
    site.scheduler = {"pci_alias": [{"name": "gpu", "vendor_id": "10de", "product_id": "1eb8"}]}
    before = site.dump()
    flavors = ("pinned", "paged", "gpu", "licensed")
    answers = contend(
        lambda n: [[site.server(f"s{n}", flavor=flavors[n % 4], scheduler_hints=group())]] * 2, delete=True
    )
    assert errors(answers) == Counter()
    assert site.used() == {}
    for table in ("allocations", "numa_claims", "pinned_cpus", "server_groups", "server_group_members"):
        assert site.rows(table) == []
    assert all(row["consumer_id"] is None for row in site.rows("pci_devices"))
    assert site.dump()["compute_nodes"] == before["compute_nodes"]
