# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Networks and subnets of the catalogue: Neutron's checks of addresses, gateways and allocation pools."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Sequence, Union

from ansible_collections.barestack.kvm.plugins.module_utils.control.checks import Problems, address, check_range
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Network, Subnet

Ip = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Cidr = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
Pool = tuple[Ip, Ip]

_PHYSICAL = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.I)


def build_network(entry: dict[str, Any], identifier: str, subnet_ids: Sequence[str], path: str, p: Problems) -> Network:
    """The network with its subnets; what is wrong goes to the problems ``p``. Every subnet of it is a checked entry."""
    check_range(entry["mtu"], 68, 65535, f"{path}.mtu", p)
    domain = entry["dns_domain"].rstrip(".")
    if not _DOMAIN.fullmatch(domain):
        p.add(f"{path}.dns_domain", f"{entry['dns_domain']!r} is not a domain name")
    if not entry["subnets"]:
        p.add(f"{path}.subnets", "is empty: a network needs at least one subnet")
    subnets = []
    for index, item in enumerate(entry["subnets"]):
        subnet = _build_subnet(item, subnet_ids[index], f"{path}.subnets[{index}] ({item['name']})", p)
        if subnet:
            subnets.append(subnet)
    if entry["mtu"] < 1280 and any(subnet.version == 6 for subnet in subnets):
        p.add(f"{path}.mtu", f"{entry['mtu']} is too small for IPv6, which needs 1280")
    physical = _physical_network(entry, path, p)
    return Network(
        identifier,
        entry["name"],
        entry["network_type"],
        entry["mtu"],
        domain,
        tuple(subnets),
        physical_network=physical,
    )


def check_overlaps(networks: Sequence[tuple[str, Network]], problems: Problems) -> None:
    """No two subnets overlap, of whatever network and type.

    A host routes between its local networks, and tracks the connections and knows the security groups' members of all
    of its networks together, by address.
    """
    seen: list[tuple[Cidr, str]] = []
    for path, network in networks:
        for subnet in network.subnets:
            cidr = ipaddress.ip_network(subnet.cidr)
            for other, where in seen:
                if cidr.version == other.version and cidr.overlaps(other):
                    problems.add(f"{path}.subnets ({subnet.name}).cidr", f"{cidr} overlaps with {other} of {where}")
            seen.append((cidr, f"{network.name}/{subnet.name}"))


def check_physical_networks(networks: Sequence[tuple[str, Network]], problems: Problems) -> None:
    """One flat network a physical network, which has no tags to tell two apart: Neutron's FlatNetworkInUse."""
    seen: dict[str, str] = {}
    for path, network in networks:
        name = network.physical_network
        other = seen.setdefault(name, path)
        if name and other != path:
            problems.add(
                f"{path}.physical_network", f"{name!r} is that of {other}: a physical network holds one flat network"
            )


def first_and_last(cidr: Cidr) -> Pool:
    """The first and last address that a port may have: neither the network's nor, in IPv4, the broadcast address."""
    return cidr.network_address + 1, cidr.broadcast_address - (1 if cidr.version == 4 else 0)


def _physical_network(entry: dict[str, Any], path: str, problems: Problems) -> str:
    name = entry.get("physical_network")
    flat = entry["network_type"] == "flat"
    if name is None and flat:
        problems.add(f"{path}.physical_network", "is missing: network_type is flat, so say which wire it is")
    elif name is not None and not flat:
        problems.add(f"{path}.physical_network", f"{name!r} is for a flat network: network_type is local")
    elif name is not None and not _PHYSICAL.fullmatch(name):
        problems.add(f"{path}.physical_network", f"{name!r} is not a name: 1 to 64 of letters, digits, '_', '.', '-'")
    else:
        return name or ""
    return ""


def _build_subnet(entry: dict[str, Any], identifier: str, path: str, problems: Problems) -> Subnet | None:
    cidr = _cidr(entry["cidr"], f"{path}.cidr", problems)
    if cidr is None:
        return None
    gateway = _gateway(entry, cidr, path, problems)
    return Subnet(
        id=identifier,
        name=entry["name"],
        cidr=str(cidr),
        gateway_ip=None if gateway is None else str(gateway),
        enable_dhcp=entry["enable_dhcp"],
        dns_nameservers=_nameservers(entry["dns_nameservers"], f"{path}.dns_nameservers", problems),
        host_routes=_host_routes(entry["host_routes"], cidr, f"{path}.host_routes", problems),
        allocation_pools=tuple((str(low), str(high)) for low, high in _pools(entry, cidr, gateway, path, problems)),
    )


