# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The pipeline as a whole: choice, claim, order, explanation."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import time

import numpy as np
import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import decide as pipeline
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import explain
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Hosts, Inventory
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decide import decide as decide_columns
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.site_rules import RULES
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_site import group, one, spec
from scheduler_site import roomy as host


def decide(rows, specs, options=None, **more):
    return decide_columns(Hosts.of(rows), specs, options or Options(), **more)


def test_the_heaviest_host_is_chosen_and_the_next_are_alternates():
    hosts = [host(f"kvm{number}", ram=1024 * number) for number in (2, 9, 4, 7)]
    decision = one(hosts, spec())
    assert decision.host == "kvm9"
    assert decision.alternates == ("kvm7", "kvm4")
    assert [weight.host for weight in decision.weights] == ["kvm9", "kvm7", "kvm4", "kvm2"]


@pytest.mark.parametrize(("attempts", "expected"), [(1, ()), (2, ("b",)), (3, ("b", "c"))])
def test_alternates_are_one_less_than_the_attempts(attempts, expected):
    assert one([host(name) for name in "abcd"], spec(), max_attempts=attempts).alternates == expected


def test_equal_hosts_keep_the_order_they_came_in():
    assert [weight.host for weight in one([host(name) for name in "cabd"], spec()).weights] == list("cabd")


def test_what_one_server_takes_is_gone_for_the_next():
    decisions = decide([host("a"), host("b"), host("c")], [spec(str(number)) for number in range(7)])
    assert [decision.host for decision in decisions] == list("abcabca")


def test_a_negative_multiplier_stacks():
    stacking = {f"{name}_weight_multiplier": -1.0 for name in ("ram", "cpu", "disk")}
    options = Options(multipliers={**stacking, "io_ops_weight_multiplier": 0.0})
    decisions = decide([host("a"), host("b", ram_used=1024)], [spec(str(number)) for number in range(5)], options)
    assert {decision.host for decision in decisions} == {"b"}


def test_the_callers_hosts_do_not_change():
    hosts = Hosts.of([host("a", servers=("s",)), host("b")])
    decide_columns(hosts, [spec("1", "2", properties={"os": "x"}, group=group("affinity", "1", "2", "s"))])
    assert (hosts.resources["VCPU"].used.tolist(), hosts.num_instances.tolist(), hosts.servers) == (
        [0, 0],
        [0, 0],
        {"s": 0},
    )
    assert (hosts.image_properties, hosts.disk_available_gb.tolist()) == ({}, [np.inf, np.inf])


def test_the_only_host_left_is_not_weighed():
    decision = one([host("a"), host("b", enabled=False)], spec())
    assert decision.weights == (("a", 0.0, {}),)
    assert explain.table(decision) == [
        "a  chosen     the only one: not weighed",
        "b  removed    ComputeStatus: disabled",
    ]


def test_no_host_says_which_filter_removed_which_host():
    hosts = [
        host("kvm02", enabled=False, disabled_reason="broken fan"),
        host("kvm07", ram_used=63756),
        host("kvm03", zone="az2"),
    ]
    decision = one(hosts, spec(ram=4096, availability_zone="nova"))
    assert (decision.host, decision.alternates, decision.weights) == (None, (), ())
    assert decision.explain == (
        "No valid host was found: 3 hosts entered; ComputeStatus removed kvm02 (disabled: broken fan); "
        "AvailabilityZone removed kvm03 (zone nova wanted, in az2); "
        "Capacity removed kvm07 (ram: 4096 wanted, 1780 free of 65536 x 1.0)"
    )


def test_no_compute_node_at_all():
    assert one([], spec()).explain == "No valid host was found: 0 hosts entered: the records hold no compute node"


def test_hosts_of_one_reason_are_listed_together_and_not_by_the_hundred():
    hosts = [host(f"h{number}", enabled=False) for number in range(13)]
    hosts += [host(f"d{number}", up=False, last_seen=f"day {number}") for number in range(11)]
    names = ", ".join(f"h{number}" for number in range(10))
    days = ", ".join(f"d{number} (down: last seen day {number})" for number in range(10))
    assert one(hosts, spec()).explain == (
        f"No valid host was found: 24 hosts entered; ComputeStatus removed {names} and 3 more (disabled); "
        f"ComputeFilter removed {days} and 1 more"
    )


