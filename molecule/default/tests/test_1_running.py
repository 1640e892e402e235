# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The three servers as the system sees them."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import RECORDS, SERVERS, Guest, sh, sql

Guests = dict[str, Guest]


def wait_until_said(guest: Guest, pattern: str, seconds: float = 180) -> str:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = guest.said(pattern)
        if found is not None:
            return found
        time.sleep(0.5)
    raise AssertionError(f"{guest.name} never said {pattern!r}; its console ends: {guest.console[-800:]}")


def test_libvirt_runs_exactly_the_servers_asked_for(guests: Guests) -> None:
    assert sorted(guests) == sorted(SERVERS)
    for guest in guests.values():
        assert sh("virsh", "domstate", guest.uuid).strip() == "running"


@pytest.mark.parametrize("name", SERVERS)
def test_the_tap_is_up_in_the_networks_bridge(guests: Guests, name: str, host: Any) -> None:
    guest = guests[name]
    link = json.loads(sh("ip", "-d", "-j", "link", "show", guest.tap))[0]
    assert link["master"] == guest.bridge == f"brq{guest.network_id[:11]}"
    assert link["mtu"] == 1400
    assert host.interface(guest.bridge).exists
    bridge = json.loads(sh("bridge", "-j", "link", "show", "dev", guest.tap))[0]
    assert bridge["state"] == "forwarding"


def test_the_bridge_has_the_gateway_and_masquerades(guests: Guests, host: Any) -> None:
    bridge = guests["web-1"].bridge
    assert "10.171.0.1" in host.interface(bridge).addresses
    assert "ip saddr 10.171.0.0/24" in sh("nft", "list", "table", "inet", "barestack")
    assert "masquerade" in sh("nft", "list", "table", "inet", "barestack")


@pytest.mark.parametrize("name", SERVERS)
def test_each_tap_has_its_rules(guests: Guests, name: str) -> None:
    rules = sh("nft", "list", "table", "bridge", "barestack")
    assert f'"{guests[name].tap}"' in rules
    assert guests[name].mac in rules
    assert guests[name].address in rules


@pytest.mark.parametrize("name", SERVERS)
def test_dnsmasq_leased_the_recorded_address(guests: Guests, name: str) -> None:
    guest = guests[name]
    wait_until_said(guest, r"address=eth0 (\S+)")
    leases = Path(f"/var/lib/barestack/dhcp/{guest.network_id}/leases").read_text().splitlines()
    mine = [line.split() for line in leases if guest.mac in line]
    assert [entry[2] for entry in mine] == [guest.address]
    assert int(mine[0][0]) > time.time()
    assert mine[0][3] == name


def test_dnsmasq_runs_in_the_networks_namespace(guests: Guests) -> None:
    network = guests["web-1"].network_id
    pids = sh("ip", "netns", "pids", f"qdhcp-{network}").split()
    assert len(pids) == 1
    assert network in Path(f"/proc/{pids[0]}/cmdline").read_text()


def test_a_fixed_ip_that_was_asked_for_is_the_one(guests: Guests) -> None:
    assert guests["probe"].address == "10.171.0.20"
    for name in ("web-1", "web-2"):
        assert 50 <= int(guests[name].address.split(".")[3]) <= 99


@pytest.mark.parametrize("name", SERVERS)
def test_the_guest_says_who_it_is(guests: Guests, name: str) -> None:
    guest = guests[name]
    assert wait_until_said(guest, r"address=eth0 (\S+)") == f"{guest.address}/24"
    assert guest.said(r"hostname=(\S+)") == name
    assert guest.said(r"uuid=(\S+)") == guest.uuid
    assert guest.said(r"mtu=eth0 (\d+)") == "1400"
    assert guest.said(r"disk=vda (\d+)") == str(1 << 30)
    if name.startswith("web"):
        assert guest.said(r"meta role=(\S+)") == "web"
        assert guest.said(r"disk=vdb (\d+)") == str(1 << 30)


