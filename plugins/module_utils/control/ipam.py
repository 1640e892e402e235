# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Which addresses a port gets: Neutron's internal IPAM driver and its MAC generator, pure.

``taken`` maps a subnet's id to the addresses in use there, DHCP ports included; the caller reads it in the
transaction that records the choice. Pools are ranges of numbers and are never written out, so an IPv6 /64 costs what a
/24 does.
"""

from __future__ import annotations

import ipaddress
import itertools
import random
import re
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict, InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import FixedIP, Network, Subnet

BASE_MAC = "fa:16:3e:00:00:00"
_WINDOW = 1000
"""Neutron's MAX_WIN: the random pick is among so many of the first free addresses."""
_RANDOM_MACS = 32
"""Random draws before the free ones are searched in order."""


def choose_fixed_ips(
    network: Network, taken: Mapping[str, AbstractSet[str]], requested: str | None, rng: random.Random
) -> tuple[FixedIP, ...]:
    """The addresses of a server's port: the requested one alone, or else one IPv4 and one IPv6 address.

    Of each version the subnets are tried in their order; one is picked at random among the first 1000 free addresses
    of the first pool that has any. A network without subnets gives none. Mirrors _allocate_ips_for_port and
    neutrondb_ipam's _generate_ips; every IPv6 subnet counts as stateful, since the model knows no SLAAC.

    InvalidRequest where the requested address is in none of the subnets, Conflict where it is in use or where there
    is no address left.
    """
    if requested:
        return (_requested(network, taken, requested),)
    chosen = []
    for version in (4, 6):
        subnets = [subnet for subnet in network.subnets if subnet.version == version]
        if subnets:
            chosen.append(_first(network, subnets, taken, rng))
    return tuple(chosen)


def choose_dhcp_fixed_ips(network: Network, taken: Mapping[str, AbstractSet[str]]) -> tuple[FixedIP, ...]:
    """The addresses of the network's DHCP port: the lowest free one of each subnet with DHCP (Neutron's PreferNext).

    Conflict where one of these subnets has no address left.
    """
    return tuple(_first(network, [subnet], taken, None) for subnet in network.subnets if subnet.enable_dhcp)


def pools(subnet: Subnet) -> tuple[tuple[int, int], ...]:
    """The (first, last) numbers that may be given out: the subnet's pools, or all of it but the gateway.

    Neutron's generate_pools. Where a pool holds the network's own, the broadcast or the gateway's address, or goes
    beyond the subnet, that part is cut off.
    """
    net = ipaddress.ip_network(subnet.cidr)
    first, last = int(net.network_address), int(net.broadcast_address)
    if net.prefixlen < net.max_prefixlen - 1 or (subnet.version == 6 and first != last):
        first += 1
        last -= subnet.version == 4
    given = [(_number(low), _number(high)) for low, high in subnet.allocation_pools] or [(first, last)]
    ranges = [(max(low, first), min(high, last)) for low, high in given]
    if subnet.gateway_ip:
        gateway = _number(subnet.gateway_ip)
        ranges = [
            part
            for low, high in ranges
            for part in ([(low, gateway - 1), (gateway + 1, high)] if low <= gateway <= high else [(low, high)])
        ]
    return tuple((low, high) for low, high in ranges if low <= high)


def default_allocation_pools(cidr: str, gateway_ip: str | None) -> tuple[tuple[str, str], ...]:
    """The allocation pools that Neutron gives a subnet declared without any, as (first, last) addresses."""
    subnet = Subnet(id="", name="", cidr=cidr, gateway_ip=gateway_ip)
    return tuple((_text(first, subnet), _text(last, subnet)) for first, last in pools(subnet))


