# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import syslog
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args
from ansible_collections.barestack.kvm.plugins.module_utils.host import system
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import EFFECTS, Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict, HostError
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image, Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import (
    HEARTBEAT,
    HostPhase,
    ends_with_reader,
    execute,
    one_payload,
    run_module,
)


def make(name: str, **changes: Any) -> Instance:
    return Instance(
        id=1,
        uuid=f"uuid-{name}",
        name=name,
        hostname=name,
        project_id="p",
        user_id="u",
        created_at="2026-01-01T00:00:00.000000Z",
        flavor=Flavor("f", "tiny", 1, 64, 1),
        image=Image("i", "img", "/img", "sha256:" + "0" * 64, "qcow2"),
        host="kvm01",
    ).with_(**changes)


class Walker(HostPhase):
    name = "walker"

    def present(self, instance: Instance) -> Instance:
        if instance.name == "bad":
            raise Conflict("bad: is taken")
        self.effects.apply("disk.root", instance.name, lambda: self.params["done"].append(instance.name), after="made")
        return instance.with_(power_state="RUNNING")

    def absent(self, instance: Instance) -> Instance:
        if instance.name == "bad":
            raise OSError("still busy")
        return instance


def run(handle: list[Instance], check: bool = False, **params: Any) -> tuple[dict[str, Any], list[str]]:
    done: list[str] = []
    wire = [to_wire(instance) for instance in handle]
    options = {"instances": wire, "state": "present", "max_concurrent_builds": 4, "done": done, **params}
    return execute(Walker, options, check), done


def test_one_failure_is_a_fault_and_the_neighbours_go_on() -> None:
    result, done = run([make("a"), make("bad"), make("c")])
    states = [from_wire(Instance, item) for item in result["instances"]]
    assert [i.name for i in states] == ["a", "bad", "c"]
    assert sorted(done) == ["a", "c"]
    assert str(states[1].fault) == "walker on kvm01: bad: is taken"
    assert states[1].fault and states[1].fault.code == 409
    assert [event.result for i in states for event in i.events] == ["Success", "Error", "Success"]
    assert "Conflict" in str(states[1].events[0].traceback)


def test_a_faulted_instance_is_passed_over() -> None:
    first, _ = run([make("bad")])
    again, done = run([from_wire(Instance, first["instances"][0]).with_(name="good")])
    assert done == []
    assert again["changed"] is False


def test_a_failed_undo_is_stuck_and_later_undos_keep_off() -> None:
    first, _ = run([make("bad")], state="absent")
    stuck = from_wire(Instance, first["instances"][0])
    assert stuck.fault is None
    assert stuck.stuck and stuck.stuck.message == "OSError: still busy"
    again, _ = run([stuck], state="absent")
    assert len(again["instances"][0]["events"]) == 1


def test_check_mode_reports_and_does_nothing() -> None:
    result, done = run([make("a")], check=True)
    assert done == []
    assert result["changed"] is True
    assert result["diff"][0]["after"] == "made"
    assert result["instances"][0]["events"] == []


def test_an_effect_must_be_named() -> None:
    with pytest.raises(KeyError, match="disk.rooot is not in EFFECTS"):
        Effects(False).apply("disk.rooot", "x", lambda: None)


