# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The catalogue's objects, defaults and look-ups."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import IDENTITY_SECTIONS, Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_network import first_and_last
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_spec import SPEC
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import SecurityGroupRule
from hypothesis import given
from hypothesis import strategies as st

SITE = Path(__file__).with_name("site.yml")


def site() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(SITE.read_text())
    return loaded


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.load(site())


def subnet(**options: Any) -> Any:
    network = {"name": "n", "subnets": [{"name": "s", "cidr": "192.0.2.0/24", **options}]}
    return Catalog.load({"networks": [network]}).network("n").subnets[0]


def rules(*entries: dict[str, Any]) -> tuple[SecurityGroupRule, ...]:
    loaded = Catalog.load({"security_groups": [{"name": "g", "rules": list(entries)}]})
    return loaded.security_group("g", "p").rules


def test_objects(catalog: Catalog) -> None:
    flavor, image = catalog.flavor("m1.small"), catalog.image("big")
    assert (flavor.id, flavor.vcpus, flavor.ram, flavor.disk, flavor.ephemeral, flavor.swap) == ("2", 1, 2048, 20, 0, 0)
    assert (image.url, image.disk_format, image.min_ram, image.min_disk) == (
        "https://images.example/big.img",
        "qcow2",
        512,
        10,
    )
    network = catalog.network("private")
    assert (network.mtu, network.network_type, network.dns_domain) == (1500, "local", "openstacklocal")
    assert catalog.flavor("2") is flavor
    assert catalog.network(network.id) is network
    assert catalog.aggregate("rack-1").metadata == {"availability_zone": "east"}
    assert [aggregate.name for aggregate in catalog.aggregates_of("kvm1")] == ["rack-1"]
    assert catalog.aggregates_of("kvm2") == ()


def test_default_ids_are_the_same_everywhere_and_always() -> None:
    # Changing these would orphan every site's records: an id must follow from the name alone.
    loaded = Catalog.load(site())
    assert loaded.image("demo").id == "38121ab3-3441-587e-b461-d7a8443c01aa"
    assert loaded.network("private").id == "f647a29f-b837-5b43-ade8-df84601751d2"
    assert loaded.network("private").subnets[0].id == "624baa3c-92ab-5e3e-acf3-c2bd90b83c0a"
    assert loaded.project("demo").id == "d826567a-bc0a-5641-9c4b-a23963b478a3"
    assert loaded.security_group("default", loaded.project("demo").id).id == "e974c832-8624-5485-b8fd-43f994bf8b60"


def test_values_of_extra_specs_and_properties_are_strings() -> None:
    flavor = {"name": "f", "vcpus": "2", "ram": 64.0, "extra_specs": {"hw:cpu_policy": "dedicated", "a": 1, "b": True}}
    flavor["ram"] = 64
    loaded = Catalog.load({"flavors": [flavor]}).flavor("f")
    assert loaded.vcpus == 2
    assert loaded.extra_specs == {"hw:cpu_policy": "dedicated", "a": "1", "b": "true"}


def test_an_unknown_name_lists_the_known_ones(catalog: Catalog) -> None:
    with pytest.raises(InvalidRequest) as caught:
        catalog.flavor("m1.tny")
    assert str(caught.value) == "unknown flavor 'm1.tny', did you mean m1.tiny? Known: diskless, m1.small, m1.tiny"


@pytest.mark.parametrize(
    "url", ["/srv/i.raw", "file:///srv/i.raw", "http://images.example/i", "https://a.example:8443/i"]
)
def test_image_addresses(url: str) -> None:
    entry = {"name": "i", "url": url, "checksum": "SHA512:" + "A" * 128, "disk_format": "raw"}
    image = Catalog.load({"images": [entry]}).image("i")
    assert (image.url, image.checksum) == (url, "sha512:" + "a" * 128)


