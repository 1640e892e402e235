# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Bridge, gateway and masquerade, asked of the kernel."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host import network as host_network
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import FixedIP, Network, Subnet

from .conftest import Lab, shell


def network(**changes: Any) -> Network:
    values = {"id": "2d1c4f6a-9b0e-4c55", "name": "n", "network_type": "local", "mtu": 1400, "dns_domain": ""}
    subnets = (
        Subnet("a", "a", "10.0.0.0/24", "10.0.0.1"),
        Subnet("b", "b", "fd00::/64", "fd00::1"),
        Subnet("c", "c", "10.0.1.0/24", None),
    )
    return Network(**{**values, "subnets": subnets, **changes})


def test_a_local_network_is_its_gateways_and_hides_what_it_routes() -> None:
    plan = host_network.plan(network())
    assert plan == host_network.Plan(("10.0.0.1/24", "fd00::1/64"), ("10.0.0.0/24",))
    assert host_network.masquerade_rules(network(), plan) == (
        'ip saddr 10.0.0.0/24 oifname != "brq2d1c4f6a-9b" masquerade comment "2d1c4f6a-9b0e-4c55"',
    )


def test_an_unknown_type_is_named_with_what_is_allowed() -> None:
    with pytest.raises(InvalidRequest, match=r"network n \(2d1c4f6a-9b0e-4c55\): network_type vlan .* use flat, local"):
        host_network.plan(network(network_type="vlan"))


def test_a_bridge_has_its_own_unicast_address() -> None:
    first, second = host_network.bridge_mac("a"), host_network.bridge_mac("b")
    assert first != second
    assert first == host_network.bridge_mac("a")
    assert int(first[:2], 16) & 3 == 2


def nat_rules() -> str:
    return shell("nft list ruleset")


def test_present_again_check_and_absent_twice(lab: Lab) -> None:
    net = lab.network()
    first, second = lab.instance(lab.port(net)), lab.instance(lab.port(net))
    links = set(lab.links())

    planned = lab.must("network", first, second, check=True)
    assert set(lab.links()) == links
    assert not lab.state_files()
    assert not nat_rules()

    assert lab.must("network", first, second) == planned
    assert planned == [
        *(f"network.port {port}" for port in sorted([first.ports[0].id, second.ports[0].id])),
        *(f"network.{name} {net.bridge}" for name in ("bridge", "gateway", "masquerade")),
    ]
    bridge = lab.links()[net.bridge]
    data = bridge["linkinfo"]["info_data"]
    assert bridge["mtu"] == 1400
    assert "UP" in bridge["flags"]
    assert (data["forward_delay"], data["stp_state"], data["mcast_snooping"]) == (0, 0, 0)
    assert Path(f"/proc/sys/net/ipv6/conf/{net.bridge}/disable_ipv6").read_text() == "1\n"
    addresses = json.loads(shell(f"ip -j addr show {net.bridge}"))[0]["addr_info"]
    assert [(item["local"], item["prefixlen"]) for item in addresses] == [("10.9.0.1", 24)]
    assert f'ip saddr 10.9.0.0/24 oifname != "{net.bridge}" masquerade' in nat_rules()
    assert lab.must("network", first, second) == []

    lab.must("network", first, state="absent")
    assert net.bridge in lab.links()
    assert lab.must("network", second) == []
    assert lab.must("network", second, state="absent", check=True)
    assert net.bridge in lab.links()
    lab.must("network", second, state="absent")
    assert set(lab.links()) == links
    assert not nat_rules()
    assert not lab.state_files()
    assert lab.must("network", first, second, state="absent") == []


def test_only_what_differs_is_mended(lab: Lab) -> None:
    net = lab.network()
    server = lab.instance(lab.port(net))
    lab.must("network", server)

    shell(f"ip link set {net.bridge} type bridge stp_state 1")
    assert lab.must("network", server) == [f"network.bridge {net.bridge}"]
    shell(f"ip link set {net.bridge} down mtu 1300")
    assert lab.must("network", server)[0] == f"network.bridge {net.bridge}"
    shell(f"ip addr del 10.9.0.1/24 dev {net.bridge}; ip addr add 10.9.0.9/24 dev {net.bridge}")
    assert lab.must("network", server) == [f"network.gateway {net.bridge}"]
    shell("nft flush chain inet barestack postrouting_masquerade")
    assert lab.must("network", server) == [f"network.masquerade {net.bridge}"]
    rule = f'oifname != "{net.bridge}" ip saddr 10.9.0.0/25 masquerade comment "{net.id}"'
    shell("nft flush chain inet barestack postrouting_masquerade")
    shell(f"nft 'add rule inet barestack postrouting_masquerade {rule}'")
    assert lab.must("network", server) == [f"network.masquerade {net.bridge}"]
    os.unlink(f"{lab.paths.network_directory(net.id)}/{server.ports[0].id}")
    assert lab.must("network", server) == [f"network.port {server.ports[0].id}"]
    assert lab.must("network", server) == []
    assert nat_rules().count(" masquerade comment") == 1


