# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The audit's phase on real records of both kinds: what it passes over, what it cures, who may have it cured."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control import process
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records, instances, leases, residues
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import metadata
from ansible_collections.barestack.kvm.plugins.module_utils.model.contents import Contents, FoundDirectory, FoundDomain
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Forbidden, InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import to_wire
from sqlalchemy import delete, insert, update

from .conftest import NUMA, Site, devices

SILENT = {"kvm1": {"why": "timed out"}}


def look(site: Site, user: str = "root", **options: Any) -> dict[str, Any]:
    """An audit that reached no host, unless ``contents`` says otherwise."""
    options.setdefault("seen", site.phase("audit", user, state="begun", project="demo")["seen"])
    return site.phase("audit", user, **{"contents": SILENT, "project": "demo", **options})


def kinds(result: dict[str, Any]) -> set[str]:
    return {item["kind"] for item in result["findings"]} - {"host"}


def write(site: Site, *statements: Any) -> None:
    def work(connection: Any) -> None:
        for statement in statements:
            connection.execute(statement)

    Records(site.records_url).run(work)


def domain(site: Site, *files: str) -> dict[str, Any]:
    """A host's contents that are the server's domain alone, and these files."""
    row = site.row()
    found = FoundDomain(row["uuid"], f"instance-{row['id']:08x}", True, "RUNNING")
    directories = (FoundDirectory(row["uuid"], files),) if files else ()
    return {"kvm1": {"contents": to_wire(Contents(domains=(found,), directories=directories))}}


def table(name: str) -> Any:
    return metadata.tables[name]


def test_a_booted_site_does_not_differ(site: Site) -> None:
    site.boot(site.server(), site.server("db", volumes=[{"size": 1}]))
    result = look(site)
    assert kinds(result) == set(), result["table"]
    assert result["busy"] == []
    assert result["differences"] == 1  # the host was not reached


def test_after_a_delete_it_does_not_either(site: Site) -> None:
    site.boot(site.server())
    site.delete("web")
    assert kinds(look(site)) == set()


def test_a_reader_looks_and_only_an_admin_repairs(site: Site) -> None:
    site.boot(site.server())
    assert look(site, "rita")["differences"] == 1
    for options in ({"repair": True}, {"state": "mended"}, {"state": "begun", "repair": True}):
        with pytest.raises(Forbidden, match="needs the role admin"):
            site.phase("audit", "rita", project="demo", **options)


def test_what_the_hosts_did_not_say_is_refused(site: Site) -> None:
    for contents in ({"kvm1": {"contents": {"colour": 1}}}, {"kvm1": {}}, {"kvm1": "x"}):
        with pytest.raises(InvalidRequest, match="contents: this is nothing that"):
            look(site, contents=contents)


def test_the_findings_name_the_server_of_a_deleted_row(site: Site) -> None:
    site.boot(site.server())
    contents = domain(site)
    site.delete("web")
    result = look(site, contents=contents)
    assert [(item["kind"], item["server"], bool(item["cure"])) for item in result["findings"]] == [
        ("domain", "web", True)
    ]
    assert (result["clear_hosts"], result["cures"]) == ([], 0)  # only with repair
    result = look(site, contents=contents, repair=True)
    assert result["clear_hosts"] == ["kvm1"]
    assert result["leftovers"]["kvm1"]["guests"][0]["uuid"] == site.row()["uuid"]


def test_an_unknown_uuid_is_left_alone(site: Site) -> None:
    site.boot(site.server())
    found = FoundDomain(str(uuid.uuid4()), "instance-0000abcd", True, "RUNNING")
    contents = {"kvm1": {"contents": to_wire(Contents(domains=(found,)))}}
    site.delete("web")
    result = look(site, contents=contents, repair=True)
    assert [(item["kind"], item["cure"]) for item in result["findings"]] == [("domain", "")]
    assert result["clear_hosts"] == []


def test_a_server_that_lacks_something_is_named(site: Site) -> None:
    site.boot(site.server())
    result = look(site, contents=domain(site, "disk"), repair=True)
    assert (result["heal"], result["undo_hosts"], result["again"]) == ([site.row()["uuid"]], [], True)


def test_the_servers_that_cures_touch_are_leased_until_the_last_look(site: Site) -> None:
    site.boot(site.server())
    write(site, delete(table("allocations")))
    look(site, repair=True)
    (lease,) = site.rows("leases")
    assert lease["instance_uuid"] == site.row()["uuid"]
    look(site, state="mended")
    assert len(site.rows("leases")) == 1
    look(site)
    assert site.rows("leases") == []


def test_a_host_that_has_something_to_undo_is_asked_to(site: Site) -> None:
    site.boot(site.server())
    row = site.row()

    def leave(connection: Any) -> None:
        residues.write(connection, [instances.known(connection, [row["uuid"]])[row["uuid"]]])

    Records(site.records_url).run(leave)
    result = look(site, contents={"kvm1": {"contents": {}}}, repair=True)
    assert (result["undo_hosts"], result["again"]) == (["kvm1"], True)


