# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Runs at the same time: processes that race for the same thing, and two runs in an order that they may really take."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import compute_nodes
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError
from sqlalchemy import Connection, create_engine, func, insert, select

RACERS = 5
FORK = multiprocessing.get_context("fork")


def race(work: Callable[[int], Any], racers: int = RACERS) -> list[tuple[str, Any]]:
    """(class of the error or "", its text or the answer) of each process; all begin at the same moment."""
    barrier = FORK.Barrier(racers)
    answers: Any = FORK.Queue()

    def run(number: int) -> None:
        try:
            barrier.wait(60)
            answers.put((number, "", work(number)))
        except BarestackError as error:
            answers.put((number, type(error).__name__, str(error)))
        except BaseException as error:  # noqa: BLE001 - the process has only its answer to say it with
            answers.put((number, "crash", repr(error)))

    processes = [FORK.Process(target=run, args=(number,)) for number in range(racers)]
    for process in processes:
        process.start()
    found = sorted(answers.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    return [(kind, answer) for _, kind, answer in found]


def faults(answers: list[tuple[str, Any]]) -> list[str]:
    """The faults of servers that were booted one a process; the test fails where a process did."""
    assert [kind for kind, _ in answers] == [""] * len(answers), answers
    return [answer[0]["fault"]["message"] for _, answer in answers if answer[0]["fault"]]


def test_the_last_slot_is_given_once(site: Any) -> None:
    site.record("kvm1", memory_mb=512 + 2 * 2048)
    handles = [site.boot(site.server(f"s{number}", flavor="half"), last="instance") for number in range(RACERS)]
    answers = race(lambda number: site.phase("schedule", instances=handles[number])["instances"])
    full = faults(answers)
    assert len(full) == RACERS - 2
    assert all("MEMORY_MB: 2048 wanted, 0 free of (4608 - 512 reserved) x 1.0" in message for message in full)
    assert len(site.claims()) == 2
    assert sum(claim["MEMORY_MB"] for claim in site.claims().values()) == 4096
    assert sorted(row["name"] for row in site.rows("instances") if row["host"]) == sorted(site.claims())


def test_a_fixed_address_is_given_once(site: Any) -> None:
    nic = {"net-name": "private", "v4-fixed-ip": "192.0.2.77"}
    handles = [
        site.boot(site.server(f"s{number}", network=None, nics=[nic]), last="schedule") for number in range(RACERS)
    ]
    answers = race(lambda number: site.phase("port", instances=handles[number])["instances"])
    taken = faults(answers)
    assert len(taken) == RACERS - 1
    assert all("IP address 192.0.2.77 already allocated in subnet" in message for message in taken)
    assert len(site.ports()) == len(site.ports("network:dhcp")) == 1


def test_servers_of_one_network_get_addresses_of_their_own(site: Any) -> None:
    handles = [site.boot(site.server(f"s{number}", network="narrow"), last="schedule") for number in range(RACERS)]
    answers = race(lambda number: site.phase("port", instances=handles[number])["instances"])
    assert faults(answers) == []
    rows = site.rows("ip_allocations")
    assert len({row["ip_address"] for row in rows}) == len({row["port_id"] for row in rows}) == RACERS
    assert len({row["mac_address"] for row in site.rows("ports")}) == RACERS


def test_one_dhcp_port_however_many_come_first(site: Any) -> None:
    handles = [site.boot(site.server(f"s{number}"), last="schedule") for number in range(RACERS)]
    answers = race(lambda number: site.phase("port", instances=handles[number])["instances"])
    assert faults(answers) == []
    (server,) = site.ports("network:dhcp")
    assert {answer[0]["ports"][0]["network"]["dhcp_port"]["id"] for _, answer in answers} == {server["id"]}


def test_a_name_is_given_once(site: Any) -> None:
    requests = [site.server(meta={"by": str(number)}) for number in range(RACERS)]
    answers = race(lambda number: site.phase("instance", requests=[requests[number]])["instances"])
    assert sorted(kind for kind, _ in answers) == ["", *["Conflict"] * (RACERS - 1)]
    assert all("its meta is {by=" in message for kind, message in answers if kind)
    (row,) = site.rows("instances")
    (winner,) = [answer for kind, answer in answers if not kind]
    assert winner[0]["uuid"] == row["uuid"]


def test_the_quota_holds(site: Any) -> None:
    site.catalog["projects"][0]["quota"] = {"instances": 2}
    answers = race(lambda number: site.phase("instance", requests=[site.server(f"s{number}")])["instances"])
    assert sorted(kind for kind, _ in answers) == ["", "", *["QuotaExceeded"] * (RACERS - 2)]
    assert len(site.rows("instances")) == 2


def test_a_volume_is_attached_once(site: Any) -> None:
    site.boot(site.server(volumes=[{"size": 1, "name": "data"}]))
    site.delete("web")
    answers = race(
        lambda number: site.phase("instance", requests=[site.server(f"s{number}", volumes=["data"])])["instances"]
    )
    assert sorted(kind for kind, _ in answers) == ["", *["Conflict"] * (RACERS - 1)]
    assert len(site.rows("block_device_mappings")) == 1


def test_the_same_request_at_once_is_one_server(site: Any) -> None:
    request = site.server(volumes=[{"size": 1}])
    answers = race(lambda _: site.boot(request, site.server("db")))
    assert faults(answers) == []
    assert len({tuple(item["uuid"] for item in answer) for _, answer in answers}) == 1
    assert {tuple(item["vm_state"] for item in answer) for _, answer in answers} == {("ACTIVE", "ACTIVE")}
    counts = {name: len(site.rows(name)) for name in ("instances", "volumes", "compute_nodes", "instance_actions")}
    assert counts == {"instances": 2, "volumes": 1, "compute_nodes": 1, "instance_actions": 2}
    assert (len(site.ports()), len(site.ports("network:dhcp")), set(site.claims())) == (2, 1, {"web", "db"})
    assert sorted(event["data"]["display_name"] for event in site.events()) == ["db", "web"]


def test_the_same_delete_at_once_is_one_delete(site: Any) -> None:
    site.boot(site.server(volumes=[{"size": 1, "delete_on_termination": True}]))
    answers = race(lambda _: site.delete("web"))
    assert [kind for kind, _ in answers] == [""] * RACERS, answers
    for table in ("allocations", "ports", "ip_allocations", "volumes", "block_device_mappings"):
        assert site.rows(table) == []
    assert [event["type"].rsplit(".", 2)[1:] for event in site.events()] == [["create", "end"], ["delete", "end"]]
    assert [row["action"] for row in site.rows("instance_actions")] == ["create", "delete"]


@pytest.mark.fresh
def test_the_first_runs_of_a_site_at_once(site: Any) -> None:
    site.token()
    answers = race(lambda number: site.boot(site.server(f"s{number}")))
    assert faults(answers) == []
    assert (len(site.claims()), len(site.rows("compute_nodes"))) == (RACERS, 1)


@pytest.mark.parametrize("ended", [True, False], ids=["deleted", "being deleted"])
@pytest.mark.parametrize("after", ["compute_node", "schedule", "port", "volume", "building"])
def test_a_server_deleted_while_it_is_booted_keeps_nothing(site: Any, after: str, ended: bool) -> None:
    request = site.server(volumes=[{"size": 1, "delete_on_termination": True}])
    handle = site.boot(request, site.server("db"), last=after)
    delete = site.delete("web", last="absent" if ended else "deleting")
    steps = ("schedule", "port", "volume", "building", "active")
    for step in steps[steps.index(after) + 1 if after in steps else 0 :]:
        if step == "active":
            handle = [site.built(item) for item in handle]
        handle = site.step(step, handle, [], {"twice": step != "active"})
    web, db = handle
    assert web["fault"]["message"].startswith("the server was deleted by another run meanwhile")
    assert (db["fault"], db["vm_state"]) == (None, "ACTIVE")
    (undo,) = site.results["active"]["to_undo"]
    assert undo["host"] == (None if after == "compute_node" else "kvm1"), "what this run made there has to go"
    assert bool(undo["ports"]) == (after in ("port", "volume", "building"))
    assert len(undo["block_devices"]) == 1
    site.undo([undo], twice=True)
    if not ended:
        assert site.states()[1] == "deleting"
        site.undo(delete, ("volume_absent", "port_absent", "schedule_absent", "absent"), twice=True)
    assert site.states()[:2] == ("DELETED", None)
    assert set(site.claims()) == {"db"}
    assert len(site.ports()) == 1
    assert site.rows("volumes") == site.rows("block_device_mappings") == []
    assert [event["type"].rsplit(".", 2)[1] for event in site.events() if event["subject"] == web["uuid"]] == ["delete"]


def test_a_server_that_another_run_gave_up_is_given_up_here_too(site: Any) -> None:
    first = site.boot(site.server(), last="building")
    second = site.boot(site.server(), last="schedule")
    site.phase("instance", state="active", instances=[site.failed(item) for item in first])
    site.undo([site.failed(item) for item in first])
    second = site.step("port", second, [], {})
    assert "another run that booted this server failed" in second[0]["fault"]["message"]
    for step in ("volume", "building", "active"):
        second = site.step(step, second, [], {})
    (undo,) = site.results["active"]["to_undo"]
    assert undo["host"] == "kvm1"
    site.undo([undo], twice=True)
    assert site.rows("ports") == site.rows("allocations") == []
    assert site.states() == ("ERROR", None, "NOSTATE")
    assert site.row()["fault"]["message"] == "no space left", "what went wrong, not what followed from it"
    assert site.rows("compute_nodes")[0]["failed_builds"] == 1
    site.boot(site.server())
    assert site.states() == ("ACTIVE", None, "RUNNING")


def test_a_key_that_another_transaction_takes_meanwhile_is_looked_at_again(postgresql: str, site: Any) -> None:
    """PostgreSQL tells of the other's row by its unique key where the transaction did not look for it before."""
    if "postgresql" not in site.records_url:
        pytest.skip("SQLite's transactions do not overlap")
    values = {"host": "kvm1", "hypervisor": {}, "updated_at": "", "disabled_reason": "", "failed_builds": 0}
    tries: list[int] = []

    def work(connection: Connection) -> int:
        tries.append(1)
        if len(tries) > 1:
            return int(connection.scalar(select(func.count()).select_from(compute_nodes)) or 0)
        connection.execute(insert(compute_nodes).values(**values))
        return -1

    other = create_engine(site.records_url, isolation_level="SERIALIZABLE")
    found: list[int] = []
    with other.connect() as connection:
        connection.execute(insert(compute_nodes).values(**values))
        thread = threading.Thread(target=lambda: found.append(Records(site.records_url).run(work)))
        thread.start()
        while not tries:
            thread.join(0.01)
        connection.commit()
        thread.join()
    other.dispose()
    assert (found, len(tries)) == ([1], 2)
