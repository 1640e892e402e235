# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Reruns, check mode, requests that are refused: nothing may change."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from conftest import Guest, play, sh, sql

TABLES = ("instances", "ports", "ip_allocations", "allocations", "volumes", "block_device_mappings", "instance_actions")
FRESH = {"name": "fresh", "flavor": "nano", "image": "demo", "network": "molecule-net"}


def world() -> tuple[Any, ...]:
    """All of this site that a run could change, as the system tells it; other sites of this machine are not ours."""
    uuids = [row["uuid"] for row in sql("SELECT uuid FROM instances WHERE deleted = 0")]
    taps = [f"tap{row['id'][:11]}" for row in sql("SELECT id FROM ports")]
    network = sql("SELECT network_id FROM ports")[0]["network_id"]
    rules = re.findall("|".join((*taps, r"10\.171\.\d+\.\d+")), sh("nft", "-s", "list", "ruleset"))
    images = sh("find", "/var/lib/libvirt/images/barestack", "-printf", "%p %i\n").splitlines()
    return (
        sorted(set(sh("virsh", "-q", "list", "--all", "--uuid").split()) & set(uuids)),
        sorted(
            json.loads(sh("ip", "-j", "link", "show", "master", f"brq{network[:11]}")), key=lambda link: link["ifname"]
        ),
        sorted(rules),
        [line for line in images if any(uuid in line for uuid in uuids)],
        sh("find", f"/var/lib/barestack/dhcp/{network}", "-printf", "%p %i\n"),
        [sql(f"SELECT * FROM {table}") for table in TABLES],
    )


def test_a_rerun_changes_nothing() -> None:
    before = world()
    again = play("boot_instance.yml")
    assert (again.rc, again.changed) == (0, 0), again.output
    assert world() == before


def test_a_rerun_in_check_mode_changes_nothing() -> None:
    before = world()
    again = play("boot_instance.yml", "--check", "--diff")
    assert (again.rc, again.changed) == (0, 0), again.output
    assert world() == before


def test_check_mode_shows_the_plan_of_a_fresh_request_and_touches_nothing() -> None:
    before = world()
    plan = play("boot_instance.yml", "--check", "--diff", instances=[FRESH])
    assert plan.rc == 0, plan.output
    assert plan.changed > 0
    for shown in ("kvm-local", "10.171.0.", "fa:16:3e:", "<nova:name>fresh</nova:name>", "<domain type="):
        assert shown in plan.output
    assert world() == before


def test_a_dead_guest_is_started_again(guests: dict[str, Guest]) -> None:
    sh("virsh", "destroy", guests["web-2"].uuid)
    again = play("boot_instance.yml")
    assert again.rc == 0, again.output
    assert again.changed > 0
    assert sh("virsh", "domstate", guests["web-2"].uuid).strip() == "running"
    assert play("boot_instance.yml").changed == 0