def test_a_host_is_removed_by_the_first_filter_only():
    removed = one([host("a", vcpus=0, enabled=False, zone="x")], spec(availability_zone="nova")).removed
    assert [(removal.host, removal.filter) for removal in removed] == [("a", "ComputeStatus")]


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
        "Capacity removed kvm02 (vcpus: 17 wanted, at most 16 for one server)"
    )


def test_a_forced_host_that_is_ignored_or_unknown():
    assert one([host("a")], spec(forced_host="b")).removed == (("a", "ForceHosts", "the request wants b"),)
    assert one([host("a"), host("b")], spec(forced_host="a", ignore_hosts=("a",))).host is None


def test_enabled_filters_are_an_option_and_their_order_counts():
    hosts = [host("a", up=False, num_instances=50)]
    for names in itertools.permutations(("ComputeFilter", "NumInstancesFilter")):
        assert one(hosts, spec(), enabled_filters=names).removed[0].filter == names[0]
    assert one(hosts, spec(), enabled_filters=()).host == "a"
    assert one(hosts, spec(), enabled_filters=("Capacity",)).host == "a"


def test_what_stands_for_placement_cannot_be_turned_off():
    assert one([host("a", vcpus=0)], spec(), enabled_filters=()).host is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(enabled_filters=("RamFilter",)), "enabled_filters: there is no RamFilter; there are ComputeStatus"),
        (Options(weight_classes=("Ram",)), "weight_classes: there is no Ram; there are RAMWeigher"),
        (Options(multipliers={"ram": 1.0}), "multipliers: there is no ram; there are ram_weight_multiplier"),
        (
            Options(multipliers={"pci_weight_multiplier": -1.0}),
            "multipliers: pci_weight_multiplier is -1.0; 0.0 or more is allowed",
        ),
    ],
)
def test_an_option_that_names_no_rule(options, message):
    with pytest.raises(InvalidRequest, match=message):
        decide([], [], options)


def test_table_and_data_of_a_decision():
    hosts = [host("kvm01", ram=2048), host("kvm02", ram=4096), host("kvm3", enabled=False), host("kvm04", ram=1024)]
    decision = one(hosts, spec(ram=512), max_attempts=2)
    assert explain.table(decision) == [
        "kvm02  chosen     3.000 = RAMWeigher 1.000, CPUWeigher 1.000, DiskWeigher 1.000",
        "kvm01  alternate  2.500 = RAMWeigher 0.500, CPUWeigher 1.000, DiskWeigher 1.000",
        "kvm04  fits       2.250 = RAMWeigher 0.250, CPUWeigher 1.000, DiskWeigher 1.000",
        "kvm3   removed    ComputeStatus: disabled",
    ]
    data = explain.data(decision)
    assert json.loads(json.dumps(data)) == data
    assert data["hosts_entered"] == 4
    assert data["removed"] == [{"host": "kvm3", "filter": "ComputeStatus", "reason": "disabled"}]
    assert data["weights"][1]["scores"]["RAMWeigher"] == 0.5
    assert data["explain"] == "kvm02 was chosen: 4 hosts entered; ComputeStatus removed kvm3 (disabled)"


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
    specs = [
        spec(str(number), vcpus=amounts[0], ram=amounts[1], disk=amounts[2]) for number, amounts in enumerate(wanted)
    ]
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


def seen(decisions):
    return [explain.data(decision, complete=True) for decision in decisions]


@given(HOSTS, SPECS)
def test_the_same_input_gives_the_same_decisions(hosts, wanted):
    hosts = [host(f"h{number}", **fields) for number, fields in enumerate(hosts)]
    specs = [
        spec(str(number), vcpus=amounts[0], ram=amounts[1], disk=amounts[2]) for number, amounts in enumerate(wanted)
    ]
    assert seen(decide(hosts, specs)) == seen(decide(hosts, specs))


class Slow:
    """The pipeline again, from the beginning for each server, host by host: what the fast one must come to."""

    def __init__(self, rows, options, rules):
        self.hosts, self.options, self.order = Hosts.of(rows), options, list(range(len(rows)))
        self.rules = rules
        self.random = random.Random(options.seed)  # noqa: S311

    def place(self, request):
        left = list(self.order)
        for rule in pipeline._filters(self.options, self.rules):
            mask = rule.mask(self.hosts, request)
            left = [row for row in left if mask[row]]
        totals = dict.fromkeys(left, 0.0)
        if len(left) > 1:
            rows = np.array(sorted(left))
            for weigher in pipeline._weighers(self.options, self.rules):
                for row, score in zip(rows.tolist(), weigher.weights(self.hosts, rows, request).tolist()):
                    totals[row] += score
        self.order = sorted(left, key=totals.__getitem__, reverse=True)
        if not self.order:
            return None, []
        if self.options.shuffle_best_same_weighed_hosts and len(left) > 1:
            best = [row for row in self.order if totals[row] == totals[self.order[0]]]
            self.random.shuffle(best)
            self.order[: len(best)] = best
        if self.options.host_subset_size > 1:
            chosen = self.random.randrange(min(self.options.host_subset_size, len(self.order)))
            self.order.insert(0, self.order.pop(chosen))
        self.hosts.consume(self.order[0], request, request.instance_uuid)
        return self.hosts.names[self.order[0]], [(self.hosts.names[row], totals[row]) for row in self.order]


