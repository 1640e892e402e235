# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)

from __future__ import annotations

import json
import syslog
import threading
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import EFFECTS, Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image, Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import HostPhase, execute, run_module


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
