# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Compute hosts: whether they take new servers, which they have, how builds went there."""

from __future__ import annotations

from typing import Any, Iterable

from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import (
    allocations,
    compute_nodes,
    instances,
    inventories,
    residues,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict, NotFound
from sqlalchemy import Connection, Row, and_, delete, or_, select, update

_ROW = ("id", "host", "enabled", "disabled_reason", "failed_builds", "updated_at")


def rows(connection: Connection) -> list[Row[Any]]:
    """Every recorded host with its state, in the order of their names."""
    return list(connection.execute(select(*(compute_nodes.c[name] for name in _ROW)).order_by(compute_nodes.c.host)))


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


def count_failure(connection: Connection, host: str) -> None:
    """One more of Nova's failed_builds."""
    value = compute_nodes.c.failed_builds + 1
    connection.execute(update(compute_nodes).where(compute_nodes.c.host == host).values(failed_builds=value))


def built(connection: Connection, hosts: Iterable[str]) -> None:
    """A build went well on each of these hosts: none of Nova's failed_builds any more."""
    query = update(compute_nodes).where(compute_nodes.c.host.in_(list(hosts)), compute_nodes.c.failed_builds != 0)
    connection.execute(query.values(failed_builds=0))
