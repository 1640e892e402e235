# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Claims on hosts: amounts of their inventories, CPUs and memory of their NUMA cells, PCI devices.

What is used of a host is kept beside what it has, and changed in the transaction that writes or deletes a claim. Each
such change gives the host another generation: a claim that was decided on by columns of an earlier one is refused, and
its transaction tried again. A CPU or a device that two servers cannot share is a row of its own.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.barestack.kvm.plugins.module_utils.control.records.bulk import given
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import (
    allocations,
    compute_nodes,
    inventories,
    numa_claims,
    pci_devices,
    pinned_cpus,
    reports,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.trouble import Overtaken
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import numa_fit
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import (
    InstanceNUMATopology,
    NUMACell,
    NUMATopology,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import PciDevice
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from sqlalchemy import Connection, bindparam, delete, exists, func, insert, literal, select, update


@dataclass(frozen=True)
class Claim:
    """What one server takes of a host."""

    host: str
    resources: Mapping[str, int]
    numa: InstanceNUMATopology | None = None
    devices: tuple[PciDevice, ...] = ()


def holders(connection: Connection, uuids: Iterable[str]) -> dict[str, str]:
    """uuid -> the host that holds the server's claim."""
    query = (
        select(allocations.c.consumer_id, compute_nodes.c.host)
        .join(compute_nodes, compute_nodes.c.id == allocations.c.compute_node_id)
        .where(allocations.c.consumer_id.in_(list(uuids)))
        .distinct()
    )
    return {row.consumer_id: row.host for row in connection.execute(query)}


def claim(connection: Connection, wanted: Mapping[str, Claim], generations: Mapping[str, int] | None = None) -> None:
    """Write the claims, uuid -> claim, in a few statements however many there are.

    ``generations`` are those of the hosts that the decision looked at: Overtaken, which has the transaction tried
    again, where a host has another one now, or where a CPU or a device is somebody else's. None for a claim that no
    decision came before: the audit's.
    """
    if not wanted:
        return
    names = {one.host for one in wanted.values()}
    query = select(compute_nodes.c.host, compute_nodes.c.id, compute_nodes.c.generation)
    nodes = {row.host: row for row in connection.execute(query.where(compute_nodes.c.host.in_(names)))}
    for host in sorted(names):
        if generations is not None and nodes[host].generation != generations[host]:
            raise Overtaken(f"compute host {host} has changed since its columns were loaded")
    numbers = {host: row.id for host, row in nodes.items()}
    servers = Counter(numbers[one.host] for one in wanted.values())
    _next_generation(connection, {row.id: (row.generation, servers[row.id]) for row in nodes.values()})
    rows = [
        [uuid, name, numbers[one.host], amount]
        for uuid, one in wanted.items()
        for name, amount in one.resources.items()
        if amount
    ]
    if rows:
        new = given(connection, rows, consumer_id=str, resource_class=str, compute_node_id=int, used=int)
        connection.execute(insert(allocations).from_select(list(new.c.keys()), select(new)))
        _use(connection, [(node, name, amount) for _uuid, name, node, amount in rows])
    _claim_cells(connection, {uuid: (numbers[one.host], one.numa) for uuid, one in wanted.items() if one.numa})
    _claim_devices(connection, [(uuid, numbers[one.host], one.devices) for uuid, one in wanted.items()])


def release(connection: Connection, uuids: Sequence[str]) -> set[str]:
    """Give the servers' claims back. Returns the uuids of those that had one."""
    mine = allocations.c.consumer_id.in_(uuids)
    held = connection.execute(select(allocations).where(mine)).fetchall()
    if held:
        gone = Counter(node for _uuid, node in {(row.consumer_id, row.compute_node_id) for row in held})
        query = select(compute_nodes.c.id, compute_nodes.c.generation).where(compute_nodes.c.id.in_(list(gone)))
        _next_generation(connection, {row.id: (row.generation, -gone[row.id]) for row in connection.execute(query)})
        connection.execute(delete(allocations).where(mine))
        _use(connection, [(row.compute_node_id, row.resource_class, -row.used) for row in held])
    connection.execute(delete(pinned_cpus).where(pinned_cpus.c.consumer_id.in_(uuids)))
    pinned = numa_claims.c.consumer_id.in_(uuids)
    nodes = set(connection.scalars(select(numa_claims.c.compute_node_id).where(pinned)))
    connection.execute(delete(numa_claims).where(pinned))
    refresh_cells(connection, nodes)
    free_devices(connection, uuids)
    return {row.consumer_id for row in held}


def free_devices(connection: Connection, uuids: Sequence[str]) -> None:
    """Give the servers' PCI devices back; those that their hosts no longer report are forgotten then."""
    given_back = pci_devices.c.consumer_id.in_(uuids)
    if connection.execute(update(pci_devices).where(given_back).values(consumer_id=None)).rowcount:
        connection.execute(delete(pci_devices).where(pci_devices.c.gone, pci_devices.c.consumer_id.is_(None)))


def attach(connection: Connection, handle: Sequence[Instance]) -> list[Instance]:
    """The servers with what they claim of NUMA cells and PCI devices."""
    uuids = [instance.uuid for instance in handle]
    query = select(numa_claims.c.consumer_id, numa_claims.c.topology).where(numa_claims.c.consumer_id.in_(uuids))
    cells = {row.consumer_id: from_wire(InstanceNUMATopology, row.topology) for row in connection.execute(query)}
    mine = pci_devices.c.consumer_id.in_(uuids)
    devices: dict[str, list[PciDevice]] = {}
    for row in connection.execute(select(pci_devices).where(mine).order_by(pci_devices.c.address)):
        devices.setdefault(row.consumer_id, []).append(from_wire(PciDevice, row.device))
    return [
        instance.with_(numa_topology=cells.get(instance.uuid), pci_devices=tuple(devices.get(instance.uuid, ())))
        if instance.uuid in cells or instance.uuid in devices
        else instance
        for instance in handle
    ]


def recount(connection: Connection, hosts: Sequence[str]) -> None:
    """Count anew, from the claims, what is used of these hosts."""
    nodes = list(connection.scalars(select(compute_nodes.c.id).where(compute_nodes.c.host.in_(hosts))))
    of_host = allocations.c.compute_node_id == inventories.c.compute_node_id
    of_class = allocations.c.resource_class == inventories.c.resource_class
    used = select(func.coalesce(func.sum(allocations.c.used), 0)).where(of_host, of_class).scalar_subquery()
    connection.execute(update(inventories).where(inventories.c.compute_node_id.in_(nodes)).values(used=used))
    here = allocations.c.compute_node_id == compute_nodes.c.id
    servers = select(func.count(allocations.c.consumer_id.distinct())).where(here).scalar_subquery()
    connection.execute(
        update(compute_nodes)
        .where(compute_nodes.c.id.in_(nodes))
        .values(servers=servers, generation=compute_nodes.c.generation + 1)
    )
    refresh_cells(connection, nodes)


def miscounted(connection: Connection) -> list[tuple[str, str]]:
    """(host, what is told of it) where what is kept as used is not what the claims come to."""
    claimed = (
        select(
            allocations.c.compute_node_id.label("node"),
            allocations.c.resource_class.label("name"),
            func.sum(allocations.c.used).label("used"),
        )
        .group_by(allocations.c.compute_node_id, allocations.c.resource_class)
        .subquery()
    )
    same = (claimed.c.node == inventories.c.compute_node_id) & (claimed.c.name == inventories.c.resource_class)
    amount = func.coalesce(claimed.c.used, 0)
    query = (
        select(compute_nodes.c.host, inventories.c.resource_class, inventories.c.used, amount.label("claimed"))
        .join(inventories, inventories.c.compute_node_id == compute_nodes.c.id)
        .join(claimed, same, isouter=True)
        .where(inventories.c.used != amount)
    )
    found = [
        (row.host, f"{row.resource_class}: {row.used} used, {row.claimed} claimed") for row in connection.execute(query)
    ]
    here = allocations.c.compute_node_id == compute_nodes.c.id
    number = select(func.count(allocations.c.consumer_id.distinct())).where(here).scalar_subquery()
    servers = select(compute_nodes.c.host, compute_nodes.c.servers, number.label("claims"))
    for row in connection.execute(servers.where(compute_nodes.c.servers != number)):
        found.append((row.host, f"servers: {row.servers} counted, {row.claims} have a claim"))
    kept = select(compute_nodes.c.id, compute_nodes.c.host, reports.c.numa_topology).join(reports)
    nodes = {row.id: row for row in connection.execute(kept.where(reports.c.numa_topology.is_not(None)))}
    for node, text in _cells(connection, nodes).items():
        if text != nodes[node].numa_topology:
            found.append((nodes[node].host, "NUMA cells: what is used of them is not what is claimed"))
    return sorted(found)


def _next_generation(connection: Connection, nodes: Mapping[int, tuple[int, int]]) -> None:
    """Node -> (the generation that it must have, how many servers more): compare and swap, all in one statement."""
    rows = [[node, generation, servers] for node, (generation, servers) in nodes.items()]
    new = given(connection, rows, id=int, generation=int, servers=int)
    done = connection.execute(
        update(compute_nodes)
        .where(compute_nodes.c.id == new.c.id, compute_nodes.c.generation == new.c.generation)
        .values(generation=compute_nodes.c.generation + 1, servers=compute_nodes.c.servers + new.c.servers)
    )
    if done.rowcount != len(rows):
        raise Overtaken("a compute host has changed since its generation was read")


def _use(connection: Connection, amounts: Iterable[tuple[int, str, int]]) -> None:
    """Add these (node, resource class, amount) to what is used. A class that the host lacks gets an inventory of 0."""
    sums: Counter[tuple[int, str]] = Counter()
    for node, name, amount in amounts:
        sums[node, name] += amount
    rows = [[node, name, amount] for (node, name), amount in sums.items()]
    new = given(connection, rows, compute_node_id=int, resource_class=str, used=int)
    same = (inventories.c.compute_node_id == new.c.compute_node_id) & (
        inventories.c.resource_class == new.c.resource_class
    )
    found = connection.execute(update(inventories).where(same).values(used=inventories.c.used + new.c.used))
    if found.rowcount < len(rows):
        columns = {"total": 0, "reserved": 0, "min_unit": 1, "max_unit": 1, "step_size": 1, "allocation_ratio": 1.0}
        fixed = [literal(value).label(name) for name, value in columns.items()]
        missing = select(new, *fixed).where(~exists().where(same))
        connection.execute(insert(inventories).from_select([*new.c.keys(), *columns], missing))


def _claim_cells(connection: Connection, wanted: Mapping[str, tuple[int, InstanceNUMATopology]]) -> None:
    if not wanted:
        return
    nodes = {node for node, _topology in wanted.values()}
    hosts = _topologies(connection, nodes)
    rows = [
        {"compute_node_id": node, "cpu": cpu, "consumer_id": uuid}
        for uuid, (node, topology) in wanted.items()
        for cpu in sorted(numa_fit.taken_cpus(hosts[node], topology))
    ]
    asked = {(row["compute_node_id"], row["cpu"]) for row in rows}
    query = select(pinned_cpus.c.compute_node_id, pinned_cpus.c.cpu).where(pinned_cpus.c.compute_node_id.in_(nodes))
    if len(asked) < len(rows) or asked & {(row.compute_node_id, row.cpu) for row in connection.execute(query)}:
        raise Overtaken("a CPU that was chosen for a server is another's")
    if rows:
        connection.execute(insert(pinned_cpus), rows)
    connection.execute(
        insert(numa_claims),
        [
            {"consumer_id": uuid, "compute_node_id": node, "topology": to_wire(topology)}
            for uuid, (node, topology) in wanted.items()
        ],
    )
    refresh_cells(connection, nodes)


def _topologies(connection: Connection, nodes: Iterable[int]) -> dict[int, NUMATopology]:
    """Node -> its cells as it reported them, nothing of them used; those that report none are left out."""
    query = select(reports.c.compute_node_id, reports.c.report).where(reports.c.compute_node_id.in_(list(nodes)))
    found = {row.compute_node_id: row.report.get("numa_topology") for row in connection.execute(query)}
    return {node: from_wire(NUMATopology, wire) for node, wire in found.items() if wire}


def refresh_cells(connection: Connection, nodes: Iterable[int]) -> None:
    """Write down what is used of these nodes' NUMA cells: what they reported, with each claim."""
    nodes = list(nodes)
    if not nodes:
        return
    told = _cells(connection, nodes)
    connection.execute(
        update(reports).where(reports.c.compute_node_id == bindparam("node")).values(numa_topology=bindparam("told")),
        [{"node": node, "told": told.get(node)} for node in nodes],
    )


def _cells(connection: Connection, nodes: Collection[int]) -> dict[int, str]:
    """Node -> its NUMA cells with what its claims use of them, as JSON; those that report none are left out."""
    hosts = _topologies(connection, nodes)
    query = select(numa_claims).where(numa_claims.c.compute_node_id.in_(nodes)).order_by(numa_claims.c.consumer_id)
    for row in connection.execute(query):
        if row.compute_node_id in hosts:
            claimed = from_wire(InstanceNUMATopology, row.topology)
            hosts[row.compute_node_id] = _with_claim(hosts[row.compute_node_id], claimed)
    return {node: json.dumps(to_wire(host), separators=(",", ":")) for node, host in hosts.items()}


def _with_claim(host: NUMATopology, claimed: InstanceNUMATopology) -> NUMATopology:
    """The host with this guest, whose CPUs may be fewer than when the guest was placed: those count as taken, too."""
    cpus = numa_fit.taken_cpus(host, claimed)
    pins = {
        cell.id: frozenset(cpu for _guest, cpu in cell.cpu_pinning) | cell.cpuset_reserved for cell in claimed.cells
    }

    def opened(cell: NUMACell) -> NUMACell:
        mine = pins.get(cell.id, frozenset()) | (cpus & cell.pcpuset)
        return dataclasses.replace(cell, pcpuset=cell.pcpuset | mine, pinned_cpus=cell.pinned_cpus - mine)

    after = numa_fit.used(NUMATopology(tuple(opened(cell) for cell in host.cells)), claimed)
    return NUMATopology(
        tuple(
            dataclasses.replace(cell, pinned_cpus=cell.pinned_cpus | before.pinned_cpus)
            for before, cell in zip(host.cells, after.cells)
        )
    )


def _claim_devices(connection: Connection, wanted: Iterable[tuple[str, int, tuple[PciDevice, ...]]]) -> None:
    rows = [[uuid, node, device.address] for uuid, node, devices in wanted for device in devices]
    if not rows:
        return
    new = given(connection, rows, consumer_id=str, compute_node_id=int, address=str)
    query = (
        update(pci_devices)
        .where(pci_devices.c.compute_node_id == new.c.compute_node_id, pci_devices.c.address == new.c.address)
        .where(pci_devices.c.consumer_id.is_(None))
        .values(consumer_id=new.c.consumer_id)
    )
    if connection.execute(query).rowcount != len(rows):
        raise Overtaken("a PCI device that was chosen for a server is another's, or is gone")
