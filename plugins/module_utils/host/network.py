# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The network's bridge on this host, its gateway and masquerade: what Neutron's Linux bridge and L3 agents did.

Each port of the network on this host is an empty file in ``Paths.network_directory``; the bridge goes with the last.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
from dataclasses import dataclass
from typing import Callable, ContextManager, Dict, Iterator, List, Mapping, Sequence, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host import netlink, nft, system
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict, HostError, InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Network

MASQUERADE = ("inet", "masquerade")
"""The chain of all networks' masquerade rules; each rule's comment is its network's id."""


@dataclass(frozen=True)
class Plan:
    """What a network needs of this host beyond the bridge itself."""

    gateways: Tuple[str, ...] = ()
    """Addresses on the bridge, ``10.0.0.1/24``."""
    masquerade: Tuple[str, ...] = ()
    """IPv4 subnets, ``10.0.0.0/24``, whose guests go out under the host's own address."""


def local(network: Network) -> Plan:
    """No uplink: the host is the gateway of every subnet that has one, and hides IPv4 guests behind itself."""
    gateways, masquerade = [], []
    for subnet in network.subnets:
        if subnet.gateway_ip is not None:
            cidr = ipaddress.ip_network(subnet.cidr, strict=False)
            gateways.append(f"{ipaddress.ip_address(subnet.gateway_ip)}/{cidr.prefixlen}")
            if cidr.version == 4:
                masquerade.append(str(cidr))
    return Plan(tuple(gateways), tuple(masquerade))


TYPES: Dict[str, Callable[[Network], Plan]] = {"local": local}
"""Network types: how a network of that type reaches beyond its bridge."""


def plan(network: Network) -> Plan:
    """The network's plan by its type; InvalidRequest for a type that is not in ``TYPES``."""
    if network.network_type not in TYPES:
        allowed = ", ".join(sorted(TYPES))
        raise InvalidRequest(
            f"network {network.name} ({network.id}): network_type {network.network_type} is not known, use {allowed}"
        )
    return TYPES[network.network_type](network)


def bridge_mac(network_id: str) -> str:
    """The bridge's own address: fixed, else the kernel changes it with the ports and guests lose their gateway."""
    digest = hashlib.sha256(network_id.encode()).hexdigest()
    return ":".join(["02", *(digest[i : i + 2] for i in range(0, 10, 2))])


def masquerade_rules(network: Network, wanted: Plan) -> Tuple[str, ...]:
    """One rule a subnet, as nft's text."""
    return tuple(
        f'ip saddr {cidr} oifname != "{network.bridge}" masquerade comment "{network.id}"' for cidr in wanted.masquerade
    )


def host_lock(paths: Paths, check_mode: bool) -> ContextManager[None]:
    """One phase at a time changes the networks of this host; check mode waits for no one and leaves no file."""
    if check_mode:
        return contextlib.nullcontext()
    os.makedirs(paths.state_path, mode=0o755, exist_ok=True)
    return system.locked(f"{paths.state_path}/network.lock")


class Bridges:
    """Makes and removes the networks of this host. A network is worked on once a call, with all its ports."""

    def __init__(self, paths: Paths, effects: Effects) -> None:
        self._paths = paths
        self._effects = effects

    def ensure(self, network: Network, port_ids: Sequence[str]) -> None:
        """Register the ports, and see to bridge, gateway and masquerade."""
        wanted = plan(network)
        with host_lock(self._paths, self._effects.check_mode), netlink.Netlink() as socket:
            if wanted.masquerade and not self._effects.check_mode and netlink.read_sysctl("net/ipv4/ip_forward") != "1":
                raise HostError("net.ipv4.ip_forward is 0, must be 1: run playbooks/prepare_hosts.yml")
            links, addresses = socket.links(), socket.addresses()
            _refuse_overlap(network, wanted, links, addresses)
            self._register(network, port_ids)
            self._bridge(socket, network, wanted, links.get(network.bridge))
            link = links.get(network.bridge) or socket.links().get(network.bridge)
            present = addresses.get(link.index, ()) if link else ()
            self._gateways(socket, network, wanted, link, present)
            self._masquerade(network, masquerade_rules(network, wanted))

    def release(self, network: Network, port_ids: Sequence[str]) -> None:
        """Take the ports off; with the last one, and no tap left on it, the bridge and all that came with it."""
        directory = self._paths.network_directory(network.id)
        with host_lock(self._paths, self._effects.check_mode), netlink.Netlink() as socket:
            registered = _listed(directory)
            for port_id in sorted(registered.intersection(port_ids)):
                self._effects.apply("network.port", port_id, lambda path=f"{directory}/{port_id}": os.unlink(path))
            links = socket.links()
            bridge = links.get(network.bridge)
            taps = [link.name for link in links.values() if bridge and link.master == bridge.index]
            if registered.difference(port_ids) or any(name.startswith("tap") for name in taps):
                return
            self._masquerade(network, ())
            if bridge:
                index = bridge.index
                remove = lambda: socket.delete_link(network.bridge, index)  # noqa: E731
                self._effects.apply("network.bridge", network.bridge, remove, before=_described(bridge))
            if os.path.isdir(directory) and not self._effects.check_mode:
                os.rmdir(directory)

    def _register(self, network: Network, port_ids: Sequence[str]) -> None:
        directory = self._paths.network_directory(network.id)
        for port_id in sorted(set(port_ids) - _listed(directory)):

            def mark(path: str = f"{directory}/{port_id}") -> None:
                os.makedirs(directory, mode=0o755, exist_ok=True)
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))

            self._effects.apply("network.port", port_id, mark, after=f"on {network.bridge}")
