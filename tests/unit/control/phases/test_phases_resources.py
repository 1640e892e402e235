# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What servers use: volumes that outlive them, ports and DHCP ports, hosts; and the notifications that go out."""

from __future__ import annotations

import json
import socket
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control import notify
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import (
    BarestackError,
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
)
from sqlalchemy import Connection, text

ANY_DATABASE = pytest.mark.parametrize("records_url", ["sqlite"], indirect=True)
"""For what no database has a part in."""


def sql(site: Any, statement: str) -> None:
    def run(connection: Connection) -> None:
        connection.execute(text(statement))

    Records(site.records_url).run(run)


def volume(site: Any, name: str = "data") -> tuple[str, str | None]:
    (row,) = [row for row in site.rows("volumes") if row["name"] == name]
    return row["status"], row["host"]


def boot_with_new_volume(site: Any, host: str, name: str = "web") -> None:
    """On this host, since the others are disabled meanwhile."""
    others = [other for other in site.hosts if other != host]
    site.phase("compute_node", "root", state="disabled", names=others)
    (instance,) = site.boot(site.server(name, volumes=[{"size": 2, "name": f"data-{name}"}]))
    assert instance["host"] == host
    site.phase("compute_node", "root", state="enabled", names=others)


def test_a_volume_that_was_kept_is_attached_again_where_it_lies(site: Any) -> None:
    site.record("kvm1", "kvm2", "kvm3")
    boot_with_new_volume(site, "kvm2")
    site.delete("web")
    assert volume(site, "data-web") == ("available", "kvm2")
    sql(site, "UPDATE inventories SET total = 90 WHERE resource_class = 'DISK_GB'")

    (instance,) = site.boot(site.server("db", volumes=["data-web"]), twice=True)
    assert instance["host"] == "kvm2"
    removed = site.results["schedule"]["decisions"][instance["uuid"]]["removed"]
    assert {entry["host"]: entry["filter"] for entry in removed} == {"kvm1": "VolumeLocality", "kvm3": "VolumeLocality"}
    assert site.claims()["db"]["DISK_GB"] == 1, "the volume's own place is not taken twice"
    assert volume(site, "data-web") == ("in-use", "kvm2")
    assert instance["block_devices"][0]["volume_id"] == site.rows("volumes")[0]["id"]

    site.delete("db")
    assert volume(site, "data-web") == ("available", "kvm2")
    site.boot(site.server("third", volumes=[site.rows("volumes")[0]["id"]]))
    assert volume(site, "data-web") == ("in-use", "kvm2")


def test_a_volume_that_a_server_has_is_refused_to_others(site: Any) -> None:
    boot_with_new_volume(site, "kvm1")
    site.delete("web")
    for last, status in (("instance", "reserved"), ("volume", "attaching"), ("active", "in-use")):
        site.boot(site.server("db", volumes=["data-web"]), last=last)
        assert volume(site, "data-web") == (status, "kvm1")
        with pytest.raises(Conflict, match=f"Server late: Invalid volume: .* but current status is: {status}"):
            site.boot(site.server("late", volumes=["data-web"]))
        assert [row["name"] for row in site.rows("instances")] == ["web", "db"]


@ANY_DATABASE
def test_a_volume_goes_with_its_host(site: Any) -> None:
    site.record("kvm1", "kvm2")
    boot_with_new_volume(site, "kvm1", "one")
    boot_with_new_volume(site, "kvm2", "two")
    site.delete("one", "two")
    handle = site.boot(site.server(volumes=["data-one", "data-two"]))
    assert "VolumeLocality removed kvm1 (volumes of the server lie on kvm2)" in handle[0]["fault"]["message"]
    site.undo(site.results["active"]["to_undo"])
    assert volume(site, "data-one") == ("reserved", "kvm1")
    site.delete("web")
    assert volume(site, "data-one") == ("available", "kvm1")


def test_a_delete_that_is_repeated_late_does_not_free_what_another_server_has(site: Any) -> None:
    boot_with_new_volume(site, "kvm1")
    late = site.delete("web", last="deleting")
    site.delete("web")
    site.boot(site.server("db", volumes=["data-web"]))
    before = site.dump()
    site.undo(late, ("volume_absent", "port_absent", "schedule_absent", "absent"))
    assert site.changed().isdisjoint({"volume_absent", "port_absent", "schedule_absent", "absent"})
    assert site.dump() == before


def test_a_volume_name_that_several_have_is_refused(site: Any) -> None:
    site.boot(
        site.server("a", volumes=[{"size": 1, "name": "data"}]), site.server("b", volumes=[{"size": 1, "name": "data"}])
    )
    site.delete("a", "b")
    ids = sorted(row["id"] for row in site.rows("volumes"))
    with pytest.raises(
        InvalidRequest, match=f"More than one volume is named 'data': use the id, one of {', '.join(ids)}"
    ):
        site.boot(site.server(volumes=["data"]))
    site.boot(site.server(volumes=[ids[1]]))


