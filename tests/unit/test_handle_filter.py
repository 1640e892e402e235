# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)

from __future__ import annotations

from typing import Any

from ansible_collections.barestack.kvm.plugins.filter.handle import (
    CONTROL,
    NO_HOST,
    control_if,
    faults,
    hosts_of,
    latest,
    merge,
    on_host,
    trouble,
    undone,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import pack, unpack

FAULT = {"phase": "disk", "host": "kvm01", "message": "full", "code": 500}


def instance(name: str, **changes: Any) -> dict[str, Any]:
    base = {"uuid": name, "name": name, "host": "kvm01", "fault": None, "stuck": None, "wait_for": None, "attempts": []}
    return {**base, "step": 0, **changes}


def test_each_instance_comes_from_its_hosts_last_phase() -> None:
    hostvars = {
        "kvm01": {"disk": {"instances": [instance("a", step=1)]}, "domain": {"instances": [instance("a", step=2)]}},
        "kvm02": {
            "disk": {"instances": [instance("b", host="kvm02", step=1)]},
            "domain": {"instances": [instance("b", host="kvm02", step=3)]},
        },
    }
    handle = [instance("a"), instance("b", host="kvm02"), instance("nowhere", host=None, fault=FAULT)]
    assert [item["step"] for item in merge(handle, hostvars, ["disk", "domain"])] == [2, 3, 0]


def test_a_phase_that_failed_as_a_whole_is_the_fault_of_its_hosts_instances() -> None:
    hostvars = {"kvm01": {"disk": {"failed": True, "msg": "unreachable"}}, "kvm02": {"other": 1}}
    merged = merge(
        [instance("a"), instance("b", host="kvm02"), instance("c", host="kvm03")], hostvars, ["disk", "domain"]
    )
    assert faults(merged) == [
        "a failed in disk on kvm01: unreachable",
        "b failed in disk on kvm02: the host did not get there",
        "c failed in disk on kvm03: the host is not in the inventory",
    ]


def test_the_first_fault_stays_whatever_fails_after_it() -> None:
    hostvars = {"kvm01": {"disk": {"instances": [instance("a", fault=FAULT)]}, "domain": {"msg": "libvirt is gone"}}}
    assert faults(merge([instance("a")], hostvars, ["disk", "domain"])) == ["a failed in disk on kvm01: full"]


def test_a_variable_of_the_inventory_is_no_result() -> None:
    hostvars = {"kvm01": {"disk": {"instances": [instance("a")]}, "domain": "example.org"}}
    assert faults(merge([instance("a")], hostvars, ["disk", "domain"])) == [
        "a failed in domain on kvm01: the host did not get there"
    ]


def test_an_undo_keeps_the_fault_and_is_not_stuck_because_of_it() -> None:
    hostvars = {"kvm01": {"undo_disk": {"instances": [instance("a", fault=FAULT)]}}}
    (after,) = undone([instance("a", fault=FAULT)], hostvars, ["undo_disk"])
    assert (after["fault"], after["stuck"]) == (FAULT, None)


def test_an_undo_that_did_not_happen_is_stuck() -> None:
    hostvars = {"kvm01": {"undo_disk": {"failed": True, "msg": "unreachable"}}}
    (after,) = undone([instance("a", fault=FAULT)], hostvars, ["undo_disk"])
    assert after["stuck"]["message"] == "unreachable"


def test_the_summary_names_failures_and_waits_that_did_not_end_well() -> None:
    late = {"phase": "wait", "host": "kvm01", "message": "no lease", "code": 500}
    waiting = instance("w", wait_for={"condition": "lease"})
    control = {
        "finish": {"instances": [instance("bad", fault=FAULT), waiting, instance("good")]},
        "undone": {"instances": [instance("bad", fault=FAULT)]},
    }
    hostvars = {"localhost": control, "kvm01": {"wait": {"instances": [{**waiting, "fault": late}]}}}
    assert trouble({}) == []
    assert trouble(hostvars) == ["w failed in wait on kvm01: no lease", "bad failed in disk on kvm01: full"]


def test_what_an_earlier_attempt_registered_is_no_result_of_this_one() -> None:
    """Plays are imported several times, and a host on which nothing ran this time keeps what it returned then."""
    hostvars = {"kvm01": {"disk": {"instances": [instance("a", step=1)]}}}
    now = instance("a", attempts=[{**FAULT, "host": "kvm02"}])
    assert merge([now], hostvars, ["disk"]) == [{**now, "fault": {**FAULT, "message": "no answer"}}]
    assert undone([now], hostvars, ["disk"]) == [{**now, "stuck": {**FAULT, "message": "no answer"}}]
    hostvars["kvm01"]["disk"]["instances"] = [{**now, "step": 2}]
    assert merge([now], hostvars, ["disk"]) == [{**now, "step": 2}]


def test_a_control_result_names_the_hosts_until_another_answered_it() -> None:
    control = {"finish": {"at": "2026-01-01T00:00:01", "undo_hosts": ["kvm01"], "failures": 1}}
    hostvars = {CONTROL: control}
    assert hosts_of(hostvars, "finish", "undo_hosts", "undone") == ["kvm01"]
    assert control_if(hostvars, "finish", "failures", "undone") == CONTROL
    assert hosts_of(hostvars, "finish", "waiting") == control_if(hostvars, "finish", "waiting") == NO_HOST
    control["undone"] = {"at": "2026-01-01T00:00:02", "retrying": 1, "hosts": []}
    assert hosts_of(hostvars, "finish", "undo_hosts", "undone") == NO_HOST
    assert control_if(hostvars, "finish", "failures", "undone") == NO_HOST
    assert control_if(hostvars, "undone", "retrying", "finish") == CONTROL
    control["finish"] = {"at": "2026-01-01T00:00:03", "undo_hosts": ["kvm02"], "failures": 1}
    assert hosts_of(hostvars, "finish", "undo_hosts", "undone") == ["kvm02"]
    assert control_if(hostvars, "undone", "retrying", "finish") == NO_HOST


def test_of_several_control_results_the_latest_counts() -> None:
    control: dict[str, Any] = {
        "instance": {"at": "2026-01-01T00:00:01", "undo_hosts": ["kvm01"], "to_undo": "of earlier runs"},
        "deleting": {"skipped": True},
        "finish": {"failed": True, "msg": "no answer"},
    }
    names = ["instance", "deleting", "finish"]
    assert hosts_of({CONTROL: control}, names, "undo_hosts", "undone") == ["kvm01"]
    control["finish"] = {"at": "2026-01-01T00:00:05", "undo_hosts": ["kvm02"], "to_undo": "of this run"}
    assert hosts_of({CONTROL: control}, names, "undo_hosts", "undone") == ["kvm02"]
    assert latest({CONTROL: control}, names, "to_undo") == "of this run"


def test_while_ansible_checks_the_syntax_no_host_is_named() -> None:
    assert hosts_of({}, "finish") == hosts_of({}, ["instance", "finish"], "undo_hosts", "undone") == NO_HOST
    assert control_if({}, "finish", "failures") == NO_HOST


def test_the_summary_takes_what_the_rollback_made_of_a_server() -> None:
    """A server that no host is left for fails without a host, and its rollback has all the attempts' faults."""
    nowhere = {
        "phase": "schedule",
        "host": None,
        "message": "no host (all attempts: 1. disk on kvm01: full)",
        "code": 500,
    }
    control = {
        "finish": {"instances": [instance("a", host=None, fault=FAULT)]},
        "undone": {"instances": [instance("a", host=None, fault=nowhere)]},
    }
    assert trouble({CONTROL: control}) == [
        "a failed in schedule on the control host: no host (all attempts: 1. disk on kvm01: full)"
    ]


def test_each_host_gets_its_own_servers_whatever_they_are_called() -> None:
    handle = [
        {"uuid": "a", "host": "kvm1", "name": 'x\n"kvm2"\ty'},
        {"uuid": "b", "host": "kvm2", "name": "b"},
        {"uuid": "c", "host": "kvm11", "name": "c"},
        {"uuid": "d", "host": None, "name": "d"},
        {"uuid": "e", "host": "kvm1", "name": "e"},
    ]
    assert unpack(pack(handle)) == handle
    for given in (handle, pack(handle)):
        assert unpack(on_host(given, "kvm1")) == [handle[0], handle[4]]
        assert unpack(on_host(given, "kvm11")) == [handle[2]]
        assert unpack(on_host(given, "kvm3")) == []
    assert unpack(on_host(pack([]), "kvm1")) == []
    assert unpack(on_host(on_host(pack(handle), "kvm2"), "kvm2")) == [handle[1]]
