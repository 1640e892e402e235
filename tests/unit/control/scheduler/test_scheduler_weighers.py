# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Weights against numbers computed by hand from Nova's formula (and its own unit tests' examples)."""

from __future__ import annotations

import numpy as np
import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import (
    Aggregate,
    Hosts,
    Inventory,
    floats,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decide import decide
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers import WEIGHERS
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher, normalise
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_site import group, spec
from scheduler_site import host as bare

SPEC = spec(resources={})


def host(name="h", ram=0, vcpus=0, disk=0, **fields):
    inventories = {"MEMORY_MB": Inventory(ram), "VCPU": Inventory(vcpus), "DISK_GB": Inventory(disk)}
    return bare(name, inventories={**inventories, **fields.pop("inventories", {})}, **fields)


def weigh(name, rows, request=SPEC, options=None, **multipliers):
    """``multiplier * normalised`` of each host."""
    rule = {item.name: item for item in WEIGHERS}[name](Options(multipliers=multipliers, **(options or {})))
    return rule.weights(Hosts.of(rows), np.arange(len(rows)), request).tolist()


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
    assert normalise(floats(weights), minval, maxval).tolist() == pytest.approx(expected)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1))
def test_normalised_weights_are_within_0_and_1_and_keep_the_order(weights):
    normalised = normalise(floats(weights)).tolist()
    assert all(0 <= weight <= 1 for weight in normalised)
    ranked = sorted(range(len(weights)), key=weights.__getitem__)
    assert [normalised[index] for index in ranked] == sorted(normalised)


def test_ram_of_novas_example():
    # nova/tests/unit/scheduler/weights/test_weights_ram.py: free 512, 1024, 3072, 8192.
    hosts = [host(str(ram), ram=ram) for ram in (512, 1024, 3072, 8192)]
    assert weigh("RAMWeigher", hosts) == pytest.approx([0.0625, 0.125, 0.375, 1.0])
    assert weigh("RAMWeigher", hosts, ram_weight_multiplier=-2.0) == pytest.approx([-0.125, -0.25, -0.75, -2.0])


def test_ram_counts_reserved_as_used_and_never_weighs_below_0():
    reserved = host(inventories={"MEMORY_MB": Inventory(4096, reserved=1024, used=1024, allocation_ratio=2.0)})
    over = host(inventories={"MEMORY_MB": Inventory(4096, used=8192, allocation_ratio=4.0)})
    assert weigh("RAMWeigher", [reserved, over, host(ram=4096)]) == pytest.approx([0.5, 0.0, 1.0])


def test_cpu_counts_the_ratio_but_not_for_reserved():
    # 8 x 4.0 - (2 reserved + 10 used) = 20; 5 x 1.0 = 5; the better gets 1.
    large = host(inventories={"VCPU": Inventory(8, reserved=2, used=10, allocation_ratio=4.0)})
    assert weigh("CPUWeigher", [large, host(vcpus=5)]) == pytest.approx([1.0, 0.25])


def test_disk_is_the_least_of_recorded_and_measured():
    measured = host(disk=100, disk_available_gb=25)
    optimistic = host(disk=50, disk_available_gb=400)
    assert weigh("DiskWeigher", [measured, optimistic, host(disk=100)]) == pytest.approx([0.25, 0.5, 1.0])


def test_a_host_without_an_inventory_weighs_0():
    for name in ("RAMWeigher", "CPUWeigher", "DiskWeigher"):
        assert weigh(name, [bare(), host(ram=1, vcpus=1, disk=1)]) == [0.0, 1.0]


def test_an_aggregates_metadata_sets_the_multiplier_of_its_hosts():
    key = "ram_weight_multiplier"
    fast = host(ram=100, aggregates=(Aggregate("a", {key: "3"}), Aggregate("b", {key: "2.5"}), Aggregate("c")))
    wrong = host(ram=100, aggregates=(Aggregate("a", {key: "3"}), Aggregate("b", {key: "much"})))
    plain = host(ram=100)
    assert weigh("RAMWeigher", [fast, wrong, plain], ram_weight_multiplier=1.5) == [2.5, 1.5, 1.5]