MANY = st.lists(
    st.builds(
        dict,
        vcpus=st.integers(0, 12),
        ram=st.integers(0, 12),
        disk=st.integers(0, 12),
        cpu_ratio=st.sampled_from([1.0, 1.5, 4.0]),
        num_io_ops=st.integers(0, 3),
        num_instances=st.integers(0, 3),
        failed_builds=st.sampled_from([0, 0, 0, 1]),
        hypervisor_version=st.sampled_from([0, 7002000, 9000000]),
        disk_available_gb=st.sampled_from([np.inf, 4, 8]),
        metadata=st.sampled_from([{}, {"ram_weight_multiplier": "-2"}, {"max_instances_per_host": "4"}]),
        up=st.sampled_from([True, True, True, False]),
    ),
    max_size=14,
)
POLICIES = st.sampled_from([None, "affinity", "anti-affinity", "soft-affinity", "soft-anti-affinity"])


class Leaping(Weigher):
    """Weights that go up and down by more than one when a host takes a server, beyond those of the others too."""

    name = "Leaping"
    multiplier_option = "leaping_weight_multiplier"

    def raw(self, hosts, rows, request):
        return (hosts.num_instances[rows] * 7 % 11 - hosts.num_io_ops[rows]).astype(float)


LEAPING = dataclasses.replace(RULES, weighers=(*RULES.weighers, Leaping))
CHANCE = st.builds(
    dict,
    host_subset_size=st.sampled_from([1, 1, 3]),
    shuffle_best_same_weighed_hosts=st.booleans(),
    seed=st.integers(0, 9),
)


@given(MANY, st.integers(1, 9), st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), POLICIES, CHANCE)
def test_a_batch_comes_to_what_deciding_from_the_beginning_comes_to(rows, count, amounts, policy, chance):
    rows = [host(f"h{number}", **fields) for number, fields in enumerate(rows)]
    uuids = [f"u{number}" for number in range(count)]
    members = group(policy, *uuids, max_server_per_host=2) if policy else None
    resources = {name: amount for name, amount in zip(("VCPU", "MEMORY_MB", "DISK_GB"), amounts) if amount}
    options = Options(
        enabled_filters=("ComputeFilter", "AggregateNumInstancesFilter", "IoOpsFilter")
        + ("ServerGroupAffinityFilter", "ServerGroupAntiAffinityFilter"),
        multipliers={"num_instances_weight_multiplier": -0.5},
        **chance,
    )
    slow = Slow(rows, options, LEAPING)
    fast = decide(rows, [spec(*uuids, resources=resources, group=members)], options, rules=LEAPING, complete=True)
    for uuid, decision in zip(uuids, fast):
        expected, order = slow.place(spec(uuid, resources=resources, group=members))
        assert decision.host == expected
        assert [(weight.host, weight.total) for weight in decision.weights] == order
        assert decision.fits == len(order)
        assert decision.entered == len(rows) == len(decision.removed) + decision.fits
        if not expected:
            break


def test_a_weight_may_leap_beyond_all_others():
    rows = [host("a", num_instances=0), host("b", ram=99999, num_instances=2), host("c", num_instances=1)]
    options = Options(weight_classes=("RAMWeigher", "Leaping"), multipliers={"ram_weight_multiplier": 100.0})
    first, second = decide(rows, [spec("1", "2")], options, rules=LEAPING)
    for decision, expected in ((first, {"a": 0.0, "b": 3 / 7, "c": 1.0}), (second, {"a": 0.0, "b": 1.0, "c": 7 / 9})):
        assert {weight.host: weight.scores["Leaping"] for weight in decision.weights} == expected


