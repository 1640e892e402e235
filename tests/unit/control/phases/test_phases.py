# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A server's life in the records, step by step; killed after each, checked, and refused where it must be."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import (
    BarestackError,
    Conflict,
    QuotaExceeded,
)
from sqlalchemy import Connection, text

CLAIM = {"VCPU": 1, "MEMORY_MB": 128, "DISK_GB": 3}
"""The flavor tiny and a volume of 2 GiB."""
STEPS = ("instance", "stale", "compute_node", "schedule", "port", "volume", "building", "active")
CHANGING = {"instance", "compute_node", "schedule", "port", "volume", "active"}

ANY_DATABASE = pytest.mark.parametrize("records_url", ["sqlite"], indirect=True)
"""For what no database has a part in."""


def with_volume(site: Any, **changes: Any) -> dict[str, Any]:
    request: dict[str, Any] = site.server(volumes=[{"size": 2, "name": "data"}], **changes)
    return request


def test_a_whole_life(site: Any) -> None:
    request = with_volume(site, wait_for="lease")
    (instance,) = site.boot(request, last="instance", twice=True)
    assert site.changed() == {"instance"}
    assert site.states() == ("BUILDING", "scheduling", "NOSTATE")
    assert site.rows("block_device_mappings")[0]["instance_uuid"] == instance["uuid"]
    assert [(row["name"], row["status"], row["host"]) for row in site.rows("volumes")] == [("data", "creating", None)]
    assert [(row["action"], row["finish_time"]) for row in site.rows("instance_actions")] == [("create", None)]

    (instance,) = site.boot(request, last="compute_node", twice=True)
    assert site.changed() == {"compute_node"}
    assert site.results["stale"]["stale"] == ["kvm1"]
    assert [row["host"] for row in site.rows("compute_nodes")] == ["kvm1"]
    totals = {row["resource_class"]: (row["total"], row["reserved"]) for row in site.rows("inventories")}
    assert totals == {"VCPU": (4, 0), "MEMORY_MB": (4608, 512), "DISK_GB": (100, 0)}

    (instance,) = site.boot(request, last="schedule", twice=True)
    assert site.changed() == {"schedule"}
    assert site.results["stale"]["stale"] == []
    assert site.results["schedule"]["hosts"] == ["kvm1"]
    assert site.claims() == {"web": CLAIM}
    assert (site.row()["host"], site.row()["availability_zone"]) == ("kvm1", "nova")

    (instance,) = site.boot(request, last="port", twice=True)
    assert site.changed() == {"port"}
    assert site.states() == ("BUILDING", "networking", "NOSTATE")
    (port,) = site.ports()
    assert (port["status"], port["binding_host"], port["device_id"]) == ("BUILD", "kvm1", instance["uuid"])
    assert port["mac_address"].startswith("fa:16:3e:")
    assert instance["ports"][0]["network"]["dhcp_port"]["id"] == site.ports("network:dhcp")[0]["id"]
    assert len(site.rows("ip_allocations")) == 2

    (instance,) = site.boot(request, last="volume", twice=True)
    assert site.changed() == {"volume"}
    assert site.states() == ("BUILDING", "block_device_mapping", "NOSTATE")
    assert [(row["status"], row["host"]) for row in site.rows("volumes")] == [("attaching", "kvm1")]

    (instance,) = site.boot(request, last="building", twice=True)
    assert site.changed() == set()
    assert site.states() == ("BUILDING", "spawning", "NOSTATE")

    (instance,) = site.boot(request)
    assert site.changed() == {"active"}
    assert site.results["active"]["waiting"] == ["kvm1"]
    assert site.results["active"]["to_undo"] == []
    assert site.states() == ("ACTIVE", None, "RUNNING")
    launched = site.row()["launched_at"]
    assert launched
    assert site.ports()[0]["status"] == "ACTIVE"
    assert [(row["status"], row["host"]) for row in site.rows("volumes")] == [("in-use", "kvm1")]
    path = f"/pool/{site.rows('volumes')[0]['id']}"
    assert site.rows("block_device_mappings")[0]["connection_info"] == {"data": {"device_path": path}}
    (action,) = site.rows("instance_actions")
    assert action["finish_time"]
    assert action["message"] is None
    assert [(row["event"], row["result"], row["host"]) for row in site.rows("instance_action_events")] == [
        ("domain", "Success", "kvm1")
    ]
    assert [event["type"] for event in site.events()] == ["barestack.kvm.instance.create.end"]

    before = site.dump()
    (instance,) = site.boot(request, twice=True)
    assert site.changed() == set()
    assert site.dump() == before
    assert (instance["vm_state"], instance["launched_at"], instance["wait_for"]["condition"]) == (
        "ACTIVE",
        launched,
        "lease",
    )

    (instance,) = site.delete("web", last="deleting", twice=True)
    assert site.changed() == {"deleting"}
    assert site.states() == ("ACTIVE", "deleting", "RUNNING")
    assert (instance["host"], len(instance["ports"]), len(instance["block_devices"])) == ("kvm1", 1, 1)
    site.delete("web", twice=True)
    assert site.changed() == {"volume_absent", "port_absent", "schedule_absent", "absent"}
    assert_gone(site, volumes=[("data", "available", "kvm1")])
    assert [row["action"] for row in site.rows("instance_actions")] == ["create", "delete"]
    assert all(row["finish_time"] for row in site.rows("instance_actions"))
    assert [event["type"].rsplit(".", 3)[1:] for event in site.events()][1:] == [["instance", "delete", "end"]]

    assert site.delete("web") == []
    assert (site.changed(), site.results["deleting"]["missing"]) == (set(), ["web"])