def test_check_mode_tells_the_cures_and_takes_nothing(site: Site) -> None:
    site.boot(site.server())
    contents, before = domain(site, "disk"), site.dump()
    result = look(site, contents=contents, repair=True, check=True)
    assert result["again"]
    assert site.dump() == before


def claim_and_port(site: Site, gone: str) -> None:
    """What a delete would have given back, given to a server that is no more."""
    write(
        site,
        update(table("allocations")).values(consumer_id=gone),
        update(table("ports")).where(table("ports").c.device_owner == "compute:").values(device_id=gone),
    )


def test_the_records_own_leftovers_go_in_one_transaction(site: Site) -> None:
    site.boot(site.server("old"))
    gone = site.row("old")["uuid"]
    site.delete("old")
    site.boot(site.server())
    claim_and_port(site, gone)
    assert kinds(look(site)) == {"claim", "port"}
    seen = site.phase("audit", "root", state="begun", project="demo")["seen"]
    result = site.phase("audit", "root", state="mended", project="demo", contents=SILENT, seen=seen)
    assert result["changed"]
    assert result["cures"] == 3
    assert {effect.split()[0] for effect in result["effects"]} == {"allocation.claim", "port.record"}
    assert site.claims() == {"web": {"VCPU": 1, "MEMORY_MB": 128, "DISK_GB": 1}}
    assert (site.ports(), site.ports("network:dhcp"), site.rows("ip_allocations")) == ([], [], [])
    assert kinds(look(site)) == set()
    again = site.phase("audit", "root", state="mended", project="demo", contents=SILENT, seen=result["seen"])
    assert (again["changed"], again["cures"]) == (False, 0)


def test_mending_in_check_mode_writes_nothing(site: Site) -> None:
    site.boot(site.server("old"))
    gone = site.row("old")["uuid"]
    site.delete("old")
    site.boot(site.server())
    claim_and_port(site, gone)
    before = site.dump()
    assert look(site, state="mended", check=True)["changed"]
    assert site.dump() == before


def test_a_lost_claim_is_what_the_scheduler_had_claimed(site: Site) -> None:
    site.boot(site.server(volumes=[{"size": 3}]))
    before = site.claims()
    used = site.used()
    write(site, delete(table("allocations")))
    assert kinds(look(site)) == {"claim", "inventory"}
    look(site, state="mended")
    assert site.claims() == before
    assert site.used() == used
    assert kinds(look(site)) == set()


def test_cpus_and_devices_that_nobody_has_are_given_back(site: Site) -> None:
    site.scheduler = {"pci_alias": [{"name": "gpu", "vendor_id": "10de", "product_id": "1eb8"}]}
    site.record("kvm1", **NUMA, **devices(1))
    site.boot(site.server("old", flavor="pinned"), site.server("card", flavor="gpu"))
    free = site.used()
    gone = table("instances").c
    write(
        site,
        delete(table("allocations")),
        delete(table("ip_allocations")),
        delete(table("ports")),
        update(table("instances")).values(deleted=gone.id, vm_state="DELETED", host=None),
    )
    assert kinds(look(site)) == {"claim", "inventory"}
    look(site, state="mended")
    assert free
    assert site.used() == {}
    assert site.rows("pinned_cpus") == site.rows("numa_claims") == []
    assert [row["consumer_id"] for row in site.rows("pci_devices")] == [None]
    assert kinds(look(site)) == set()


def test_a_lost_claim_keeps_the_cpus_that_the_guest_has(site: Site) -> None:
    site.record("kvm1", **NUMA)
    site.boot(site.server(flavor="pinned"))
    before, rows = site.claims(), site.rows("pinned_cpus")
    write(site, delete(table("allocations")))
    assert kinds(look(site)) == {"claim", "inventory"}
    look(site, state="mended")
    assert (site.claims(), site.rows("pinned_cpus")) == (before, rows)
    assert kinds(look(site)) == set()


def test_cpus_on_another_host_are_given_back(site: Site) -> None:
    site.record("kvm1", **NUMA)
    site.boot(site.server(flavor="pinned"))
    site.record("kvm1", "kvm2")
    write(site, update(table("instances")).values(host="kvm2"), update(table("ports")).values(binding_host="kvm2"))
    look(site, state="mended")
    assert site.rows("pinned_cpus") == []
    assert {host for host, _name in site.used()} == {"kvm2"}
    assert kinds(look(site)) == set()


def test_what_is_used_of_a_host_is_counted_anew(site: Site) -> None:
    site.boot(site.server())
    before = site.dump()
    write(
        site,
        update(table("inventories")).where(table("inventories").c.resource_class == "MEMORY_MB").values(used=4000),
        update(table("compute_nodes")).values(servers=7),
    )
    found = [item for item in look(site)["findings"] if item["kind"] == "inventory"]
    assert [item["object"] for item in found] == [
        "MEMORY_MB: 4000 used, 128 claimed",
        "servers: 7 counted, 1 have a claim",
    ]
    assert {item["cure"] for item in found} == {"counted anew"}
    result = look(site, state="mended")
    assert result["effects"] == ["allocation.claim kvm1"]
    assert site.dump() == before
    assert kinds(look(site)) == set()