def test_a_rule_that_was_removed_is_mended(guests: dict[str, Guest]) -> None:
    chain = ("chain", "bridge", "barestack", f"antispoof-{guests['web-1'].tap}")
    sh("nft", "flush", *chain)
    assert play("boot_instance.yml").changed > 0
    assert guests["web-1"].mac in sh("nft", "list", *chain)
    assert play("boot_instance.yml").changed == 0


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({**FRESH, "name": "probe"}, "cannot be changed once a server is made"),
        ({**FRESH, "flavor": "nana"}, "nano"),
        ({**FRESH, "image": "nope"}, "demo"),
        ({**FRESH, "network": "molecule"}, "molecule-net"),
        ({**FRESH, "security_groups": ["pong"]}, "ping"),
        ({**FRESH, "key_name": "k"}, "k"),
        ({**FRESH, "count": 0}, "count"),
        ({**FRESH, "count": 11}, "Quota exceeded for instances"),
        ({**FRESH, "flavour": "nano"}, "flavour"),
        ({**FRESH, "network": None, "nics": [{"net-name": "molecule-net", "fixed_ip": "10.171.0.20"}]}, "10.171.0.20"),
        ({**FRESH, "network": None, "nics": [{"net-name": "molecule-net", "fixed_ip": "10.9.0.20"}]}, "10.9.0.20"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_request_that_cannot_be_met_says_why_and_leaves_nothing(request_: dict[str, Any], message: str) -> None:
    wanted = {key: value for key, value in request_.items() if value is not None}
    before = world()[:-1]
    refused = play("boot_instance.yml", instances=[wanted])
    assert refused.rc != 0
    assert message in refused.output
    assert world()[:-1] == before
    play("playbooks/delete_instance.yml", names=["fresh"])


@pytest.mark.parametrize(
    ("auth", "message"),
    [
        ({"username": "tester", "password": "wrong", "project_name": "molecule"}, "401"),
        ({"username": "nobody", "password": "molecule-only", "project_name": "molecule"}, "401"),
        ({"username": "tester", "password": "molecule-only", "project_name": "elsewhere"}, "401"),
    ],
    ids=["password", "user", "project"],
)
def test_wrong_credentials_change_nothing(auth: dict[str, str], message: str) -> None:
    before = world()
    refused = play("playbooks/delete_instance.yml", auth=auth, names=["web-1"])
    assert refused.rc != 0
    assert message in refused.output
    assert world() == before


def test_another_projects_server_is_refused(guests: dict[str, Guest]) -> None:
    stranger = {"username": "stranger", "password": "molecule-only", "project_name": "elsewhere"}
    before = world()
    for reference in ("web-1", guests["web-1"].uuid):
        refused = play("playbooks/delete_instance.yml", auth=stranger, names=[reference])
        assert refused.rc != 0
        assert "belongs to another project" in refused.output
    assert "web-1" not in play("playbooks/list_instances.yml", auth=stranger).output.split("Table")[1]
    assert world() == before


def test_secrets_are_not_shown() -> None:
    loud = play("boot_instance.yml", "-vvv", "--diff")
    assert loud.rc == 0
    assert "molecule-only" not in loud.output
    assert "gAAAAA" not in loud.output, "a token was shown"
    assert "$argon2id$" not in loud.output


def test_no_valid_host_says_why_and_the_others_go_on() -> None:
    flavors = [
        {"name": "nano", "vcpus": 1, "ram": 128, "disk": 1},
        {"name": "huge", "vcpus": 1, "ram": 1048576, "disk": 1},
    ]
    projects = [{"name": "molecule", "quota": {"instances": 10, "cores": 20, "ram": 9999999}}, {"name": "elsewhere"}]
    both = [{**FRESH, "name": "toobig", "flavor": "huge"}, {**FRESH, "name": "fits"}]
    run = play("boot_instance.yml", instances=both, flavors=flavors, projects=projects)
    assert run.rc != 0
    assert "No valid host was found" in run.output
    assert "ram: 1048576 wanted" in run.output
    states = {row["name"]: row["vm_state"] for row in sql("SELECT name, vm_state FROM instances WHERE deleted = 0")}
    assert (states["toobig"], states["fits"]) == ("ERROR", "ACTIVE")
    table = play("playbooks/list_instances.yml").output
    assert "toobig" in table
    assert play("playbooks/delete_instance.yml", names=["toobig", "fits"]).rc == 0


def test_the_number_of_module_calls_does_not_grow_with_the_servers() -> None:
    one = play("boot_instance.yml", instances=[{**FRESH, "name": "calls"}])
    many = play("boot_instance.yml", instances=[{**FRESH, "name": "calls", "count": 3}])
    assert (one.rc, many.rc) == (0, 0), one.output + many.output
    assert one.calls == many.calls > 10
    names = ["calls", *(f"calls-{number}" for number in range(1, 4))]
    assert play("playbooks/delete_instance.yml", names=names).rc == 0


@pytest.mark.parametrize("playbook", ["playbooks/prepare_hosts.yml", "playbooks/demo_image.yml"])
def test_preparing_again_changes_nothing(playbook: str) -> None:
    for arguments in ((), ("--check", "--diff")):
        again = play(playbook, *arguments)
        assert (again.rc, again.changed) == (0, 0), again.output


def test_a_port_of_its_own_outlives_its_server() -> None:
    ports = [{"name": "kept", "network": "molecule-net", "fixed_ip": "10.171.0.9"}]
    server = {"name": "ported", "flavor": "nano", "image": "demo", "nics": [{"port-name": "kept"}]}
    before = world()
    assert play("playbooks/port.yml", "--check", ports=ports).changed == 1
    assert world() == before
    assert [play("playbooks/port.yml", ports=ports).changed for _ in range(2)] == [1, 0]
    mac = sql("SELECT mac_address FROM ports WHERE name = 'kept'")[0]["mac_address"]
    assert play("boot_instance.yml", instances=[server]).rc == 0
    assert play("boot_instance.yml", instances=[server]).changed == 0
    assert "still in use" in play("boot_instance.yml", instances=[{**server, "name": "second"}]).output
    assert "cannot be deleted" in play("playbooks/port.yml", ports=ports, state="absent").output
    assert play("playbooks/delete_instance.yml", names=["ported"]).rc == 0
    row = sql("SELECT * FROM ports WHERE name = 'kept'")[0]
    assert (row["mac_address"], row["device_id"], row["binding_host"], row["status"]) == (mac, "", None, "DOWN")
    assert [play("playbooks/port.yml", ports=ports, state="absent").changed for _ in range(2)] == [1, 0]
    assert sql("SELECT * FROM ports WHERE name = 'kept'") == []


def test_the_listing_shows_states_addresses_and_console(guests: dict[str, Guest]) -> None:
    listing = play("playbooks/list_instances.yml", console_lines=30)
    assert (listing.rc, listing.changed) == (0, 0), listing.output
    for shown in (guests["web-1"].uuid, guests["web-1"].address, "RUNNING", "barestack-demo: hostname=web-1"):
        assert shown in listing.output


def test_a_groups_rules_in_the_catalogue_reach_its_servers(guests: dict[str, Guest], host: Any) -> None:
    ssh_only = {"direction": "ingress", "ether_type": "IPv4", "protocol": "tcp"}
    ping = f"ping -c 1 -W 2 {guests['web-1'].address}"
    assert host.run(ping).rc == 0
    assert play("boot_instance.yml", security_groups=[{"name": "ping", "rules": [ssh_only]}]).changed > 0
    assert host.run(ping).rc == 1
    assert play("boot_instance.yml").changed > 0
    assert host.run(ping).rc == 0
    assert play("boot_instance.yml").changed == 0