def test_effects_of_threads_are_all_counted() -> None:
    effects = Effects(False)
    name = next(iter(EFFECTS))
    threads = [threading.Thread(target=lambda: effects.apply(name, "x", lambda: None)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(effects.names) == 20


def test_the_wire_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="Instance has no field nmae"):
        from_wire(Instance, {**to_wire(make("a")), "nmae": "x"})


def test_the_wire_carries_everything_both_ways() -> None:
    instance = make("a", metadata={"k": "v"})
    assert from_wire(Instance, to_wire(instance)) == instance


class Reader(HostPhase):
    name = "reader"

    def present(self, instance: Instance) -> Instance:
        return instance


def test_a_module_answers_with_the_handle_once_and_logs_none_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(basic, "has_journal", False)
    monkeypatch.setattr(syslog, "syslog", lambda *arguments: logged.append(str(arguments)))
    handle = [to_wire(make("a", user_data="the password is swordfish"))]
    with patch_module_args({"instances": handle}), pytest.raises(SystemExit) as ended:
        run_module(Reader)
    printed = capsys.readouterr().out
    result = json.loads(printed)
    assert ended.value.code == 0
    assert result["instances"][0]["user_data"] == "the password is swordfish"
    assert printed.count("swordfish") == 1
    assert result["invocation"]["module_args"]["state"] == "present"
    assert logged == []


@contextlib.contextmanager
def forked(work: Callable[[], object]) -> Iterator[int]:
    """A process that does this and ends with 0."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    yield pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def status_within(pid: int, seconds: float) -> int | None:
    """The process's wait status; None where it lives on."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.01)
    return None


def held(descriptor: int, seconds: float) -> None:
    with ends_with_reader(descriptor):
        time.sleep(seconds)


@pytest.mark.parametrize("make_channel", [os.pipe, os.openpty], ids=["pipe", "terminal"])
def test_a_module_ends_with_its_reader(make_channel: Callable[[], tuple[int, int]]) -> None:
    reader, writer = make_channel()

    def module() -> None:
        os.close(reader)
        held(writer, 60)

    with forked(module) as pid:
        os.close(writer)
        assert os.read(reader, 1) in (b"\n", b"\r")
        assert status_within(pid, 0.1) is None
        os.close(reader)
        status = status_within(pid, HEARTBEAT + 1)
    assert status is not None
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_a_module_that_is_read_or_writes_to_a_file_goes_on(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as stream:
        held(stream.fileno(), 2.5 * HEARTBEAT)
    assert (tmp_path / "out").read_bytes() == b"\n\n"
    reader, writer = os.pipe()
    held(writer, 0)
    os.close(writer)
    assert os.read(reader, 1) == b""
    os.close(reader)
    held(writer, 1.5 * HEARTBEAT)  # no output at all


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def pid_in(path: Path) -> int:
    deadline = time.monotonic() + 10
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(path.read_text())


def test_a_killed_phases_command_ends_with_it_and_its_daemon_lives_on(tmp_path: Path) -> None:
    script = "setsid sh -c 'echo $$ >daemon; exec sleep 60' & echo $$ >command; exec sleep 60"
    text = (
        "import threading\n"
        f"from {system.__name__} import run\n"
        "threading.Thread(target=run, args=('env', '-C', %r, 'sh', '-c', %r)).start()\n" % (str(tmp_path), script)
    )
    path = os.pathsep.join(sys.path)
    module = subprocess.Popen([sys.executable, "-c", text], env={**os.environ, "PYTHONPATH": path})
    command, daemon = pid_in(tmp_path / "command"), pid_in(tmp_path / "daemon")
    module.kill()
    module.wait()
    deadline = time.monotonic() + 5
    while alive(command) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(command)
    assert alive(daemon)
    os.kill(daemon, signal.SIGKILL)


def test_a_command_that_is_not_there_is_named() -> None:
    with pytest.raises(HostError, match="no-such-command is not installed here"):
        system.run("no-such-command")


def test_a_module_removes_what_killed_ones_left(tmp_path: Path) -> None:
    def payload(name: str, age: float) -> Path:
        path = tmp_path / f"ansible_{name}"
        path.mkdir(mode=0o700)
        (path / "payload.zip").touch()
        os.utime(path, (time.time() - age, time.time() - age))
        return path

    dead = payload("barestack.kvm.image_payload_dead", 100)
    other, young, mine = (
        payload("community.general.ini_file_payload_x", 100),
        payload("barestack.kvm.disk_payload_young", 0),
        payload("barestack.kvm.disk_payload_mine", 0),
    )
    alive = payload("barestack.kvm.wait_payload_alive", 100)
    (tmp_path / "ansible_barestack.kvm.x_payload_link").symlink_to(other)
    with one_payload(f"{alive}/payload.zip/phase.py"), one_payload(f"{mine}/payload.zip/phase.py"):
        assert not dead.exists()
        assert all((path / "payload.zip").exists() for path in (other, young, alive, mine))
    with one_payload(__file__):
        assert alive.exists()