def test_a_claim_on_a_host_that_is_not_recorded_is_not_made(site: Site) -> None:
    site.boot(site.server())
    write(site, delete(table("allocations")), update(table("instances")).values(host="kvm9"))
    look(site, state="mended")
    assert site.claims() == {}
    assert "claim" in kinds(look(site))


def test_a_claim_and_a_binding_elsewhere_are_moved_to_where_the_server_lives(site: Site) -> None:
    site.record("kvm1", "kvm2")
    site.boot(site.server())
    lives = site.row()["host"]
    other = "kvm2" if lives == "kvm1" else "kvm1"
    write(site, update(table("instances")).values(host=other))
    assert kinds(look(site)) == {"claim", "port"}
    look(site, state="mended")
    nodes = {row["host"]: row["id"] for row in site.rows("compute_nodes")}
    assert {row["compute_node_id"] for row in site.rows("allocations")} == {nodes[other]}
    assert {row["binding_host"] for row in site.ports()} == {other}
    look(site, state="mended")  # the DHCP port stays where no port is any more, until now
    assert {row["binding_host"] for row in site.ports("network:dhcp")} <= {other}


@pytest.mark.parametrize("status", ["in-use", "attaching", "reserved", "creating"])
@pytest.mark.parametrize("host", ["kvm1", None])
def test_a_volume_that_no_server_has_is_free_or_was_never_made(site: Site, status: str, host: str | None) -> None:
    values = {
        "id": str(uuid.uuid4()), "name": "data", "project_id": "p", "size": 1, "volume_type": "directory",
        "status": status, "host": host, "created_at": "2026-01-01T00:00:00.000000Z",
    }  # fmt: skip
    write(site, insert(table("volumes")).values(**values))
    assert kinds(look(site)) == {"volume"}
    look(site, state="mended")
    assert [row["status"] for row in site.rows("volumes")] == (["available"] if host else [])
    assert kinds(look(site)) == set()


def test_the_volumes_of_a_server_that_is_no_more_are_kept(site: Site) -> None:
    site.boot(site.server(volumes=[{"size": 1, "delete_on_termination": True}]))
    uuid_ = site.row()["uuid"]
    write(
        site,
        update(table("instances")).values(deleted=table("instances").c.id, vm_state="DELETED", host=None),
        delete(table("allocations")),
    )
    assert uuid_ in {item["uuid"] for item in look(site)["findings"]}
    look(site, state="mended")
    assert site.rows("block_device_mappings") == []
    assert [row["status"] for row in site.rows("volumes")] == ["available"]


def test_a_volume_of_an_active_server_is_in_use(site: Site) -> None:
    site.boot(site.server(volumes=[{"size": 1}]))
    write(site, update(table("volumes")).values(status="attaching"))
    assert kinds(look(site)) == {"volume"}
    look(site, state="mended")
    assert [row["status"] for row in site.rows("volumes")] == ["in-use"]


# Other runs


def take(site: Site, owner: str, process_: str) -> None:
    uuids = [row["uuid"] for row in site.rows("instances")]
    Records(site.records_url).run(lambda c: leases.take(c, uuids, owner, process_, process.is_gone))


def test_a_server_that_a_live_run_is_at_work_on_is_passed_over_and_named(site: Site) -> None:
    site.boot(site.server())
    write(site, delete(table("allocations")))
    take(site, "another", process.describe(process.run_pid()))
    result = look(site, state="mended")
    assert kinds(result) == {"inventory"}, "what is used is counted whoever is at work on what"
    assert result["busy"] == ["web: run another is at work on it"]
    assert site.claims() == {}


def test_a_server_that_changed_while_the_hosts_were_looked_at_is_passed_over(site: Site) -> None:
    seen = site.phase("audit", "root", state="begun", project="demo")["seen"]
    site.boot(site.server())
    result = look(site, seen=seen, contents={"kvm1": {"contents": {}}})
    assert kinds(result) == set()
    assert result["busy"] == ["web: it changed while the hosts were looked at"]


def test_a_server_deleted_while_the_hosts_were_looked_at_is_no_leftover(site: Site) -> None:
    site.boot(site.server())
    contents, seen = domain(site), site.phase("audit", "root", state="begun", project="demo")["seen"]
    site.delete("web")
    assert kinds(look(site, seen=seen, contents=contents)) == set()


def test_a_dead_runs_lease_is_dropped(site: Site) -> None:
    site.boot(site.server())
    take(site, "another", f"{process.describe(process.run_pid()).split()[0]} 1 0")  # a process that is not there
    result = look(site, state="mended")
    assert kinds(result) == {"lease"}
    assert site.rows("leases") == []
    assert kinds(look(site)) == set()


def test_an_interrupted_boot_is_told_and_nothing_of_it_touched(site: Site) -> None:
    site.boot(site.server(), last="building")
    write(site, delete(table("leases")))
    before = site.dump()
    result = look(site, state="mended")
    assert [item["left"] for item in result["findings"] if item["kind"] == "server"] == [
        "its boot was interrupted: run it again"
    ]
    assert site.dump() == before