def assert_gone(site: Any, name: str = "web", volumes: Any = ()) -> None:
    """Nothing of the server is in use any more."""
    assert site.states(name)[:2] == ("DELETED", None)
    assert (site.row(name)["host"], bool(site.row(name)["deleted"])) == (None, True)
    for table in ("allocations", "ports", "ip_allocations", "block_device_mappings"):
        assert site.rows(table) == [], table
    assert [(row["name"], row["status"], row["host"]) for row in site.rows("volumes")] == list(volumes)


@pytest.mark.parametrize("killed_after", STEPS)
def test_a_boot_killed_after_any_step_goes_on(site: Any, killed_after: str) -> None:
    requests = [with_volume(site), site.server("db")]
    before = site.boot(*requests, last=killed_after, twice=killed_after != "active")
    done = site.changed()
    site.kill()
    after = site.boot(*requests, twice=killed_after == "active")
    assert done | site.changed() == CHANGING
    assert done & site.changed() == set()
    assert [item["uuid"] for item in after] == [item["uuid"] for item in before or after]
    assert site.states("web") == site.states("db") == ("ACTIVE", None, "RUNNING")
    assert site.claims() == {"web": CLAIM, "db": {**CLAIM, "DISK_GB": 1}}
    assert (len(site.ports()), len(site.ports("network:dhcp")), len(site.rows("volumes"))) == (2, 1, 1)
    assert [row["action"] for row in site.rows("instance_actions")] == ["create", "create"]
    assert len(site.events()) == 2


@ANY_DATABASE
@pytest.mark.parametrize(
    ("killed_after", "state"),
    [
        ("deleting", "active"),
        ("volume_absent", "volume"),
        ("port_absent", "active"),
        ("schedule_absent", "port"),
        ("absent", "instance"),
    ],
)
def test_a_delete_killed_after_any_step_goes_on(site: Any, killed_after: str, state: str) -> None:
    request = site.server(volumes=[{"size": 2, "delete_on_termination": True}])
    site.boot(request, last=state)
    site.kill()
    site.delete("web", last=killed_after, twice=True)
    site.kill()
    site.delete("web", twice=True)
    assert_gone(site)
    assert [event["type"] for event in site.events() if "delete" in event["type"]] == [
        "barestack.kvm.instance.delete.end"
    ]
    site.boot(request)
    assert site.states() == ("ACTIVE", None, "RUNNING")


