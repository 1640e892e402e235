# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The audit: what the records say against what the hosts have, both ways, and what would cure each difference. Pure.

Nova's ``_cleanup_running_deleted_instances`` and ``heal_instance_info_cache``, placement's ``heal_allocations`` and
``audit``, and the resync of Neutron's agents, in one comparison. Nothing is concluded about a host that was not
reached, nor about a server that a run is at work on; nothing is removed that these records never knew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.barestack.kvm.plugins.module_utils.model.contents import (
    Contents,
    LeftoverGuest,
    Leftovers,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    FixedIP,
    Instance,
    Network,
    Port,
    VmState,
)

ONLY_HOST = "only on the host"
ONLY_RECORDS = "only in the records"
DIFFERS = "differs"
NOT_REACHED = "not reached"

UNKNOWN = (
    "unknown to these records (another site's, or they were lost or restored): remove it by hand if it is nobody's"
)
DATA_GONE = "its data is gone and is never made anew: mount its file system or restore it, or delete the server"
HEAL = "the server is carried through the host's phases again"


@dataclass(frozen=True)
class PortRecord:
    """A row of ``ports``."""

    id: str
    network_id: str
    mac: str
    device_owner: str
    device_id: str
    host: str
    """Where it is bound; empty where nowhere."""
    addresses: tuple[str, ...] = ()

    @property
    def tap(self) -> str:
        """The port's device on its host."""
        return f"tap{self.id[:11]}"


@dataclass(frozen=True)
class VolumeRecord:
    """A row of ``volumes`` with the server that its mapping names."""

    id: str
    name: str
    status: str
    host: str
    server: str = ""


@dataclass(frozen=True)
class Recorded:
    """What the records hold."""

    servers: Mapping[str, Instance]
    """uuid -> every server that is not deleted, with its ports and block devices."""
    deleted: Mapping[str, str] = field(default_factory=dict)
    """uuid -> name of the deleted ones that were asked for."""
    busy: Mapping[str, str] = field(default_factory=dict)
    """uuid -> why nothing is concluded about the server now."""
    dead_leases: tuple[str, ...] = ()
    """The servers whose lease belongs to a run that is no more."""
    claims: tuple[tuple[str, str], ...] = ()
    """(uuid, host)."""
    held: tuple[tuple[str, str], ...] = ()
    """(uuid, host) of those who have CPUs, cells or devices of a host for their own."""
    ports: tuple[PortRecord, ...] = ()
    volumes: tuple[VolumeRecord, ...] = ()
    residues: tuple[Instance, ...] = ()
    """Servers as hosts have them that still have to undo them."""
    miscounted: tuple[tuple[str, str], ...] = ()
    """(host, what is kept as used of it and what its servers claim), where the two differ."""

    def name(self, uuid: str) -> str:
        """What people call the server; empty where the records do not know it."""
        server = self.servers.get(uuid)
        return server.name if server else self.deleted.get(uuid, "")

    def is_settled(self, uuid: str) -> bool:
        """Whether a live server is ACTIVE and nobody is at work on it: what its host should have is certain."""
        server = self.servers.get(uuid)
        return server is not None and uuid not in self.busy and is_active(server)


def is_active(server: Instance) -> bool:
    """ACTIVE, placed, and not being deleted."""
    return server.vm_state == VmState.ACTIVE and server.task_state is None and bool(server.host)


@dataclass(frozen=True)
class Finding:
    """One difference. ``cure`` is what repair does; where it does nothing, ``left`` says why."""

    host: str
    kind: str
    object: str
    finding: str
    server: str = ""
    uuid: str = ""
    cure: str = ""
    left: str = ""
    differs: bool = True
    """Whether it counts: what is unknown on a host that other records share does not."""


@dataclass(frozen=True)
class Mend:
    """A cure in the records: an act of ``control/records/audit.py`` and what it is done to."""

    act: str
    target: tuple[str, ...]


