# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The network's bridge on this host and its way out: what Neutron's Linux bridge and L3 agents did.

Each port of the network on this host is a file in ``Paths.network_directory``; the bridge goes with the last. The file
says whose the port is, for the audit.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, ContextManager, Dict, Mapping, Optional, Sequence, Set, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host import netlink, nft, system
from ansible_collections.barestack.kvm.plugins.module_utils.host.netlink import Link, Netlink
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict, HostError, InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Network

MASQUERADE = ("inet", "postrouting_masquerade")
"""The chain of all networks' masquerade rules; each rule's comment is its network's id."""
MASQUERADE_HOOK = "{ type nat hook postrouting priority srcnat; policy accept; }"
CLOSED_HOOK = '{{ type filter hook ingress device "{}" priority 0; policy drop; }}'
"""The hook of a flat network's chain, which bears its bridge's name: see :meth:`Bridges._uplink`."""


@dataclass(frozen=True)
class Plan:
    """What a network needs of this host beyond the bridge itself."""

    gateways: Tuple[str, ...] = ()
    """Addresses on the bridge, ``10.0.0.1/24``."""
    masquerade: Tuple[str, ...] = ()
    """IPv4 subnets, ``10.0.0.0/24``, whose guests go out under the host's own address."""
    physical_network: str = ""
    """The wire whose interface is a port of the bridge."""


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


def flat(network: Network) -> Plan:
    """A wire as it is. Who routes there, and has the subnets' gateways, is outside: the host itself is not on it."""
    if not network.physical_network:
        raise InvalidRequest(f"network {network.name} ({network.id}): network_type flat needs a physical_network")
    return Plan(physical_network=network.physical_network)


TYPES: Dict[str, Callable[[Network], Plan]] = {"local": local, "flat": flat}
"""Network types: how a network of that type reaches beyond its bridge."""


def plan(network: Network) -> Plan:
    """The network's plan by its type; InvalidRequest for a type that is not in ``TYPES``."""
    if network.network_type not in TYPES:
        allowed = ", ".join(sorted(TYPES))
        raise InvalidRequest(
            f"network {network.name} ({network.id}): network_type {network.network_type} is not known, use {allowed}"
        )
    return TYPES[network.network_type](network)


def find_uplink(
    network: Network, mappings: Mapping[str, Any], links: Mapping[str, Link], addresses: Mapping[int, Tuple[str, ...]]
) -> Link:
    """The interface of the flat network's wire, if it can be the bridge's; else an error that says why not. Pure.

    Neutron's agent moves the interface's addresses to the bridge. Here such an interface is refused: whoever reaches
    the host by it, Ansible too, would lose it on the way.
    """
    physical, bridge = network.physical_network, links.get(network.bridge)
    name = mappings.get(physical)
    where = f"network {network.name} ({network.id}), physical network {physical}: "
    if name is None:
        raise HostError(
            f"{where}this host has no interface for it: name one in physical_interface_mappings, or use another host"
        )
    # A tap is a guest's, and a bridge stays as long as it has one.
    if not isinstance(name, str) or name.startswith("tap"):
        raise InvalidRequest(f"{where}physical_interface_mappings has {name!r}, which is not a physical interface")
    link = links.get(name)
    if link is None:
        raise HostError(f"{where}interface {name} does not exist on this host: correct physical_interface_mappings")
    if link.mtu < network.mtu:
        raise Conflict(
            f"{where}the MTU of {name} is {link.mtu}, the network's is {network.mtu}: raise that of the interface, or"
            " lower the network's"
        )
    if bridge and link.master == bridge.index:
        return link
    if link.master is not None:
        owner = next((item.name for item in links.values() if item.index == link.master), "another device")
        raise Conflict(f"{where}{name} is in {owner} already: take it out, or map another interface")
    if addresses.get(link.index):
        raise Conflict(
            f"{where}{name} has the address {', '.join(addresses[link.index])}, which would not answer any more, and"
            " this host could lose its own connection: take the address away, or map another interface"
        )
    if bridge:
        _refuse_second_way_out(where, name, bridge, links)
    return link


