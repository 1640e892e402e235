# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What of ours there is on one compute host, and what of it is to go: the audit's data, between the two sides.

``Contents`` is what the host module of that name found; the control side compares it with the records. ``Leftovers`` is
its answer: what the module ``clear`` removes. Everything is named by what it is called on the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Network, Port


@dataclass(frozen=True)
class FoundDomain:
    """A libvirt domain; of one that is not ``ours`` (it lacks our metadata) only uuid and name are told."""

    uuid: str
    name: str
    ours: bool
    power_state: str = ""
    """One of PowerState."""
    ports: Tuple[str, ...] = ()
    """The ids of the ports that it was defined with."""
    taps: Tuple[str, ...] = ()
    macs: Tuple[str, ...] = ()
    files: Tuple[str, ...] = ()
    """The paths of its disks."""


@dataclass(frozen=True)
class FoundDirectory:
    """A directory below instances_path that is named as an instance's, ``<uuid>`` or ``<uuid>_del``."""

    name: str
    files: Tuple[str, ...] = ()
    baseless: Tuple[str, ...] = ()
    """Those of them that are overlays over a file which is gone."""


@dataclass(frozen=True)
class FoundPart:
    """A temporary file that nobody holds: what a killed run left. ``owner``: the instance whose directory it is in."""

    path: str
    owner: str = ""


@dataclass(frozen=True)
class FoundMark:
    """A port's mark in the host's state: the port is on this host. ``owner`` and ``mac`` where the mark says them."""

    network_id: str
    port_id: str
    owner: str = ""
    """The uuid of the instance that the port belongs to."""
    mac: str = ""


@dataclass(frozen=True)
class FoundLease:
    """A MAC with an address: an entry of dnsmasq's ``host`` file, or a lease."""

    mac: str
    address: str


@dataclass(frozen=True)
class FoundServer:
    """A network's DHCP server on this host: dnsmasq's files, its process, its namespace."""

    network_id: str
    files: bool = False
    interface: str = ""
    """The bridge's end of its veth pair, as its files say."""
    entries: Tuple[FoundLease, ...] = ()
    stale: Tuple[FoundLease, ...] = ()
    """Leases of addresses that have no entry."""
    running: bool = False
    """Whether its dnsmasq runs, in the namespace that has the network's name now."""
    namespace: bool = False
    others: bool = False
    """Whether a process that is not ours is in the namespace."""


@dataclass(frozen=True)
class FoundLink:
    """A tap or a bridge that is named as ours."""

    name: str
    up: bool
    bridge: str = ""
    """Of a tap: the bridge that it is in."""
    addresses: Tuple[str, ...] = ()
    """Of a bridge."""
    members: Tuple[str, ...] = ()
    """Of a bridge: what is in it beside taps, as a flat network's interface."""


@dataclass(frozen=True)
class FoundRules:
    """What of one tap is in our nftables tables."""

    tap: str
    complete: bool
    """Whether all its chains are there, are looked up from the base chains, and end in a drop."""


@dataclass(frozen=True)
class Contents:
    """All of ours on one host, in one look."""

    machine: str = ""
    """What no two machines have in common: two names in an inventory may mean one machine."""
    shared: bool = False
    """Whether other records have servers here too, as the inventory says."""
    shared_storage: bool = False
    """Whether instances_path is on a file system that other hosts may have mounted too."""
    domains: Tuple[FoundDomain, ...] = ()
    directories: Tuple[FoundDirectory, ...] = ()
    volumes: Tuple[str, ...] = ()
    """Volume ids."""
    consoles: Tuple[str, ...] = ()
    """Instance uuids."""
    parts: Tuple[FoundPart, ...] = ()
    networks: Tuple[str, ...] = ()
    """The ids of the networks that have a directory for ports' marks."""
    marks: Tuple[FoundMark, ...] = ()
    servers: Tuple[FoundServer, ...] = ()
    taps: Tuple[FoundLink, ...] = ()
    bridges: Tuple[FoundLink, ...] = ()
    rules: Tuple[FoundRules, ...] = ()
    members: Tuple[str, ...] = ()
    """The port ids whose addresses are in the security groups' sets."""
    masquerades: Tuple[str, ...] = ()
    """The network ids that masquerade rules are for."""


@dataclass(frozen=True)
class LeftoverGuest:
    """A server that the records know as deleted or elsewhere: its domain, console log and directory go."""

    uuid: str
    name: str
    """The domain's name, or where there is none whatever people know it by."""
    disks: bool = True
    """Whether its directory goes too: not where its live self may see the same one through a shared file system."""


@dataclass(frozen=True)
class Leftovers:
    """What is to be removed from one host; what is not there any more is fine."""

    guests: Tuple[LeftoverGuest, ...] = ()
    doomed: Tuple[str, ...] = ()
    """Instances whose directory ``<uuid>_del``, which a killed removal left, goes; never ``<uuid>``."""
    ports: Tuple[Port, ...] = ()
    """Each with as much of it as is known; the network's id and the port's, or the first characters of it, are."""
    networks: Tuple[Network, ...] = ()
    """Networks that no port on this host needs any more."""
    parts: Tuple[str, ...] = ()
    taps: Tuple[str, ...] = ()
