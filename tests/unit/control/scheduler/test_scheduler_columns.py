# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Columns against plain loops over hosts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import (
    Distinct,
    Hosts,
    Inventory,
    Resource,
    flags,
    floats,
    integers,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.pci import pools_of
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import request_spec
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image, Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import NUMACell, NUMATopology
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import PciDevice
from hypothesis import given
from hypothesis import strategies as st
from scheduler_site import host, roomy, spec

TEXTS = st.lists(st.text("ab", max_size=2), max_size=12)


@given(TEXTS)
def test_a_distinct_column_is_what_a_loop_finds(items):
    asked = []

    def test(item):
        asked.append(item)
        return len(item) == 1

    column = Distinct.of(items)
    assert [column[row] for row in range(len(column))] == items
    assert column.mask(test).tolist() == [len(item) == 1 for item in items]
    assert sorted(asked) == sorted(set(items))
    assert column.numbers(len).tolist() == [float(len(item)) for item in items]
    assert column.numbers(len, slice(1, 3)).tolist() == [float(len(item)) for item in items[1:3]]


def test_what_cannot_be_compared_is_told_apart_by_a_key():
    column = Distinct.of([{"a": 1}, {"a": 2}, {"a": 1}], key=repr)
    assert (column.values, column.codes.tolist()) == (({"a": 1}, {"a": 2}), [0, 1, 0])
    assert [Distinct.same("x", 3)[row] for row in range(3)] == ["x", "x", "x"]


INVENTORIES = st.lists(
    st.builds(
        Inventory,
        total=st.integers(0, 40),
        reserved=st.integers(0, 5),
        allocation_ratio=st.sampled_from([0.5, 1.0, 1.1, 1.5, 16.0]),
        min_unit=st.integers(1, 4),
        max_unit=st.none() | st.integers(1, 50),
        step_size=st.integers(1, 4),
        used=st.integers(0, 60),
    ),
    max_size=8,
)


def placement(item, wanted):
    """placement.objects.allocation's rule, once more in its own order."""
    if not wanted:
        return True
    most = item.total if item.max_unit is None else item.max_unit
    if wanted < item.min_unit or wanted > most or wanted % item.step_size:
        return False
    return item.used + wanted <= (item.total - item.reserved) * item.allocation_ratio


@given(INVENTORIES, st.integers(0, 50))
def test_a_resource_fits_where_placements_rule_holds_and_says_why_where_not(inventories, wanted):
    resource = Resource.of(inventories)
    expected = [placement(item, wanted) for item in inventories]
    assert resource.fits(wanted).tolist() == expected
    assert resource.fits(wanted).tolist() == expected  # what it remembers of the first time is right as well
    for row, passes in enumerate(expected):
        assert (resource.why_not(row, wanted) is None) == passes


@given(INVENTORIES, st.lists(st.tuples(st.integers(0, 7), st.integers(1, 9)), max_size=6), st.integers(0, 50))
def test_what_is_taken_counts_at_once_and_only_in_the_copy(inventories, taken, wanted):
    resource = Resource.of(inventories)
    resource.fits(wanted)
    copy = resource.copy()
    used = [item.used for item in inventories]
    for row, amount in taken:
        if row < len(inventories):
            copy.take(row, amount)
            used[row] += amount
    assert resource.used.tolist() == [item.used for item in inventories]
    assert resource.fits(wanted).tolist() == [placement(item, wanted) for item in inventories]
    assert [copy[row].used for row in range(len(used))] == used
    after = [
        Inventory(*[getattr(item, name) for name in item.__dataclass_fields__][:-1], used=now)
        for item, now in zip(inventories, used)
    ]
    assert copy.fits(wanted).tolist() == [placement(item, wanted) for item in after]


def test_what_a_copy_gives_away_the_first_still_has():
    resource = Resource.of([Inventory(2)])
    assert resource.fits(2).tolist() == [True]
    copy = resource.copy()
    copy.take(0, 1)
    assert (copy.fits(2).tolist(), resource.fits(2).tolist()) == ([False], [True])


def test_of_many_amounts_the_last_are_remembered():
    resource = Resource.of([Inventory(1000, allocation_ratio=1.5, used=100), Inventory(50)])
    for amount in range(1, 60):
        assert resource.fits(amount).tolist() == [True, amount <= 50]
    assert len(resource._known) < 20
    resource.take(1, 40)
    assert [resource.fits(amount).tolist()[1] for amount in (10, 11, 59)] == [True, False, False]