def _refuse_second_way_out(where: str, name: str, bridge: Link, links: Mapping[str, Link]) -> None:
    others = [item.name for item in links.values() if item.master == bridge.index and not item.name.startswith("tap")]
    if others:
        raise Conflict(
            f"{where}{bridge.name} has {', '.join(others)} in it, and with {name} it would join two wires: take"
            f" {', '.join(others)} out (ip link set {others[0]} nomaster), or correct physical_interface_mappings"
        )


def bridge_mac(network_id: str) -> str:
    """The bridge's own address: fixed, else the kernel changes it with the ports and guests lose their gateway."""
    digest = hashlib.sha256(network_id.encode()).hexdigest()
    return ":".join(["02", *(digest[i : i + 2] for i in range(0, 10, 2))])


def masquerade_rules(network: Network, wanted: Plan) -> Tuple[str, ...]:
    """One rule a subnet, as nft's text."""
    return tuple(
        f'ip saddr {cidr} oifname != "{network.bridge}" masquerade comment "{network.id}"' for cidr in wanted.masquerade
    )


def host_lock(paths: Paths, check_mode: bool) -> ContextManager[object]:
    """One phase at a time changes the networks of this host; check mode waits for no one and leaves no file."""
    if check_mode:
        return contextlib.nullcontext()
    os.makedirs(paths.state_path, mode=0o755, exist_ok=True)
    return system.locked(f"{paths.state_path}/network.lock")


