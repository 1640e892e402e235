# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What a server claims beyond RAM: CPUs of its own, pages, PCI devices, the site's own classes; and gives back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records, claims, trouble
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.claims import Claim
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import metadata
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from sqlalchemy import Connection, event, select, update

from .conftest import NUMA, Site, devices

ALIAS = {"pci_alias": [{"name": "gpu", "vendor_id": "10de", "product_id": "1eb8"}]}


def cells(site: Site) -> list[dict[str, Any]]:
    """What is kept as used of kvm1's NUMA cells."""
    (text,) = [row["numa_topology"] for row in site.rows("reports")]
    return list(json.loads(text)["cells"])


def test_a_claim_is_used_of_its_host_until_it_is_given_back(site: Site) -> None:
    site.boot(site.server(), site.server("db"))
    assert site.used() == {("kvm1", "VCPU"): 2, ("kvm1", "MEMORY_MB"): 256, ("kvm1", "DISK_GB"): 2}
    (node,) = site.rows("compute_nodes")
    assert node["servers"] == 2
    site.delete("web")
    assert site.used() == {("kvm1", "VCPU"): 1, ("kvm1", "MEMORY_MB"): 128, ("kvm1", "DISK_GB"): 1}
    (after,) = site.rows("compute_nodes")
    assert (after["servers"], after["generation"] - node["generation"]) == (1, 1)


def test_a_failed_build_gives_back_what_it_claimed(site: Site) -> None:
    site.scheduler = ALIAS
    site.record("kvm1", **NUMA, **devices(1))
    handle = [site.failed(item) for item in site.boot(site.server(flavor="gpu"), last="building")]
    site.step("active", handle, [], {"max_attempts": 1})
    site.undo(site.results["active"]["to_undo"])
    assert site.used() == {}
    assert [row["consumer_id"] for row in site.rows("pci_devices")] == [None]
    assert site.rows("compute_nodes")[0]["failed_builds"] == 1
    site.boot(site.server("db"))
    assert site.rows("compute_nodes")[0]["failed_builds"] == 0


def test_a_decision_on_columns_of_an_earlier_generation_is_tried_again(site: Site) -> None:
    """The columns are loaded, somebody else's claim is committed, and only then the own one is written."""
    site.record("kvm1")
    site.boot(site.server(), last="instance")
    uuid = site.row()["uuid"]
    tries = []

    def generation(connection: Connection) -> int:
        table = metadata.tables["compute_nodes"]
        return int(connection.scalar(select(table.c.generation)) or 0)

    seen = [Records(site.records_url).run(generation)]
    site.record("kvm1", memory_mb=8192)

    def work(connection: Connection) -> None:
        tries.append(seen[-1])
        seen.append(generation(connection))
        claims.claim(connection, {uuid: Claim("kvm1", {"VCPU": 1})}, {"kvm1": tries[-1]})

    Records(site.records_url).run(work)
    assert len(tries) == 2
    assert tries[0] < tries[1]
    assert site.used() == {("kvm1", "VCPU"): 1}


def test_a_claim_that_is_always_overtaken_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble, "_pause", lambda *_: None)
    site.record("kvm1")
    site.boot(site.server(), last="instance")
    uuid = site.row()["uuid"]

    def work(connection: Connection) -> None:
        claims.claim(connection, {uuid: Claim("kvm1", {"VCPU": 1})}, {"kvm1": -1})

    with pytest.raises(trouble.Overtaken, match="compute host kvm1 has changed since its columns were loaded"):
        Records(site.records_url).run(work)
    assert site.used() == {}


def test_a_thousand_claims_are_a_few_statements(site: Site) -> None:
    site.record(*(f"kvm{number}" for number in range(50)), memory_mb=512 + 200 * 128, vcpus=64, disk_gb=900)
    site.catalog["projects"][0]["quota"] = {"instances": -1, "cores": -1, "ram": -1}
    site.boot(site.server(count=1000, nics="none", network=None), last="instance")
    statements = []

    def work(connection: Connection) -> None:
        event.listen(connection, "before_cursor_execute", lambda *given: statements.append(given[2]))
        rows = connection.execute(select(metadata.tables["instances"].c.uuid)).scalars().all()
        wanted = {uuid: Claim(f"kvm{n % 50}", {"VCPU": 1, "MEMORY_MB": 128}) for n, uuid in enumerate(rows)}
        node = metadata.tables["compute_nodes"].c
        generations = {row.host: row.generation for row in connection.execute(select(node.host, node.generation))}
        before = len(statements)
        claims.claim(connection, wanted, generations)
        statements[:] = statements[before:]

    Records(site.records_url).run(work)
    assert len(statements) <= 5
    assert sum(site.used().values()) == 1000 * 129
    assert {row["servers"] for row in site.rows("compute_nodes")} == {20}