def test_values_are_clamped_before_they_are_normalised():
    class Clamped(Weigher):
        name = "Clamped"
        multiplier_option = "clamped_weight_multiplier"
        minval = 10
        maxval = 20

        def raw(self, hosts, rows, request):
            return hosts.num_instances[rows].astype(float)

    hosts = Hosts.of([host(str(number), num_instances=number) for number in (5, 15, 50)])
    assert Clamped(Options()).weights(hosts, np.arange(3), SPEC).tolist() == [0.0, 0.5, 1.0]


def test_only_the_hosts_that_are_left_count():
    hosts = Hosts.of([host(str(ram), ram=ram) for ram in (100, 200, 400)])
    rule = {item.name: item for item in WEIGHERS}["RAMWeigher"](Options())
    assert rule.weights(hosts, np.array([0, 1]), SPEC).tolist() == [0.5, 1.0]


def test_the_total_is_the_sum_of_all_weighers():
    # RAM 0.5 x 1, CPU 1 x 2, disk 0.25 x -1 = 2.25, against 1 + 1 - 1 = 1.
    hosts = [host("a", ram=2048, vcpus=8, disk=25), host("b", ram=4096, vcpus=4, disk=100)]
    options = Options(multipliers={"cpu_weight_multiplier": 2.0, "disk_weight_multiplier": -1.0})
    [decision] = decide(Hosts.of(hosts), [SPEC], options)
    assert decision.host == "a"
    assert [weight.total for weight in decision.weights] == pytest.approx([2.25, 1.0])
    scores = {name: score for name, score in decision.weights[0].scores.items() if score}
    assert scores == pytest.approx({"RAMWeigher": 0.5, "CPUWeigher": 2.0, "DiskWeigher": -0.25})
    assert list(decision.weights[0].scores) == [item.name for item in WEIGHERS]


def test_weight_classes_are_an_option():
    hosts = [host("a", ram=2048, vcpus=8), host("b", ram=4096, vcpus=4)]
    for name, expected in (("CPUWeigher", "a"), ("RAMWeigher", "b")):
        [decision] = decide(Hosts.of(hosts), [SPEC], Options(weight_classes=(name,)))
        assert (decision.host, list(decision.weights[0].scores)) == (expected, [name])


def test_dedicated_cpus_count_as_used():
    some = host(inventories={"VCPU": Inventory(8), "PCPU": Inventory(8, used=4)})
    assert weigh("CPUWeigher", [some, host(vcpus=8)]) == [0.5, 1.0]


def test_busy_hosts_are_avoided():
    rows = [host(num_io_ops=number) for number in (0, 2, 8)]
    assert weigh("IoOpsWeigher", rows) == [0.0, -0.25, -1.0]
    assert weigh("IoOpsWeigher", rows, io_ops_weight_multiplier=2.0) == [0.0, 0.5, 2.0]


def test_the_number_of_servers_counts_only_where_that_is_wanted():
    rows = [host(num_instances=number) for number in (1, 2, 5)]
    assert weigh("NumInstancesWeigher", rows) == [0.0, 0.0, 0.0]
    assert weigh("NumInstancesWeigher", rows, num_instances_weight_multiplier=-1.0) == [0.0, -0.25, -1.0]


def test_newer_hypervisors_are_preferred():
    rows = [host(hypervisor_version=version) for version in (0, 7000000, 10000000)]
    assert weigh("HypervisorVersionWeigher", rows) == pytest.approx([0.0, 0.7, 1.0])
    rows = [host(hypervisor_version=7000000)] * 2
    assert weigh("HypervisorVersionWeigher", rows) == [0.0, 0.0]


MEMBERS = [host("a", servers=("s1", "s2")), host("b", servers=("s3", "s4")), host("c")]