def _cidr(value: str, path: str, problems: Problems) -> Cidr | None:
    try:
        cidr = ipaddress.ip_network(value)
    except ValueError:
        try:
            meant = ipaddress.ip_interface(value).network
            problems.add(path, f"{value!r} is not a network address: it has host bits set, the network is {meant}")
        except ValueError:
            problems.add(path, f"{value!r} is not a network address such as 192.0.2.0/24 or 2001:db8::/64")
        return None
    if cidr.prefixlen == 0 or cidr.is_multicast or cidr.is_loopback:
        problems.add(path, f"{cidr} cannot be a subnet: it is the whole address space, multicast or loopback")
    elif cidr.prefixlen > cidr.max_prefixlen - 2:
        problems.add(path, f"{cidr} is too small: a subnet needs a gateway's and a guest's address, so 4 addresses")
    else:
        return cidr
    return None


def _gateway(entry: dict[str, Any], cidr: Cidr, path: str, problems: Problems) -> Ip | None:
    wanted = entry.get("gateway_ip")
    if entry["disable_gateway_ip"]:
        if wanted is not None:
            problems.add(path, "gateway_ip and disable_gateway_ip exclude each other")
        return None
    if wanted is None:
        return cidr.network_address + 1
    return _inside(wanted, cidr, f"{path}.gateway_ip", problems)


def _inside(value: str, cidr: Cidr, path: str, problems: Problems) -> Ip | None:
    """The address if guests or gateway may have it."""
    ip = address(value)
    if ip is None:
        problems.add(path, f"{value!r} is not an IP address")
        return None
    low, high = first_and_last(cidr)
    if ip.version != cidr.version or ip not in cidr:
        problems.add(path, f"{ip} is not in {cidr}")
    elif not int(low) <= int(ip) <= int(high):
        problems.add(path, f"{ip} is the network's or the broadcast address of {cidr}")
    else:
        return ip
    return None


def _pools(entry: dict[str, Any], cidr: Cidr, gateway: Ip | None, path: str, problems: Problems) -> list[Pool]:
    pools = [(f"{path}.allocation_pools[{i}]", p["start"], p["end"]) for i, p in enumerate(entry["allocation_pools"])]
    start, end = entry.get("allocation_pool_start"), entry.get("allocation_pool_end")
    if start is not None or end is not None:
        if pools:
            problems.add(path, "allocation_pools excludes allocation_pool_start and allocation_pool_end")
        elif start is None or end is None:
            problems.add(path, "allocation_pool_start and allocation_pool_end go together: give both")
        else:
            pools = [(f"{path}.allocation_pool", start, end)]
    elif not pools:
        return _default_pools(cidr, gateway)
    found: list[Pool] = []
    for where, first, last in pools:
        low = _inside(first, cidr, f"{where}.start" if where[-1] == "]" else f"{where}_start", problems)
        high = _inside(last, cidr, f"{where}.end" if where[-1] == "]" else f"{where}_end", problems)
        if low is not None and high is not None and _check_pool((low, high), found, gateway, where, problems):
            found.append((low, high))
    return found


def _check_pool(pool: Pool, others: Sequence[Pool], gateway: Ip | None, path: str, problems: Problems) -> bool:
    low, high = int(pool[0]), int(pool[1])
    if low > high:
        problems.add(path, f"{pool[0]} to {pool[1]} ends before it begins")
        return False
    if gateway is not None and low <= int(gateway) <= high:
        problems.add(path, f"{pool[0]} to {pool[1]} holds the gateway {gateway}")
    for other in others:
        if low <= int(other[1]) and int(other[0]) <= high:
            problems.add(path, f"{pool[0]} to {pool[1]} overlaps with the pool {other[0]} to {other[1]}")
    return True


def _default_pools(cidr: Cidr, gateway: Ip | None) -> list[Pool]:
    low, high = first_and_last(cidr)
    if gateway is None:
        return [(low, high)]
    pools = []
    if int(low) < int(gateway):
        pools.append((low, gateway - 1))
    if int(gateway) < int(high):
        pools.append((gateway + 1, high))
    return pools


def _nameservers(values: Sequence[str], path: str, problems: Problems) -> tuple[str, ...]:
    for index, value in enumerate(values):
        if address(value) is None:
            problems.add(f"{path}[{index}]", f"{value!r} is not an IP address")
    return tuple(values)


def _host_routes(
    values: Sequence[dict[str, Any]], cidr: Cidr, path: str, problems: Problems
) -> tuple[tuple[str, str], ...]:
    routes = []
    for index, route in enumerate(values):
        where = f"{path}[{index}]"
        try:
            destination = ipaddress.ip_network(route["destination"])
        except ValueError:
            problems.add(f"{where}.destination", f"{route['destination']!r} is not a network address")
            continue
        nexthop = address(route["nexthop"])
        if nexthop is None or {nexthop.version, destination.version} != {cidr.version}:
            problems.add(where, f"destination {destination} and nexthop {route['nexthop']!r} must be IPv{cidr.version}")
            continue
        routes.append((str(destination), str(nexthop)))
    return tuple(routes)
