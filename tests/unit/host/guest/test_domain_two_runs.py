# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Two runs at once on one domain, against libvirtd; and a console log that cannot be read."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import driver
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import execute
from ansible_collections.barestack.kvm.plugins.modules.console_log import ConsoleLog
from ansible_collections.barestack.kvm.plugins.modules.domain import Domain

LOGS = "/var/log/libvirt/barestack-two-runs"
ROOTS = {"instances_path": "/var/lib/libvirt/images", "log_path": LOGS, "virt_type": "qemu"}


def options(instance: Instance, state: str) -> dict[str, Any]:
    given = {**ROOTS, "instances": [to_wire(instance)], "state": state}
    return dict(ArgumentSpecValidator(Domain.argument_spec).validate(given).validated_parameters)


def run(instance: Instance, state: str) -> Instance:
    return from_wire(Instance, execute(Domain, options(instance, state), False)["instances"][0])


def at_once(instance: Instance, state: str) -> list[Instance]:
    start = threading.Barrier(2)
    results: list[Instance] = []

    def work() -> None:
        start.wait()
        results.append(run(instance, state))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture
def server(tiny: Instance, need_system_libvirt: None) -> Iterator[Instance]:
    yield tiny
    assert run(tiny, "absent").stuck is None
    if os.path.isdir(LOGS):
        os.rmdir(LOGS)


def test_both_boot_it_and_both_remove_it(server: Instance) -> None:
    for _ in range(3):
        assert [str(item.fault) for item in at_once(server, "present") if item.fault] == []
        assert [str(item.stuck) for item in at_once(server, "absent") if item.stuck] == []


def test_the_name_of_a_domain_that_the_other_run_has_just_defined_is_not_taken(server: Instance) -> None:
    run(server, "present")
    phase = Domain(options(server, "present"), Effects(False))
    with driver.connect() as hypervisor:
        assert phase._before(hypervisor, server, None, False) == ""


def test_a_console_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    bad, good = "1" * 8 + "-1111-4111-8111-" + "1" * 12, "2" * 8 + "-2222-4222-8222-" + "2" * 12
    (tmp_path / f"{bad}.console.log").mkdir()
    (tmp_path / f"{good}.console.log").write_text("login:\n")
    given = {"uuids": [bad, good], "log_path": str(tmp_path)}
    params = ArgumentSpecValidator(ConsoleLog.argument_spec).validate(given).validated_parameters
    consoles = execute(ConsoleLog, params, False)["consoles"]
    assert consoles[good] == ["login:"]
    assert "cannot be read: Is a directory" in consoles[bad][0]
