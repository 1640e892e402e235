# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The pipeline as a whole: choice, claim, order, explanation."""

from __future__ import annotations

import json
import time

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import explain
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decide import decide
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.hosts import HostState, Inventory
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image
from hypothesis import given
from hypothesis import strategies as st

IMAGE = Image("i", "debian", "/i", "sha256:0", "qcow2")


def host(name, vcpus=16, ram=65536, disk=1000, **fields):
    inventories = {
        "VCPU": Inventory(vcpus, allocation_ratio=fields.pop("cpu_ratio", 1.0)),
        "MEMORY_MB": Inventory(ram, used=fields.pop("ram_used", 0)),
        "DISK_GB": Inventory(disk),
    }
    return HostState(name, inventories=inventories, **fields)


def spec(uuid="u", vcpus=1, ram=1024, disk=10, **fields):
    flavor = Flavor("1", "f", vcpus, ram, disk, extra_specs=fields.pop("extra_specs", {}))
    return RequestSpec(uuid, flavor, IMAGE, resources={"VCPU": vcpus, "MEMORY_MB": ram, "DISK_GB": disk}, **fields)


def one(hosts, request, options=None):
    [decision] = decide(hosts, [request], options or Options())
    return decision


def test_the_heaviest_host_is_chosen_and_the_next_are_alternates():
    hosts = [host(f"kvm{number}", ram=1024 * number) for number in (2, 9, 4, 7)]
    decision = one(hosts, spec())
    assert decision.host == "kvm9"
    assert decision.alternates == ("kvm7", "kvm4")
    assert [weight.host for weight in decision.weights] == ["kvm9", "kvm7", "kvm4", "kvm2"]


@pytest.mark.parametrize(("attempts", "expected"), [(1, ()), (2, ("b",)), (3, ("b", "c")), (9, ("b", "c", "d"))])
def test_alternates_are_one_less_than_the_attempts(attempts, expected):
    assert one([host(name) for name in "abcd"], spec(), Options(max_attempts=attempts)).alternates == expected


def test_equal_hosts_keep_the_order_they_came_in():
    assert [weight.host for weight in one([host(name) for name in "cabd"], spec()).weights] == list("cabd")


def test_what_one_server_takes_is_gone_for_the_next():
    decisions = decide([host("a"), host("b"), host("c")], [spec(str(number)) for number in range(7)])
    assert [decision.host for decision in decisions] == list("abcabca")


def test_a_negative_multiplier_stacks():
    options = Options(multipliers={f"{name}_weight_multiplier": -1.0 for name in ("ram", "cpu", "disk")})
    decisions = decide([host("a"), host("b", ram_used=1024)], [spec(str(number)) for number in range(5)], options)
    assert {decision.host for decision in decisions} == {"b"}


def test_the_callers_hosts_do_not_change():
    hosts = [host("a")]
    before = repr(hosts)
    decide(hosts, [spec(), spec()])
    assert repr(hosts) == before


def test_a_claim_counts_like_novas_consume_from_request():
    after = host("a", disk_available_gb=50, num_instances=2, num_io_ops=1).with_claim({"VCPU": 2, "DISK_GB": 10})
    assert (after.inventory("VCPU").used, after.inventory("MEMORY_MB").used, after.inventory("DISK_GB").used) == (
        2,
        0,
        10,
    )
    assert (after.num_instances, after.num_io_ops, after.disk_available_gb) == (3, 2, 40)
    assert after.free_disk_gb == 40


def test_the_only_host_left_is_not_weighed():
    decision = one([host("a"), host("b", enabled=False)], spec())
    assert decision.weights == (("a", 0.0, {}),)
    assert explain.table(decision) == [
        "a  chosen     the only one: not weighed",
        "b  removed    ComputeFilter: disabled",
    ]


def test_no_host_says_which_filter_removed_which_host():
    hosts = [
        host("kvm02", enabled=False, disabled_reason="broken fan"),
        host("kvm07", ram_used=63756),
        host("kvm03", availability_zone="az2"),
    ]
    decision = one(hosts, spec(ram=4096, availability_zone="nova"))
    assert (decision.host, decision.alternates, decision.weights) == (None, (), ())
    assert decision.explain == (
        "No valid host was found: 3 hosts entered; ComputeFilter removed kvm02 (disabled: broken fan); "
        "AvailabilityZone removed kvm03 (zone nova wanted, in az2); "
        "Capacity removed kvm07 (MEMORY_MB: 4096 wanted, 1780 free of 65536 x 1.0)"
    )


