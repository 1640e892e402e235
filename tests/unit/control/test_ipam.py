# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Addresses: inside the pools, never one in use, and every one of a pool before it is called empty."""

from __future__ import annotations

import ipaddress
import random
import re
import time

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control import ipam
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict, InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import FixedIP, Network, Subnet
from hypothesis import given
from hypothesis import strategies as st


def seeded(seed):
    return random.Random(seed)  # noqa: S311 - addresses are no secrets


RNG = seeded(7)
FULL = "No more IP addresses available on network net."


def subnet(name, cidr, gateway=None, *pools, dhcp=True):
    return Subnet(name, name, cidr, gateway, enable_dhcp=dhcp, allocation_pools=pools)


def network(*subnets):
    return Network("net", "net", "local", 1500, "", tuple(subnets))


def addresses(fixed_ips):
    return [item.ip_address for item in fixed_ips]


def drain(net, taken=None, choose=None):
    """Every address that the network gives out, until it says that there is no more."""
    choose = choose or (lambda taken: ipam.choose_fixed_ips(net, taken, None, RNG))
    taken = {key: set(value) for key, value in (taken or {}).items()}
    given = []
    while True:
        try:
            fixed_ips = choose(taken)
        except Conflict as error:
            assert str(error) == FULL
            return given
        for item in fixed_ips:
            assert item.ip_address not in taken.setdefault(item.subnet_id, set())
            taken[item.subnet_id].add(item.ip_address)
            given.append(item)


def test_a_pool_is_exhausted_exactly():
    net = network(subnet("s", "10.0.0.0/24", "10.0.0.1", ("10.0.0.10", "10.0.0.19"), ("10.0.0.30", "10.0.0.30")))
    given_out = addresses(drain(net))
    assert sorted(given_out) == [*(f"10.0.0.{number}" for number in range(10, 20)), "10.0.0.30"]
    assert given_out[-1] == "10.0.0.30"  # the second pool only once the first is empty
    assert given_out[:10] != sorted(given_out[:10])  # at random


def test_without_pools_all_of_the_subnet_but_the_gateway():
    given_out = addresses(drain(network(subnet("s", "10.0.0.0/29", "10.0.0.3"))))
    assert sorted(given_out) == ["10.0.0.1", "10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"]


def test_the_next_subnet_once_the_first_is_empty():
    net = network(subnet("a", "10.0.0.0/30", "10.0.0.1"), subnet("b", "10.0.1.0/30", "10.0.1.1"))
    assert drain(net) == [FixedIP("a", "10.0.0.2"), FixedIP("b", "10.0.1.2")]


def test_one_address_of_each_version():
    net = network(
        subnet("six", "fd00::/64", "fd00::1"), subnet("four", "10.0.0.0/24", "10.0.0.1"), subnet("six2", "fd01::/64")
    )
    four, six = ipam.choose_fixed_ips(net, {}, None, RNG)
    assert (four.subnet_id, six.subnet_id) == ("four", "six")
    assert 2 <= int(ipaddress.ip_address(six.ip_address)) - int(ipaddress.ip_address("fd00::")) <= 1001


def test_one_version_exhausted_fails_the_port():
    net = network(subnet("six", "fd00::/64"), subnet("four", "10.0.0.0/30", "10.0.0.1"))
    with pytest.raises(Conflict, match=re.escape(FULL)):
        ipam.choose_fixed_ips(net, {"four": {"10.0.0.2"}}, None, RNG)


def test_a_network_without_subnets_gives_no_address():
    assert ipam.choose_fixed_ips(network(), {}, None, RNG) == ()


def test_the_pick_is_among_the_first_thousand_free():
    net = network(subnet("s", "10.0.0.0/8", "10.0.0.1"))
    taken = {"s": {"10.0.0.2", "10.0.0.3"}}
    picked = {
        int(ipaddress.ip_address(ipam.choose_fixed_ips(net, taken, None, RNG)[0].ip_address)) for _ in range(9000)
    }
    first = int(ipaddress.ip_address("10.0.0.4"))
    assert picked <= set(range(first, first + 1000))
    assert {first, first + 999} <= picked


def test_the_same_seed_gives_the_same_address():
    net = network(subnet("s", "10.0.0.0/16", "10.0.0.1"))
    assert len({ipam.choose_fixed_ips(net, {}, None, seeded(3)) for _ in range(5)}) == 1


def test_large_subnets_cost_what_small_ones_do():
    taken = {"six": set(), "four": {str(ipaddress.IPv4Address(0x0A000000 + number)) for number in range(60000)}}
    net = network(subnet("four", "10.0.0.0/8", "10.255.255.254"), subnet("six", "fd00::/64", "fd00::1"))
    started = time.process_time()
    for _ in range(10):
        four, _six = ipam.choose_fixed_ips(net, taken, None, RNG)
        assert four.ip_address not in taken["four"]
    assert time.process_time() - started < 5