@pytest.mark.parametrize(
    ("options", "gateway", "pools"),
    [
        ({}, "192.0.2.1", [("192.0.2.2", "192.0.2.254")]),
        ({"gateway_ip": "192.0.2.254"}, "192.0.2.254", [("192.0.2.1", "192.0.2.253")]),
        ({"gateway_ip": "192.0.2.9"}, "192.0.2.9", [("192.0.2.1", "192.0.2.8"), ("192.0.2.10", "192.0.2.254")]),
        ({"disable_gateway_ip": True}, None, [("192.0.2.1", "192.0.2.254")]),
        ({"cidr": "192.0.2.0/30"}, "192.0.2.1", [("192.0.2.2", "192.0.2.2")]),
        ({"cidr": "2001:db8::/126"}, "2001:db8::1", [("2001:db8::2", "2001:db8::3")]),
        (
            {"allocation_pool_start": "192.0.2.5", "allocation_pool_end": "192.0.2.6"},
            "192.0.2.1",
            [("192.0.2.5", "192.0.2.6")],
        ),
        (
            {
                "allocation_pools": [
                    {"start": "192.0.2.5", "end": "192.0.2.6"},
                    {"start": "192.0.2.8", "end": "192.0.2.8"},
                ]
            },
            "192.0.2.1",
            [("192.0.2.5", "192.0.2.6"), ("192.0.2.8", "192.0.2.8")],
        ),
    ],
)
def test_gateway_and_pools(options: dict[str, Any], gateway: str | None, pools: list[tuple[str, str]]) -> None:
    built = subnet(**options)
    assert built.gateway_ip == gateway
    assert list(built.allocation_pools) == pools


@given(prefix=st.integers(8, 30), host=st.integers(1, 2**24 - 2))
def test_default_pools_are_all_but_the_gateway(prefix: int, host: int) -> None:
    import ipaddress

    cidr = ipaddress.ip_network(f"10.0.0.0/{prefix}")
    low, high = first_and_last(cidr)
    gateway = low + host % (int(high) - int(low) + 1)
    built = subnet(cidr=str(cidr), gateway_ip=str(gateway))
    pools = [(int(ipaddress.ip_address(a)), int(ipaddress.ip_address(b))) for a, b in built.allocation_pools]
    assert all(a <= b for a, b in pools)
    assert sum(b - a + 1 for a, b in pools) == cidr.num_addresses - 3
    assert not any(a <= int(gateway) <= b for a, b in pools)


def test_name_servers_and_routes() -> None:
    routes = [{"destination": "198.51.100.0/24", "nexthop": "192.0.2.9"}]
    built = subnet(dns_nameservers=["192.0.2.3", "2001:db8::1"], host_routes=routes)
    assert built.dns_nameservers == ("192.0.2.3", "2001:db8::1")
    assert built.host_routes == (("198.51.100.0/24", "192.0.2.9"),)


def test_flat_networks_are_on_their_wires() -> None:
    networks = [
        {"name": f"n{number}", "network_type": "flat", name: wire, "subnets": [{"name": "s", "cidr": cidr}]}
        for number, name, wire, cidr in (
            (0, "physical_network", "physnet1", "192.0.2.0/24"),
            (1, "provider_physical_network", "dmz.2", "198.51.100.0/24"),
        )
    ]
    loaded = Catalog.load({"networks": networks}).networks
    assert [(item.network_type, item.physical_network) for item in loaded] == [("flat", "physnet1"), ("flat", "dmz.2")]


def test_private_networks(catalog: Catalog) -> None:
    demo, other = catalog.project("demo").id, catalog.project("other").id
    assert [network.name for network in catalog.networks_for(demo)] == ["private", "storage"]
    assert [network.name for network in catalog.networks_for(other)] == ["private", "storage", "theirs"]
    assert catalog.network("theirs").name == "theirs"
    with pytest.raises(InvalidRequest):
        catalog.network("theirs", demo)


def test_every_project_has_its_own_default_group(catalog: Catalog) -> None:
    mine, theirs = (catalog.security_group("default", catalog.project(name).id) for name in ("demo", "other"))
    assert mine.id != theirs.id
    assert mine.rules == (
        SecurityGroupRule("egress", "IPv4"),
        SecurityGroupRule("egress", "IPv6"),
        SecurityGroupRule("ingress", "IPv4", remote_group_id=mine.id),
        SecurityGroupRule("ingress", "IPv6", remote_group_id=mine.id),
    )


def test_a_rule_that_names_default_means_the_projects_own() -> None:
    loaded = Catalog.load({"security_groups": [{"name": "g", "rules": [{"remote_group": "default"}]}]})
    for project in ("one", "two"):
        default = loaded.security_group("default", project)
        assert loaded.security_group("g", project).rules[0].remote_group_id == default.id


def test_a_declared_default_group_is_everybodys() -> None:
    loaded = Catalog.load({"security_groups": [{"name": "default", "id": "d", "rules": [{"protocol": "icmp"}]}]})
    assert [group.id for group in loaded.security_groups("one")] == ["d"]
    assert loaded.security_group("default", "one") == loaded.security_group("default", "two")


