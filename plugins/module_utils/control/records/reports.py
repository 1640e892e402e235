# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What compute hosts reported: their inventories, what they can run, their NUMA cells and PCI devices.

Ten thousand hosts are of a few kinds: what is alike is kept once for each kind, so that a decision reads it once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.records import claims
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.bulk import given
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import (
    compute_nodes,
    hypervisors,
    inventories,
    pci_devices,
    reports,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Inventory
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import PciDevice
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from sqlalchemy import Connection, bindparam, delete, insert, select, update

_INVENTORY = ("total", "reserved", "min_unit", "max_unit", "step_size", "allocation_ratio")
_NODE = ("hypervisor_id", "host_ip", "metrics")


@dataclass(frozen=True)
class Report:
    """What is recorded of one host."""

    name: str
    common: Mapping[str, Any]
    """What hosts of one kind report alike, as plain data."""
    own: Mapping[str, Any]
    """The rest of what it reports, as plain data; its NUMA cells under ``numa_topology``."""
    inventories: Mapping[str, Inventory]
    """By resource class; what is used is not a report's to say."""
    devices: tuple[PciDevice, ...] = ()
    host_ip: str | None = None
    metrics: Mapping[str, float] | None = None
    disk_available_gb: int | None = dataclasses.field(default=None, compare=False)
    """Moves all the time, which is no change of the host."""


def recorded(connection: Connection, names: Sequence[str]) -> dict[str, Report]:
    """Host -> what is recorded of it, of those of these hosts that are."""
    query = (
        select(compute_nodes, reports.c.report, hypervisors.c.report.label("common"))
        .join(reports)
        .join(hypervisors, hypervisors.c.id == compute_nodes.c.hypervisor_id, isouter=True)
        .where(compute_nodes.c.host.in_(names))
    )
    nodes = {row.id: row for row in connection.execute(query)}
    held = _inventories(connection, nodes)
    devices = _devices(connection, nodes)
    return {
        row.host: Report(
            name=row.host,
            common=row.common or {},
            own=row.report,
            inventories={name: inventory for name, (inventory, _) in held[number].items() if inventory.total},
            devices=tuple(device for device, gone in devices[number].values() if not gone),
            host_ip=row.host_ip,
            metrics=row.metrics,
            disk_available_gb=row.disk_available_gb,
        )
        for number, row in nodes.items()
    }


def save(connection: Connection, told: Sequence[Report], known: Mapping[str, Report], now: str) -> None:
    """Write these hosts' reports and heartbeats. What servers hold of the hosts stays theirs.

    ``known`` is :func:`recorded`: of a host that reports what it did before only the heartbeat is written.
    """
    changed = [report for report in told if report != known.get(report.name)]
    kinds = _kinds(connection, changed)
    _insert(connection, [report for report in changed if report.name not in known], kinds, now)
    names = [report.name for report in told]
    query = select(compute_nodes.c.host, compute_nodes.c.id).where(compute_nodes.c.host.in_(names))
    numbers = {row.host: int(row.id) for row in connection.execute(query)}
    _heartbeat(connection, [(numbers[report.name], report) for report in told], now)
    if changed:
        by_number = {numbers[report.name]: report for report in changed}
        _insert_own(connection, {number: item for number, item in by_number.items() if item.name not in known})
        _update(connection, {number: item for number, item in by_number.items() if item.name in known}, kinds)
        _save_inventories(connection, by_number)
        _save_devices(connection, by_number)
        claims.refresh_cells(connection, by_number)
        generation = compute_nodes.c.generation + 1
        same = compute_nodes.c.id.in_(list(by_number))
        connection.execute(update(compute_nodes).where(same).values(generation=generation))
        used = select(compute_nodes.c.hypervisor_id).where(compute_nodes.c.hypervisor_id.is_not(None))
        connection.execute(delete(hypervisors).where(hypervisors.c.id.not_in(used)))


def _kinds(connection: Connection, told: Iterable[Report]) -> dict[str, int]:
    """Host -> the number of what it reports like others; made where nobody reported it yet."""
    digests = {report.name: _digest(report.common) for report in told}
    common = {digests[report.name]: report.common for report in told}
    query = select(hypervisors.c.digest, hypervisors.c.id).where(hypervisors.c.digest.in_(list(common)))
    numbers = {row.digest: int(row.id) for row in connection.execute(query)} if common else {}
    for digest, report in common.items():
        if digest not in numbers:
            new = insert(hypervisors).values(digest=digest, report=dict(report)).returning(hypervisors.c.id)
            numbers[digest] = connection.execute(new).scalar_one()
    return {name: numbers[digest] for name, digest in digests.items()}


def _digest(common: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(common, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _node(report: Report, kind: int) -> dict[str, Any]:
    values = (kind, report.host_ip, dict(report.metrics) if report.metrics else None)
    return dict(zip(_NODE, values))


def _insert(connection: Connection, new: Sequence[Report], kinds: Mapping[str, int], now: str) -> None:
    fixed = {"enabled": True, "disabled_reason": "", "failed_builds": 0, "generation": 0, "servers": 0}
    rows = [{"host": item.name, **_node(item, kinds[item.name]), **fixed, "updated_at": now} for item in new]
    if rows:
        connection.execute(insert(compute_nodes), rows)


def _update(connection: Connection, old: Mapping[int, Report], kinds: Mapping[str, int]) -> None:
    rows = [
        {"node": number, **{f"new_{name}": value for name, value in _node(report, kinds[report.name]).items()}}
        for number, report in old.items()
    ]
    if rows:
        query = update(compute_nodes).where(compute_nodes.c.id == bindparam("node"))
        values: dict[Any, Any] = {compute_nodes.c[name]: bindparam(f"new_{name}") for name in _NODE}
        connection.execute(query.values(values), rows)
        own = update(reports).where(reports.c.compute_node_id == bindparam("node")).values(report=bindparam("own"))
        connection.execute(own, [{"node": number, "own": dict(report.own)} for number, report in old.items()])


def _insert_own(connection: Connection, new: Mapping[int, Report]) -> None:
    rows = [{"compute_node_id": number, "report": dict(report.own)} for number, report in new.items()]
    if rows:
        connection.execute(insert(reports), rows)


def _heartbeat(connection: Connection, told: Sequence[tuple[int, Report]], now: str) -> None:
    if told:
        new = given(connection, [[number, report.disk_available_gb] for number, report in told], id=int, free=int)
        values = {"updated_at": now, "disk_available_gb": new.c.free}
        connection.execute(update(compute_nodes).where(compute_nodes.c.id == new.c.id).values(values))


def _inventories(connection: Connection, nodes: Collection[int]) -> dict[int, dict[str, tuple[Inventory, int]]]:
    """Node -> resource class -> (inventory, how much of it is used)."""
    result: dict[int, dict[str, tuple[Inventory, int]]] = {number: {} for number in nodes}
    query = select(inventories).where(inventories.c.compute_node_id.in_(list(nodes)))
    for row in connection.execute(query):
        inventory = Inventory(**{name: getattr(row, name) for name in _INVENTORY})
        result[row.compute_node_id][row.resource_class] = (inventory, row.used)
    return result


def _save_inventories(connection: Connection, told: Mapping[int, Report]) -> None:
    """One of a class that the host no longer has stays, of nothing, while servers use it; placement refuses that."""
    new, other, gone = [], [], []
    for number, held in _inventories(connection, told).items():
        wanted = dict(told[number].inventories)
        for name, (_inventory, used) in held.items():
            if name not in wanted and used:
                wanted[name] = Inventory(total=0, max_unit=1)
        for name, inventory in wanted.items():
            values = {field: getattr(inventory, field) for field in _INVENTORY}
            if name not in held:
                new.append({"compute_node_id": number, "resource_class": name, **values, "used": 0})
            elif held[name][0] != inventory:
                other.append({"of": number, "name": name, **{f"new_{field}": value for field, value in values.items()}})
        gone += [{"of": number, "name": name} for name in held if name not in wanted]
    key = (inventories.c.compute_node_id == bindparam("of")) & (inventories.c.resource_class == bindparam("name"))
    if new:
        connection.execute(insert(inventories), new)
    if other:
        changes: dict[Any, Any] = {inventories.c[field]: bindparam(f"new_{field}") for field in _INVENTORY}
        connection.execute(update(inventories).where(key).values(changes), other)
    if gone:
        connection.execute(delete(inventories).where(key), gone)


def _devices(connection: Connection, nodes: Collection[int]) -> dict[int, dict[str, tuple[PciDevice, bool]]]:
    """Node -> address -> (device, whether the host no longer reports it)."""
    result: dict[int, dict[str, tuple[PciDevice, bool]]] = {number: {} for number in nodes}
    query = select(pci_devices).where(pci_devices.c.compute_node_id.in_(list(nodes))).order_by(pci_devices.c.address)
    for row in connection.execute(query):
        result[row.compute_node_id][row.address] = (from_wire(PciDevice, row.device), row.gone)
    return result


def _save_devices(connection: Connection, told: Mapping[int, Report]) -> None:
    """A device that the host no longer reports is forgotten once no server has it, as Nova does."""
    key = (pci_devices.c.compute_node_id == bindparam("of")) & (pci_devices.c.address == bindparam("at"))
    new, other, gone = [], [], []
    for number, held in _devices(connection, told).items():
        reported = {device.address: device for device in told[number].devices}
        for address, device in reported.items():
            if address not in held:
                fields = {"compute_node_id": number, "address": address, "gone": False, "consumer_id": None}
                new.append({**fields, "device": to_wire(device)})
            elif held[address] != (device, False):
                other.append({"of": number, "at": address, "new_device": to_wire(device)})
        gone += [{"of": number, "at": address} for address in held if address not in reported]
    if new:
        connection.execute(insert(pci_devices), new)
    if other:
        values: dict[Any, Any] = {pci_devices.c.device: bindparam("new_device"), pci_devices.c.gone: False}
        connection.execute(update(pci_devices).where(key).values(values), other)
    if gone:
        connection.execute(delete(pci_devices).where(key, pci_devices.c.consumer_id.is_(None)), gone)
        connection.execute(update(pci_devices).where(key).values(gone=True), gone)
