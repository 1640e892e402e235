# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Sessions over a shell on this machine: all of them but SSH. tests/integration/test_module_ends.py has that."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.plugin_utils import session

DEFAULTS = {name: option["default"] for name, option in Paths.argument_spec.items()}
UUID = "11111111-0000-4000-8000-000000000001"


def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
    return found


def alive(pid: int | str) -> bool:
    """Not a zombie either: its parent may be slow to look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Run:
    """A run with one host. Its phase reads a console: one that exists, or a pipe that nobody writes to."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.playbook = subprocess.Popen(["sleep", "600"])
        self.greeting = ":"
        self.prepare()

    def prepare(self) -> None:
        home = self.home
        (home / "python").write_text(f'#!/bin/sh\necho $$ >> {home}/pids\nexec /usr/bin/python3 "$@"\n')
        (home / "python").chmod(0o755)
        self.console = Path(Paths(log_path=str(home)).console_log(UUID))
        self.console.parent.mkdir(parents=True, exist_ok=True)
        self.console.write_text("here\n")

    @property
    def command(self) -> list[str]:
        # As sshd's, the shell is a process of its own and no signal to it reaches the Python.
        return ["/bin/sh", "-c", f"{self.greeting}; {session.remote_command(str(self.home / 'python'))}; exit $?"]

    def ask(self, **params: Any) -> dict[str, Any]:
        request = {
            "phase": "console_log",
            "params": {**DEFAULTS, "uuids": [UUID], "lines": 20, "log_path": str(self.home), **params},
            "check_mode": False,
            "environment": {},
        }
        return session.ask(session.Start(self.command, "kvm01"), str(self.home), self.playbook.pid, request)

    def blocked(self) -> None:
        """From now on the phase waits."""
        self.console.unlink()
        os.mkfifo(self.console)

    def pythons(self) -> list[int]:
        """The hosts' ends that were started and live."""
        found = (self.home / "pids").read_text().split() if (self.home / "pids").exists() else []
        return [int(pid) for pid in found if alive(pid)]

    def phases(self) -> list[int]:
        """The processes of phases at work."""
        pids = self.pythons()
        return [int(child) for pid in pids for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def clients(self) -> list[int]:
        """The shells that stand for SSH clients."""
        status = [Path(f"/proc/{pid}/status").read_text() for pid in self.pythons()]
        return [int(text.split("PPid:")[1].split()[0]) for text in status]

    def end(self) -> None:
        self.playbook.kill()
        self.playbook.wait()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path)
    try:
        yield run
    finally:
        run.end()
        until(lambda: not run.pythons())


def in_background(run: Run) -> Future[dict[str, Any]]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(run.ask)
    pool.shutdown(wait=False)
    until(run.phases)
    return future


def test_one_python_answers_for_the_whole_run(run: Run) -> None:
    answers = [run.ask() for _ in range(3)]
    assert [answer["consoles"] for answer in answers] == [{UUID: ["here"]}] * 3
    assert len((run.home / "pids").read_text().split()) == 1


def test_a_phase_that_fails_is_a_result(run: Run) -> None:
    assert run.ask(lines=0) == {"failed": True, "msg": "lines is 0, but must be at least 1", "code": 400}
    assert run.ask()["consoles"] == {UUID: ["here"]}


def test_what_a_login_prints_is_passed_over(run: Run) -> None:
    run.greeting = "echo Welcome to kvm01; printf 'no end of line'; echo; echo barestack.kvm is not ready"
    assert run.ask()["consoles"] == {UUID: ["here"]}


def test_a_large_answer_comes_whole(run: Run) -> None:
    lines = [f"line {number} " + "x" * 200 for number in range(5000)]
    run.console.write_text("\n".join(lines) + "\n")
    assert run.ask(lines=300)["consoles"] == {UUID: lines[-300:]}


def test_without_python_there_is_no_session(run: Run) -> None:
    run.greeting = "exit 127"
    with pytest.raises(session.NoSession):
        run.ask()
    run.greeting = ":"
    assert run.ask()["consoles"] == {UUID: ["here"]}


def test_a_home_with_a_long_path_does_as_well(run: Run) -> None:
    run.home = run.home / ("x" * 120)
    run.home.mkdir()
    run.prepare()
    assert run.ask()["consoles"] == {UUID: ["here"]}


def test_all_ends_with_the_run(run: Run) -> None:
    run.ask()
    run.end()
    until(lambda: not run.pythons(), 1)
    until(lambda: not list(run.home.glob("session-*")), 1)


def test_a_phase_at_work_ends_with_the_run(run: Run) -> None:
    run.blocked()
    future = in_background(run)
    [phase] = run.phases()
    run.end()
    until(lambda: not run.pythons() and not alive(phase), 1)
    with pytest.raises(session.Lost):
        future.result(5)


def test_a_phase_at_work_ends_with_its_worker(run: Run) -> None:
    run.blocked()
    worker = multiprocessing.get_context("fork").Process(target=run.ask)
    worker.start()
    [phase] = until(run.phases)
    worker.kill()
    worker.join()
    until(lambda: not run.pythons() and not alive(phase), 1)


def test_a_phase_ends_with_the_hosts_python(run: Run) -> None:
    run.blocked()
    future = in_background(run)
    [phase] = run.phases()
    os.kill(run.pythons()[0], signal.SIGKILL)
    until(lambda: not alive(phase), 1)
    with pytest.raises(session.Lost) as lost:
        future.result(5)
    assert lost.value.returncode == 128 + signal.SIGKILL


def test_a_phase_ends_with_the_connection(run: Run) -> None:
    run.blocked()
    future = in_background(run)
    [phase], [client], [python] = run.phases(), run.clients(), run.pythons()
    os.kill(client, signal.SIGKILL)
    # SSH would end the host's end, which it starts over the network; this one has the same pipes as the client.
    os.kill(python, signal.SIGKILL)
    until(lambda: not alive(phase), 1)
    with pytest.raises(session.Lost) as lost:
        future.result(5)
    assert lost.value.returncode == -signal.SIGKILL


def test_a_phase_that_is_killed_says_so_and_the_session_goes_on(run: Run) -> None:
    run.blocked()
    future = in_background(run)
    os.kill(run.phases()[0], signal.SIGKILL)
    answer = future.result(5)
    assert answer == {"failed": True, "msg": "console_log: its process on the host was killed (-9)"}
    run.console.unlink()
    run.console.write_text("here\n")
    assert run.ask()["consoles"] == {UUID: ["here"]}
    assert len((run.home / "pids").read_text().split()) == 1


def test_a_session_that_ended_between_two_phases_is_started_again(run: Run) -> None:
    run.ask()
    [client], [python] = run.clients(), run.pythons()
    os.kill(client, signal.SIGKILL)
    os.kill(python, signal.SIGKILL)
    until(lambda: not list(run.home.glob("session-*")))
    assert run.ask()["consoles"] == {UUID: ["here"]}
    assert len((run.home / "pids").read_text().split()) == 2
