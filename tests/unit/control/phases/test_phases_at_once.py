# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Runs at the same time: processes that race for the same thing, and two runs in an order that they may really take."""

from __future__ import annotations

import multiprocessing
import threading
import time
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


def in_a_run_of_its_own(site: Any, work: Callable[[], Any]) -> Callable[[int], Any]:
    """The work with another token in each process."""
    site.token()  # the keys are there

    def run(number: int) -> Any:
        site.run = f"run {number}"
        return work()

    return run


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
    assert all("ram: 2048 wanted, 0 free of (4608 - 512 reserved) x 1.0" in message for message in full)
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
    site.token()

    def work(number: int) -> Any:
        site.run = f"run {number}"
        return site.phase("instance", requests=[requests[number]])["instances"]

    answers = race(work)
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
    """Each run has a token of its own: one builds, the others wait for it and find what it built."""
    request = site.server(volumes=[{"size": 1}])
    work = in_a_run_of_its_own(site, lambda: site.boot(request, site.server("db")))
    answers = race(work)
    assert faults(answers) == []
    assert len({tuple(item["uuid"] for item in answer) for _, answer in answers}) == 1
    assert {tuple(item["vm_state"] for item in answer) for _, answer in answers} == {("ACTIVE", "ACTIVE")}
    counts = {name: len(site.rows(name)) for name in ("instances", "volumes", "compute_nodes", "instance_actions")}
    assert counts == {"instances": 2, "volumes": 1, "compute_nodes": 1, "instance_actions": 2}
    assert (len(site.ports()), len(site.ports("network:dhcp")), set(site.claims())) == (2, 1, {"web", "db"})
    assert sorted(event["data"]["display_name"] for event in site.events()) == ["db", "web"]
    assert site.rows("leases") == []


def test_the_same_delete_at_once_is_one_delete(site: Any) -> None:
    site.boot(site.server(volumes=[{"size": 1, "delete_on_termination": True}]))
    answers = race(in_a_run_of_its_own(site, lambda: site.delete("web")))
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


class Beside:
    """Another run, in a process beside this one: what it found, once it ended."""

    def __init__(self, site: Any, work: Callable[[], Any]) -> None:
        self._answers: Any = FORK.Queue()
        self._site = site
        site.token()

        def run() -> None:
            site.run = "the other run"
            try:
                self._answers.put(("", work()))
            except BaseException as error:  # noqa: BLE001 - the process has only its answer to say it with
                self._answers.put((repr(error), None))

        self._process = FORK.Process(target=run)
        self._process.start()

    def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for something that it does; it must not have ended by then."""
        deadline = time.monotonic() + 60
        while not is_so():
            assert self._process.is_alive() and time.monotonic() < deadline, "it did not wait"
            time.sleep(0.02)

    def answer(self) -> Any:
        kind, answer = self._answers.get(timeout=60)
        self._process.join()
        assert kind == ""
        return answer


@pytest.mark.parametrize("after", ["instance", "schedule", "port", "volume", "building"])
def test_a_delete_during_a_build_waits_until_the_build_stopped(site: Any, after: str) -> None:
    """It marks the server, waits for the builder's lease, and undoes alone what the builder made."""
    request = site.server(volumes=[{"size": 1, "delete_on_termination": True}])
    handle = site.boot(request, site.server("db"), last=after)
    delete = Beside(site, lambda: site.delete("web"))
    delete.until(lambda: site.states()[1] == "deleting")
    held = {table: len(site.rows(table)) for table in ("ports", "allocations", "volumes")}
    steps = ("instance", "stale", "compute_node", "schedule", "port", "volume", "building", "active")
    for step in steps[steps.index(after) + 1 :]:
        if step == "active":
            handle = [item if item["fault"] else site.built(item) for item in handle]
            assert site.states()[1] == "deleting", "it waits"
            assert len(site.rows("volumes")) == held["volumes"]
        handle = site.step(step, handle, [], {"twice": step != "active"})
    web, db = handle
    assert web["fault"]["message"] == "another run is to delete the server, and removes it now"
    assert (db["fault"], db["vm_state"]) == (None, "ACTIVE")
    assert site.results["active"]["to_undo"] == [], "the delete undoes it"
    (gone,) = delete.answer()
    assert (gone["uuid"], gone["host"]) == (web["uuid"], None if after == "instance" else "kvm1")
    assert site.states()[:2] == ("DELETED", None)
    assert set(site.claims()) == {"db"}
    assert len(site.ports()) == 1
    assert site.rows("volumes") == site.rows("block_device_mappings") == site.rows("leases") == []
    assert [event["type"].rsplit(".", 2)[1] for event in site.events() if event["subject"] == web["uuid"]] == ["delete"]
    assert [(row["action"], row["message"]) for row in site.rows("instance_actions")][-1] == ("delete", None)
    assert all(row["finish_time"] for row in site.rows("instance_actions"))


def test_a_boot_waits_for_another_run_and_takes_up_what_that_came_to(site: Any) -> None:
    first = site.boot(site.server(), last="building")
    second = Beside(site, lambda: (site.boot(site.server()), site.results["instance"]["warnings"]))
    time.sleep(0.2)
    assert len(site.rows("instance_action_events")) == 0
    (first_done,) = site.step("active", [site.built(item) for item in first], [], {})
    ((found,), (warning,)) = second.answer()
    assert (found["uuid"], found["vm_state"], found["host"]) == (first_done["uuid"], "ACTIVE", "kvm1")
    assert warning.startswith("waited ")
    assert warning.endswith(" s for another run, which was at work on web")
    assert len(site.events()) == 1


def test_a_boot_waits_for_a_run_that_gives_up_and_then_tries_itself(site: Any) -> None:
    first = site.boot(site.server(), last="building")
    second = Beside(site, lambda: site.boot(site.server()))
    time.sleep(0.2)
    site.step("active", [site.failed(item) for item in first], [], {"max_attempts": 1})
    site.undo(site.results["active"]["to_undo"])
    assert site.rows("residues") == []
    (found,) = second.answer()
    assert (found["vm_state"], found["fault"], found["host"]) == ("ACTIVE", None, "kvm1")
    assert site.states() == ("ACTIVE", None, "RUNNING")
    assert site.row()["fault"] is None
    assert [row["message"] for row in site.rows("instance_actions")] == ["Error", None]


def test_a_key_that_another_transaction_takes_meanwhile_is_looked_at_again(postgresql: str, site: Any) -> None:
    """PostgreSQL tells of the other's row by its unique key where the transaction did not look for it before."""
    if "postgresql" not in site.records_url:
        pytest.skip("SQLite's transactions do not overlap")
    values = {"host": "kvm1", "updated_at": "", "disabled_reason": "", "failed_builds": 0}
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
