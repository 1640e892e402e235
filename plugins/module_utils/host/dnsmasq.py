# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""dnsmasq's command line and files for one network, as neutron.agent.linux.dhcp.Dnsmasq writes them. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Collection, Dict, List, Sequence, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Network, Port, Subnet

LEASE_DURATION = 86400
"""Neutron's dhcp_lease_duration, in seconds."""
LEASE_MAX = 2**24
"""Neutron's dnsmasq_lease_max."""

_CLASSLESS_ROUTE = "option:classless-static-route"
_CLASSLESS_ROUTE_MICROSOFT = "249"


def served_subnets(network: Network) -> Tuple[Subnet, ...]:
    """The subnets that get a range: those with ``enable_dhcp``."""
    return tuple(subnet for subnet in network.subnets if subnet.enable_dhcp)


def command(network: Network, directory: str) -> List[str]:
    """The command line, in Neutron's order."""
    ranges, size = [], 0
    for subnet in served_subnets(network):
        cidr = ipaddress.ip_network(subnet.cidr, strict=False)
        mask = str(cidr.netmask) if cidr.version == 4 else str(cidr.prefixlen)
        size += cidr.num_addresses
        ranges.append(f"--dhcp-range=set:subnet-{subnet.id},{cidr.network_address},static,{mask},{LEASE_DURATION}s")
    return [
        "dnsmasq",
        "--no-hosts",
        "--no-resolv",
        f"--pid-file={directory}/pid",
        f"--dhcp-hostsfile={directory}/host",
        f"--addn-hosts={directory}/addn_hosts",
        f"--dhcp-optsfile={directory}/opts",
        f"--dhcp-leasefile={directory}/leases",
        "--dhcp-match=set:ipxe,175",
        "--dhcp-userclass=set:ipxe6,iPXE",
        # On a wire that hosts share, each host's server is silent about the others' guests, refusals included.
        "--dhcp-ignore=tag:!known",
        "--local-service",
        "--bind-dynamic",
        *ranges,
        f"--dhcp-option-force=option:mtu,{network.mtu}",
        f"--dhcp-lease-max={min(size, LEASE_MAX)}",
        "--conf-file=/dev/null",
        *([f"--domain={network.dns_domain}"] if network.dns_domain else []),
    ]


def opts(network: Network) -> str:
    """The ``opts`` file: what each subnet's guests are told."""
    lines: List[str] = []
    for subnet in served_subnets(network):
        lines += _opts_v4(network, subnet) if subnet.version == 4 else _opts_v6(network, subnet)
    return "".join(f"{line}\n" for line in lines)


def _opts_v4(network: Network, subnet: Subnet) -> List[str]:
    tag = f"tag:subnet-{subnet.id}"
    servers = subnet.dns_nameservers or _server_addresses(network, subnet)
    lines = [f"{tag},option:dns-server,{','.join(servers)}"] if servers else []
    routes = [f"{destination},{hop}" for destination, hop in subnet.host_routes]
    # Subnets of one network share its wire: each is told that the others need no router.
    routes += [f"{other.cidr},0.0.0.0" for other in network.subnets if other.version == 4 and other.id != subnet.id]
    if routes:
        # A client that takes classless routes ignores the router option, so the default route is here too.
        routes += [f"0.0.0.0/0,{subnet.gateway_ip}"] if subnet.gateway_ip else []
        lines += [f"{tag},{option},{','.join(routes)}" for option in (_CLASSLESS_ROUTE, _CLASSLESS_ROUTE_MICROSOFT)]
    # Without a value dnsmasq sends no router, where else it would name itself.
    lines.append(f"{tag},option:router" + (f",{subnet.gateway_ip}" if subnet.gateway_ip else ""))
    return lines


def _opts_v6(network: Network, subnet: Subnet) -> List[str]:
    tag = f"tag:subnet-{subnet.id}"
    servers = [f"[{address}]" for address in subnet.dns_nameservers or _server_addresses(network, subnet)]
    lines = [f"{tag},option6:dns-server,{','.join(servers)}"] if servers else []
    return lines + ([f"{tag},option6:domain-search,{network.dns_domain}"] if network.dns_domain else [])


def _server_addresses(network: Network, subnet: Subnet) -> Tuple[str, ...]:
    fixed = network.dhcp_port.fixed_ips if network.dhcp_port else ()
    return tuple(item.ip_address for item in fixed if item.subnet_id == subnet.id)


def qualified(hostname: str, network: Network) -> str:
    """``<hostname>.<dns_domain>``."""
    return f"{hostname}.{network.dns_domain}" if network.dns_domain else hostname


