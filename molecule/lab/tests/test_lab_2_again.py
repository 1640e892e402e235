# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Again: nothing changes."""

from __future__ import annotations

from conftest import Guest, find_guests, play, sql


def test_a_rerun_changes_nothing(guests: dict[str, Guest]) -> None:
    rows = "SELECT * FROM instances WHERE deleted = 0 AND name LIKE 'lab-%'"
    before = sql(rows)
    again = play("boot_instance.yml")
    assert (again.rc, again.changed) == (0, 0), again.output
    assert {(guest.uuid, guest.host) for guest in find_guests()} == {
        (guest.uuid, guest.host) for guest in guests.values()
    }
    assert sql(rows) == before


def test_preparing_the_hosts_again_changes_nothing() -> None:
    again = play("playbooks/prepare_hosts.yml")
    assert (again.rc, again.changed) == (0, 0), again.output