class Bridges:
    """Makes and removes the networks of this host. A network is worked on once a call, with all its ports."""

    def __init__(
        self,
        paths: Paths,
        effects: Effects,
        mappings: Optional[Mapping[str, Any]] = None,
        owners: Optional[Mapping[str, str]] = None,
    ) -> None:
        """``mappings``: physical network to interface of this host; ``owners``: port id to what its mark says."""
        self._paths = paths
        self._effects = effects
        self._mappings = mappings or {}
        self._owners = owners or {}

    def ensure(self, network: Network, port_ids: Sequence[str]) -> None:
        """Register the ports, and see to the bridge and its way out."""
        wanted = plan(network)
        with host_lock(self._paths, self._effects.check_mode), Netlink() as socket:
            if wanted.masquerade and not self._effects.check_mode and netlink.read_sysctl("net/ipv4/ip_forward") != "1":
                raise HostError("net.ipv4.ip_forward is 0, must be 1: run playbooks/prepare_hosts.yml")
            links, addresses = socket.links(), socket.addresses()
            _refuse_overlap(network, wanted, links, addresses)
            uplink = find_uplink(network, self._mappings, links, addresses) if wanted.physical_network else None
            self._register(network, port_ids)
            found = links.get(network.bridge)
            # On a wire every host's bridge needs a MAC of its own: the interface's, as any bridge has it.
            mac = uplink.mac if uplink else bridge_mac(network.id)
            self._bridge(socket, network, wanted, mac, found)
            self._gateways(socket, network, wanted, addresses.get(found.index, ()) if found else ())
            loaded = nft.load()
            self._masquerade(network, masquerade_rules(network, wanted), loaded)
            if uplink:
                self._uplink(socket, network, uplink, found, loaded)

    def release(self, network: Network, port_ids: Sequence[str]) -> None:
        """Take the ports off; with the last one, and no tap left on it, the bridge and all that came with it."""
        directory = self._paths.network_directory(network.id)
        with host_lock(self._paths, self._effects.check_mode), Netlink() as socket:
            registered = _listed(directory)
            for port_id in sorted(registered.intersection(port_ids)):
                gone = partial(os.unlink, f"{directory}/{port_id}")
                self._effects.apply("network.port", port_id, gone, before=f"on {network.bridge}")
            links = socket.links()
            bridge = links.get(network.bridge)
            members = [link for link in links.values() if bridge and link.master == bridge.index]
            if registered.difference(port_ids) or any(link.name.startswith("tap") for link in members):
                return
            loaded = nft.load()
            self._masquerade(network, (), loaded)
            self._let_go(socket, network, members, loaded)
            if bridge or os.path.isdir(directory):
                remove = partial(_remove, socket, bridge, directory)
                self._effects.apply("network.bridge", network.bridge, remove, before=_described(bridge))

    def _register(self, network: Network, port_ids: Sequence[str]) -> None:
        directory = self._paths.network_directory(network.id)
        for port_id in sorted(set(port_ids) - _listed(directory)):
            mark = partial(_mark, directory, port_id, self._owners.get(port_id, ""))
            self._effects.apply("network.port", port_id, mark, after=f"on {network.bridge}")

    def _bridge(self, socket: Netlink, network: Network, wanted: Plan, mac: str, found: Optional[Link]) -> None:
        name = network.bridge
        if found and found.kind != "bridge":
            raise Conflict(f"network {network.name}: link {name} is a {found.kind}, not a bridge: remove or rename it")
        sysctls = _sysctls(name, wanted)
        target = Link(found.index if found else 0, name, True, network.mtu, mac, None, "bridge", (0, 0, 0))
        if found == target and all(netlink.read_sysctl(key) in (value, None) for key, value in sysctls.items()):
            return

        def make() -> None:
            index = found.index if found else socket.create_bridge(name, mac)
            if found and found.mac != mac:
                socket.set_link(index, name, address=mac)
            for key, value in sysctls.items():
                netlink.write_sysctl(key, value)
            socket.configure_bridge(index, name, network.mtu)

        self._effects.apply("network.bridge", name, make, before=_described(found), after=_described(target))

    def _gateways(self, socket: Netlink, network: Network, wanted: Plan, present: Tuple[str, ...]) -> None:
        name = network.bridge
        if sorted(present) == sorted(wanted.gateways):
            return

        def change() -> None:
            socket.set_addresses(socket.links()[name].index, name, wanted.gateways)

        before, after = "\n".join(present), "\n".join(wanted.gateways)
        self._effects.apply("network.gateway", name, change, before=before, after=after)

    def _uplink(
        self, socket: Netlink, network: Network, uplink: Link, bridge: Optional[Link], loaded: nft.Ruleset
    ) -> None:
        """The interface in the bridge and up, and the host closed to the bridge.

        The host answers, and forwards, for whatever link a packet to its MAC comes from: addresses of its other links
        would be open to the wire and to the guests on it. So what the bridge hands up to the host is dropped, in its
        ingress hook, which no bridged frame passes.
        """
        key = ("netdev", network.bridge)
        closed = key in loaded.chains and loaded.chains[key].header.get("policy") == "drop"
        closed = closed and loaded.chains[key].header.get("hook") == "ingress" and not loaded.chains[key].rules
        joined = bridge is not None and uplink.master == bridge.index
        if closed and joined and uplink.up:
            return

        def join() -> None:
            if not closed:
                chain = nft.WantedChain((), CLOSED_HOOK.format(network.bridge))
                nft.commit(
                    "\n".join([*nft.dropped([key] if key in loaded.chains else []), *nft.declared({key: chain})])
                )
            index = socket.links()[network.bridge].index
            socket.set_link(uplink.index, uplink.name, master=index, state="up")

        place = f" in {network.bridge}" if joined else ""
        before = f"{uplink.name}{place} {'up' if uplink.up else 'down'}, host {'closed' if closed else 'open'}"
        after = f"{uplink.name} in {network.bridge} up, host closed"
        self._effects.apply("network.uplink", network.bridge, join, before=before, after=after)

    def _let_go(self, socket: Netlink, network: Network, members: Sequence[Link], loaded: nft.Ruleset) -> None:
        """Take these links out of the bridge, which is about to go, and its chain away. They stay up."""
        lines = nft.release(loaded, "netdev", [("netdev", network.bridge)])
        if not members and not lines:
            return

        def leave() -> None:
            for link in members:
                socket.set_link(link.index, link.name, master=0)
            if lines:
                nft.commit("\n".join(lines))

        before = " ".join(link.name for link in members)
        self._effects.apply("network.uplink", network.bridge, leave, before=f"{before} in {network.bridge}".strip())

    def _masquerade(self, network: Network, rules: Tuple[str, ...], loaded: nft.Ruleset) -> None:
        """Make the rules whose comment is the network's id be these."""
        chain = loaded.chains.get(MASQUERADE)
        mine = [rule for rule in chain.rules if rule.comment == network.id] if chain else []
        if not mine and not rules:
            return
        added = nft.declared({MASQUERADE: nft.WantedChain(rules, MASQUERADE_HOOK)})
        if mine and rules and [rule.text for rule in mine] == nft.normalise("\n".join(added)).chains[MASQUERADE].texts:
            return
        if rules:
            lines = [line for line in added if not line.startswith("flush ")]
            lines += [f"delete rule inet {nft.TABLE} {MASQUERADE[1]} handle {rule.handle}" for rule in mine]
        elif chain and len(mine) == len(chain.rules):
            lines = nft.release(loaded, "inet", [MASQUERADE])
        else:
            lines = [f"delete rule inet {nft.TABLE} {MASQUERADE[1]} handle {rule.handle}" for rule in mine]
        before, after = "\n".join(rule.text for rule in mine), "\n".join(rules)
        commit = partial(nft.commit, "\n".join(lines))
        self._effects.apply("network.masquerade", network.bridge, commit, before=before, after=after)