@ANY_DATABASE
def test_volumes_belong_to_a_project(site: Any) -> None:
    boot_with_new_volume(site, "kvm1")
    site.delete("web")
    for reference in ("data-web", site.rows("volumes")[0]["id"], "nothing"):
        with pytest.raises(InvalidRequest, match=f"Server web: volume '{reference}' does not exist in this project"):
            site.boot(site.server(volumes=[reference]), user="bob")


def test_after_a_rollback_a_volume_that_stays_draws_its_server_to_its_host(site: Any) -> None:
    site.record("kvm1", "kvm2")
    boot_with_new_volume(site, "kvm2")
    site.delete("web")
    own = [{"size": 2, "name": "data"}, {"size": 1, "name": "tmp", "delete_on_termination": True}]
    request = site.server(volumes=["data-web", *own])
    (instance,) = site.boot(request, host=site.failed, max_attempts=1)
    site.undo(site.results["active"]["to_undo"], twice=True)
    assert volume(site, "data-web") == ("reserved", instance["host"])
    assert volume(site) == volume(site, "tmp") == ("creating", None), "nothing is on those that it makes itself"
    site.phase("compute_node", "root", state="disabled", names=[instance["host"]], reason="bad disk")
    (again,) = site.boot(request)
    assert "disabled: bad disk" in again["fault"]["message"]
    assert f"volumes of the server lie on {instance['host']}" in again["fault"]["message"]
    site.undo(site.results["active"]["to_undo"])
    site.phase("compute_node", "root", state="enabled", names=[instance["host"]])
    (again,) = site.boot(request)
    assert instance["host"] == again["host"] == "kvm2"
    assert volume(site) == volume(site, "tmp") == volume(site, "data-web") == ("in-use", "kvm2")


def test_one_dhcp_port_for_a_network_and_host_until_the_last_server_goes(site: Any) -> None:
    site.record("kvm1", "kvm2", vcpus=1)
    sql(site, "UPDATE inventories SET allocation_ratio = 2 WHERE resource_class = 'VCPU'")
    handle = site.boot(site.server("s", count=4), site.server("n", network="narrow", flavor="half"), last="port")
    by_host = {host: [item for item in handle if item["host"] == host] for host in ("kvm1", "kvm2")}
    assert sorted(map(len, by_host.values())) == [2, 2]
    made = {row["binding_host"]: row["id"] for row in site.ports("network:dhcp")}
    assert set(made) == {"kvm1", "kvm2"}
    for host, (first, second) in by_host.items():
        for instance in (first, second):
            assert [port["network"]["dhcp_port"]["id"] for port in instance["ports"]] == [made[host]]
    addresses = [row["ip_address"] for row in site.rows("ip_allocations")]
    assert len(addresses) == len(set(addresses)) == 6
    assert "192.0.2.1" not in addresses, "the gateway's"

    first, second = by_host["kvm1"]
    site.delete(first["name"])
    assert {row["binding_host"] for row in site.ports("network:dhcp")} == {"kvm1", "kvm2"}
    site.delete(second["name"])
    assert {row["binding_host"]: row["id"] for row in site.ports("network:dhcp")} == {"kvm2": made["kvm2"]}
    assert site.results["port_absent"]["effects"][-1].startswith("dhcp_port.record ")
    site.delete(*(item["name"] for item in by_host["kvm2"]))
    assert site.rows("ports") == site.rows("ip_allocations") == []


@ANY_DATABASE
def test_a_network_without_dhcp_has_no_dhcp_port(site: Any) -> None:
    (instance,) = site.boot(site.server(network="narrow"))
    assert instance["ports"][0]["network"]["dhcp_port"] is None
    assert site.ports("network:dhcp") == []


@ANY_DATABASE
def test_addresses_are_given_back(site: Any) -> None:
    for _ in range(3):
        handle = site.boot(site.server("s", network="narrow", count=5), last="port")
        assert [item["fault"] for item in handle] == [None] * 5
        site.delete(*(item["name"] for item in handle))
    assert site.rows("ip_allocations") == []


def own_port(site: Any, **changes: Any) -> dict[str, Any]:
    request = {"name": "kept", "network": "private", "fixed_ip": "192.0.2.40", **changes}
    result = site.phase("port", requests=[request])
    (port,) = result["ports"]
    return {**port, "changed": result["changed"]}


def nics(*items: dict[str, str]) -> dict[str, Any]:
    return {"network": None, "nics": list(items)}


