# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A life in which PostgreSQL's answer to every COMMIT is lost is the life in which none is."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import trouble
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError
from sqlalchemy.engine import make_url

from .conftest import Site

Log = list[dict[str, Any]]

pytestmark = pytest.mark.parametrize("records_url", ["postgresql"], indirect=True)


@pytest.fixture
def log(site: Site, monkeypatch: pytest.MonkeyPatch) -> Log:
    """What each phase said, by the names of things."""
    told: Log = []
    phase = site.phase

    def logged(name: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        result = phase(name, *arguments, **options)
        told.append(
            {
                "phase": f"{name} {options.get('state', 'present')}",
                "changed": result["changed"],
                "effects": result["effects"],
                "hosts": result["hosts"],
                "warnings": result.get("warnings"),
                "servers": [_essence(item) for item in result.get("instances", [])],
                "to_undo": [item["name"] for item in result.get("to_undo", [])],
                "retry": [item["name"] for item in result.get("retry", [])],
            }
        )
        return result

    monkeypatch.setattr(site, "phase", logged)
    return told


def _essence(item: dict[str, Any]) -> dict[str, Any]:
    shown = {key: item[key] for key in ("name", "vm_state", "task_state", "power_state", "host", "fault", "stuck")}
    return {**shown, "ports": [port["status"] for port in item["ports"]], "events": len(item["events"])}


def live(site: Site) -> dict[str, Any]:
    """One server is booted at once, one at the second attempt, one not at all; then all are deleted.

    Returns what a reader finds of it afterwards.
    """

    def hosts(item: dict[str, Any]) -> dict[str, Any]:
        fails = item["name"] == "never" or (item["name"] == "later" and not item["attempts"])
        return site.failed(site.built(item)) if fails else site.built(item)

    before = len(site.events())
    site.record("kvm1", "kvm2", "kvm3")
    volume = {"size": 1, "delete_on_termination": True}
    site.play(*(site.server(name, volumes=[volume]) for name in ("web", "later", "never")), hosts=hosts, max_attempts=2)
    states = {name: site.states(name) for name in ("web", "later", "never")}
    site.delete("web", "later", "never")
    tables = ("instance_actions", "instance_action_events", "allocations", "ports", "volumes", "residues", "leases")
    return {
        "states": states,
        "rows": {table: len(site.rows(table)) for table in tables},
        "failed_builds": {row["host"]: row["failed_builds"] for row in site.rows("compute_nodes")},
        "notifications": [event["type"] for event in site.events()[before:]],
    }


def test_no_phase_meets_its_own_commit(
    site: Site, log: Log, server: Any, proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = live(site)
    assert {name: state for name, (state, _, _) in undisturbed["states"].items()} == {
        "web": "ACTIVE",
        "later": "ACTIVE",
        "never": "ERROR",
    }
    expected = list(log)
    log.clear()

    name = server.database()
    site.run, site.records_url = "the disturbed run", server.url(name)
    site.rows("instances")  # makes the tables
    run = site._run

    def disturbed(phase: str, given: dict[str, Any], check: bool) -> dict[str, Any]:
        proxy.lose = "answer"
        if "records_url" in given:
            given = {**given, "records_url": proxy.url(name)}
        return run(phase, given, check)

    monkeypatch.setattr(site, "_run", disturbed)
    assert live(site) == undisturbed
    assert log == expected
    assert proxy.lost > 20


def test_a_run_that_never_learns_of_its_commit_is_gone_on_with(
    site: Site, server: Any, proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is away after one COMMIT, whichever, and the run ends there: the same request, again, ends right."""
    monkeypatch.setattr(trouble, "AWAY_TIMEOUT", 0.1)
    direct = site.records_url
    site.record("kvm1", "kvm2")
    request = site.server(volumes=[{"size": 1, "delete_on_termination": True}])
    phases: list[str] = []
    run = site._run

    def counted(phase: str, given: dict[str, Any], check: bool) -> dict[str, Any]:
        if "records_url" in given:
            phases.append(phase)
            if len(phases) == last:
                proxy.lose, proxy.away = "answer", True
                given = {**given, "records_url": proxy.url(make_url(direct).database)}
        return run(phase, given, check)

    def fails_once(item: dict[str, Any]) -> dict[str, Any]:
        return site.built(item) if item["attempts"] else site.failed(site.built(item))

    last = ended = 0
    for last in range(1, 100):
        phases.clear()
        site.run = f"run {last}"
        monkeypatch.setattr(site, "_run", counted)
        try:
            site.play(request, hosts=fails_once)
            site.delete("web")
            if last > len(phases):
                break
            proxy.lose = None  # a phase that only read
            continue
        except BarestackError as error:
            assert "Whether the last change was written is not known; the next run finds out" in str(error)
        ended = proxy.lost
        monkeypatch.setattr(site, "_run", run)
        proxy.away = False
        site.kill()
        if site.row()["task_state"] != "deleting" and not site.row()["deleted"]:
            (item,) = site.play(request)
            assert (item["vm_state"], item["fault"]) == ("ACTIVE", None), f"after {phases}"
            assert (len(site.claims()), len(site.ports()), len(site.ports("network:dhcp"))) == (1, 1, 1)
        site.delete("web")
        for table in ("allocations", "ports", "ip_allocations", "volumes", "residues", "leases"):
            assert site.rows(table) == [], f"{table} after {phases}"
    assert ended >= 20
