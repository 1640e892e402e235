# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""network, dhcp and firewall one after the other: killed at any instant, and for many instances at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import Any, List

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host import netlink
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    Instance,
    SecurityGroup,
    SecurityGroupRule,
)

from .conftest import Lab, shell

GROUP = SecurityGroup(
    "5e01",
    "default",
    (SecurityGroupRule("egress", "IPv4"), SecurityGroupRule("ingress", "IPv4", remote_group_id="5e01")),
)
PHASES = ("network", "dhcp", "firewall")


def walk(lab: Lab, servers: List[Instance], state: str) -> List[str]:
    order = PHASES if state == "present" else PHASES[::-1]
    return [effect for name in order for effect in lab.must(name, *servers, state=state)]


def killed(work: Any, after: float) -> bool:
    """Runs ``work`` in a process that is killed after so many seconds; whether that was before its end."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(after)
    running = child.is_alive()
    if running:
        os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    return running


@pytest.mark.parametrize("part", range(8))
def test_a_call_killed_anywhere_is_finished_by_the_next(lab: Lab, part: int) -> None:
    net = lab.network()
    servers = [lab.instance(lab.port(net, (GROUP,)), hostname=f"vm{number}") for number in range(2)]
    links = set(lab.links())
    begun = time.monotonic()
    walk(lab, servers, "present")
    present = time.monotonic() - begun
    begun = time.monotonic()
    walk(lab, servers, "absent")
    absent = time.monotonic() - begun
    for state, seconds in (("present", present), ("absent", absent)):
        if state == "absent":
            walk(lab, servers, "present")
        killed(lambda state=state: walk(lab, servers, state), seconds * (part + 0.5) / 8)
        walk(lab, servers, state)
        assert walk(lab, servers, state) == []
        if state == "present":
            text = (lab.paths.dhcp_directory(net.id), lab.links()[net.bridge]["mtu"], shell("nft list ruleset"))
            assert sorted(name for name in os.listdir(text[0]) if not name.startswith(".")) == [
                "addn_hosts", "host", "interface", "leases", "opts", "pid",
            ]  # fmt: skip
            assert text[1] == 1400
            assert all(server.ports[0].tap_device in text[2] for server in servers)
    assert set(lab.links()) == links
    assert not netlink.namespace_exists(net.namespace)
    assert not shell("nft list ruleset")
    assert not lab.state_files()


def test_twenty_instances_need_no_more_processes_than_one(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that a call starts are counted where all of them pass; each still runs."""
    from ansible_collections.barestack.kvm.plugins.module_utils.host import system

    started: List[str] = []
    real = system.run

    def counted(*command: str, **options: Any) -> str:
        started.append(command[0])
        return real(*command, **options)

    monkeypatch.setattr(system, "run", counted)
    found = []
    for number, count in ((1, 1), (2, 20)):
        net = lab.network(number)
        servers = [lab.instance(lab.port(net, (GROUP,)), hostname=f"vm{item}") for item in range(count)]
        for state in ("present", "present", "absent"):
            started.clear()
            walk(lab, servers, state)
            found.append(list(started))
    assert found[:3] == found[3:]
    assert [len(commands) for commands in found[:3]] == [6, 4, 5]