@given(MANY, st.integers(1, 4), st.sampled_from([1, 2, 3]))
def test_the_first_few_are_those_of_the_whole_ranking(rows, count, attempts):
    rows = [host(f"h{number}", **fields) for number, fields in enumerate(rows * 3)]
    request, options = (
        spec(*(f"u{number}" for number in range(count)), resources={"VCPU": 1}),
        Options(max_attempts=attempts),
    )
    for few, every in zip(decide(rows, [request], options), decide(rows, [request], options, complete=True)):
        assert (few.host, few.alternates, few.fits) == (every.host, every.alternates, every.fits)
        assert few.weights == every.weights[:10]
        assert [(name, list(found)) for name, found, _known in few.sieved] == [
            (name, list(found)) for name, found, _known in every.sieved
        ]


def test_equal_hosts_are_ranked_from_the_ranking_before_as_nova_does():
    decisions = decide([host("a"), host("b"), host("c")], [spec(*map(str, range(9)))])
    assert [decision.host for decision in decisions] == list("abccbaabc")


def test_a_failure_does_not_undo_the_neighbours():
    decisions = decide([host("a", vcpus=2)], [spec("1", "2", "3", vcpus=1), spec("4", vcpus=9), spec("5", vcpus=0)])
    assert [(decision.instance_uuid, decision.host) for decision in decisions] == [
        *(("1", "a"), ("2", "a"), ("3", None), ("4", None), ("5", "a"))
    ]
    assert decisions[2].explain.endswith("Capacity removed a (vcpus: 1 wanted, 0 free of 2 x 1.0)")


def test_a_hint_that_cannot_be_read_is_its_own_servers_matter():
    wrong = spec("1", "2", scheduler_hints={"query": "{"})
    decisions = decide([host("a")], [wrong, spec("3")], Options(enabled_filters=("JsonFilter",)))
    assert [(decision.instance_uuid, decision.host) for decision in decisions] == [("1", None), ("2", None), ("3", "a")]
    assert decisions[1].explain.startswith("No valid host was found: scheduler_hints: query '{' is no JSON: ")
    assert explain.table(decisions[1]) == [decisions[1].explain]


def test_anti_affinity_within_one_request_and_across_requests():
    members = group("anti-affinity", "1", "2", "3", "4")
    decisions = decide(
        [host("a"), host("b"), host("c")], [spec("1", "2", group=members), spec("3", "4", group=members)]
    )
    assert [decision.host for decision in decisions] == ["a", "b", "c", None]


def test_affinity_within_one_request():
    members = group("affinity", "1", "2", "3")
    decisions = decide([host("a"), host("b", vcpus=2, ram=99999, disk=9999)], [spec("1", "2", "3", group=members)])
    assert [decision.host for decision in decisions] == ["b", "b", None]
    assert decisions[2].explain.endswith(
        "Capacity removed b (vcpus: 1 wanted, 0 free of 2 x 1.0); "
        "ServerGroupAffinityFilter removed a (together with group web wanted, which is on b)"
    )


@pytest.mark.parametrize(("policy", "expected"), [("soft-affinity", "aaa"), ("soft-anti-affinity", "abb")])
def test_soft_policies_prefer_but_do_not_insist(policy, expected):
    options = Options(multipliers={"soft_affinity_weight_multiplier": 10.0})
    decisions = decide([host("a"), host("b")], [spec("1", "2", "3", group=group(policy, *"123"))], options)
    assert "".join(decision.host for decision in decisions) == expected


def test_the_requested_host_runs_all_filters():
    rows = [host("a"), host("b", up=False)]
    assert one(rows, spec(requested_host="A")).host == "a"
    assert one(rows, spec(requested_host="b")).explain == (
        "No valid host was found: 2 hosts entered; RequestedHost removed a (the request wants b); "
        "ComputeFilter removed b (down: never seen)"
    )


def test_hosts_of_the_best_weight_are_shuffled_where_that_is_wanted():
    rows = [*(host(f"h{number}") for number in range(5)), host("small", ram=1024)]
    chosen = {one(rows, spec(), shuffle_best_same_weighed_hosts=True, seed=seed).host for seed in range(60)}
    assert chosen == {f"h{number}" for number in range(5)}
    again = [one(rows, spec(), shuffle_best_same_weighed_hosts=True, seed=7).host for _time in range(5)]
    assert len(set(again)) == 1


