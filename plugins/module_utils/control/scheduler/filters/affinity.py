# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Near other servers, or away from them, as scheduler hints ask."""

from __future__ import annotations

import ipaddress

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Bools, Hosts, flags
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec, WrongHint


class DifferentHostFilter(Filter):
    """Passes hosts that have none of the servers which the hint ``different_host`` names by uuid (one or a list)."""

    name = "DifferentHostFilter"
    once = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        uuids = _uuids(spec, "different_host")
        return hosts.members(uuids) == 0 if uuids else hosts.everywhere

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        there = sorted(uuid for uuid in _uuids(spec, "different_host") if hosts.servers.get(uuid) == row)
        return f"different_host: it has {', '.join(there)}"


class SameHostFilter(Filter):
    """Passes hosts that have one of the servers which the hint ``same_host`` names by uuid (one or a list)."""

    name = "SameHostFilter"
    once = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        uuids = _uuids(spec, "same_host")
        return hosts.members(uuids) > 0 if uuids else hosts.everywhere

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        return f"same_host: it has none of {', '.join(sorted(_uuids(spec, 'same_host')))}"


class SimpleCIDRAffinityFilter(Filter):
    """Passes hosts whose address lies in the network of the hints ``build_near_host_ip`` and ``cidr`` ("/24")."""

    name = "SimpleCIDRAffinityFilter"
    once = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        network = _network(spec)
        if not network:
            return hosts.everywhere
        return flags(_within(address, network) for address in hosts.host_ip)

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        return f"address in {_network(spec)} wanted, {hosts.host_ip[row] or 'none'} reported"


def _uuids(spec: RequestSpec, hint: str) -> frozenset[str]:
    named = spec.scheduler_hints.get(hint) or ()
    return frozenset([named] if isinstance(named, str) else map(str, named))


def _network(spec: RequestSpec) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    near, cidr = spec.scheduler_hints.get("build_near_host_ip"), spec.scheduler_hints.get("cidr", "/24")
    if not near:
        return None
    try:
        return ipaddress.ip_network(f"{near}{cidr}", strict=False)
    except ValueError as error:
        raise WrongHint(
            f"scheduler_hints: build_near_host_ip {near!r} with cidr {cidr!r} is no network ({error}); "
            "give an address and a prefix such as /24"
        ) from error


def _within(address: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        return ipaddress.ip_address(address) in network
    except ValueError:  # the host reports none, or what is none
        return False