def test_a_delete_of_some_that_are_not_there_takes_the_others(site: Any) -> None:
    (web,) = site.boot(site.server())
    site.delete("nothing", web["uuid"], "web", "nor-this")
    assert site.results["deleting"]["missing"] == ["nothing", "nor-this"]
    assert len(site.results["deleting"]["instances"]) == 1
    assert_gone(site)


@pytest.mark.fresh
def test_check_mode_goes_through_a_fresh_site_and_leaves_nothing(site: Any) -> None:
    request = with_volume(site, wait_for="lease")
    (instance,) = site.boot(request, site.server("db"), check=True)[:1]
    assert site.changed() == {"instance", "compute_node", "schedule", "port", "volume", "active"}
    assert (instance["vm_state"], instance["host"], len(instance["ports"])) == ("ACTIVE", "kvm1", 1)
    assert any("chosen" in entry["after"] for entry in site.results["schedule"]["diff"])
    address = instance["ports"][0]["fixed_ips"][0]["ip_address"]
    assert address in "".join(entry["after"] for entry in site.results["port"]["diff"])
    assert not (site.directory / "records.db").exists()
    assert not site.notifications.exists()
    assert [path.name for path in site.directory.iterdir()] == []


@ANY_DATABASE
def test_check_mode_counts_what_its_own_request_takes(site: Any) -> None:
    handle = site.boot(*(site.server(f"s{number}", flavor="half") for number in range(3)), check=True)
    assert [item["host"] for item in handle] == ["kvm1", "kvm1", None]
    addresses = [ip["ip_address"] for item in handle for port in item["ports"] for ip in port["fixed_ips"]]
    assert len(set(addresses)) == 2


def test_check_mode_on_records_that_are_there_leaves_them(site: Any) -> None:
    site.boot(site.server())
    site.boot(site.server("bad"), host=site.failed, max_attempts=1)
    site.undo(site.results["active"]["to_undo"])
    before = site.dump()
    handle = site.boot(site.server(), site.server("bad"), site.server("new"), check=True)
    assert [item["vm_state"] for item in handle] == ["ACTIVE", "ACTIVE", "ACTIVE"]
    assert site.results["schedule"]["effects"] == ["allocation.claim bad", "allocation.claim new"]
    assert len(site.results["active"]["effects"]) == 2
    site.delete("web", check=True)
    assert site.changed() == {"deleting", "port_absent", "schedule_absent", "absent"}
    assert site.dump() == before


@ANY_DATABASE
def test_an_immutable_property_is_refused_and_nothing_is_written(site: Any) -> None:
    site.boot(site.server())
    before = site.dump()
    for change, message in (
        ({"flavor": "small"}, "its flavor is tiny "),
        ({"meta": {"a": "b"}}, "its meta is none, not {a=b}"),
        ({"volumes": [{"size": 1}]}, "its volumes are none, not {size=1"),
        ({"security_groups": ["web"]}, "its security_groups are default "),
        ({"network": "narrow"}, "its networks are "),
    ):
        with pytest.raises(Conflict, match=message):
            site.boot(site.server("another"), site.server(**change))
    assert site.dump() == before


def test_the_quota_counts_what_is_there_and_what_is_new(site: Any) -> None:
    site.boot(site.server())
    before = site.dump()
    for quota, message in (
        ({"instances": 2}, "Quota exceeded for instances in project demo: requested 2, but already used 1 of 2"),
        ({"cores": 2}, "Quota exceeded for cores in project demo: requested 2, but already used 1 of 2 cores."),
        ({"ram": 300}, "Quota exceeded for ram in project demo: requested 256, but already used 128 of 300 ram."),
    ):
        site.catalog["projects"][0]["quota"] = quota
        with pytest.raises(QuotaExceeded, match=message):
            site.boot(site.server(), site.server("b"), site.server("c"))
    assert site.dump() == before
    site.boot(site.server(), site.server("b"), last="instance")
    site.delete("web")
    site.boot(site.server("c"), last="instance")


@ANY_DATABASE
def test_an_unlimited_quota(site: Any) -> None:
    site.catalog["projects"][0]["quota"] = {"instances": -1, "cores": -1, "ram": -1}
    assert len(site.boot(site.server(count=30), last="instance")) == 30