def test_the_dhcp_port_takes_the_lowest_free_address_of_each_subnet_with_dhcp():
    net = network(
        subnet("a", "10.0.0.0/24", "10.0.0.1"),
        subnet("b", "10.0.1.0/24", None, dhcp=False),
        subnet("c", "10.0.2.0/24", "10.0.2.254", ("10.0.2.100", "10.0.2.200")),
        subnet("d", "fd00::/64", "fd00::1"),
    )
    taken = {"a": {"10.0.0.2", "10.0.0.4"}}
    assert ipam.choose_dhcp_fixed_ips(net, taken) == (
        FixedIP("a", "10.0.0.3"),
        FixedIP("c", "10.0.2.100"),
        FixedIP("d", "fd00::2"),
    )
    with pytest.raises(Conflict, match=re.escape(FULL)):
        ipam.choose_dhcp_fixed_ips(network(subnet("s", "10.0.0.0/30", "10.0.0.1")), {"s": {"10.0.0.2"}})


TWO = network(
    subnet("a", "10.0.0.0/24", "10.0.0.1", ("10.0.0.100", "10.0.0.110")),
    subnet("b", "10.0.1.0/24", "10.0.1.254"),
    subnet("six", "fd00::/64", "fd00::1"),
)
NOT_HERE = "IP address {} is not a valid IP for any of the subnets on the specified network."


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ("10.0.0.105", FixedIP("a", "10.0.0.105")),
        ("10.0.0.7", FixedIP("a", "10.0.0.7")),  # outside the pools
        ("10.0.1.1", FixedIP("b", "10.0.1.1")),
        ("FD00:0::ab", FixedIP("six", "fd00::ab")),
        ("fd00::ffff:ffff:ffff:ffff", FixedIP("six", "fd00::ffff:ffff:ffff:ffff")),
    ],
)
def test_a_requested_address_is_given(requested, expected):
    assert ipam.choose_fixed_ips(TWO, {"a": {"10.0.0.8"}}, requested, RNG) == (expected,)


@pytest.mark.parametrize(
    ("requested", "error", "message"),
    [
        ("10.0.2.1", InvalidRequest, NOT_HERE),
        ("10.0.0.0", InvalidRequest, NOT_HERE),
        ("10.0.0.255", InvalidRequest, NOT_HERE),
        ("fd00::", InvalidRequest, NOT_HERE),
        ("fd01::1", InvalidRequest, NOT_HERE),
        ("fd00::5%eth0", InvalidRequest, NOT_HERE),
        ("10.0.0.256", InvalidRequest, "'{}' is not a valid IP address"),
        ("10.0.0.0/24", InvalidRequest, "'{}' is not a valid IP address"),
        ("web", InvalidRequest, "'{}' is not a valid IP address"),
        ("10.0.0.8", Conflict, "IP address {} already allocated in subnet a"),
        ("fd00::8", Conflict, "IP address {} already allocated in subnet six"),
        (
            "10.0.1.254",
            Conflict,
            "Unable to complete operation for network net. The IP address {} is in use: it is the gateway of subnet b",
        ),
    ],
)
def test_a_requested_address_is_refused(requested, error, message):
    taken = {"a": {"10.0.0.8"}, "six": {"fd00:0:0::8"}}
    with pytest.raises(error) as caught:
        ipam.choose_fixed_ips(TWO, taken, requested, RNG)
    assert str(caught.value) == message.format(requested)
    assert caught.value.code == {InvalidRequest: 400, Conflict: 409}[error]


@pytest.mark.parametrize(
    ("cidr", "gateway", "expected"),
    [
        # What neutron.ipam.utils.generate_pools gives.
        ("10.0.0.0/24", "10.0.0.1", (("10.0.0.2", "10.0.0.254"),)),
        ("10.0.0.0/24", "10.0.0.254", (("10.0.0.1", "10.0.0.253"),)),
        ("10.0.0.0/24", "10.0.0.9", (("10.0.0.1", "10.0.0.8"), ("10.0.0.10", "10.0.0.254"))),
        ("10.0.0.0/24", None, (("10.0.0.1", "10.0.0.254"),)),
        ("10.0.0.0/24", "192.0.2.1", (("10.0.0.1", "10.0.0.254"),)),
        ("10.0.0.0/30", "10.0.0.1", (("10.0.0.2", "10.0.0.2"),)),
        ("10.0.0.0/31", None, (("10.0.0.0", "10.0.0.1"),)),
        ("10.0.0.7/32", None, (("10.0.0.7", "10.0.0.7"),)),
        ("10.0.0.7/32", "10.0.0.7", ()),
        ("fd00::/64", "fd00::1", (("fd00::2", "fd00::ffff:ffff:ffff:ffff"),)),
        ("fd00::/127", None, (("fd00::1", "fd00::1"),)),
        ("fd00::5/128", None, (("fd00::5", "fd00::5"),)),
        ("::/64", "::1", (("::2", "::ffff:ffff:ffff:ffff"),)),
    ],
)
def test_default_allocation_pools(cidr, gateway, expected):
    assert ipam.default_allocation_pools(cidr, gateway) == expected