def test_cpus_of_its_own_are_a_servers_alone(site: Site) -> None:
    site.record("kvm1", **NUMA)
    handle = site.boot(*(site.server(f"s{n}", flavor="pinned") for n in range(5)))
    assert [item["vm_state"] for item in handle] == ["ACTIVE"] * 4 + ["ERROR"]
    pins = [pin[1] for item in handle[:4] for cell in item["numa_topology"]["cells"] for pin in cell["cpu_pinning"]]
    assert sorted(pins) == list(range(8))
    assert site.used()["kvm1", "PCPU"] == 8
    assert [cell["pinned_cpus"] for cell in cells(site)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert "pcpus: 2 wanted, 0 free of 8 x 1.0" in handle[4]["fault"]["message"]
    site.delete("s0")
    assert len(site.rows("pinned_cpus")) == 6
    (again,) = site.boot(site.server("s5", flavor="pinned"))
    assert again["vm_state"] == "ACTIVE"


def test_the_claim_is_in_the_handle_whoever_reads_it(site: Site) -> None:
    site.scheduler = ALIAS
    site.record("kvm1", **NUMA, **devices(1))
    site.catalog["flavors"].append(
        {
            "name": "both",
            "vcpus": 2,
            "ram": 128,
            "extra_specs": {"hw:cpu_policy": "dedicated", "pci_passthrough:alias": "gpu:1"},
        }
    )
    (built,) = site.boot(site.server(flavor="both"), twice=True)
    (found,) = site.phase("instance", "root", state="recorded", names=["web"])["instances"]
    for key in ("numa_topology", "pci_devices"):
        assert found[key] == built[key] != []
    assert found["numa_topology"]["cells"][0]["cpu_pinning"] != []


def test_a_report_keeps_what_servers_hold(site: Site) -> None:
    """A host that is asked again, with other amounts, less CPUs, without the device, without the class."""
    site.scheduler = ALIAS
    settings = {"resources": {"CUSTOM_LICENSE": 4}}
    site.record("kvm1", settings=settings, **NUMA, **devices(2))
    site.boot(site.server("p", flavor="pinned"), site.server("g", flavor="gpu"), site.server("l", flavor="licensed"))
    held = site.used()
    (device,) = [row["address"] for row in site.rows("pci_devices") if row["consumer_id"]]
    fewer = {"cells": [{**NUMA["numa_topology"]["cells"][1], "id": 0, "pcpuset": [6, 7]}]}
    site.record("kvm1", memory_mb=9000, numa_topology=fewer, vcpus=2)
    assert site.used() == held
    assert [(row["address"], row["gone"]) for row in site.rows("pci_devices")] == [(device, True)]
    totals = {row["resource_class"]: row["total"] for row in site.rows("inventories")}
    assert (totals["CUSTOM_LICENSE"], totals["MEMORY_MB"]) == (0, 9000)
    site.delete("p", "g", "l")
    assert site.used() == {}
    assert site.rows("pci_devices") == site.rows("pinned_cpus") == []
    site.record("kvm1", memory_mb=9000, numa_topology=fewer, vcpus=2)
    site.record("kvm1", memory_mb=9001)
    assert "CUSTOM_LICENSE" not in {row["resource_class"] for row in site.rows("inventories")}


def test_a_report_that_says_the_same_changes_nothing(site: Site) -> None:
    site.record("kvm1", settings={"resources": {"CUSTOM_A": 1}, "traits": ["CUSTOM_B"]}, **NUMA, **devices(1))
    before = site.rows("compute_nodes")[0]
    report = {**site.report("kvm1", **NUMA, **devices(1)), "resources": {"CUSTOM_A": 1}, "traits": ["CUSTOM_B"]}
    assert not site.phase("compute_node", reports=[report])["changed"]
    after = site.rows("compute_nodes")[0]
    assert after["generation"] == before["generation"]
    assert after["updated_at"] > before["updated_at"]


def test_hosts_of_one_kind_share_what_they_report(site: Site) -> None:
    site.record(*(f"kvm{number}" for number in range(20)))
    assert len(site.rows("hypervisors")) == 1
    site.record("kvm3", hypervisor_version=8000000)
    assert len(site.rows("hypervisors")) == 2
    site.record(*(f"kvm{number}" for number in range(20)), hypervisor_version=8000000)
    assert len(site.rows("hypervisors")) == 1


def test_traits_are_what_the_host_reports_and_what_the_site_says(site: Site) -> None:
    extra = {"trait:CUSTOM_FAST": "required", "trait:HW_CPU_X86_AVX2": "required"}
    site.catalog["flavors"].append({"name": "fast", "vcpus": 1, "ram": 128, "extra_specs": extra})
    site.record("kvm1", settings={"traits": ["CUSTOM_FAST"]})
    site.record("kvm2", traits=["HW_CPU_X86_AVX2"])
    site.record("kvm3", settings={"traits": ["CUSTOM_FAST"]}, traits=["HW_CPU_X86_AVX2"])
    site.hosts = ["kvm1", "kvm2", "kvm3"]
    assert [item["host"] for item in site.boot(site.server(flavor="fast"))] == ["kvm3"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resources": {"LICENSE": 1}}, "kvm1: resources.LICENSE: a resource class of the site's own is CUSTOM_"),
        ({"resources": {"CUSTOM_A": {"totl": 1}}}, "kvm1: resources.CUSTOM_A.totl: unknown key, did you mean total?"),
        ({"resources": {"CUSTOM_A": 0}}, "kvm1: resources.CUSTOM_A.total: 0 is not allowed, it must be at least 1"),
        ({"traits": ["fast"]}, "kvm1: traits: 'fast' must be letters A-Z, digits and '_'"),
    ],
)
def test_a_wrong_setting_of_a_host_names_it(site: Site, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match="^kvm1") as error:
        site.record("kvm1", settings=settings)
    assert str(error.value).startswith(message)