def test_one_without_a_host_does_not_stop_the_others(site: Any) -> None:
    handle = site.boot(site.server(), site.server("giant", flavor="huge"), site.server("db"))
    assert [item["vm_state"] for item in handle] == ["ACTIVE", "ERROR", "ACTIVE"]
    (giant,) = site.results["active"]["to_undo"]
    message = giant["fault"]["message"]
    assert message.startswith("No valid host was found: 1 host entered; Capacity removed kvm1 (ram: 65536 wanted")
    assert site.results["schedule"]["hosts"] == ["kvm1"]
    site.undo([giant], twice=True)
    assert site.states("giant") == ("ERROR", None, "NOSTATE")
    assert site.row("giant")["fault"]["message"] == message
    assert set(site.claims()) == {"web", "db"}
    assert [row["message"] for row in site.rows("instance_actions")].count("Error") == 1


def test_a_server_in_error_is_booted_again(site: Any) -> None:
    request = with_volume(site, availability_zone="nova")
    site.boot(request, host=site.failed, max_attempts=1)
    site.undo(site.results["active"]["to_undo"], twice=True)
    assert site.states() == ("ERROR", None, "NOSTATE")
    assert site.rows("compute_nodes")[0]["failed_builds"] == 1
    assert site.rows("leases") == site.rows("residues") == []

    (instance,) = site.boot(request, twice=True)
    assert site.changed() == {"instance", "schedule", "port", "volume", "active"}
    assert instance["fault"] is None
    assert site.states() == ("ACTIVE", None, "RUNNING")
    assert site.row()["fault"] is None
    assert site.rows("compute_nodes")[0]["failed_builds"] == 0
    assert [row["message"] for row in site.rows("instance_actions")] == ["Error", None]
    assert [event["type"].split(".", 2)[2] for event in site.events()] == [
        "instance.create.error",
        "instance.create.end",
    ]


@ANY_DATABASE
@pytest.mark.parametrize("max_attempts", [1, 3])
@pytest.mark.parametrize("killed_after", [None, "volume_back", "port_back", "schedule_back", "undone"])
def test_a_rollback_killed_after_any_step(site: Any, killed_after: str | None, max_attempts: int) -> None:
    """Whether it was the last attempt or another host is next: the next run undoes what is left, and begins anew."""
    site.record("kvm1")
    steps = (None, "volume_back", "port_back", "schedule_back", "undone")
    request = site.server(volumes=[{"size": 2, "delete_on_termination": True}])
    site.boot(request, host=site.failed, max_attempts=max_attempts)
    assert site.residues() == [("web", "kvm1")]
    done = steps[1 : steps.index(killed_after) + 1]
    if done:
        site.undo(site.results["active"]["to_undo"], done, twice=True)
    site.kill()

    if max_attempts > 1:
        site.record("kvm1", "kvm2")
    undone: list[str] = []
    (instance,) = site.play(request, undo=lambda item: undone.append(item["host"]) or item)
    assert undone == ([] if killed_after == "undone" else ["kvm1"]), "what is left is undone first, and once"
    assert site.steps.count("active") == 1, "no attempt is lost on what an earlier run failed with"
    assert (instance["vm_state"], instance["fault"], instance["attempts"]) == ("ACTIVE", None, [])
    assert instance["host"] == ("kvm2" if max_attempts > 1 else "kvm1"), "not where a build failed, if there is another"
    assert site.states() == ("ACTIVE", None, "RUNNING")
    assert site.row()["fault"] is None
    assert (len(site.ports()), len(site.rows("ip_allocations")), site.claims()) == (1, 2, {"web": CLAIM})
    assert site.rows("leases") == site.rows("residues") == []
    site.delete("web", twice=True)
    assert_gone(site)