@st.composite
def drawn_network(draw):
    """A small IPv4 or IPv6 subnet with a gateway, pools that may stick out of it, and addresses in use."""
    six = draw(st.booleans())
    base = int(ipaddress.ip_address("fd00::40" if six else "10.0.0.64"))
    size = 2 ** draw(st.integers(2, 6))
    make = ipaddress.IPv6Address if six else ipaddress.IPv4Address
    number = st.integers(base - 3, base + size + 2)
    low_high = st.tuples(number, number).map(sorted)
    pools = tuple((str(make(low)), str(make(high))) for low, high in draw(st.lists(low_high, max_size=3)))
    gateway = draw(st.none() | st.integers(base, base + size - 1).map(lambda item: str(make(item))))
    prefix = (128 if six else 32) - size.bit_length() + 1
    net = network(Subnet("s", "s", f"{make(base)}/{prefix}", gateway, allocation_pools=pools))
    return net, draw(st.sets(number.map(lambda item: str(make(item)))))


@given(drawn_network())
def test_what_is_given_out_is_just_what_is_free(drawn):
    net, taken = drawn
    [only] = net.subnets
    cidr = ipaddress.ip_network(only.cidr)
    free = set(cidr) - {cidr.network_address} - {ipaddress.ip_address(item) for item in taken}
    if only.version == 4:
        free -= {cidr.broadcast_address}
    if only.gateway_ip:
        free -= {ipaddress.ip_address(only.gateway_ip)}
    if only.allocation_pools:
        pools = [tuple(map(ipaddress.ip_address, pool)) for pool in only.allocation_pools]
        free = {item for item in free if any(low <= item <= high for low, high in pools)}
    for choose in (None, lambda held: ipam.choose_dhcp_fixed_ips(net, held)):
        given_out = addresses(drain(net, {"s": taken}, choose))
        assert len(given_out) == len(set(given_out))
        assert set(given_out) == {str(item) for item in free}


@given(drawn_network(), st.integers(-5, 80))
def test_a_requested_address_is_given_or_refused_never_changed(drawn, offset):
    net, taken = drawn
    [only] = net.subnets
    cidr = ipaddress.ip_network(only.cidr)
    requested = cidr.network_address + offset if offset >= 0 else cidr.network_address - -offset
    reserved = {cidr.network_address} | ({cidr.broadcast_address} if only.version == 4 else set())
    good = requested in cidr and requested not in reserved
    good = good and str(requested) not in taken and str(requested) != only.gateway_ip
    if good:
        assert ipam.choose_fixed_ips(net, {"s": taken}, str(requested), RNG) == (FixedIP("s", str(requested)),)
    else:
        with pytest.raises((InvalidRequest, Conflict)):
            ipam.choose_fixed_ips(net, {"s": taken}, str(requested), RNG)


@given(st.randoms(use_true_random=False))
def test_a_mac_keeps_three_octets_of_the_base(rng):
    assert re.fullmatch(r"fa:16:3e(:[0-9a-f]{2}){3}", ipam.random_mac(set(), rng))
    assert re.fullmatch(r"fa:16:3e:4f(:[0-9a-f]{2}){2}", ipam.random_mac(set(), rng, "FA:16:3E:4F:77:88"))


def test_a_taken_mac_is_not_given_again():
    first = ipam.random_mac(set(), seeded(5))
    second = ipam.random_mac({first}, seeded(5))
    assert first != second
    assert ipam.random_mac({first}, seeded(5)) == second


def test_the_last_free_mac_is_found_and_then_none():
    base = "fa:16:3e:01:00:00"
    taken = {f"fa:16:3e:01:{high:02x}:{low:02x}" for high in range(256) for low in range(256)} - {"fa:16:3e:01:02:03"}
    assert ipam.random_mac(taken, RNG, base) == "fa:16:3e:01:02:03"
    with pytest.raises(
        Conflict, match="Unable to generate unique mac: all 65536 addresses of base_mac fa:16:3e:01:00:00"
    ):
        ipam.random_mac(taken | {"fa:16:3e:01:02:03"}, RNG, base)


@pytest.mark.parametrize("base", ["", "fa:16:3e", "fa:16:3e:00:00:0g", "fa-16-3e-00-00-00"])
def test_a_base_that_is_no_mac(base):
    with pytest.raises(InvalidRequest, match="is not a MAC address such as fa:16:3e:00:00:00"):
        ipam.random_mac(set(), RNG, base)
