# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""dnsmasq's command line and files, held against what Neutron's own code wrote."""

from __future__ import annotations

import dataclasses

from ansible_collections.barestack.kvm.plugins.module_utils.host import dnsmasq
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    DhcpPort,
    FixedIP,
    Network,
    Port,
    Subnet,
)

NET = "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa"
V4 = Subnet(
    "dddddddd-dddd-dddd-dddd-dddddddddddd",
    "v4",
    "192.168.0.0/24",
    "192.168.0.1",
    dns_nameservers=("8.8.8.8", "8.8.4.4"),
    host_routes=(("20.0.0.1/24", "20.0.0.1"),),
)
V6 = Subnet("eeeeeeee-eeee-eeee-eeee-eeeeeeeeeeee", "v6", "fdca:3ba5:a17a:4ba3::/64", "fdca:3ba5:a17a:4ba3::1")
SERVER = DhcpPort("dhcp0001-0000", "fa:16:3e:00:00:02", (FixedIP(V4.id, "192.168.0.254"),))
NETWORK = Network(NET, "n", "local", 1450, "openstacklocal", (V4, V6), SERVER)
EMPTY = {"host": "", "addn_hosts": "", "opts": "", "interface": ""}


def port(mac: str, *fixed: tuple[Subnet, str]) -> Port:
    return Port(f"id-{mac}", NETWORK, mac, tuple(FixedIP(subnet.id, address) for subnet, address in fixed))


ONE = port("fa:16:3e:80:80:80", (V4, "192.168.0.2"))
TWO = port("fa:16:3e:ff:cc:cc", (V4, "192.168.0.3"), (V6, "fdca:3ba5:a17a:4ba3::2"))


def test_golden_command_line() -> None:
    directory = f"/conf/{NET}"
    assert dnsmasq.command(NETWORK, directory) == [
        "dnsmasq",
        "--no-hosts",
        "--no-resolv",
        f"--pid-file=/conf/{NET}/pid",
        f"--dhcp-hostsfile=/conf/{NET}/host",
        f"--addn-hosts=/conf/{NET}/addn_hosts",
        f"--dhcp-optsfile=/conf/{NET}/opts",
        f"--dhcp-leasefile=/conf/{NET}/leases",
        "--dhcp-match=set:ipxe,175",
        "--dhcp-userclass=set:ipxe6,iPXE",
        "--dhcp-ignore=tag:!known",
        "--local-service",
        "--bind-dynamic",
        f"--dhcp-range=set:subnet-{V4.id},192.168.0.0,static,255.255.255.0,86400s",
        f"--dhcp-range=set:subnet-{V6.id},fdca:3ba5:a17a:4ba3::,static,64,86400s",
        "--dhcp-option-force=option:mtu,1450",
        "--dhcp-lease-max=16777216",
        "--conf-file=/dev/null",
        "--domain=openstacklocal",
    ]


def test_golden_files() -> None:
    files = dnsmasq.files(NETWORK, EMPTY, [(ONE, "one"), (TWO, "two")])
    assert files["host"] == (
        "fa:16:3e:80:80:80,one.openstacklocal,192.168.0.2\n"
        "fa:16:3e:ff:cc:cc,two.openstacklocal,192.168.0.3\n"
        "fa:16:3e:ff:cc:cc,tag:dhcpv6,two.openstacklocal,[fdca:3ba5:a17a:4ba3::2]\n"
    )
    assert files["addn_hosts"] == (
        "192.168.0.2\tone.openstacklocal one\n"
        "192.168.0.3\ttwo.openstacklocal two\n"
        "fdca:3ba5:a17a:4ba3::2\ttwo.openstacklocal two\n"
    )
    tag = f"tag:subnet-{V4.id}"
    assert files["opts"] == (
        f"{tag},option:dns-server,8.8.8.8,8.8.4.4\n"
        f"{tag},option:classless-static-route,20.0.0.1/24,20.0.0.1,0.0.0.0/0,192.168.0.1\n"
        f"{tag},249,20.0.0.1/24,20.0.0.1,0.0.0.0/0,192.168.0.1\n"
        f"{tag},option:router,192.168.0.1\n"
        f"tag:subnet-{V6.id},option6:domain-search,openstacklocal\n"
    )
    assert files["interface"] == "tapdhcp0001-00"


