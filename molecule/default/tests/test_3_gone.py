# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Deleted, deleted again, and nothing left: no domain, tap, bridge, namespace, dnsmasq, rule, file, row in use."""

from __future__ import annotations

import subprocess
from pathlib import Path

from conftest import SERVERS, Guest, play, sh, sql


def test_delete_in_check_mode_deletes_nothing(guests: dict[str, Guest]) -> None:
    plan = play("playbooks/delete_instance.yml", "--check", "--diff", names=list(SERVERS))
    assert plan.rc == 0, plan.output
    assert plan.changed > 0
    for guest in guests.values():
        assert sh("virsh", "domstate", guest.uuid).strip() == "running"
    assert {row["task_state"] for row in sql("SELECT task_state FROM instances WHERE deleted = 0")} == {None}


def test_delete(guests: dict[str, Guest]) -> None:
    files = [path for guest in guests.values() for path in guest.disks().values()]
    consoles = [Path(str(guest.domain.find(".//serial/log").get("file"))) for guest in guests.values()]
    addresses = [guest.address for guest in guests.values()]
    bridge, network = guests["web-1"].bridge, guests["web-1"].network_id
    gone = play("playbooks/delete_instance.yml", names=list(SERVERS))
    assert gone.rc == 0, gone.output
    assert gone.changed > 0
    left = sh("virsh", "-q", "list", "--all", "--uuid")
    links = sh("ip", "-o", "link")
    rules = sh("nft", "list", "ruleset")
    for guest in guests.values():
        assert guest.uuid not in left
        assert guest.tap not in links
        assert guest.tap not in rules
        assert not Path(f"/var/lib/libvirt/images/barestack/{guest.uuid}").exists()
    assert [address for address in addresses if f" {address} " in rules] == []
    assert bridge not in links
    assert "10.171.0.0/24" not in rules
    assert network not in sh("ip", "netns", "list")
    assert subprocess.run(["pgrep", "-f", f"dnsmasq.*{network}"], check=False).returncode == 1
    for path in (f"/var/lib/barestack/dhcp/{network}", f"/var/lib/barestack/networks/{network}"):
        assert not Path(path).exists()
    assert [path for path in (*files, *consoles) if Path(path).exists()] == []


def test_no_row_is_in_use() -> None:
    for table in ("ports", "ip_allocations", "allocations", "volumes", "block_device_mappings"):
        assert sql(f"SELECT * FROM {table}") == [], table
    assert sql("SELECT * FROM instances WHERE deleted = 0") == []
    assert sql("SELECT * FROM instance_actions WHERE finish_time IS NULL") == []


def test_delete_again_changes_nothing() -> None:
    again = play("playbooks/delete_instance.yml", names=list(SERVERS))
    assert (again.rc, again.changed) == (0, 0), again.output