def host_lines(port: Port, hostname: str) -> List[str]:
    """The port's lines in ``host``: one an address in a subnet that DHCP serves."""
    served = {subnet.id for subnet in served_subnets(port.network)}
    name = qualified(hostname, port.network)
    return [
        f"{port.mac_address},tag:dhcpv6,{name},[{fixed.ip_address}]"
        if ":" in fixed.ip_address
        else f"{port.mac_address},{name},{fixed.ip_address}"
        for fixed in port.fixed_ips
        if fixed.subnet_id in served
    ]


def addn_hosts_lines(port: Port, hostname: str) -> List[str]:
    """The port's lines in ``addn_hosts``: what DNS answers for it."""
    names = " ".join(dict.fromkeys((qualified(hostname, port.network), hostname)))
    return [f"{fixed.ip_address}\t{names}" for fixed in port.fixed_ips]


def host_key(line: str) -> Tuple[str, str]:
    """(MAC, address) of a line of ``host``."""
    fields = line.split(",")
    address = next((field for field in reversed(fields) if not field.startswith("set:")), "")
    return fields[0].lower(), address.strip("[]")


def merged(text: str, wanted: Sequence[str], mine: Collection[str]) -> str:
    """The file with its lines in ``mine`` replaced by ``wanted``; lines that stay keep their place."""
    kept = [line for line in text.splitlines() if line not in mine or line in wanted]
    return "".join(f"{line}\n" for line in [*kept, *(line for line in wanted if line not in kept)])


@dataclass(frozen=True)
class Lease:
    """A lease of dnsmasq's ``leases`` file. ``expiry`` 0 is one nobody asked for yet (see :func:`first_leases`)."""

    expiry: int
    hardware: str
    """The MAC, or for IPv6 the identity association."""
    address: str
    client_id: str
    """Hexadecimal; ``*`` for none. For IPv6 the client's DUID."""


def leases(text: str) -> Tuple[List[Lease], str]:
    """(the leases, the server's DUID) of a ``leases`` file."""
    found, server = [], ""
    for fields in map(str.split, text.splitlines()):
        if len(fields) == 2 and fields[0] == "duid":
            server = fields[1]
        elif len(fields) >= 5 and fields[0].isdigit():
            found.append(Lease(int(fields[0]), fields[1].lower(), fields[2], fields[4]))
    return found, server


def release_command(device: str, lease: Lease, server: str) -> List[str]:
    """The command that gives a lease back, for ``device``, where the server listens; ``server`` is its DUID."""
    if ":" not in lease.address:
        client = [lease.client_id] if lease.client_id != "*" else []
        return ["dhcp_release", device, lease.address, lease.hardware, *client]
    return [
        "dhcp_release6",
        f"--iface={device}",
        f"--client-id={lease.client_id}",
        f"--server-id={server}",
        f"--iaid={lease.hardware.lstrip('t')}",
        f"--ip={lease.address}",
    ]


def first_leases(host: str) -> str:
    """A ``leases`` file for a server that lost its own: Neutron's bootstrap, so that no guest's renewal is refused."""
    keys = [host_key(line) for line in host.splitlines()]
    return "".join(f"0 {mac} {address} * *\n" for mac, address in keys if address and ":" not in address)


def files(network: Network, current: Dict[str, str], entries: Sequence[Tuple[Port, str]]) -> Dict[str, str]:
    """``host``, ``addn_hosts``, ``opts`` and ``interface`` with these (port, hostname) in; others' entries stay."""
    hosts = [line for port, hostname in entries for line in host_lines(port, hostname)]
    names = [line for port, hostname in entries for line in addn_hosts_lines(port, hostname)]
    text = without(current, [port for port, _ in entries], hosts, names)
    return {**text, "opts": opts(network), "interface": network.dhcp_port.tap_device if network.dhcp_port else ""}


def without(
    current: Dict[str, str], ports: Sequence[Port], hosts: Sequence[str] = (), names: Sequence[str] = ()
) -> Dict[str, str]:
    """``host`` and ``addn_hosts`` where these ports (by MAC or address) have only the given lines."""
    macs = {port.mac_address.lower() for port in ports}
    addresses = {fixed.ip_address for port in ports for fixed in port.fixed_ips}
    keys = {line: host_key(line) for line in current["host"].splitlines()}
    mine = {line for line, (mac, address) in keys.items() if mac in macs or address in addresses}
    addresses |= {keys[line][1] for line in mine}
    named = {line for line in current["addn_hosts"].splitlines() if line.split("\t")[0] in addresses}
    return {"host": merged(current["host"], hosts, mine), "addn_hosts": merged(current["addn_hosts"], names, named)}