def test_without_nameservers_the_server_answers_itself_and_without_a_gateway_there_is_no_router() -> None:
    lonely = dataclasses.replace(V4, dns_nameservers=(), host_routes=(), gateway_ip=None)
    network = dataclasses.replace(NETWORK, subnets=(lonely,), dns_domain="")
    tag = f"tag:subnet-{V4.id}"
    assert dnsmasq.opts(network) == f"{tag},option:dns-server,192.168.0.254\n{tag},option:router\n"
    assert not any(word.startswith("--domain") for word in dnsmasq.command(network, "/d"))
    assert "--dhcp-lease-max=256" in dnsmasq.command(network, "/d")
    assert dnsmasq.qualified("vm", network) == "vm"


def test_a_subnet_without_dhcp_has_no_range_and_no_entry() -> None:
    network = dataclasses.replace(NETWORK, subnets=(dataclasses.replace(V4, enable_dhcp=False), V6))
    assert [word for word in dnsmasq.command(network, "/d") if "range" in word] == [
        f"--dhcp-range=set:subnet-{V6.id},fdca:3ba5:a17a:4ba3::,static,64,86400s"
    ]
    entry = dataclasses.replace(TWO, network=network)
    assert dnsmasq.host_lines(entry, "two") == [
        "fa:16:3e:ff:cc:cc,tag:dhcpv6,two.openstacklocal,[fdca:3ba5:a17a:4ba3::2]"
    ]
    assert len(dnsmasq.addn_hosts_lines(entry, "two")) == 2


def test_entries_come_and_go_one_by_one() -> None:
    both = dnsmasq.files(NETWORK, dnsmasq.files(NETWORK, EMPTY, [(ONE, "one")]), [(TWO, "two")])
    assert both == dnsmasq.files(NETWORK, EMPTY, [(ONE, "one"), (TWO, "two")])
    assert dnsmasq.files(NETWORK, both, [(ONE, "one")]) == both
    renamed = dnsmasq.files(NETWORK, both, [(ONE, "uno")])
    assert "one" not in renamed["host"] + renamed["addn_hosts"]
    assert "uno.openstacklocal" in renamed["host"]
    moved = dataclasses.replace(ONE, fixed_ips=(FixedIP(V4.id, "192.168.0.9"),))
    after = dnsmasq.files(NETWORK, both, [(moved, "one")])
    assert "192.168.0.2" not in after["host"] + after["addn_hosts"]
    left = dnsmasq.without(both, [ONE])
    assert left["host"].count("\n") == 2
    assert "192.168.0.2" not in left["host"] + left["addn_hosts"]
    assert dnsmasq.without(left, [TWO]) == {"host": "", "addn_hosts": ""}


def test_an_address_that_a_forgotten_port_holds_is_taken_over() -> None:
    old = dnsmasq.files(NETWORK, EMPTY, [(ONE, "old")])
    heir = dataclasses.replace(ONE, id="heir", mac_address="fa:16:3e:99:99:99")
    files = dnsmasq.files(NETWORK, old, [(heir, "new")])
    assert files["host"] == "fa:16:3e:99:99:99,new.openstacklocal,192.168.0.2\n"
    assert files["addn_hosts"] == "192.168.0.2\tnew.openstacklocal new\n"


def test_leases() -> None:
    text = (
        "1763900000 fa:16:3e:80:80:80 192.168.0.2 one 01:fa:16:3e:80:80:80\n"
        "0 FA:16:3E:0F:0F:0F 192.168.0.3 * *\n"
        "duid 00:01:00:01:2e\n"
        "1763900000 12345 fdca::2 two 00:04:aa\n"
    )
    found, server = dnsmasq.leases(text)
    assert server == "00:01:00:01:2e"
    assert [dnsmasq.release_command("ns-x", lease, server) for lease in found] == [
        ["dhcp_release", "ns-x", "192.168.0.2", "fa:16:3e:80:80:80", "01:fa:16:3e:80:80:80"],
        ["dhcp_release", "ns-x", "192.168.0.3", "fa:16:3e:0f:0f:0f"],
        [
            "dhcp_release6",
            "--iface=ns-x",
            "--client-id=00:04:aa",
            "--server-id=00:01:00:01:2e",
            "--iaid=12345",
            "--ip=fdca::2",
        ],
    ]
    both = dnsmasq.files(NETWORK, EMPTY, [(ONE, "one"), (TWO, "two")])
    assert dnsmasq.first_leases(both["host"]) == (
        "0 fa:16:3e:80:80:80 192.168.0.2 * *\n0 fa:16:3e:ff:cc:cc 192.168.0.3 * *\n"
    )
