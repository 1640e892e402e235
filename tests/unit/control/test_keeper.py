# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The keeper with real processes and short times; and how a process is told from another with its number."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control import keeper, process
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records, leases
from sqlalchemy import Connection, text

EVERY = 0.1
DURATION = 1.0
SERVERS = ("a", "b", "of another run")


class Kept:
    """Records in which a run, a process of its own, has the leases of some servers."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.records = Records(url)
        self.run = subprocess.Popen(["sleep", "60"])
        self.records.run(self._begin)

    def _begin(self, connection: Connection) -> None:
        for number, uuid in enumerate(SERVERS, 1):
            values = {"id": number, "uuid": uuid, "name": uuid}
            connection.execute(
                text(
                    "INSERT INTO instances (id, uuid, project_id, user_id, name, request, spec, vcpus, memory_mb, "
                    "vm_state, power_state, created_at, updated_at, deleted) VALUES "
                    "(:id, :uuid, 'p', 'u', :name, '{}', '{}', 1, 1, 'BUILDING', 'NOSTATE', '', '', 0)"
                ),
                values,
            )
        for owner, uuids in (("mine", ["a", "b"]), ("another", ["of another run"])):
            leases.take(connection, uuids, owner, process.describe(self.run.pid), lambda _: False)

    def live(self) -> set[str]:
        """The servers whose lease has not expired, whoever has it."""
        return set(self.records.run(lambda connection: leases.live(connection, lambda _: False)))

    def held(self) -> set[str]:
        """The servers whose lease is this run's, expired or not."""
        return self.records.run(lambda connection: leases.held(connection, SERVERS, "mine"))

    def end(self) -> None:
        self.run.kill()
        self.run.wait()


@pytest.fixture
def kept(records_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    monkeypatch.setattr(leases, "DURATION", DURATION)
    monkeypatch.setattr(keeper, "_EVERY", EVERY)
    monkeypatch.setattr(keeper, "GRACE", 0.5)
    kept = Kept(records_url)
    own = Path("/proc/thread-self/comm")
    name = own.read_text()
    own.write_text(f"test {os.getpid()}")
    yield kept
    kept.end()
    until(lambda: not keepers())
    own.write_text(name)


def keepers() -> list[str]:
    """The processes that are keepers of these tests: forks of this one, with its name, in sessions of their own."""
    mine = Path("/proc/thread-self/comm").read_bytes()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(entry.name)
            lives = (entry / "cmdline").read_bytes() != b""
            if lives and (entry / "comm").read_bytes() == mine and os.getsid(pid) != os.getsid(0):
                found.append(entry.name)
    return found


def until(is_so: Callable[[], bool], seconds: float = 20.0) -> float:
    """Wait for something; returns how long it took."""
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() - started < seconds
        time.sleep(0.02)
    return time.monotonic() - started


def test_a_keeper_renews_as_long_as_the_run_lives_and_then_gives_back(kept: Kept) -> None:
    keeper.start(kept.url, "mine", kept.run.pid)
    (number,) = keepers()
    assert os.stat(f"/proc/{number}/fd/1").st_rdev == os.stat(os.devnull).st_rdev, "Ansible would wait for its output"
    deadline = time.monotonic() + 3 * DURATION
    while time.monotonic() < deadline:
        assert {"a", "b"} <= kept.live()
        time.sleep(0.1)
    assert "of another run" not in kept.live(), "it keeps its own run's only"
    kept.end()
    assert until(lambda: not kept.held()) >= 0.3, "the run's modules end first"
    assert kept.records.run(lambda connection: leases.held(connection, SERVERS, "another")) == {"of another run"}
    until(lambda: not keepers())


def test_a_keeper_of_a_run_that_has_ended_leaves_its_leases_to_the_next(kept: Kept) -> None:
    """Between the taking and the keeper's start: such a run is dead for everybody else, too."""
    kept.end()
    keeper.start(kept.url, "mine", kept.run.pid)
    until(lambda: not keepers())
    assert kept.held() == {"a", "b"}
    assert process.is_gone(lease_of(kept, "a").process)


def lease_of(kept: Kept, uuid: str) -> leases.Lease:
    return kept.records.run(lambda connection: leases.live(connection, lambda _: False))[uuid]


@pytest.mark.parametrize("records_url", ["sqlite"], indirect=True)
def test_a_keeper_outlives_records_that_are_away(kept: Kept, tmp_path: Path) -> None:
    keeper.start(kept.url, "mine", kept.run.pid)
    (tmp_path / "records.db").rename(tmp_path / "away.db")
    (tmp_path / "records.db").mkdir()
    time.sleep(5 * EVERY)
    assert keepers()
    (tmp_path / "records.db").rmdir()
    (tmp_path / "away.db").rename(tmp_path / "records.db")
    time.sleep(DURATION + 5 * EVERY)
    assert {"a", "b"} <= kept.live()


def test_the_caller_goes_on_at_once_and_has_no_child(kept: Kept) -> None:
    started = time.monotonic()
    keeper.start(kept.url, "mine", kept.run.pid)
    assert time.monotonic() - started < 5
    with pytest.raises(ChildProcessError):
        while True:
            number, _ = os.waitpid(-1, os.WNOHANG)
            if number == 0:
                assert Path(f"/proc/{kept.run.pid}").exists()
                break
        kept.end()
        os.waitpid(-1, 0)


# Who a process is


def test_a_process_is_there_until_it_ends() -> None:
    child = subprocess.Popen(["sleep", "60"])
    described = process.describe(child.pid)
    assert not process.is_gone(described)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.is_gone(described), "its corpse is not it"
    assert process.describe(child.pid) == ""
    child.wait()
    assert process.is_gone(described)


def test_another_process_with_the_same_number_is_another() -> None:
    machine, pid, start = process.describe(os.getpid()).split(" ")
    assert int(pid) == os.getpid()
    assert not process.is_gone(f"{machine} {pid} {start}")
    assert process.is_gone(f"{machine} {pid} {int(start) - 1}")


@pytest.mark.parametrize("elsewhere", ["", "00000000-0000-0000-0000-000000000000/4026531836 1 1"])
def test_of_another_machines_processes_nothing_is_known(elsewhere: str) -> None:
    assert not process.is_gone(elsewhere)


def test_a_process_with_an_odd_name_is_described(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([program, "60"])
    try:
        until(lambda: Path(f"/proc/{child.pid}/comm").read_text() == "a) S 1 (b\n")
        described = process.describe(child.pid)
        assert described
        assert not process.is_gone(described)
    finally:
        child.kill()
        child.wait()
    assert process.is_gone(described)


def test_a_workers_run_is_its_parent() -> None:
    assert process.run_pid() == os.getpid()
    context: Any = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    worker = context.Process(target=lambda: answers.put(process.run_pid()))
    worker.start()
    assert answers.get() == os.getpid()
    worker.join()