def random_mac(taken: AbstractSet[str], rng: random.Random, base: str = BASE_MAC) -> str:
    """A MAC address that is not taken: three octets of ``base`` (four where the fourth is not 00), the rest random.

    neutron_lib.utils.net.get_random_mac; drawn again where it is taken, and after 32 draws the next free one. Taken
    addresses are lower case, as this returns them. InvalidRequest for a base that is no MAC address; Conflict where
    none is free.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", base):
        raise InvalidRequest(f"base_mac {base!r} is not a MAC address such as {BASE_MAC}")
    octets = base.lower().split(":")
    fixed = octets[:3] if octets[3] == "00" else octets[:4]
    bits = 8 * (6 - len(fixed))
    number = rng.getrandbits(bits)
    for _draw in range(_RANDOM_MACS):
        mac = _mac(fixed, number, bits)
        if mac not in taken:
            return mac
        number = rng.getrandbits(bits)
    for candidate in itertools.chain(range(number, 2**bits), range(number)):
        mac = _mac(fixed, candidate, bits)
        if mac not in taken:
            return mac
    raise Conflict(
        f"Unable to generate unique mac: all {2**bits} addresses of base_mac {base} are taken; set another base_mac"
    )


def _mac(fixed: Sequence[str], number: int, bits: int) -> str:
    return ":".join([*fixed, *(f"{octet:02x}" for octet in number.to_bytes(bits // 8, "big"))])


def _first(
    network: Network, subnets: Sequence[Subnet], taken: Mapping[str, AbstractSet[str]], rng: random.Random | None
) -> FixedIP:
    """An address of the first of the subnets that has one: picked by ``rng``, or without it the lowest."""
    for subnet in subnets:
        numbers = {_number(address) for address in taken.get(subnet.id, ())}
        for pool in pools(subnet):
            window = list(itertools.islice(_free(pool, numbers), 1 if rng is None else _WINDOW))
            if window:
                return FixedIP(subnet.id, _text(window[0] if rng is None else rng.choice(window), subnet))
    raise Conflict(f"No more IP addresses available on network {network.id}.")


def _free(pool: tuple[int, int], taken: AbstractSet[int]) -> Iterator[int]:
    """The pool's free numbers in ascending order."""
    first, last = pool
    return (number for number in range(first, last + 1) if number not in taken)


def _requested(network: Network, taken: Mapping[str, AbstractSet[str]], requested: str) -> FixedIP:
    """The requested address with its subnet; it may lie outside the pools (_test_fixed_ips_for_port, _verify_ip)."""
    try:
        address = ipaddress.ip_address(requested)
    except ValueError:
        raise InvalidRequest(f"{requested!r} is not a valid IP address") from None
    subnet = _subnet_of(network.subnets, address)
    if subnet is None:
        raise InvalidRequest(
            f"IP address {requested} is not a valid IP for any of the subnets on the specified network."
        )
    number = int(address)
    if subnet.gateway_ip and number == _number(subnet.gateway_ip):
        raise Conflict(
            f"Unable to complete operation for network {network.id}. The IP address {address} is in use: it is the "
            f"gateway of subnet {subnet.id}"
        )
    if number in {_number(item) for item in taken.get(subnet.id, ())}:
        raise Conflict(f"IP address {address} already allocated in subnet {subnet.id}")
    return FixedIP(subnet.id, str(address))


def _subnet_of(subnets: Iterable[Subnet], address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> Subnet | None:
    """The subnet that may hold the address; not as its network's own or broadcast address (check_subnet_ip)."""
    if getattr(address, "scope_id", None):
        return None
    for subnet in subnets:
        net = ipaddress.ip_network(subnet.cidr)
        if address not in net:
            continue
        reserved = address == net.network_address or (address.version == 4 and address == net.broadcast_address)
        if not reserved or net.prefixlen >= net.max_prefixlen - 1:
            return subnet
    return None


def _number(address: str) -> int:
    """The address as a number; several times as fast as the ipaddress module, which matters for 65,000 of them."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return int.from_bytes(socket.inet_pton(family, address), "big")


def _text(number: int, subnet: Subnet) -> str:
    return str(ipaddress.IPv6Address(number) if subnet.version == 6 else ipaddress.IPv4Address(number))