def test_columns_of_plain_values():
    assert flags([True, False]).dtype == np.bool_
    assert integers([1, 2]).dtype == np.int64
    assert floats([1, math.inf]).tolist() == [1.0, math.inf]


def test_hosts_of_nothing():
    hosts = Hosts.of([])
    assert (len(hosts), hosts.everywhere.tolist(), hosts.free_ram_mb().tolist(), hosts.row("x")) == (0, [], [], None)


def test_a_host_is_found_whatever_the_case():
    hosts = Hosts.of([host("KVM01"), host("kvm02")])
    assert (hosts.row("kvm01"), hosts.row("KVM02"), hosts.row("kvm03"), hosts.keys) == (0, 1, None, ["kvm01", "kvm02"])


def test_novas_numbers():
    inventories = {
        "VCPU": Inventory(8, reserved=1, used=3),
        "PCPU": Inventory(4, used=2),
        "MEMORY_MB": Inventory(4096, reserved=512, used=1000),
        "DISK_GB": Inventory(100, reserved=10, used=30),
    }
    hosts = Hosts.of(
        [host("a", inventories=inventories, disk_available_gb=25), host("b", inventories=inventories), host("c")]
    )
    assert hosts.free_ram_mb().tolist() == [2584, 2584, 0]
    assert hosts.free_disk_mb().tolist() == [25 * 1024, 60 * 1024, 0]
    assert (hosts.vcpus_total().tolist(), hosts.vcpus_used().tolist()) == ([8, 8, 0], [6, 6, 0])
    assert hosts.free_ram_mb(np.array([2, 1])).tolist() == [0, 2584]


def test_facts_and_aggregates_are_held_once():
    hosts = Hosts.of([host("a", metadata={"x": "1"}), host("b", metadata={"x": "1"}), host("c", hypervisor_version=7)])
    assert (len(hosts.facts.values), hosts.facts.codes.tolist()) == (2, [0, 0, 1])
    assert (len(hosts.aggregates.values), hosts.aggregates.codes.tolist()) == (2, [0, 0, 1])


def test_a_server_takes_like_novas_consume_from_request():
    hosts = Hosts.of([roomy("a", disk_available_gb=50, num_instances=2, num_io_ops=1, servers=("s",)), roomy("b")])
    members = frozenset(["s", "u", "v"])
    assert hosts.members(members).tolist() == [1, 0]
    request = spec(resources={"VCPU": 2, "DISK_GB": 10, "CUSTOM_X": 1}, properties={"os": "x"})
    for uuid in "uw":
        assert hosts.consume(0, request, uuid) is None
    assert [hosts.resources[name].used.tolist() for name in ("VCPU", "MEMORY_MB", "DISK_GB")] == [
        [4, 0],
        [0, 0],
        [20, 0],
    ]
    assert (hosts.num_instances.tolist(), hosts.num_io_ops.tolist()) == ([4, 0], [3, 0])
    assert hosts.disk_available_gb.tolist() == [30, math.inf]
    assert hosts.members(members).tolist() == [2, 0]
    assert hosts.servers == {"s": 0, "u": 0, "w": 0}
    assert hosts.image_properties["os", "x"].tolist() == [2, 0]


def test_a_server_takes_its_cells_and_its_devices():
    cell = NUMACell(0, frozenset(), frozenset([0, 1, 2, 3]), 4096, tuple(frozenset([cpu]) for cpu in range(4)))
    devices = [PciDevice(f"0000:00:0{number}.0", "8086", "10fb") for number in (1, 2)]
    row = roomy("a", numa=NUMATopology((cell,)), pci=pools_of(devices))
    flavor = Flavor("1", "f", 2, 1024, 1, extra_specs={"hw:cpu_policy": "dedicated"})
    instance = Instance(*(1, "u", "n", "n", "p", "w", flavor, Image("i", "d", "/i", "sha256:0", "qcow2"), ""))
    request = request_spec(instance)
    hosts = Hosts.of([row])
    copy = hosts.copy()
    assert (copy.pci_free.tolist(), hosts.pci_free.tolist()) == ([2], [2])
    first, second = copy.consume(0, request, "u"), copy.consume(0, request, "v")
    assert not first.numa.pinned & second.numa.pinned
    assert len(first.numa.pinned | second.numa.pinned) == 4
    with pytest.raises(Conflict, match="host a has not the NUMA cells or PCI devices that server x asks for"):
        copy.consume(0, request, "x")
    assert "x" not in copy.servers
    assert hosts.numa[0] == row.numa