def test_no_compute_node_at_all():
    assert one([], spec()).explain == "No valid host was found: 0 hosts entered: the records hold no compute node"


def test_hosts_of_one_reason_are_listed_together_and_not_by_the_hundred():
    hosts = [host(f"h{number}", enabled=False) for number in range(13)]
    hosts += [host(f"d{number}", up=False, last_seen=f"day {number}") for number in range(11)]
    names = ", ".join(f"h{number}" for number in range(10))
    days = ", ".join(f"d{number} (down: last seen day {number})" for number in range(9))
    assert one(hosts, spec()).explain == (
        f"No valid host was found: 24 hosts entered; ComputeFilter removed {names} and 3 more (disabled), {days} and "
        "2 more"
    )


def test_a_host_is_removed_by_the_first_filter_only():
    removed = one([host("a", vcpus=0, enabled=False, availability_zone="x")], spec(availability_zone="nova")).removed
    assert [(removal.host, removal.filter) for removal in removed] == [("a", "ComputeFilter")]


def test_ignored_hosts_are_out_whatever_their_case():
    decision = one([host("KVM01"), host("kvm02")], spec(ignore_hosts=("kvm01",)))
    assert decision.host == "kvm02"
    assert decision.removed == (("KVM01", "IgnoreHosts", "the request excludes it"),)


def test_a_host_that_was_tried_is_out_and_says_why_it_failed():
    decision = one([host("kvm01"), host("kvm02"), host("kvm03")], spec(tried={"kvm01": "disk on kvm01: no space left"}))
    assert decision.host in ("kvm02", "kvm03")
    assert decision.removed == (("kvm01", "Retry", "disk on kvm01: no space left"),)
    nowhere = one([host("kvm01")], spec(tried={"kvm01": "disk on kvm01: no space left"}))
    assert (nowhere.host, nowhere.explain) == (
        None,
        "No valid host was found: 1 host entered; Retry removed kvm01 (disk on kvm01: no space left)",
    )


def test_a_host_that_was_tried_is_not_forced_again():
    assert one([host("a"), host("b")], spec(forced_host="a", tried={"a": "it failed"})).host is None


def test_a_forced_host_skips_the_schedulers_filters_but_not_capacity():
    hosts = [host("kvm01"), host("kvm02", up=False), host("kvm03")]
    extra_specs = {"capabilities:unheard_of": "1"}
    assert one(hosts, spec(extra_specs=extra_specs)).host is None
    forced = one(hosts, spec(extra_specs=extra_specs, forced_host="KVM02"))
    assert (forced.host, forced.alternates) == ("kvm02", ())
    full = one(hosts, spec(vcpus=17, forced_host="kvm02"))
    assert full.explain == (
        "No valid host was found: 3 hosts entered; ForceHosts removed kvm01, kvm03 (the request wants kvm02); "
        "Capacity removed kvm02 (VCPU: 17 wanted, at most 16 for one server)"
    )


def test_a_forced_host_that_is_ignored_or_unknown():
    assert one([host("a")], spec(forced_host="b")).removed == (("a", "ForceHosts", "the request wants b"),)
    assert one([host("a"), host("b")], spec(forced_host="a", ignore_hosts=("a",))).host is None


def test_enabled_filters_are_an_option_and_their_order_counts():
    hosts = [host("a", enabled=False, vcpus=0)]
    swapped = Options(enabled_filters=("Capacity", "ComputeFilter"))
    assert one(hosts, spec(), swapped).removed[0].filter == "Capacity"
    assert one(hosts, spec(), Options(enabled_filters=())).host == "a"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(enabled_filters=("RamFilter",)), "enabled_filters: there is no RamFilter; there are ComputeFilter"),
        (Options(weight_classes=("Ram",)), "weight_classes: there is no Ram; there are RAMWeigher"),
        (Options(multipliers={"ram": 1.0}), "multipliers: there is no ram; there are ram_weight_multiplier"),
        (
            Options(multipliers={"ram_weight_multiplier": "much"}),
            "ram_weight_multiplier is 'much', which is not a number",
        ),
    ],
)
def test_an_option_that_names_no_rule(options, message):
    with pytest.raises(InvalidRequest, match=message):
        decide([], [], options)