def _refuse_overlap(
    network: Network, wanted: Plan, links: Mapping[str, Link], addresses: Mapping[int, Tuple[str, ...]]
) -> None:
    """Two links of one host cannot hold the same subnet: its routes and connections would mix."""
    mine = [ipaddress.ip_interface(address).network for address in wanted.gateways]
    for link in links.values():
        for address in addresses.get(link.index, ()) if link.name != network.bridge else ():
            theirs = ipaddress.ip_interface(address).network
            if any(theirs.version == net.version and net.overlaps(theirs) for net in mine):
                raise Conflict(
                    f"network {network.name} ({network.id}): its subnet overlaps with {address} on {link.name} of"
                    " this host: give it another subnet, or one without a gateway"
                )


def _sysctls(bridge: str, wanted: Plan) -> Dict[str, str]:
    root = f"net/ipv6/conf/{bridge}"
    if any(":" in address for address in wanted.gateways):
        return {f"{root}/disable_ipv6": "0", f"{root}/accept_ra": "0", f"{root}/autoconf": "0"}
    return {f"{root}/disable_ipv6": "1"}


def _described(link: Optional[Link]) -> str:
    if link is None:
        return ""
    state = "up" if link.up else "down"
    delay, stp, snooping = link.bridge if len(link.bridge) == 3 else (None, None, None)
    return f"mtu {link.mtu} {state} mac {link.mac} forward_delay {delay} stp {stp} mcast_snooping {snooping}"


def _listed(directory: str) -> Set[str]:
    try:
        return set(os.listdir(directory))
    except FileNotFoundError:
        return set()


def _mark(directory: str, port_id: str, owner: str) -> None:
    os.makedirs(directory, mode=0o755, exist_ok=True)
    with open(f"{directory}/{port_id}", "w") as stream:
        stream.write(owner and f"{owner}\n")


def _remove(socket: Netlink, bridge: Optional[Link], directory: str) -> None:
    if bridge:
        socket.delete_link(bridge.name, bridge.index)
    if os.path.isdir(directory):
        os.rmdir(directory)
