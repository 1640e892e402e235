# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Every compute host for one decision, in a few statements: a column is one JSON list, not a value in many rows.

Ten thousand hosts are 50,000 rows; what takes time with them is what a driver does for each value of a row.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.records.bulk import listed, values
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import (
    compute_nodes,
    hypervisors,
    instances,
    inventories,
    pci_devices,
    reports,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.loaded import Exceptional, Loaded, Stock
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import TaskState, VmState
from sqlalchemy import Connection, Text, cast, collate, func, or_, select

TIME = "%Y-%m-%dT%H:%M:%S.%fZ"
"""How the records write a time: two of them compare as their texts do."""


@dataclass(frozen=True)
class Wanted:
    """What a decision looks at beyond what each one does."""

    servers: Collection[str] = ()
    """Uuids that hints and server groups speak of."""
    numa: bool = False
    """The hosts' NUMA cells, with what is used of them."""
    image_properties: bool = False
    """Those of the servers that the hosts have."""


def load(connection: Connection, now: str, down_time: float, wanted: Wanted) -> Loaded:
    """The hosts by their names. One whose heartbeat is older than ``down_time`` seconds at ``now`` is down."""
    earliest = datetime.datetime.strptime(now, TIME) - datetime.timedelta(seconds=down_time)
    return Loaded(
        **_nodes(connection, earliest.strftime(TIME), wanted.numa),
        stocks=_stocks(connection),
        exceptional=_exceptional(connection),
        reports=_reports(connection),
        building=_building(connection),
        places=_places(connection, wanted.servers),
        devices=_devices(connection),
        properties=_properties(connection) if wanted.image_properties else (),
    )


def _nodes(connection: Connection, earliest: str, numa: bool) -> dict[str, Any]:
    table = compute_nodes.c
    wanted = {
        "ids": table.id,
        "names": table.host,
        "up": table.updated_at >= earliest,
        "last_seen": table.updated_at,
        "generations": table.generation,
        "servers": table.servers,
        "kinds": table.hypervisor_id,
        "host_ip": table.host_ip,
        "disk_available_gb": table.disk_available_gb,
        **({"numa": reports.c.numa_topology} if numa else {}),
    }
    binary = collate(table.host, "C") if connection.dialect.name == "postgresql" else table.host
    query = select(*(column.label(name) for name, column in wanted.items())).order_by(binary)
    node = (query.join(reports, isouter=True) if numa else query).subquery()
    row = connection.execute(select(*(listed(connection, column).label(column.name) for column in node.c))).one()
    return {name: values(text) for name, text in row._mapping.items()}


def _stocks(connection: Connection) -> list[Stock]:
    """What a site sets for all its hosts is a group's; the numbers of each host are lists."""
    table = inventories.c
    alike = (table.resource_class, table.reserved, table.min_unit, table.step_size, table.allocation_ratio)
    columns = {"ids": table.compute_node_id, "total": table.total, "max_unit": table.max_unit, "used": table.used}
    query = select(*alike, *(listed(connection, column).label(name) for name, column in columns.items()))
    return [
        Stock(
            resource_class=row.resource_class,
            reserved=row.reserved,
            min_unit=row.min_unit,
            step_size=row.step_size,
            allocation_ratio=row.allocation_ratio,
            **{name: values(getattr(row, name)) for name in columns},
        )
        for row in connection.execute(query.group_by(*alike))
    ]


def _exceptional(connection: Connection) -> dict[int, Exceptional]:
    names = ("id", "enabled", "disabled_reason", "failed_builds", "metrics")
    table = compute_nodes.c
    unusual = or_(~table.enabled, table.failed_builds != 0, table.metrics.is_not(None))
    return {
        row.id: Exceptional(row.enabled, row.disabled_reason, row.failed_builds, row.metrics or {})
        for row in connection.execute(select(*(table[name] for name in names)).where(unusual))
    }


def _reports(connection: Connection) -> dict[int, dict[str, Any]]:
    return {row.id: row.report for row in connection.execute(select(hypervisors.c.id, hypervisors.c.report))}


def _building(connection: Connection) -> dict[str, int]:
    """Nova's io_workload: of what it counts, a server here can only be building."""
    query = (
        select(instances.c.host, func.count().label("number"))
        .where(instances.c.deleted == 0, instances.c.vm_state == VmState.BUILDING, instances.c.host.is_not(None))
        .where(instances.c.task_state != TaskState.SCHEDULING)
        .group_by(instances.c.host)
    )
    return {row.host: row.number for row in connection.execute(query)}


def _places(connection: Connection, uuids: Collection[str]) -> dict[str, str]:
    if not uuids:
        return {}
    query = select(instances.c.uuid, instances.c.host).where(
        instances.c.uuid.in_(list(uuids)), instances.c.deleted == 0, instances.c.host.is_not(None)
    )
    return {row.uuid: row.host for row in connection.execute(query)}


def _devices(connection: Connection) -> dict[int, tuple[str, str]]:
    table = select(pci_devices).order_by(pci_devices.c.compute_node_id, pci_devices.c.address).subquery().c
    held = listed(connection, table.address, or_(table.consumer_id.is_not(None), table.gone))
    every = listed(connection, table.device)
    query = select(table.compute_node_id, every.label("every"), held.label("held")).group_by(table.compute_node_id)
    return {row.compute_node_id: (row.every, row.held or "[]") for row in connection.execute(query)}


def _properties(connection: Connection) -> list[tuple[str, str, int]]:
    properties = cast(instances.c.spec["image"]["properties"], Text).label("properties")
    server = select(instances.c.host, properties).where(instances.c.deleted == 0, instances.c.host.is_not(None))
    each = server.subquery().c
    query = select(each.host, each.properties, func.count().label("number")).group_by(each.host, each.properties)
    return [(row.host, row.properties, row.number) for row in connection.execute(query)]