def test_table_and_data_of_a_decision():
    hosts = [host("kvm01", ram=2048), host("kvm02", ram=4096), host("kvm3", enabled=False), host("kvm04", ram=1024)]
    decision = one(hosts, spec(ram=512), Options(max_attempts=2))
    assert explain.table(decision) == [
        "kvm02  chosen     3.000 = RAMWeigher 1.000, CPUWeigher 1.000, DiskWeigher 1.000",
        "kvm01  alternate  2.500 = RAMWeigher 0.500, CPUWeigher 1.000, DiskWeigher 1.000",
        "kvm04  fits       2.250 = RAMWeigher 0.250, CPUWeigher 1.000, DiskWeigher 1.000",
        "kvm3   removed    ComputeFilter: disabled",
    ]
    data = explain.data(decision)
    assert json.loads(json.dumps(data)) == data
    assert data["hosts_entered"] == 4
    assert data["removed"] == [{"host": "kvm3", "filter": "ComputeFilter", "reason": "disabled"}]
    assert data["weights"][1]["scores"]["RAMWeigher"] == 0.5
    assert data["explain"] == "kvm02 was chosen: 4 hosts entered; ComputeFilter removed kvm3 (disabled)"


def test_of_many_hosts_the_first_ten_that_fit_and_that_were_removed_are_shown():
    hosts = [host(f"fits{number:02}") for number in range(13)]
    hosts += [host(f"off{number:02}", enabled=False) for number in range(11)]
    decision = one(hosts, spec())
    table = explain.table(decision)
    assert [line.split()[0] for line in table[:-2]] == [
        *(f"fits{number:02}" for number in range(10)),
        *(f"off{number:02}" for number in range(10)),
    ]
    assert table[-2:] == ["and 3 more that fit", "and 1 more removed"]
    data = explain.data(decision)
    assert (data["hosts_entered"], len(data["weights"]), len(data["removed"])) == (24, 10, 10)


HOSTS = st.lists(
    st.builds(
        dict,
        vcpus=st.integers(0, 8),
        ram=st.integers(0, 8),
        disk=st.integers(0, 8),
        cpu_ratio=st.sampled_from([0.5, 1.0, 1.5, 4.0]),
    ),
    max_size=5,
)
SPECS = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 4)), max_size=20)


@given(HOSTS, SPECS)
def test_capacity_is_never_exceeded_and_no_server_is_refused_without_need(hosts, wanted):
    hosts = [host(f"h{number}", **fields) for number, fields in enumerate(hosts)]
    specs = [spec(str(number), *amounts) for number, amounts in enumerate(wanted)]
    used = {item.name: dict.fromkeys(item.inventories, 0) for item in hosts}

    def fits(item, request):
        return all(
            used[item.name][name] + amount <= item.inventories[name].total * item.inventories[name].allocation_ratio
            and amount <= item.inventories[name].total
            for name, amount in request.resources.items()
        )

    for request, decision in zip(specs, decide(hosts, specs)):
        fitting = {item.name for item in hosts if fits(item, request)}
        assert {weight.host for weight in decision.weights} == fitting
        assert {removal.host for removal in decision.removed} == {item.name for item in hosts} - fitting
        assert (decision.host is None) == (not fitting)
        if decision.host:
            assert decision.host in fitting
            for name, amount in request.resources.items():
                used[decision.host][name] += amount


@given(HOSTS, SPECS)
def test_the_same_input_gives_the_same_decisions(hosts, wanted):
    hosts = [host(f"h{number}", **fields) for number, fields in enumerate(hosts)]
    specs = [spec(str(number), *amounts) for number, amounts in enumerate(wanted)]
    assert decide(hosts, specs) == decide(hosts, specs)


def test_a_thousand_servers_on_a_hundred_hosts_take_seconds_at_most():
    hosts = [host(f"h{number:03}", vcpus=64, ram=262144, cpu_ratio=4.0) for number in range(100)]
    started = time.process_time()
    decisions = decide(hosts, [spec(str(number), extra_specs={"hw:cpu_policy": "shared"}) for number in range(1000)])
    assert time.process_time() - started < 10
    assert {decision.host for decision in decisions} == {item.name for item in hosts}
