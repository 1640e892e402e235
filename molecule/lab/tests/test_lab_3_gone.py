# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Deleted, deleted again, and nothing left on any host."""

from __future__ import annotations

from conftest import HOSTS, SERVERS, Guest, on, play, sql


def test_delete_leaves_nothing_on_any_host(guests: dict[str, Guest]) -> None:
    files = {path for guest in guests.values() for path in guest.files}
    addresses = {guest.address for guest in guests.values()}
    network, bridge = guests["lab-near"].network_id, guests["lab-near"].bridge
    gone = play("playbooks/delete_instance.yml", names=list(SERVERS))
    assert gone.rc == 0, gone.output
    assert gone.changed > 0
    others = sql("SELECT uuid FROM instances WHERE deleted = 0")
    for host in HOSTS:
        domains, links = on(host, "virsh", "-q", "list", "--all", "--uuid"), on(host, "ip", "-o", "link")
        rules = on(host, "nft", "list", "ruleset")
        left = on(
            host,
            "find",
            "/var/lib/libvirt/images",
            "/var/log/libvirt",
            "/var/lib/barestack",
            "-not",
            "-path",
            "*/_base/*",
        )
        assert files.isdisjoint(left.splitlines()), host
        for guest in guests.values():
            for place in (domains, links, rules, left):
                assert guest.uuid not in place, host
                assert guest.tap not in place, host
                assert guest.mac not in place, host
        assert [address for address in addresses if f" {address} " in rules] == [], host
        if not others:  # with the last server of the lab its network goes too
            assert bridge not in links, host
            for place in (on(host, "ip", "netns", "list"), left, on(host, "ps", "-eo", "args")):
                assert network not in place, host


def test_no_row_is_in_use(guests: dict[str, Guest]) -> None:
    uuids = [guest.uuid for guest in guests.values()]
    for table, column in (
        ("ports", "device_id"),
        ("allocations", "consumer_id"),
        ("block_device_mappings", "instance_uuid"),
    ):
        assert [row for row in sql(f"SELECT * FROM {table}") if row[column] in uuids] == [], table
    assert sql("SELECT * FROM instances WHERE deleted = 0 AND name LIKE 'lab-%'") == []


def test_delete_again_changes_nothing() -> None:
    again = play("playbooks/delete_instance.yml", names=list(SERVERS))
    assert (again.rc, again.changed) == (0, 0), again.output