def test_a_rollback_leaves_nothing_in_use(site: Any) -> None:
    requests = site.server(volumes=[{"size": 2, "delete_on_termination": True}]), site.server("db")
    site.boot(*requests, host=site.failed, max_attempts=1)
    failed = site.results["active"]["to_undo"]
    assert [item["name"] for item in failed] == ["web", "db"]
    site.undo(failed, twice=True)
    for table in ("allocations", "ports", "ip_allocations", "leases", "residues"):
        assert site.rows(table) == [], table
    assert [(row["status"], row["host"]) for row in site.rows("volumes")] == [("creating", None)]
    assert [(row["vm_state"], row["host"]) for row in site.rows("instances")] == [("ERROR", None), ("ERROR", None)]
    assert site.rows("compute_nodes")[0]["failed_builds"] == 2
    assert {row["message"] for row in site.rows("instance_actions")} == {"Error"}
    faults = {event["data"]["fault"] for event in site.events()}
    assert faults == {"disk on kvm1: no space left"}


def test_what_could_not_be_undone_keeps_all_it_has(site: Any) -> None:
    request = with_volume(site)
    site.boot(request, host=site.failed, max_attempts=1)
    held = {table: site.rows(table) for table in ("allocations", "ports", "ip_allocations", "volumes")}
    stuck = [site.stuck(item) for item in site.results["active"]["to_undo"]]
    site.undo(stuck, twice=True)
    assert {table: site.rows(table) for table in held} == held
    assert site.states() == ("ERROR", None, "NOSTATE")
    assert site.row()["host"] == "kvm1"
    assert site.residues() == [("web", "kvm1")]
    (deleted,) = site.delete("web", last="deleting")
    assert deleted["host"] == "kvm1"
    assert site.results["deleting"]["to_undo"] == [], "the delete itself goes to the server's own host"
    site.undo([site.stuck(deleted)], ("volume_absent", "port_absent", "schedule_absent", "absent"), twice=True)
    assert {table: site.rows(table) for table in held} == held
    assert site.states()[:2] == ("ERROR", "deleting")
    assert site.residues() == [("web", "kvm1")]
    site.delete("web")
    assert_gone(site, volumes=[("data", "available", "kvm1")])
    assert site.residues() == []


@ANY_DATABASE
def test_a_stuck_server_that_is_booted_again_stays_on_its_host(site: Any) -> None:
    site.record("kvm1", "kvm2")
    (before,) = site.boot(site.server(), host=site.failed)
    site.undo([site.stuck(item) for item in site.results["active"]["to_undo"]])
    assert site.states() == ("ERROR", None, "NOSTATE"), "it may run there: no other host is tried"
    (after,) = site.play(site.server(), undo=site.stuck)
    assert "device is busy" in after["fault"]["message"], "nor is it built before that is undone"
    assert (site.states(), site.row()["host"]) == (("ERROR", None, "NOSTATE"), before["host"])
    (after,) = site.boot(site.server())
    assert (after["host"], after["ports"][0]["id"]) == (before["host"], before["ports"][0]["id"])
    assert site.states() == ("ACTIVE", None, "RUNNING")
    assert (site.claims()["web"]["VCPU"], site.row()["availability_zone"]) == (1, "nova")


@ANY_DATABASE
@pytest.mark.parametrize("last", ["instance", "schedule", "port", "volume"])
def test_a_building_server_is_deleted(site: Any, last: str) -> None:
    site.boot(with_volume(site), last=last)
    site.kill()
    site.delete("web", twice=True)
    assert_gone(site, volumes=[("data", "available", "kvm1")] if last == "volume" else [])


def test_a_server_in_error_is_deleted(site: Any) -> None:
    request = site.server(volumes=[{"size": 2, "delete_on_termination": True}])
    site.boot(request, host=site.failed, max_attempts=1)
    site.undo(site.results["active"]["to_undo"])
    site.delete("web", twice=True)
    assert_gone(site)


@ANY_DATABASE
def test_a_server_that_is_being_deleted_is_not_booted(site: Any) -> None:
    site.boot(site.server())
    site.delete("web", last="deleting")
    with pytest.raises(Conflict, match="Server web is being deleted: finish that with playbooks/delete_instance.yml"):
        site.boot(site.server())


