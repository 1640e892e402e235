# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Columns as they are loaded, against what a plain look at each row says."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control import inventory, placement
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records, claims, hosts, instances
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.hosts import Wanted
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import (
    compute_nodes,
    hypervisors,
    inventories,
    reports,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Aggregate, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.loaded import columns
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image, Instance
from sqlalchemy import Connection, select, update

NOW = "2026-01-01T00:10:00.000000Z"
NUMBER = 60
SETTINGS = {name: option["default"] for name, option in inventory.REPORT_SPEC.items() if "default" in option}
CARD = {"vendor_id": "10de", "product_id": "1eb8", "dev_type": "type-PCI", "numa_node": None}


def name(number: int) -> str:
    """Not in the order of their numbers, and of a case and a letter that databases sort each in their own way."""
    return f"{'Kvm' if number % 3 else 'kvm'}-{(number * 37) % NUMBER}{'é' if number == 7 else ''}"


def report(number: int, chance: random.Random) -> dict[str, Any]:
    cell = {"id": 0, "cpuset": [0], "pcpuset": [1, 2], "memory": 1024, "siblings": [[1], [2]], "pages": []}
    hypervisor = {
        "hostname": name(number),
        "host_ip": None if number == 5 else f"192.0.2.{number}",
        "hypervisor_type": "QEMU",
        "hypervisor_version": 7000000 + number % 3,
        "vcpus": chance.randint(1, 64),
        "memory_mb": chance.randint(1000, 9000),
        "disk_gb": chance.choice([0, 100, 200]),
        "disk_available_gb": None if number == 6 else chance.randint(1, 90),
        "running_domains": number,
        "cpu_info": {"arch": "x86_64"},
        "supported_instances": [["x86_64", "kvm", "hvm"]],
        "machine_types": {"x86_64": ["pc"]},
        "firmware": ["bios", "efi"],
        "metrics": {"cpu.percent": number / 100} if number % 10 == 0 else {},
        "numa_topology": {"cells": [cell]} if number % 4 == 0 else None,
        "pci_devices": [{"address": f"0000:0{bus}:00.0", **CARD} for bus in range(number % 3)],
        "traits": ["HW_CPU_X86_AVX2"] if number % 2 else [],
    }
    settings = {
        **SETTINGS,
        "reserved_host_memory_mb": chance.choice([0, 512]),
        "cpu_allocation_ratio": chance.choice([1.0, 4.0]),
        "resources": {"CUSTOM_A": {"total": 5, "max_unit": 2, "step_size": 2}} if number % 7 == 0 else {},
    }
    return {**settings, "name": name(number), "hypervisor": hypervisor}


def server(number: int, properties: dict[str, str]) -> Instance:
    flavor, image = Flavor("f", "f", 1, 1, 1), Image("i", "i", "/i", "sha256:0", "raw", properties=properties)
    return Instance(0, f"s{number}", f"s{number}", "h", "p", "u", flavor, image, NOW)


def fill(connection: Connection) -> None:
    """Hosts of all kinds with servers, some being built, some claims, one host long silent, one disabled."""
    chance = random.Random(4)  # noqa: S311  the same hosts each time
    inventory.record(connection, [report(number, chance) for number in range(NUMBER)], "2026-01-01T00:09:00.000000Z")
    made = [server(number, {"os_distro": ("a", "b")[number % 2]}) for number in range(40)]
    made = instances.create(connection, [(item, {}) for item in made])
    placed = [item.with_(host=name(item.id % 10), task_state=None, vm_state="ACTIVE") for item in made]
    placed[:5] = [item.with_(vm_state="BUILDING", task_state="spawning") for item in placed[:5]]
    placed[5] = placed[5].with_(vm_state="BUILDING", task_state="scheduling")
    instances.save_all(connection, placed, NOW)
    claims.claim(connection, {i.uuid: claims.Claim(str(i.host), {"VCPU": 1, "MEMORY_MB": i.id % 9}) for i in placed})
    (device,) = inventory.report(report(1, chance)).devices
    claims.release(connection, ["s39"])
    claims.claim(connection, {"s39": claims.Claim(name(1), {"VCPU": 2}, devices=(device,))})
    nodes = update(compute_nodes)
    connection.execute(nodes.where(compute_nodes.c.host == name(2)).values(updated_at="2025-12-31T23:00:00.000000Z"))
    connection.execute(nodes.where(compute_nodes.c.host == name(3)).values(enabled=False, disabled_reason="why not"))
    connection.execute(nodes.where(compute_nodes.c.host == name(4)).values(failed_builds=3))


def load(connection: Connection, wanted: Wanted) -> Hosts:
    loaded = hosts.load(connection, NOW, 600, wanted)
    everywhere = [name(number) for number in range(NUMBER)]
    aggregates = [(Aggregate("even"), everywhere[::2]), (Aggregate("third"), [*everywhere[::3], "nowhere"])]
    return columns(loaded, aggregates, placement.facts)


def test_columns_are_the_rows(records_url: str) -> None:
    def work(connection: Connection) -> None:
        fill(connection)
        found = load(connection, Wanted(["s1", "s2", "nobody"], numa=True, image_properties=True))
        query = select(compute_nodes, reports.c.numa_topology).join(reports)
        nodes = {row.host: row for row in connection.execute(query)}
        kinds = {row.id: row.report for row in connection.execute(select(hypervisors))}
        assert list(found.names) == sorted(nodes), "the same order on every database"
        for row, host in enumerate(found.names):
            node = nodes[host]
            assert (found.enabled[row], found.disabled_reason[row]) == (node.enabled, node.disabled_reason)
            assert (found.up[row], found.last_seen[row]) == (host != name(2), node.updated_at)
            assert (found.num_instances[row], found.failed_builds[row]) == (node.servers, node.failed_builds)
            assert found.disk_available_gb[row] == (
                math.inf if node.disk_available_gb is None else node.disk_available_gb
            )
            assert found.host_ip[row] == (node.host_ip or "")
            assert found.facts[row].stats == kinds[node.hypervisor_id]
            assert found.facts[row].firmware_types == ("bios", "uefi")
            value = found.metrics["cpu.percent"][row]
            assert np.isnan(value) if node.metrics is None else value == node.metrics["cpu.percent"]
            assert (found.numa[row] is None) == (node.numa_topology is None)
        number = {name(n): n for n in range(NUMBER)}
        for row, host in enumerate(found.names):
            groups = {"even": number[host] % 2 == 0, "third": number[host] % 3 == 0}
            assert [item.name for item in found.aggregates[row]] == [key for key, inside in groups.items() if inside]
            assert found.facts[row].traits == frozenset({"HW_CPU_X86_AVX2"} if number[host] % 2 else ())
            free = number[host] % 3 - (host == name(1))
            assert sum(pool.count for pool in found.pci[row]) == free
        _inventories(connection, found, nodes)

    Records(records_url).run(work)


def _inventories(connection: Connection, found: Hosts, nodes: dict[str, Any]) -> None:
    fields = ("total", "reserved", "min_unit", "max_unit", "step_size", "allocation_ratio", "used")
    there = {(row.compute_node_id, row.resource_class): row for row in connection.execute(select(inventories))}
    assert {key[1] for key in there} == set(found.resources) == {"VCPU", "PCPU", "MEMORY_MB", "DISK_GB", "CUSTOM_A"}
    for row, host in enumerate(found.names):
        for resource_class, resource in found.resources.items():
            expected = there.get((nodes[host].id, resource_class))
            if expected is None:
                assert (resource[row].total, resource[row].used) == (0, 0)
                assert not resource.fits(1)[row]
            else:
                assert all(getattr(resource[row], field) == getattr(expected, field) for field in fields)


def test_servers_count_where_they_are(records_url: str) -> None:
    def work(connection: Connection) -> None:
        fill(connection)
        found = load(connection, Wanted(["s1", "s2", "nobody"], image_properties=True))
        every = instances.known(connection, [f"s{number}" for number in range(40)])
        for row, host in enumerate(found.names):
            here = [item for item in every.values() if item.host == host]
            building = [i for i in here if i.vm_state == "BUILDING" and i.task_state != "scheduling"]
            assert found.num_io_ops[row] == len(building)
            for value in ("a", "b"):
                count = sum(item.image.properties["os_distro"] == value for item in here)
                assert found.image_properties["os_distro", value][row] == count
        assert {uuid: found.names[row] for uuid, row in found.servers.items()} == {
            uuid: every[uuid].host for uuid in ("s1", "s2")
        }

    Records(records_url).run(work)


def test_what_no_request_asks_for_is_not_loaded(records_url: str) -> None:
    def work(connection: Connection) -> None:
        fill(connection)
        found = load(connection, Wanted())
        assert (found.servers, found.image_properties, set(found.numa)) == ({}, {}, {None})

    Records(records_url).run(work)


def test_no_hosts(records_url: str) -> None:
    found = Records(records_url).run(lambda connection: load(connection, Wanted(["s"], True, True)))
    assert (len(found), found.resources, list(found.numa)) == (0, {}, [])


def test_hosts_that_are_alike_share_what_is_looked_at_once(records_url: str) -> None:
    """Ten thousand hosts of one kind: a rule that looks at cells or devices asks once."""

    def work(connection: Connection) -> None:
        fill(connection)
        found = load(connection, Wanted(numa=True))
        assert len({id(item) for item in found.numa if item}) == 1
        assert len({id(item) for item in found.pci if len(item) == 2}) == 1
        assert len(found.facts.values) <= 3 * 2 + 1

    Records(records_url).run(work)


def test_the_request_asks_for_what_it_speaks_of(records_url: str) -> None:
    def work(connection: Connection) -> None:
        fill(connection)
        handle = [server(90, {}).with_(scheduler_hints={"same_host": ["s1"], "different_host": "s2"})]
        params = {"service_down_time": 600.0, "scheduler": {}, "scheduler_rules_path": None}
        options = placement.options_of(params)
        specs, wrong = placement.request_specs(connection, Catalog(), handle, options)
        found, generations = placement.load(connection, Catalog(), specs, options, NOW, 600.0)
        assert wrong == {}
        assert set(found.servers) == {"s1", "s2"}
        assert set(generations) == set(found.names)

    Records(records_url).run(work)