def test_egress_is_open_unless_a_rule_says_otherwise() -> None:
    assert rules() == (SecurityGroupRule("egress", "IPv4"), SecurityGroupRule("egress", "IPv6"))
    only = rules({"direction": "egress", "protocol": "udp", "port_range_min": 53, "port_range_max": 53})
    assert only == (SecurityGroupRule("egress", "IPv4", "udp", 53, 53),)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"protocol": "any"}, SecurityGroupRule("ingress", "IPv4")),
        (
            {"protocol": "TCP", "port_range_min": 22, "port_range_max": 22},
            SecurityGroupRule("ingress", "IPv4", "tcp", 22, 22),
        ),
        ({"protocol": "tcp", "port_range_min": -1, "port_range_max": -1}, SecurityGroupRule("ingress", "IPv4", "tcp")),
        ({"protocol": 1}, SecurityGroupRule("ingress", "IPv4", "icmp")),
        ({"protocol": "icmp", "ether_type": "IPv6"}, SecurityGroupRule("ingress", "IPv6", "ipv6-icmp")),
        ({"protocol": "icmpv6", "ether_type": "IPv6"}, SecurityGroupRule("ingress", "IPv6", "ipv6-icmp")),
        ({"protocol": "icmp", "port_range_min": 8}, SecurityGroupRule("ingress", "IPv4", "icmp", 8)),
        ({"protocol": 47}, SecurityGroupRule("ingress", "IPv4", "47")),
        ({"remote_ip_prefix": "192.0.2.7/24"}, SecurityGroupRule("ingress", "IPv4", remote_ip_prefix="192.0.2.0/24")),
    ],
)
def test_rules_are_in_neutrons_terms(entry: dict[str, Any], expected: SecurityGroupRule) -> None:
    assert rules(entry)[0] == expected


def test_keypairs_of_a_user_come_first() -> None:
    key = site()["keypairs"][0]["public_key"]
    users = site()["users"]
    shared = {"name": "k", "public_key": f"{key.rsplit(' ', 1)[0]} shared"}
    own = {"name": "k", "public_key": key, "user": "alice"}
    loaded = Catalog.load({"users": users, "projects": site()["projects"], "keypairs": [shared, own]})
    assert loaded.keypair("k", loaded.user("alice").id).public_key == key
    assert loaded.keypair("k", loaded.user("bob").id).public_key.endswith(" shared")


def test_quota_is_novas_unless_declared() -> None:
    loaded = Catalog.load({"projects": [{"name": "a"}, {"name": "b", "quota": {"cores": -1}}]})
    a, b = loaded.project("a").quota, loaded.project("b").quota
    assert (a.instances, a.cores, a.ram) == (10, 20, 51200)
    assert (b.instances, b.cores, b.ram) == (10, -1, 51200)


def test_roles_by_project_id() -> None:
    data = site()
    data["users"][0]["roles"] = {"demo": ["reader", "member"], "other": "admin"}
    loaded = Catalog.load(data)
    assert loaded.user("alice").roles == {
        loaded.project("demo").id: ("reader", "member"),
        loaded.project("other").id: ("admin",),
    }
    assert "argon2" not in repr(loaded)


def test_only_some_sections(catalog: Catalog) -> None:
    data = site()
    data["flavors"] = [{"name": "broken"}]
    loaded = Catalog.load(data, IDENTITY_SECTIONS)
    assert loaded.users == catalog.users
    assert loaded.flavors == ()


def test_null_is_the_same_as_missing() -> None:
    assert Catalog.load({"flavors": None, "images": []}) == Catalog()
    assert subnet(gateway_ip=None).gateway_ip == "192.0.2.1"


def test_loading_leaves_the_data_alone() -> None:
    data = site()
    before = copy.deepcopy(data)
    Catalog.load(data)
    assert data == before


def test_a_large_catalogue_loads_fast() -> None:
    data = site()
    data["flavors"] = [{"name": f"f{n}", "vcpus": 1, "ram": 64, "extra_specs": {"a": "b"}} for n in range(300)]
    started = time.perf_counter()
    Catalog.load(data)
    # About 15 ms; the bound is for a machine that does other things too.
    assert time.perf_counter() - started < 0.5


def _specs(spec: Any, path: str) -> Any:
    yield path, spec
    for key, value in spec.items():
        if "options" in value:
            yield from _specs(value["options"], f"{path}.{key}")


@pytest.mark.parametrize(("path", "spec"), [item for name in SPEC for item in _specs(SPEC[name], name)])
def test_specs_are_documented_argument_specs(path: str, spec: dict[str, Any]) -> None:
    assert ArgumentSpecValidator(spec)
    for key, value in spec.items():
        assert value.get("description"), f"{path}.{key}"
        assert value["type"] in ("str", "int", "bool", "list", "dict")