def test_a_subset_of_the_best_is_chosen_from():
    rows = [host(f"h{number}", ram=10240 - number) for number in range(6)]
    decisions = [one(rows, spec(), host_subset_size=3, seed=seed) for seed in range(60)]
    assert {decision.host for decision in decisions} == {"h0", "h1", "h2"}
    second = next(decision for decision in decisions if decision.host == "h1")
    assert second.alternates == ("h0", "h2")
    assert [weight.host for weight in second.weights] == ["h1", "h0", "h2", "h3", "h4", "h5"]
    assert {one(rows[:2], spec(), host_subset_size=9, seed=seed).host for seed in range(20)} == {"h0", "h1"}


def test_in_a_batch_the_subset_is_chosen_for_each_server():
    rows = [host(f"h{number}") for number in range(4)]
    decisions = decide(rows, [spec(*map(str, range(40)))], Options(host_subset_size=4, seed=3))
    assert {decision.host for decision in decisions} == {"h0", "h1", "h2", "h3"}
    assert [decision.host for decision in decisions][:8] != list("01230123")


def test_every_reason_and_every_weight_where_that_is_wanted():
    rows = [host(f"h{number:02}", enabled=number % 2 == 0) for number in range(50)]
    short, whole = one(rows, spec()), decide(rows, [spec()], complete=True)[0]
    assert (len(short.removed), len(whole.removed)) == (10, 25)
    assert (len(short.weights), len(whole.weights)) == (10, 25)
    assert [len(item.rows) for item in short.sieved] == [25]
    assert len(explain.table(whole, complete=True)) == 50
    data = explain.data(whole, complete=True)
    assert data["filters"] == [
        {"filter": "ComputeStatus", "removed": 25, "hosts": [f"h{number:02}" for number in range(1, 50, 2)]}
    ]
    assert (data["hosts_fit"], len(data["removed"]), len(data["weights"])) == (25, 25, 25)


def test_without_a_host_every_reason_is_known():
    rows = [host(f"h{number:02}", vcpus=number) for number in range(1, 30)]
    decision = one(rows, spec(vcpus=40))
    assert [str(removal) for removal in decision.removed] == [
        f"h{number:02}: vcpus: 40 wanted, at most {number} for one server" for number in range(1, 30)
    ]


def test_so_many_reasons_are_written_out_and_no_more(monkeypatch):
    monkeypatch.setattr(pipeline, "_REASONS", 60)
    rows = [host(f"h{number:02}", vcpus=1) for number in range(30)]
    decisions = decide(rows, [spec("1", "2", vcpus=2), spec("3", vcpus=3), spec("4", vcpus=4), spec("5", vcpus=5)])
    assert [len(decision.removed) for decision in decisions] == [30, 30, 30, 10, 10]
    assert decisions[-1].explain.endswith("h09 (vcpus: 5 wanted, at most 1 for one server) and 20 more")


def test_that_one_server_has_no_host_says_nothing_of_one_that_may_stay():
    members = group("anti-affinity", "1", "2", "3")
    decisions = decide([host("a", servers=("2",))], [spec("1", "2", "3", group=members)])
    assert [decision.host for decision in decisions] == [None, "a", None]


def test_a_row_filter_is_asked_again_only_where_a_server_was_put():
    query = '["<", "$num_instances", 2]'
    options = Options(enabled_filters=("JsonFilter",))
    decisions = decide([host("a"), host("b")], [spec(*map(str, range(5)), scheduler_hints={"query": query})], options)
    assert [decision.host for decision in decisions] == ["a", "b", "b", "a", None]
    assert decisions[-1].explain.endswith(f"JsonFilter removed a, b (query {query}: $num_instances 2)")


def test_a_thousand_servers_on_a_thousand_hosts_take_seconds_at_most():
    rows = [host(f"h{number:04}", vcpus=64, ram=262144 + number, cpu_ratio=4.0) for number in range(1000)]
    started = time.process_time()
    decisions = decide(rows, [spec(*map(str, range(1000)), extra_specs={"hw:cpu_policy": "shared"})])
    assert time.process_time() - started < 5
    assert all(decision.host for decision in decisions)


def test_a_custom_class_runs_out():
    rows = [host("a", more={"CUSTOM_FPGA": Inventory(1)}), host("b")]
    decisions = decide(rows, [spec("1", "2", resources={"CUSTOM_FPGA": 1})])
    assert [decision.host for decision in decisions] == ["a", None]
    assert decisions[1].explain == (
        "No valid host was found: 2 hosts entered; Capacity removed a (CUSTOM_FPGA: 1 wanted, 0 free of 1 x 1.0), "
        "b (CUSTOM_FPGA: 1 wanted, the host has none)"
    )