def test_one_networks_rules_are_not_anothers(lab: Lab) -> None:
    servers = [lab.instance(lab.port(lab.network(number))) for number in (1, 2)]
    lab.must("network", *servers)
    lab.must("network", servers[0], state="absent")
    rules = nat_rules()
    assert "10.9.2.0/24" in rules
    assert "10.9.1.0/24" not in rules
    assert lab.must("network", servers[1]) == []


def test_a_bridge_with_a_tap_on_it_stays_until_the_tap_has_gone(lab: Lab) -> None:
    net = lab.network()
    server = lab.instance(lab.port(net))
    lab.must("network", server)
    shell(f"ip link add tapleft type veth peer name left; ip link set tapleft master {net.bridge}")
    lab.must("network", server, state="absent")
    assert net.bridge in lab.links()
    shell("ip link del tapleft")
    lab.must("network", server, state="absent")
    assert net.bridge not in lab.links()
    assert not lab.state_files()


def test_an_ipv6_gateway_keeps_ipv6_on(lab: Lab) -> None:
    plain = lab.network()
    net = dataclasses.replace(plain, subnets=(*plain.subnets, Subnet("s6", "v6", "fd00:9::/64", "fd00:9::1")))
    server = lab.instance(lab.port(net))
    lab.must("network", server)
    found = json.loads(shell(f"ip -j -6 addr show {net.bridge} scope global"))[0]["addr_info"]
    assert [(item["local"], item["prefixlen"]) for item in found] == [("fd00:9::1", 64)]
    assert lab.must("network", server) == []


def test_the_bridges_address_does_not_follow_its_ports(lab: Lab) -> None:
    net = lab.network()
    server = lab.instance(lab.port(net))
    lab.must("network", server)
    shell("ip link add taplow address 00:00:00:00:00:01 mtu 1280 type veth peer name low")
    shell(f"ip link set taplow master {net.bridge}")
    assert lab.links()[net.bridge]["address"] == host_network.bridge_mac(net.id)
    assert lab.links()[net.bridge]["mtu"] == 1400


def test_one_bad_network_leaves_its_neighbour_alone(lab: Lab) -> None:
    good = lab.instance(lab.port(lab.network(1)))
    bad = lab.instance(lab.port(lab.network(2, network_type="vxlan")))
    result = lab.run("network", bad, good)
    assert result["instances"][0].fault.code == 400
    assert "use flat, local" in result["instances"][0].fault.message
    assert result["instances"][1].fault is None
    assert good.ports[0].network.bridge in lab.links()


def test_a_subnet_that_the_host_has_already_is_refused(lab: Lab) -> None:
    lab.must("network", lab.instance(lab.port(lab.network(1))))
    twin = lab.network(1)
    fault = lab.run("network", lab.instance(lab.port(twin)))["instances"][0].fault
    assert fault.code == 409
    assert "overlaps with 10.9.1.1/24" in fault.message
    assert twin.bridge not in lab.links()


def test_a_link_of_that_name_which_is_no_bridge_is_left_alone(lab: Lab) -> None:
    net = lab.network()
    shell(f"ip link add {net.bridge} type veth peer name other")
    fault = lab.run("network", lab.instance(lab.port(net)))["instances"][0].fault
    assert fault.code == 409
    assert lab.links()[net.bridge]["linkinfo"]["info_kind"] == "veth"


def test_a_host_that_does_not_forward_is_told_so(lab: Lab) -> None:
    shell("sysctl -qw net.ipv4.ip_forward=0")
    fault = lab.run("network", lab.instance(lab.port(lab.network())))["instances"][0].fault
    assert "ip_forward is 0" in fault.message


def test_many_at_once_end_as_one(lab: Lab) -> None:
    net = lab.network()
    servers = [lab.instance(lab.port(net)) for _ in range(6)]
    fork = multiprocessing.get_context("fork")
    for state in ("present", "absent"):
        workers = [
            fork.Process(target=lab.must, args=("network", server), kwargs={"state": state}) for server in servers
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        assert [worker.exitcode for worker in workers] == [0] * len(workers)
        if state == "present":
            assert lab.must("network", *servers) == []
            assert len(lab.state_files()) == len(servers) + 1
    assert net.bridge not in lab.links()
    assert not lab.state_files()
    assert not nat_rules()


def test_a_guest_goes_out_under_the_hosts_address(lab: Lab) -> None:
    net = lab.network()
    outside = lab.network(7, subnets=(Subnet("o", "o", "192.0.2.0/24", None),), mtu=1500)
    server, far = lab.port(net), lab.port(outside, fixed_ips=(FixedIP("o", "192.0.2.9"),))
    lab.must("network", lab.instance(server), lab.instance(far))
    shell(f"ip addr add 192.0.2.1/24 dev {outside.bridge}")
    guest, world = lab.plug(server), lab.plug(far)
    with world.udp(5000) as listening, guest.udp() as sending:
        sending.sendto(b"hello", ("192.0.2.9", 5000))
        text, sender = listening.recvfrom(100)
        assert (text, sender[0]) == (b"hello", "192.0.2.1")
        listening.sendto(b"answer", sender)
        assert sending.recv(100) == b"answer"