def test_a_request_that_cannot_be_read_fails_alone(site: Site) -> None:
    site.catalog["flavors"].append(
        {"name": "odd", "vcpus": 1, "ram": 128, "extra_specs": {"pci_passthrough:alias": "tpu:1"}}
    )
    handle = site.play(site.server(flavor="odd"), site.server("db"))
    assert [item["vm_state"] for item in handle] == ["ERROR", "ACTIVE"]
    assert "there is no alias tpu in pci_alias" in handle[0]["fault"]["message"]
    assert handle[0]["fault"]["code"] == 400


def test_a_wrong_option_of_the_scheduler_is_one_error(site: Site) -> None:
    site.scheduler = {"host_subset_sise": 2}
    with pytest.raises(InvalidRequest, match="scheduler: there is no option host_subset_sise"):
        site.boot(site.server())


def test_an_option_of_the_scheduler_counts(site: Site) -> None:
    site.record("kvm1", "kvm2")
    site.record("kvm2", memory_mb=9000)
    site.hosts = ["kvm1", "kvm2"]
    site.scheduler = {"ram_weight_multiplier": -1.0}
    assert [item["host"] for item in site.boot(site.server())] == ["kvm1"]
    site.scheduler = {}
    assert [item["host"] for item in site.boot(site.server("db"))] == ["kvm2"]


def test_a_rule_of_the_sites_own_counts(site: Site) -> None:
    rules = site.directory / "scheduler_rules"
    rules.mkdir()
    (rules / "not_on_kvm1.py").write_text(
        """
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import flags
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter

class NotOnKvm1(Filter):
    name = "NotOnKvm1"

    def mask(self, hosts, spec):
        return flags(name != "kvm1" for name in hosts.names)

    def reason(self, hosts, row, spec):
        return "the site keeps it free"
"""
    )
    handle = site.boot(site.server(), last="compute_node")
    result = site.phase("schedule", instances=handle, scheduler_rules_path=str(rules))
    message = result["instances"][0]["fault"]["message"]
    assert "NotOnKvm1 removed kvm1 (the site keeps it free)" in message


def test_a_hint_may_name_servers(site: Site) -> None:
    site.record("kvm1", "kvm2")
    (first,) = site.boot(site.server())
    site.scheduler = {"enabled_filters": ["SameHostFilter", "DifferentHostFilter"]}
    (near,) = site.boot(site.server("near", scheduler_hints={"same_host": "web"}))
    (far,) = site.boot(site.server("far", scheduler_hints={"different_host": ["web", first["uuid"]]}))
    assert near["host"] == first["host"] != far["host"]


def test_images_of_a_kind_meet_where_the_site_wants_that(site: Site) -> None:
    site.record("kvm1", "kvm2")
    site.scheduler = {"image_props_weight_multiplier": 100.0, "ram_weight_multiplier": 0.0}
    site.catalog["images"].append({**site.catalog["images"][0], "name": "w", "properties": {"os_distro": "windows"}})
    site.boot(site.server("first", host="kvm2", image="w"), user="root")
    assert site.row("first")["host"] == "kvm2"
    handle = site.boot(*(site.server(f"s{n}", image="w") for n in range(3)))
    assert {item["host"] for item in handle} == {"kvm2"}


def test_a_host_that_is_forgotten_leaves_nothing(site: Site) -> None:
    site.record("kvm1", settings={"resources": {"CUSTOM_A": 1}}, **NUMA, **devices(2))
    site.phase("compute_node", "root", state="absent", names=["kvm1"], project="demo")
    for table in ("compute_nodes", "inventories", "pci_devices"):
        assert site.rows(table) == []


def test_a_lost_cpu_row_is_found_by_the_next_claim(site: Site) -> None:
    """The rows of pinned CPUs are what keeps servers apart; the columns only say where to look."""
    site.record("kvm1", **NUMA)
    site.boot(site.server(flavor="pinned"), site.server("on the other cell", flavor="pinned"))
    table = metadata.tables["reports"]
    forgotten = {"cells": [{**cell, "pinned_cpus": []} for cell in cells(site)]}
    Records(site.records_url).run(lambda c: c.execute(update(table).values(numa_topology=json.dumps(forgotten))))
    with pytest.raises(trouble.Overtaken, match="a CPU that was chosen for a server is another's"):
        site.boot(site.server("db", flavor="pinned"), last="schedule")
    assert len(site.rows("pinned_cpus")) == 4
