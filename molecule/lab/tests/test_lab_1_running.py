# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The six servers as their hosts see them."""

from __future__ import annotations

import json
import re

import pytest
import testinfra
from conftest import HOSTS, SERVERS, ZONES, Guest, on, sql

Guests = dict[str, Guest]


@pytest.mark.parametrize("name", HOSTS)
def test_a_host_is_a_whole_machine(name: str) -> None:
    host = testinfra.get_host(f"podman://{name}")
    assert host.run("systemctl is-system-running").stdout.strip() == "running"
    assert host.socket("unix:///run/libvirt/libvirt-sock").is_listening
    assert on(name, "virsh", "uri").strip() == "qemu:///system"
    assert host.service("ssh").is_running
    assert host.mount_point("/var/lib/libvirt/images").filesystem == "ext4"
    assert host.interface("eth1").exists
    assert on(name, "hostname").strip() == name


def test_the_hosts_are_three() -> None:
    for command in (("cat", "/etc/machine-id"), ("cat", "/sys/class/net/eth0/address"), ("readlink", "/proc/1/ns/net")):
        assert len({on(host, *command) for host in HOSTS}) == 3, command
    sizes = {
        host: int(on(host, "df", "--output=size", "-B1G", "/var/lib/libvirt/images").split()[-1]) for host in HOSTS
    }
    assert sizes["kvm03"] < sizes["kvm01"] == sizes["kvm02"]


@pytest.mark.parametrize("name", HOSTS)
def test_no_packet_leaves_for_the_world(name: str) -> None:
    assert on(name, "ip", "route", "show", "default") == ""


@pytest.mark.parametrize("name", SERVERS)
def test_each_runs_once_where_the_records_say(guests: Guests, name: str) -> None:
    guest = guests[name]
    assert on(guest.host, "virsh", "domstate", guest.uuid).strip() == "running"
    row = sql("SELECT * FROM instances WHERE uuid = ?", guest.uuid)[0]
    assert (row["vm_state"], row["task_state"], row["power_state"]) == ("ACTIVE", None, "RUNNING")
    assert row["host"] == guest.host
    assert [port["binding_host"] for port in sql("SELECT * FROM ports WHERE device_id = ?", guest.uuid)] == [guest.host]


def test_zones_are_honoured(guests: Guests) -> None:
    for name in ("lab-near", "lab-pair-1", "lab-pair-2"):
        assert ZONES[guests[name].host] == "az1", name
    for name in ("lab-far", "lab-data"):
        assert ZONES[guests[name].host] == "az2", name


@pytest.mark.parametrize("name", SERVERS)
def test_the_tap_is_on_the_wire_that_the_hosts_share(guests: Guests, name: str) -> None:
    guest = guests[name]
    links = {link["ifname"]: link for link in json.loads(on(guest.host, "ip", "-j", "link"))}
    assert links[guest.tap]["master"] == links["eth1"]["master"] == guest.bridge == f"brq{guest.network_id[:11]}"
    assert json.loads(on(guest.host, "ip", "-j", "address", "show", "dev", "eth1"))[0]["addr_info"] == []


@pytest.mark.parametrize("name", SERVERS)
def test_each_tap_has_its_rules(guests: Guests, name: str) -> None:
    guest = guests[name]
    rules = on(guest.host, "nft", "list", "ruleset")
    for wanted in (f'"{guest.tap}"', guest.mac, guest.address):
        assert wanted in rules


@pytest.mark.parametrize("name", SERVERS)
def test_only_its_own_host_has_traces_of_a_guest(guests: Guests, name: str) -> None:
    guest = guests[name]
    for host in set(HOSTS) - {guest.host}:
        assert guest.tap not in on(host, "ip", "-o", "link")
        assert guest.mac not in on(host, "nft", "list", "ruleset")
        assert on(host, "find", "/var/lib/libvirt/images", "/var/log/libvirt", "-name", f"*{guest.uuid}*") == ""


@pytest.mark.parametrize("name", ["lab-near", "lab-far"])
def test_the_own_hosts_dnsmasq_leased_the_address(guests: Guests, name: str) -> None:
    guest = guests[name]
    leases = {host: _leases(host, guest) for host in HOSTS}
    assert leases[guest.host] == [guest.address]
    assert [host for host, found in leases.items() if found and host != guest.host] == []
    assert f"barestack-demo: address=eth0 {guest.address}/24" in guest.console


def _leases(host: str, guest: Guest) -> list[str]:
    lines = on(host, "find", "/var/lib/barestack/dhcp", "-name", "leases", "-exec", "cat", "{}", "+").splitlines()
    return [line.split()[2] for line in lines if guest.mac in line]


def test_guests_on_different_hosts_reach_each_other(guests: Guests) -> None:
    near, far = guests["lab-near"], guests["lab-far"]
    assert near.host != far.host
    for guest in (near, far):
        assert re.findall(r"^barestack-demo: other=(\S+)", guest.console, re.MULTILINE)[-1:] == ["reached"], guest.name


def test_the_volume_is_on_its_servers_host(guests: Guests) -> None:
    guest = guests["lab-data"]
    query = "SELECT v.* FROM volumes v JOIN block_device_mappings b ON b.volume_id = v.id WHERE b.instance_uuid = ?"
    volume = sql(query, guest.uuid)[0]
    assert volume["status"] == "in-use"
    file = next(path for path in guest.files if path.endswith(f"volume-{volume['id']}"))
    assert json.loads(on(guest.host, "qemu-img", "info", "-U", "--output=json", file))["virtual-size"] == 1 << 30
