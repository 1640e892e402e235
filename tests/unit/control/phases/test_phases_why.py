# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Why a server is where it is, or would go where; nothing is changed by asking."""

from __future__ import annotations

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Forbidden, InvalidRequest, NotFound

from .conftest import NUMA, Site

HOSTS = ("kvm1", "kvm2", "kvm3")


def test_a_server_that_exists_is_decided_on_without_its_own_claim(site: Site) -> None:
    """The host has room for two of its size and is full with it: its own claim must not count against it."""
    site.record("kvm1")
    site.boot(*(site.server(f"s{n}", flavor="half") for n in range(2)))
    before = site.dump()
    result = site.phase("why", names=["s0"])
    (decision,) = result["decisions"]
    assert (decision["name"], decision["host"], decision["hosts_entered"]) == ("s0", "kvm1", 1)
    assert result["why"] == ["s0: 1 host entered, 1 fits; now on kvm1", "  kvm1  chosen     the only one: not weighed"]
    assert (result["changed"], result["effects"]) == (False, [])
    assert site.dump() == before


def test_servers_that_exist_are_each_decided_on_alone(site: Site) -> None:
    site.record("kvm1")
    site.boot(*(site.server(f"s{n}", flavor="half") for n in range(2)))
    assert [item["host"] for item in site.phase("why", names=["s0", "s1"])["decisions"]] == ["kvm1"] * 2


def test_servers_that_are_only_asked_about_are_decided_on_as_a_boot_would(site: Site) -> None:
    site.record("kvm1")
    before = site.dump()
    result = site.phase("why", requests=[site.server("s", flavor="half", count=3)])
    assert [item["host"] for item in result["decisions"]] == ["kvm1", "kvm1", None]
    assert result["why"][-2:] == [
        "s-3: 1 host entered, none fits",
        "  kvm1  removed    Capacity: ram: 2048 wanted, 0 free of (4608 - 512 reserved) x 1.0",
    ]
    assert site.dump() == before


def test_the_answer_is_that_of_the_boot(site: Site) -> None:
    site.record(*HOSTS)
    site.record("kvm2", memory_mb=9000)
    site.hosts = list(HOSTS)
    (asked,) = site.phase("why", requests=[site.server(flavor="half")])["decisions"]
    site.boot(site.server(flavor="half"))
    assert site.row()["host"] == asked["host"] == "kvm2"


def test_everything_that_was_compared_is_there_as_data(site: Site) -> None:
    site.record(*(f"kvm{number:02}" for number in range(30)))
    site.phase("compute_node", "root", state="disabled", names=["kvm07"], reason="new fan", project="demo")
    result = site.phase("why", requests=[site.server(flavor="huge"), site.server("db")])
    huge, small = result["decisions"]
    assert [(item["filter"], item["removed"]) for item in huge["filters"]][-1] == ("Capacity", 29)
    assert {item["host"]: item["reason"] for item in huge["removed"]}["kvm29"].startswith("ram: 65536 wanted, at most")
    assert len(huge["removed"]) == 30
    assert len(small["weights"]) == 29
    assert "RAMWeigher" in small["weights"][0]["scores"]
    assert len(result["why"]) < 40, "for people it is short"


def test_one_host_is_asked_about(site: Site) -> None:
    site.record(*(f"kvm{number:02}" for number in range(30)))
    site.phase("compute_node", "root", state="disabled", names=["kvm07"], reason="new fan", project="demo")
    result = site.phase("why", requests=[site.server()], hosts=["KVM07", "kvm28", "kvm99"])
    assert len(result["why"]) == 4
    assert result["why"][2].split(maxsplit=3)[:2] == ["kvm07", "removed"]
    assert result["why"][2].endswith("disabled: new fan")
    assert result["why"][1].split()[:2] == ["kvm28", "fits"]
    assert result["why"][3] == "  kvm99 is not recorded"


def test_groups_volumes_and_cells_count(site: Site) -> None:
    group = {"group": {"name": "apart", "policy": "anti-affinity"}}
    site.record("kvm1", "kvm2", **NUMA)
    site.boot(site.server(scheduler_hints=group, volumes=[{"name": "data", "size": 1}]))
    home = site.row()["host"]
    other = "kvm2" if home == "kvm1" else "kvm1"
    before = site.dump()
    (decision,) = site.phase("why", requests=[site.server("db", scheduler_hints=group)])["decisions"]
    assert decision["host"] == other
    alone = {"group": {"name": "new", "policy": "anti-affinity"}}
    asked = site.phase("why", requests=[site.server("n", scheduler_hints=alone, count=3)])["decisions"]
    assert [bool(item["host"]) for item in asked] == [True, True, False], "they are members, too"
    (decision,) = site.phase("why", names=["web"])["decisions"]
    assert decision["host"] == home, "its volume lies there"
    pinned = site.phase("why", requests=[site.server("p", flavor="pinned", count=9)])["decisions"]
    assert [bool(item["host"]) for item in pinned] == [True] * 8 + [False]
    assert site.dump() == before


def test_a_request_that_cannot_be_read_is_said(site: Site) -> None:
    site.record("kvm1")
    site.catalog["flavors"].append(
        {"name": "odd", "vcpus": 1, "ram": 1, "extra_specs": {"pci_passthrough:alias": "x:1"}}
    )
    result = site.phase("why", requests=[site.server(flavor="odd")])
    assert "there is no alias x in pci_alias" in result["decisions"][0]["error"]
    assert "there is no alias x in pci_alias" in result["why"][0]


def test_who_may_ask(site: Site) -> None:
    site.record("kvm1")
    site.boot(site.server())
    assert site.phase("why", "rita", names=["web"])["decisions"][0]["host"] == "kvm1"
    with pytest.raises(Forbidden):
        site.phase("why", "bob", names=["web"])
    with pytest.raises(Forbidden):
        site.phase("why", requests=[site.server("x", host="kvm1")])
    with pytest.raises(NotFound, match="No server with a name or id of 'nobody' exists"):
        site.phase("why", names=["nobody"])
    with pytest.raises(InvalidRequest, match="unknown flavor"):
        site.phase("why", requests=[site.server("x", flavor="none")])


def test_without_hosts_it_says_so(site: Site) -> None:
    (decision,) = site.phase("why", requests=[site.server()])["decisions"]
    assert decision["explain"] == "No valid host was found: 0 hosts entered: the records hold no compute node"