@pytest.mark.parametrize("check", [False, True])
def test_a_server_takes_ports_of_its_own_and_others_in_the_order_asked_for(site: Any, check: bool) -> None:
    port = own_port(site)
    assert port["changed"]
    assert not own_port(site)["changed"]
    request = site.server(
        **nics({"net-name": "narrow"}, {"port-name": "kept"}, {"net-name": "private", "tag": "third"})
    )
    (instance,) = site.boot(request, check=check)
    assert [item["network"]["name"] for item in instance["ports"]] == ["narrow", "private", "private"]
    assert instance["ports"][1]["id"] == port["id"]
    assert instance["ports"][1]["fixed_ips"][0]["ip_address"] == "192.0.2.40"
    assert instance["ports"][2]["tag"] == "third"
    assert instance["vm_state"] == "ACTIVE"
    if check:
        return
    with pytest.raises(Conflict, match="Server late: Port .* is still in use"):
        site.boot(site.server("late", **nics({"port": port["id"]})))
    with pytest.raises(Conflict, match="Port kept cannot be deleted directly: server"):
        site.phase("port", state="absent", names=["kept"])
    site.delete("web", twice=True)
    assert [(row["id"], row["status"], row["binding_host"]) for row in site.rows("ports")] == [
        (port["id"], "DOWN", None)
    ]
    assert site.phase("port", state="absent", names=["kept"])["changed"]
    assert not site.phase("port", state="absent", names=["kept"])["changed"]
    assert site.rows("ip_allocations") == []


@ANY_DATABASE
def test_a_port_that_is_asked_for_otherwise_is_refused(site: Any) -> None:
    own_port(site)
    assert not own_port(site, fixed_ip=None)["changed"]
    for change in ({"fixed_ip": "192.0.2.41"}, {"network": "narrow", "fixed_ip": None}):
        with pytest.raises(Conflict, match=r"Port kept exists on network .* with 192\.0\.2\.40: delete it first"):
            own_port(site, **change)
    for name, message in (("", "is empty"), ("x" * 256, "at most 255"), ("a\nb", "cannot be printed")):
        with pytest.raises(InvalidRequest, match=message):
            own_port(site, name=name)
    assert len(site.rows("ports")) == 1


def test_ids_of_the_catalogue_as_long_as_they_may_be(site: Any) -> None:
    site.catalog["networks"][0].update(id="n" * 64)
    site.catalog["networks"][0]["subnets"][0].update(id="s" * 64)
    site.catalog["projects"][0]["id"] = "p" * 64
    assert site.boot(site.server())[0]["vm_state"] == "ACTIVE"


@ANY_DATABASE
def test_a_server_without_a_host_gets_neither_port_nor_volume(site: Any) -> None:
    handle = site.boot(site.server(volumes=[{"size": 1}]), last="compute_node")
    for phase in ("port", "volume"):
        (instance,) = site.phase(phase, instances=handle)["instances"]
        assert instance["fault"]["message"] == "Server web has no host: schedule it first"
    assert site.rows("ports") == []
    assert volume(site, "web-blank-vol") == ("creating", None)


def test_a_host_is_disabled_and_enabled_by_an_admin(site: Any) -> None:
    site.record("kvm1", "kvm2")
    for state in ("disabled", "enabled"):
        with pytest.raises(Forbidden, match="User alice needs the role admin"):
            site.phase("compute_node", state=state, names=["kvm1"])
    off = {"state": "disabled", "names": ["kvm1"], "reason": "new disks on Monday"}
    assert site.phase("compute_node", "root", check=True, **off)["changed"]
    assert site.phase("compute_node", "root", **off)["changed"]
    assert not site.phase("compute_node", "root", **off)["changed"]
    assert site.phase("compute_node", "root", **{**off, "reason": "later"})["changed"]
    handle = site.boot(site.server("s", count=3))
    assert {item["host"] for item in handle} == {"kvm2"}
    (decision, *_) = site.results["schedule"]["decisions"].values()
    assert decision["removed"] == [{"host": "kvm1", "filter": "ComputeStatus", "reason": "disabled: later"}]
    assert any("kvm1  removed    ComputeStatus: disabled: later" in line for line in site.results["schedule"]["why"])
    site.record("kvm1", "kvm2")
    assert not site.rows("compute_nodes")[0]["enabled"], "a heartbeat does not enable"
    assert site.phase("compute_node", "root", state="enabled", names=["kvm1", "kvm2"])["changed"]
    assert [(row["enabled"], row["disabled_reason"]) for row in site.rows("compute_nodes")] == [(True, "")] * 2
    with pytest.raises(
        NotFound, match="Compute host kvm9 is not recorded: run playbooks/prepare_hosts.yml for it first"
    ):
        site.phase("compute_node", "root", state="disabled", names=["kvm1", "kvm9"])
    assert site.rows("compute_nodes")[0]["enabled"]


