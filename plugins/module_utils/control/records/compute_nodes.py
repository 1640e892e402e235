# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Compute hosts with their inventories, and the claims on them."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import (
    allocations,
    compute_nodes,
    instances,
    inventories,
    residues,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.hosts import Inventory
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict, NotFound
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import TaskState, VmState
from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select, update


def rows(connection: Connection) -> list[Row[Any]]:
    """Every recorded host, in the order of their names."""
    return list(connection.execute(select(compute_nodes).order_by(compute_nodes.c.host)))


def load(connection: Connection) -> dict[str, dict[str, Inventory]]:
    """host -> resource class -> inventory with what is used of it."""
    used = {
        (row.compute_node_id, row.resource_class): int(row.used)
        for row in connection.execute(
            select(
                allocations.c.compute_node_id, allocations.c.resource_class, func.sum(allocations.c.used).label("used")
            ).group_by(allocations.c.compute_node_id, allocations.c.resource_class)
        )
    }
    result: dict[str, dict[str, Inventory]] = {}
    query = select(inventories, compute_nodes.c.host).join(
        compute_nodes, compute_nodes.c.id == inventories.c.compute_node_id
    )
    for row in connection.execute(query):
        result.setdefault(row.host, {})[row.resource_class] = Inventory(
            total=row.total,
            reserved=row.reserved,
            allocation_ratio=row.allocation_ratio,
            min_unit=row.min_unit,
            max_unit=row.max_unit,
            step_size=row.step_size,
            used=used.get((row.compute_node_id, row.resource_class), 0),
        )
    return result


def workload(connection: Connection) -> dict[str, tuple[int, int]]:
    """host -> (servers, servers being built): Nova's num_instances and io_workload."""
    query = (
        select(instances.c.host, instances.c.vm_state, instances.c.task_state, func.count().label("number"))
        .where(instances.c.deleted == 0, instances.c.host.is_not(None))
        .group_by(instances.c.host, instances.c.vm_state, instances.c.task_state)
    )
    result: dict[str, tuple[int, int]] = {}
    for row in connection.execute(query):
        servers, building = result.get(row.host, (0, 0))
        busy = row.vm_state == VmState.BUILDING and row.task_state != TaskState.SCHEDULING
        result[row.host] = (servers + row.number, building + (row.number if busy else 0))
    return result


def save(
    connection: Connection, host: str, hypervisor: Mapping[str, Any], wanted: Mapping[str, Inventory], now: str
) -> None:
    """Write a host's report and its inventories, and its heartbeat."""
    known = connection.scalar(select(compute_nodes.c.id).where(compute_nodes.c.host == host))
    if known is None:
        answer = connection.execute(
            insert(compute_nodes).values(
                host=host,
                enabled=True,
                disabled_reason="",
                failed_builds=0,
                hypervisor=dict(hypervisor),
                updated_at=now,
            )
        )
        (known,) = answer.inserted_primary_key or (0,)
    else:
        connection.execute(
            update(compute_nodes).where(compute_nodes.c.id == known).values(hypervisor=dict(hypervisor), updated_at=now)
        )
    connection.execute(delete(inventories).where(inventories.c.compute_node_id == known))
    connection.execute(
        insert(inventories),
        [
            {
                "compute_node_id": known,
                "resource_class": resource_class,
                "total": inventory.total,
                "reserved": inventory.reserved,
                "min_unit": inventory.min_unit,
                "max_unit": inventory.max_unit,
                "step_size": inventory.step_size,
                "allocation_ratio": inventory.allocation_ratio,
            }
            for resource_class, inventory in wanted.items()
        ],
    )


def set_enabled(connection: Connection, host: str, enabled: bool, reason: str) -> None:
    """Nova's service enable and disable: a disabled host gets no new servers."""
    found = connection.execute(
        update(compute_nodes).where(compute_nodes.c.host == host).values(enabled=enabled, disabled_reason=reason)
    )
    if not found.rowcount:
        raise NotFound(f"Compute host {host} is not recorded: run playbooks/prepare_hosts.yml for it first.")


def servers(connection: Connection, host: str) -> list[str]:
    """The names of the servers that the host has, claims resources for, or has to undo something of."""
    claimed = (
        select(allocations.c.consumer_id)
        .join(compute_nodes, compute_nodes.c.id == allocations.c.compute_node_id)
        .where(compute_nodes.c.host == host)
    )
    left = select(residues.c.instance_uuid).where(residues.c.host == host)
    query = select(instances.c.name).where(
        or_(
            and_(instances.c.host == host, instances.c.deleted == 0),
            instances.c.uuid.in_(claimed),
            instances.c.uuid.in_(left),
        )
    )
    return sorted(connection.scalars(query))


def remove(connection: Connection, host: str) -> bool:
    """Forget a host. Whether it was recorded; Conflict while it has servers."""
    has = servers(connection, host)
    if has:
        raise Conflict(
            f"Compute host {host} has {len(has)} servers ({', '.join(has[:10])}{', ...' if len(has) > 10 else ''}): "
            "delete them first, or disable the host so that it gets no new ones."
        )
    number = connection.scalar(select(compute_nodes.c.id).where(compute_nodes.c.host == host))
    connection.execute(delete(inventories).where(inventories.c.compute_node_id == number))
    return bool(connection.execute(delete(compute_nodes).where(compute_nodes.c.id == number)).rowcount)


def claims(connection: Connection, uuids: Iterable[str]) -> dict[str, str]:
    """uuid -> the host that holds the server's claim."""
    query = (
        select(allocations.c.consumer_id, compute_nodes.c.host)
        .join(compute_nodes, compute_nodes.c.id == allocations.c.compute_node_id)
        .where(allocations.c.consumer_id.in_(list(uuids)))
        .distinct()
    )
    return {row.consumer_id: row.host for row in connection.execute(query)}


def claim(connection: Connection, claimed: Mapping[str, tuple[str, Mapping[str, int]]]) -> None:
    """Write the claims: uuid -> (host, resource class -> amount)."""
    numbers = {row.host: row.id for row in rows(connection)}
    values = [
        {"consumer_id": uuid, "resource_class": name, "compute_node_id": numbers[host], "used": amount}
        for uuid, (host, resources) in claimed.items()
        for name, amount in resources.items()
        if amount
    ]
    if values:
        connection.execute(insert(allocations), values)


def release(connection: Connection, uuids: Sequence[str]) -> set[str]:
    """Give the servers' claims back. Returns the uuids of those that had one."""
    claimed = allocations.c.consumer_id.in_(uuids)
    held = set(connection.scalars(select(allocations.c.consumer_id).where(claimed)))
    connection.execute(delete(allocations).where(claimed))
    return held


def count_failure(connection: Connection, host: str) -> None:
    """One more of Nova's failed_builds."""
    value = compute_nodes.c.failed_builds + 1
    connection.execute(update(compute_nodes).where(compute_nodes.c.host == host).values(failed_builds=value))


def built(connection: Connection, hosts: Iterable[str]) -> None:
    """A build went well on each of these hosts: none of Nova's failed_builds any more."""
    query = update(compute_nodes).where(compute_nodes.c.host.in_(list(hosts)), compute_nodes.c.failed_builds != 0)
    connection.execute(query.values(failed_builds=0))