@dataclass
class Clearance:
    """What is to go from one host, as it comes together."""

    guests: dict[str, LeftoverGuest] = field(default_factory=dict)
    doomed: list[str] = field(default_factory=list)
    ports: dict[str, Port] = field(default_factory=dict)
    networks: dict[str, Network] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    taps: list[str] = field(default_factory=list)

    def port(self, port_id: str, network_id: str = "", mac: str = "", addresses: Sequence[str] = ()) -> None:
        """Add what is known of a port; of one that is only known by its tap ``port_id`` is the beginning of the id."""
        key = port_id[:11] or f"{network_id} {mac} {addresses}"
        known = self.ports.get(key)
        if known:
            port_id = max(known.id, port_id, key=len)
            network_id = network_id or known.network.id
            mac = mac or known.mac_address
            addresses = [*(fixed.ip_address for fixed in known.fixed_ips), *addresses]
        fixed = tuple(FixedIP("", address) for address in dict.fromkeys(addresses))
        self.ports[key] = Port(port_id, bare_network(network_id), mac, fixed)

    def leftovers(self) -> Leftovers:
        """As the host takes it."""
        ports = (
            Port(port.id, self.networks.get(port.network.id, port.network), port.mac_address, port.fixed_ips)
            for port in self.ports.values()
        )
        return Leftovers(
            guests=tuple(self.guests.values()),
            doomed=tuple(self.doomed),
            ports=tuple(ports),
            networks=tuple(self.networks.values()),
            parts=tuple(self.parts),
            taps=tuple(self.taps),
        )


def bare_network(network_id: str) -> Network:
    """A network of which only the id is known: enough to take it off a host."""
    return Network(network_id, "", "local", 0, "", ())


@dataclass
class Report:
    """What a comparison came to."""

    findings: list[Finding] = field(default_factory=list)
    clearances: dict[str, Clearance] = field(default_factory=dict)
    heal: set[str] = field(default_factory=set)
    """The servers to carry through their hosts' phases again."""
    undo_hosts: set[str] = field(default_factory=set)
    """The hosts that have yet to undo what failed there, and can."""
    mends: list[Mend] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    """The live servers whose leftovers or records the cures touch: they need their leases."""

    def add(self, finding: Finding) -> None:
        """Write a difference down."""
        self.findings.append(finding)

    def clearance(self, host: str) -> Clearance:
        """What is to go from the host."""
        return self.clearances.setdefault(host, Clearance())

    @property
    def differs(self) -> bool:
        """Whether anything differs that counts."""
        return any(finding.differs for finding in self.findings)


@dataclass(frozen=True)
class Scope:
    """What was looked at: host -> its contents, or why there are none."""

    contents: Mapping[str, Contents]
    unreached: Mapping[str, str] = field(default_factory=dict)


_HEADER = ("host", "kind", "object", "finding", "server", "cure, or why it is left alone")


def table(findings: Sequence[Finding]) -> list[str]:
    """A header and a line for each finding, the columns as wide as their widest entry."""
    rows = [_HEADER, *(_row(finding) for finding in findings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _row(finding: Finding) -> tuple[str, ...]:
    what = f"cure: {finding.cure}" if finding.cure else finding.left
    what = what if finding.differs else f"no difference on a shared host: {what}"
    told = (finding.host, finding.kind, finding.object, finding.finding, finding.server or finding.uuid, what)
    return tuple(" ".join(cell.split()) or "-" for cell in told)


def hosts_spoken_of(recorded: Recorded) -> dict[str, list[str]]:
    """host -> the names of the servers, and of the volumes, that the records have there."""
    found: dict[str, list[str]] = {}
    for server in recorded.servers.values():
        if server.host:
            found.setdefault(server.host, []).append(server.name)
    for volume in recorded.volumes:
        if volume.host:
            found.setdefault(volume.host, []).append(f"volume {volume.name}")
    for residue in recorded.residues:
        found.setdefault(str(residue.host), []).append(f"what is left of {residue.name}")
    return {host: sorted(set(names)) for host, names in found.items()}


def uuids_spoken_of(contents: Mapping[str, Contents]) -> set[str]:
    """The instances that the hosts have anything of."""
    found: set[str] = set()
    for item in contents.values():
        found |= {domain.uuid for domain in item.domains}
        found |= {directory.name.removesuffix("_del") for directory in item.directories}
        found |= set(item.consoles) | {mark.owner for mark in item.marks if mark.owner}
    return found