def test_a_login_prompt_appears(guests: Guests) -> None:
    wait_until_said(guests["web-1"], r"ready=(\S+)")
    deadline = time.monotonic() + 60
    while "web-1 login:" not in guests["web-1"].console:
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("name", SERVERS)
def test_the_root_disk_is_an_overlay_of_the_cached_image(guests: Guests, name: str) -> None:
    info = json.loads(sh("qemu-img", "info", "-U", "--output=json", guests[name].disks()["vda"]))
    image = sql("SELECT json_extract(spec, '$.image.id') AS id FROM instances WHERE uuid = ?", guests[name].uuid)[0][
        "id"
    ]
    assert info["format"] == "qcow2"
    assert info["virtual-size"] == 1 << 30
    assert Path(info["backing-filename"]).name == hashlib.sha1(image.encode()).hexdigest()  # noqa: S324 - Nova's name


def test_the_volume_is_the_second_disk_with_its_id_as_serial(guests: Guests) -> None:
    guest = guests["web-1"]
    volume = sql(
        "SELECT v.* FROM volumes v JOIN block_device_mappings b ON b.volume_id = v.id WHERE b.instance_uuid = ?",
        guest.uuid,
    )[0]
    assert (volume["status"], volume["size"]) == ("in-use", 1)
    assert guest.disks()["vdb"].endswith(f"volume-{volume['id']}")
    assert volume["id"] in sh("virsh", "dumpxml", guest.uuid)


@pytest.mark.parametrize("name", ["web-1", "web-2"])
def test_the_host_pings_the_guest(guests: Guests, name: str) -> None:
    wait_until_said(guests[name], r"address=eth0 (\S+)")
    assert "1 received" in sh("ping", "-c", "1", "-W", "5", guests[name].address)


def test_a_guest_without_the_rule_does_not_answer(guests: Guests, host: Any) -> None:
    wait_until_said(guests["probe"], r"gateway_again=(\S+)")
    assert host.run("ping -c 1 -W 3 10.171.0.20").rc == 1


def test_spoofed_addresses_do_not_get_through(guests: Guests) -> None:
    probe = guests["probe"]
    assert wait_until_said(probe, r"gateway_again=(\S+)") == "reached"
    assert probe.said(r"gateway=(\S+)") == "reached"
    assert probe.said(r"spoofed_address=(\S+)") == "blocked"
    assert probe.said(r"spoofed_mac=(\S+)") == "blocked"
    neighbours = sh("ip", "neigh", "show", "dev", probe.bridge)
    assert "10.171.0.200" not in [line.split()[0] for line in neighbours.splitlines() if "lladdr" in line]
    assert "02:00:00:00:00:66" not in neighbours


@pytest.mark.parametrize("name", SERVERS)
def test_the_records_say_active(guests: Guests, name: str) -> None:
    row = sql("SELECT * FROM instances WHERE uuid = ?", guests[name].uuid)[0]
    assert (row["vm_state"], row["task_state"], row["power_state"]) == ("ACTIVE", None, "RUNNING")
    assert row["launched_at"] and row["host"] == "kvm-local"
    assert sql("SELECT status FROM ports WHERE device_id = ?", row["uuid"]) == [{"status": "ACTIVE"}]
    used = {a["resource_class"]: a["used"] for a in sql("SELECT * FROM allocations WHERE consumer_id = ?", row["uuid"])}
    assert used == {"VCPU": 1, "MEMORY_MB": 128, "DISK_GB": 2 if name.startswith("web") else 1}
    events = sql(
        "SELECT e.event, e.result FROM instance_action_events e JOIN instance_actions a ON a.id = e.action_id "
        "WHERE a.instance_uuid = ? AND a.action = 'create'",
        row["uuid"],
    )
    assert {e["result"] for e in events} == {"Success"}
    expected = {"network", "dhcp", "firewall", "image", "disk", "config_drive", "domain", "vif"}
    if name.startswith("web"):  # the other has no volume
        expected.add("volume_attachment")
    assert {e["event"] for e in events} >= expected


def test_the_records_are_private() -> None:
    assert oct(Path(RECORDS).stat().st_mode & 0o777) == "0o600"
    for key in Path("/var/lib/barestack/molecule/keys").iterdir():
        assert oct(key.stat().st_mode & 0o077) == "0o0"


def test_a_notification_was_written_for_each(guests: Guests) -> None:
    lines = Path("/var/lib/barestack/molecule/notifications.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    ended = {event["subject"] for event in events if event["type"] == "barestack.kvm.instance.create.end"}
    assert {guest.uuid for guest in guests.values()} <= ended
    assert all(event["specversion"] == "1.0" for event in events)