@ANY_DATABASE
def test_a_host_that_is_not_heard_of_any_more_is_down(site: Any) -> None:
    site.record("kvm1")
    sql(site, "UPDATE compute_nodes SET updated_at = '2026-01-01T00:00:00.000000Z'")
    assert site.phase("compute_node", state="stale", names=["kvm1", "kvm2"])["stale"] == ["kvm1", "kvm2"]
    handle = site.boot(site.server(), last="instance")
    (instance,) = site.phase("schedule", instances=handle)["instances"]
    assert "ComputeFilter removed kvm1 (down: last seen 2026-01-01T00:00:00.000000Z)" in instance["fault"]["message"]
    site.record("kvm1")
    assert site.phase("compute_node", state="stale", names=["kvm1"])["stale"] == []


@ANY_DATABASE
def test_a_report_is_a_change_where_the_host_is_another(site: Any) -> None:
    site.record("kvm1")
    same = {"reports": [site.report("kvm1", disk_available_gb=3, running_domains=9)]}
    assert not site.phase("compute_node", **same)["changed"]
    more = site.phase("compute_node", reports=[{**site.report("kvm1", vcpus=8), "cpu_allocation_ratio": 2}])
    assert more["changed"]
    assert '"vcpus": 8' in more["diff"][0]["after"]
    assert {row["resource_class"]: row["total"] for row in site.rows("inventories")}["VCPU"] == 8
    site.boot(site.server())
    site.record("kvm1", vcpus=1)
    assert site.claims() == {"web": {"VCPU": 1, "MEMORY_MB": 128, "DISK_GB": 1}}, "a smaller host keeps its servers"


class Receiver:
    """A web server on the loopback that keeps what it is sent."""

    def __init__(self) -> None:
        received: list[tuple[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # noqa: N802 - the library's name
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append((self.headers["Content-Type"], json.loads(body)))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.received = received
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/events"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def finish(site: Any, name: str = "web", **options: Any) -> dict[str, Any]:
    handle = [site.built(item) for item in site.boot(site.server(name), last="building")]
    result: dict[str, Any] = site.phase("instance", state="active", instances=handle, **options)
    assert site.states(name) == ("ACTIVE", None, "RUNNING")
    return result


@ANY_DATABASE
def test_notifications_go_to_a_file_and_to_an_address(site: Any, receiver: Receiver) -> None:
    result = finish(site, notification_url=receiver.url)
    ((kind, batch),) = receiver.received
    assert kind == "application/cloudevents-batch+json"
    assert batch == site.events()
    (event,) = batch
    row = site.row()
    assert (event["specversion"], event["type"], event["subject"]) == (
        "1.0",
        "barestack.kvm.instance.create.end",
        row["uuid"],
    )
    assert event["data"]["display_name"] == "web"
    assert (event["data"]["host"], event["data"]["state"], event["data"]["launched_at"]) == (
        "kvm1",
        "ACTIVE",
        row["launched_at"],
    )
    assert event["data"]["ip_addresses"] == [
        entry["ip_address"]
        for entry in site.rows("ip_allocations")
        if entry["port_id"] in {port["id"] for port in site.ports()}
    ]
    assert stat.S_IMODE(site.notifications.stat().st_mode) == 0o600
    assert [effect for effect in result["effects"] if effect.startswith("notification.send")] == [
        f"notification.send {site.notifications}",
        f"notification.send {receiver.url}",
    ]
    finish(site, "db", notification_file="", notification_url=receiver.url)
    assert (len(site.events()), len(receiver.received)) == (1, 2)


def silent() -> str:
    """An address on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"


@ANY_DATABASE
def test_an_address_that_takes_nothing_is_a_warning(site: Any) -> None:
    (warning,) = finish(site, notification_url=silent())["warnings"]
    assert warning.startswith("notification_url: http://127.0.0.1:")
    assert len(site.events()) == 1


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "http://[", "http://127.0.0.1:99999/", "http:///x", "http://a b/"])
def test_an_address_that_is_none_is_a_failure_of_ours_to_name(url: str) -> None:
    with pytest.raises(BarestackError, match="^notification_url: ") as error:
        notify.post([{}], url)
    assert url in str(error.value)


@ANY_DATABASE
def test_an_address_that_speaks_something_else_is_a_warning(site: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        (warning,) = finish(site, notification_url=url)["warnings"]
        thread.join()
    assert f"{url} did not take the notification" in warning


@ANY_DATABASE
def test_a_file_that_cannot_be_written_is_a_warning_and_the_address_is_told(site: Any, receiver: Receiver) -> None:
    (site.directory / "file").write_text("")
    (warning,) = finish(site, notification_file=f"{site.directory}/file/events.jsonl", notification_url=receiver.url)[
        "warnings"
    ]
    assert warning.startswith("notification_file: ")
    assert len(receiver.received) == 1