def test_a_fixed_address_that_is_taken_stops_one_server_only(site: Any) -> None:
    nic = {"net-name": "private", "v4-fixed-ip": "192.0.2.77"}
    pinned = {key: value for key, value in site.server("pinned").items() if key != "network"}
    handle = site.boot({**pinned, "nics": [nic]}, site.server("db"), last="schedule")
    site.boot({**pinned, "name": "first", "nics": [nic]})
    result = site.phase("port", instances=handle)
    first, second = result["instances"]
    assert first["fault"]["code"] == 409
    assert first["fault"]["message"].startswith("IP address 192.0.2.77 already allocated in subnet ")
    assert (second["fault"], len(second["ports"])) == (None, 1)
    assert result["hosts"] == ["kvm1"]
    with pytest.raises(Conflict, match=r"Server third: Fixed IP address 192\.0\.2\.77 is already in use on network"):
        site.boot({**pinned, "name": "third", "nics": [nic]})


def test_a_network_that_is_full_stops_one_server_only(site: Any) -> None:
    handle = site.boot(site.server("s", network="narrow", count=6))
    full = [item for item in handle if item["fault"]]
    assert [item["fault"]["message"].split(" on network")[0] for item in full] == ["No more IP addresses available"]


def test_names_and_texts_of_any_kind(site: Any) -> None:
    names = ["Robert'); DROP TABLE instances;--", "%s {{ x }} %(y)s", "сервер-1", "名前", "🦊", 'a"b\\c', "x" * 255]
    site.catalog["projects"][0]["quota"] = {"instances": -1, "cores": -1, "ram": -1}
    site.record("kvm1", vcpus=64, memory_mb=65536)
    handle = site.boot(*(site.server(name, volumes=[{"size": 1}], userdata="\0\U0001f98a\n") for name in names))
    assert [item["name"] for item in handle] == names
    assert [item["vm_state"] for item in handle] == ["ACTIVE"] * len(names)
    assert handle[0]["user_data"] == "\0\U0001f98a\n"
    table = site.phase("instance_info")["table"]
    assert len(table) == 1 + len(names)
    site.delete(*names)
    assert {row["vm_state"] for row in site.rows("instances")} == {"DELETED"}


def test_a_very_long_fault_with_anything_in_it_is_kept(site: Any) -> None:
    message = "qemu-img: \0 \udce4\n" + "x" * 200_000
    times = {"start_time": "2026-01-01T00:00:00.000000Z", "finish_time": "2026-01-01T00:00:01.000000Z"}
    event = {"event": "disk", **times, "result": "Error", "host": "kvm1", "traceback": message}
    site.boot(site.server(), host=lambda item: {**site.failed(item, message), "events": [event]}, max_attempts=1)
    site.undo(site.results["active"]["to_undo"])
    assert len(site.row()["fault"]["message"]) == len(message)
    assert site.rows("instance_action_events")[-1]["traceback"].endswith("x" * 200_000)
    table = site.phase("instance_info")["table"]
    assert len(table) == 2
    assert len(table[1]) < 400
    assert "\n" not in table[1]
    assert "disk on kvm1: qemu-img:" in table[1]


def test_a_handle_without_instances(site: Any) -> None:
    assert site.boot() == []
    assert site.results["active"]["hosts"] == site.results["active"]["waiting"] == []
    assert site.changed() == {"compute_node"}
    assert site.undo([]) == []
    assert site.delete() == []
    assert site.phase("instance_info")["instances"] == []


@ANY_DATABASE
def test_a_server_is_active_only_where_its_guest_runs(site: Any) -> None:
    (instance,) = site.boot(site.server(), host=lambda item: site.built(item, power_state="PAUSED"))
    assert instance["fault"]["message"].startswith("the guest is PAUSED")
    assert len(site.results["active"]["to_undo"]) == 1


def test_records_that_a_newer_collection_made_are_refused_in_check_mode(site: Any) -> None:
    def older(connection: Connection) -> None:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    Records(site.records_url).run(older)
    with pytest.raises(BarestackError, match="are of version 9999"):
        site.boot(site.server(), check=True)
