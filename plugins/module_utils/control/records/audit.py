# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What the audit reads of the records, and what its repair writes there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.audit import PortRecord, Recorded, VolumeRecord
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import claims, compute_nodes, residues
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import instances as servers
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import leases as runs
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import ports as addresses
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import (
    allocations,
    block_device_mappings,
    instances,
    ip_allocations,
    leases,
    numa_claims,
    pci_devices,
    pinned_cpus,
    ports,
    volumes,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance
from sqlalchemy import Connection, Table, delete, select, update

_MANY = 500
"""Values in one query: a database allows only so many."""

IsGone = Callable[[str], bool]


def state_of_servers(connection: Connection, owner: str, is_gone: IsGone) -> dict[str, str]:
    """uuid -> what is different once a run was at work on the server, for every server that is not deleted.

    ``owner`` is the own run: its leases do not count.
    """
    busy = {uuid: lease for uuid, lease in runs.live(connection, is_gone).items() if lease.owner != owner}
    rows = connection.execute(select(instances).where(instances.c.deleted == 0))
    return {
        row.uuid: " ".join(
            [str(item) for item in (row.vm_state, row.task_state, row.host, row.updated_at)]
            + ([busy[row.uuid].owner] if row.uuid in busy else [])
        )
        for row in rows
    }


def load(
    connection: Connection, spoken_of: Collection[str], owner: str, is_gone: IsGone, seen: Mapping[str, str]
) -> Recorded:
    """Everything that is compared.

    ``spoken_of`` are the uuids that hosts have anything of, ``seen`` is :func:`state_of_servers` from before the hosts
    were looked at: a server that changed since is busy.
    """
    rows = connection.execute(select(instances).where(instances.c.deleted == 0).order_by(instances.c.id)).fetchall()
    found = [server for part in _parts(rows) for server in servers.handles(connection, part)]
    return Recorded(
        servers={server.uuid: server for server in found},
        deleted=_deleted(connection, {*spoken_of, *_named(connection)}),
        busy=_busy(connection, owner, is_gone, seen),
        dead_leases=_dead_leases(connection, is_gone),
        claims=_claims(connection, allocations),
        held=_claims(connection, numa_claims, pinned_cpus, pci_devices),
        ports=_ports(connection),
        volumes=_volumes(connection),
        residues=tuple(residues.of(connection)),
        miscounted=tuple(claims.miscounted(connection)),
    )


def _named(connection: Connection) -> set[str]:
    """The servers that claims, ports, mappings and leases speak of."""
    columns = (
        allocations.c.consumer_id,
        numa_claims.c.consumer_id,
        pinned_cpus.c.consumer_id,
        pci_devices.c.consumer_id,
        ports.c.device_id,
        block_device_mappings.c.instance_uuid,
        leases.c.instance_uuid,
    )
    return {uuid for column in columns for uuid in connection.scalars(select(column).distinct()) if uuid}


def _deleted(connection: Connection, uuids: Collection[str]) -> dict[str, str]:
    query = select(instances.c.uuid, instances.c.name).where(instances.c.deleted != 0)
    return {
        row.uuid: row.name
        for part in _parts(sorted(uuids))
        for row in connection.execute(query.where(instances.c.uuid.in_(part)))
    }


def _busy(connection: Connection, owner: str, is_gone: IsGone, seen: Mapping[str, str]) -> dict[str, str]:
    now = state_of_servers(connection, owner, is_gone)
    changed = (uuid for uuid in {*now, *seen} if now.get(uuid) != seen.get(uuid))
    found = dict.fromkeys(changed, "it changed while the hosts were looked at")
    for uuid, lease in runs.live(connection, is_gone).items():
        if lease.owner != owner:
            found[uuid] = f"run {lease.owner} is at work on it"
    return found


def _dead_leases(connection: Connection, is_gone: IsGone) -> tuple[str, ...]:
    live = runs.live(connection, is_gone)
    return tuple(sorted(set(connection.scalars(select(leases.c.instance_uuid))) - set(live)))


def _claims(connection: Connection, *tables: Table) -> tuple[tuple[str, str], ...]:
    hosts = {row.id: row.host for row in compute_nodes.rows(connection)}
    found: set[tuple[str, str]] = set()
    for table in tables:
        query = select(table.c.consumer_id, table.c.compute_node_id).where(table.c.consumer_id.is_not(None)).distinct()
        found.update((row.consumer_id, hosts[row.compute_node_id]) for row in connection.execute(query))
    return tuple(sorted(found))


def _ports(connection: Connection) -> tuple[PortRecord, ...]:
    held: dict[str, tuple[str, ...]] = {}
    for row in connection.execute(select(ip_allocations).order_by(ip_allocations.c.ip_address)):
        held[row.port_id] = (*held.get(row.port_id, ()), row.ip_address)
    return tuple(
        PortRecord(
            row.id,
            row.network_id,
            row.mac_address,
            row.device_owner,
            row.device_id,
            row.binding_host or "",
            held.get(row.id, ()),
        )
        for row in connection.execute(select(ports).order_by(ports.c.id))
    )


def _volumes(connection: Connection) -> tuple[VolumeRecord, ...]:
    query = select(volumes, block_device_mappings.c.instance_uuid).outerjoin(
        block_device_mappings, block_device_mappings.c.volume_id == volumes.c.id
    )
    return tuple(
        VolumeRecord(row.id, row.name, row.status, row.host or "", row.instance_uuid or "")
        for row in connection.execute(query.order_by(volumes.c.id))
    )


def _parts(items: Any) -> Iterator[Any]:
    return (items[start : start + _MANY] for start in range(0, len(items), _MANY))


def bind_ports(connection: Connection, server: Instance) -> None:
    """Bind all the server's ports to the host that it lives on."""
    connection.execute(update(ports).where(ports.c.device_id == server.uuid).values(binding_host=server.host))


def release_ports(connection: Connection, uuid: str) -> None:
    """Give the ports of a server that is no more back, and the DHCP ports that nobody needs then."""
    for network_id, host in addresses.release(connection, uuid):
        addresses.release_dhcp(connection, network_id, host)


def let_go_of_volumes(connection: Connection, uuid: str) -> None:
    """Drop the mappings of a server that is no more. What may hold data is kept, and available."""
    mapped = list(
        connection.scalars(
            select(block_device_mappings.c.volume_id).where(block_device_mappings.c.instance_uuid == uuid)
        )
    )
    connection.execute(delete(block_device_mappings).where(block_device_mappings.c.instance_uuid == uuid))
    connection.execute(
        update(volumes).where(volumes.c.id.in_(mapped), volumes.c.host.is_not(None)).values(status="available")
    )
    connection.execute(delete(volumes).where(volumes.c.id.in_(mapped), volumes.c.host.is_(None)))


def drop_volume(connection: Connection, volume_id: str) -> None:
    """Delete the row of a volume that was never made on any host."""
    connection.execute(delete(volumes).where(volumes.c.id == volume_id, volumes.c.host.is_(None)))


def drop_lease(connection: Connection, uuid: str) -> None:
    """Delete the lease of a run that is no more."""
    connection.execute(delete(leases).where(leases.c.instance_uuid == uuid))