@pytest.mark.parametrize(
    ("policy", "affinity", "anti_affinity"),
    [
        ("soft-affinity", [1.0, 0.5, 0.0], [0.0, 0.0, 0.0]),
        ("soft-anti-affinity", [0.0, 0.0, 0.0], [0.0, 0.5, 1.0]),
        ("affinity", [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    ],
)
def test_soft_group_policies(policy, affinity, anti_affinity):
    request = spec(resources={}, group=group(policy, "s1", "s2", "s3", "u"))
    assert weigh("ServerGroupSoftAffinityWeigher", MEMBERS, request) == affinity
    assert weigh("ServerGroupSoftAntiAffinityWeigher", MEMBERS, request) == anti_affinity
    assert weigh("ServerGroupSoftAffinityWeigher", MEMBERS) == [0.0, 0.0, 0.0]


def test_failed_builds_outweigh_all_else():
    rows = [host(failed_builds=number) for number in (0, 1, 4)]
    assert weigh("BuildFailureWeigher", rows) == [0.0, -250000.0, -1000000.0]
    assert weigh("BuildFailureWeigher", rows, build_failure_weight_multiplier=2.0) == [0.0, -0.5, -2.0]
    rows = [host(failed_builds=0), host(failed_builds=1, metadata={"build_failure_weight_multiplier": "3"})]
    assert weigh("BuildFailureWeigher", rows) == [0.0, -3.0]
    rows = [host(failed_builds=0), host(failed_builds=1, metadata={"build_failure_weight_multiplier": "much"})]
    assert weigh("BuildFailureWeigher", rows) == [0.0, -1000000.0]


ALIKE = [
    host(image_properties={("os_distro", "debian"): 2, ("hw_disk_bus", "virtio"): 3}),
    host(image_properties={("os_distro", "debian"): 1, ("os_distro", "ubuntu"): 9}),
    host(),
]
DEBIAN = spec(resources={}, properties={"os_distro": "debian", "hw_disk_bus": "virtio", "os_type": "linux"})


@pytest.mark.parametrize(
    ("multiplier", "setting", "expected"),
    [
        (0.0, (), [0.0, 0.0, 0.0]),
        (1.0, (), [1.0, 0.2, 0.0]),
        (-2.0, (), [-2.0, -0.4, 0.0]),
        (1.0, ("os_distro=2",), [1.0, 0.5, 0.0]),
        (1.0, ("os_distro=1", "hw_disk_bus=-1"), [0.0, 1.0, 0.5]),
        (1.0, ("os_type=4",), [0.0, 0.0, 0.0]),
    ],
)
def test_image_properties(multiplier, setting, expected):
    options = {"image_props_weight_setting": setting}
    assert weigh("ImagePropertiesWeigher", ALIKE, DEBIAN, options, image_props_weight_multiplier=multiplier) == expected


REPORTING = [host("a", metrics={"cpu": 1.0, "net": 4.0}), host("b", metrics={"cpu": 3.0, "net": 1.0}), host("c")]


def test_metrics():
    setting = {"metrics_weight_setting": ("cpu=1.0", "net=-2.0")}
    assert weigh("MetricsWeigher", REPORTING[:2], options=setting) == [0.0, 1.0]  # 1 - 8 against 3 - 2
    assert weigh("MetricsWeigher", REPORTING) == [0.0, 0.0, 0.0]
    with pytest.raises(InvalidRequest, match="c does not report the metric cpu of metrics_weight_setting; enable"):
        weigh("MetricsWeigher", REPORTING, options=setting)


def test_a_host_without_a_metric_is_last_where_it_is_not_required():
    setting = {"metrics_weight_setting": ("cpu=2.0",), "metrics_required": False}
    assert weigh("MetricsWeigher", REPORTING, options=setting) == pytest.approx([10002 / 10006, 1.0, 0.0])
    ignored = {**setting, "metrics_weight_setting": ("cpu=2.0", "unheard=0")}
    assert weigh("MetricsWeigher", REPORTING[:2], options=ignored) == [0.0, 1.0]
    rest = {**setting, "metrics_weight_of_unavailable": 4.0}
    assert weigh("MetricsWeigher", REPORTING, options=rest) == [0.0, 1.0, 0.5]
