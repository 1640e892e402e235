# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)

from __future__ import annotations

from typing import Any

from ansible_collections.barestack.kvm.plugins.filter.handle import faults, merge, trouble, undone

FAULT = {"phase": "disk", "host": "kvm01", "message": "full", "code": 500}


def instance(name: str, **changes: Any) -> dict[str, Any]:
    base = {"uuid": name, "name": name, "host": "kvm01", "fault": None, "stuck": None, "wait_for": None, "step": 0}
    return {**base, **changes}


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
    assert trouble(hostvars) == ["bad failed in disk on kvm01: full", "w failed in wait on kvm01: no lease"]
