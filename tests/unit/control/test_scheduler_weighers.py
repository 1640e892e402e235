# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Weights against numbers computed by hand from Nova's formula (and its own unit tests' examples)."""

from __future__ import annotations

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decide import decide
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.hosts import (
    Aggregate,
    HostState,
    Inventory,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers import WEIGHERS
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher, normalise
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image
from hypothesis import given
from hypothesis import strategies as st

SPEC = RequestSpec("u", Flavor("1", "f", 1, 1, 0), Image("i", "debian", "/i", "sha256:0", "qcow2"))


def host(name="h", ram=0, vcpus=0, disk=0, **fields):
    inventories = {"MEMORY_MB": Inventory(ram), "VCPU": Inventory(vcpus), "DISK_GB": Inventory(disk)}
    return HostState(name, inventories={**inventories, **fields.pop("inventories", {})}, **fields)


def weigher(name, **multipliers):
    return {item.name: item for item in WEIGHERS}[name](Options(multipliers=multipliers))


@pytest.mark.parametrize(
    ("weights", "minval", "maxval", "expected"),
    [
        ([], None, None, []),
        ([1.0, 1.0], None, None, [0.0, 0.0]),
        ([1, 10], None, None, [0.0, 1.0]),
        ([1, 10], 0, None, [0.1, 1.0]),
        ([1, 10], 0, 20, [0.05, 0.5]),
        ([5, 5, 5], 0, None, [1.0, 1.0, 1.0]),
        ([0, 0], 0, None, [0.0, 0.0]),
    ],
)
def test_normalise(weights, minval, maxval, expected):
    assert normalise(weights, minval, maxval) == pytest.approx(expected)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_normalised_weights_are_within_0_and_1_and_keep_the_order(weights):
    normalised = normalise(weights)
    assert all(0 <= weight <= 1 for weight in normalised)
    ranked = sorted(range(len(weights)), key=weights.__getitem__)
    assert [normalised[index] for index in ranked] == sorted(normalised)


def test_ram_of_novas_example():
    # nova/tests/unit/scheduler/weights/test_weights_ram.py: free 512, 1024, 3072, 8192.
    hosts = [host(str(ram), ram=ram) for ram in (512, 1024, 3072, 8192)]
    assert weigher("RAMWeigher").weights(hosts, SPEC) == pytest.approx([0.0625, 0.125, 0.375, 1.0])
    assert weigher("RAMWeigher", ram_weight_multiplier=-2.0).weights(hosts, SPEC) == pytest.approx(
        [-0.125, -0.25, -0.75, -2.0]
    )


def test_ram_counts_reserved_as_used_and_never_weighs_below_0():
    reserved = host(inventories={"MEMORY_MB": Inventory(4096, reserved=1024, used=1024, allocation_ratio=2.0)})
    over = host(inventories={"MEMORY_MB": Inventory(4096, used=8192, allocation_ratio=4.0)})
    assert weigher("RAMWeigher").weights([reserved, over, host(ram=4096)], SPEC) == pytest.approx([0.5, 0.0, 1.0])


def test_cpu_counts_the_ratio_but_not_for_reserved():
    # 8 x 4.0 - (2 reserved + 10 used) = 20; 5 x 1.0 = 5; the better gets 1.
    large = host(inventories={"VCPU": Inventory(8, reserved=2, used=10, allocation_ratio=4.0)})
    assert weigher("CPUWeigher").weights([large, host(vcpus=5)], SPEC) == pytest.approx([1.0, 0.25])


def test_disk_is_the_least_of_recorded_and_measured():
    measured = host(disk=100, disk_available_gb=25)
    optimistic = host(disk=50, disk_available_gb=400)
    assert weigher("DiskWeigher").weights([measured, optimistic, host(disk=100)], SPEC) == pytest.approx(
        [0.25, 0.5, 1.0]
    )


def test_a_host_without_an_inventory_weighs_0():
    for item in WEIGHERS:
        assert item(Options()).weights([HostState("bare"), host(ram=1, vcpus=1, disk=1)], SPEC) == [0.0, 1.0]


def test_an_aggregates_metadata_sets_the_multiplier_of_its_hosts():
    key = "ram_weight_multiplier"
    fast = host(ram=100, aggregates=(Aggregate("a", {key: "3"}), Aggregate("b", {key: "2.5"}), Aggregate("c")))
    wrong = host(ram=100, aggregates=(Aggregate("a", {key: "3"}), Aggregate("b", {key: "much"})))
    plain = host(ram=100)
    assert weigher("RAMWeigher", ram_weight_multiplier=1.5).weights([fast, wrong, plain], SPEC) == [2.5, 1.5, 1.5]


def test_values_are_clamped_before_they_are_normalised():
    class Clamped(Weigher):
        name = "Clamped"
        multiplier_option = "clamped_weight_multiplier"
        minval = 10
        maxval = 20

        def raw(self, host, spec):
            return host.num_instances

    hosts = [HostState(str(number), num_instances=number) for number in (5, 15, 50)]
    assert Clamped(Options()).weights(hosts, SPEC) == [0.0, 0.5, 1.0]


def test_the_total_is_the_sum_of_all_weighers():
    # RAM 0.5 x 1, CPU 1 x 2, disk 0.25 x -1 = 2.25, against 1 + 1 - 1 = 1.
    hosts = [host("a", ram=2048, vcpus=8, disk=25), host("b", ram=4096, vcpus=4, disk=100)]
    options = Options(multipliers={"cpu_weight_multiplier": 2.0, "disk_weight_multiplier": -1.0})
    [decision] = decide(hosts, [SPEC], options)
    assert decision.host == "a"
    assert [weight.total for weight in decision.weights] == pytest.approx([2.25, 1.0])
    assert decision.weights[0].scores == pytest.approx({"RAMWeigher": 0.5, "CPUWeigher": 2.0, "DiskWeigher": -0.25})
