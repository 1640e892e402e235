# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Leases: which run is at work on which server. A run changes a server only while it holds the server's lease.

A lease has an owner, the audit id of the run's token, and expires unless the run's keeper (``control/keeper.py``)
renews it. The lease of a holder that is dead, because it expired or because its process is gone from this very machine,
is taken over. Reading and taking are one transaction, so of two takers one sees the other's. Times are the database's,
in seconds since 1970: the clocks of two control hosts need not agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import leases
from sqlalchemy import Connection, delete, insert, select, text, update

DURATION = 120.0
"""Seconds until a lease that nobody renews expires."""


@dataclass(frozen=True)
class Lease:
    """Who works on a server. ``process`` is as ``control.process.describe`` gives it."""

    owner: str
    process: str
    expires_at: float


@dataclass(frozen=True)
class Taken:
    """What :func:`take` came to: ``busy`` servers belong to other, live runs, ``inherited`` ones did to a dead run."""

    busy: Mapping[str, Lease]
    inherited: tuple[str, ...]


def clock(connection: Connection) -> float:
    """The database's time in seconds since 1970."""
    query = {
        "postgresql": "SELECT extract(epoch FROM clock_timestamp())",
        "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400",
    }[connection.dialect.name]
    return float(connection.execute(text(query)).scalar_one())


def live(connection: Connection, is_gone: Callable[[str], bool]) -> dict[str, Lease]:
    """uuid -> lease, of all servers that a live run is at work on."""
    now = clock(connection)
    return {uuid: lease for uuid, lease in _all(connection).items() if _lives(lease, now, is_gone)}


def take(
    connection: Connection, uuids: Sequence[str], owner: str, process: str, is_gone: Callable[[str], bool]
) -> Taken:
    """Take the leases of all these servers but the busy ones."""
    now = clock(connection)
    held = {uuid: lease for uuid, lease in _all(connection, uuids).items() if lease.owner != owner}
    busy = {uuid: lease for uuid, lease in held.items() if _lives(lease, now, is_gone)}
    free = [uuid for uuid in uuids if uuid not in busy]
    if free:
        connection.execute(delete(leases).where(leases.c.instance_uuid.in_(free)))
        lease = {"owner": owner, "process": process, "expires_at": now + DURATION}
        connection.execute(insert(leases), [{"instance_uuid": uuid, **lease} for uuid in free])
    return Taken(busy, tuple(uuid for uuid in held if uuid not in busy))


def held(connection: Connection, uuids: Iterable[str], owner: str) -> set[str]:
    """Those of the servers whose lease is this owner's. An expired one is, until another run takes it."""
    query = select(leases.c.instance_uuid).where(leases.c.instance_uuid.in_(list(uuids)), leases.c.owner == owner)
    return set(connection.scalars(query))


def renew(connection: Connection, owner: str) -> int:
    """Give the owner's leases their whole duration again. Returns how many it has."""
    expires = clock(connection) + DURATION
    return connection.execute(update(leases).where(leases.c.owner == owner).values(expires_at=expires)).rowcount


def release(connection: Connection, owner: str, uuids: Iterable[str] | None = None) -> None:
    """Give the owner's leases back, those of these servers or all."""
    query = delete(leases).where(leases.c.owner == owner)
    connection.execute(query if uuids is None else query.where(leases.c.instance_uuid.in_(list(uuids))))


def _all(connection: Connection, uuids: Sequence[str] | None = None) -> dict[str, Lease]:
    query = select(leases) if uuids is None else select(leases).where(leases.c.instance_uuid.in_(uuids))
    return {row.instance_uuid: Lease(row.owner, row.process, row.expires_at) for row in connection.execute(query)}


def _lives(lease: Lease, now: float, is_gone: Callable[[str], bool]) -> bool:
    return now < lease.expires_at and not is_gone(lease.process)
