# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Residues: what a host has yet to undo of a server that failed there.

A row is written in the transaction that gives an attempt up, and deleted in the one after the host undid it. A run that
is killed in between, or that cannot reach the host, so leaves it to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import residues
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from sqlalchemy import ColumnElement, Connection, bindparam, delete, insert, select, true


def write(connection: Connection, handle: Iterable[Instance]) -> None:
    """The servers as their hosts have them; one without a host leaves nothing."""
    for instance in handle:
        if instance.host:
            remove(connection, [instance])
            connection.execute(
                insert(residues).values(
                    instance_uuid=instance.uuid,
                    host=instance.host,
                    handle=to_wire(instance.with_(fault=None, stuck=None, events=())),
                )
            )


def remove(connection: Connection, handle: Iterable[Instance]) -> None:
    """The host undid it."""
    pairs = [{"of": instance.uuid, "where": instance.host} for instance in handle if instance.host]
    if pairs:
        query = delete(residues).where(
            residues.c.instance_uuid == bindparam("of"), residues.c.host == bindparam("where")
        )
        connection.execute(query, pairs)


def of(connection: Connection, uuids: Sequence[str] | None = None) -> list[Instance]:
    """What is left of these servers, or of all: each as it was on the host that has to undo it."""
    return _read(connection, true() if uuids is None else residues.c.instance_uuid.in_(uuids))


def on(connection: Connection, hosts: Sequence[str]) -> list[Instance]:
    """What these hosts have to undo, of whatever server."""
    return _read(connection, residues.c.host.in_(hosts))


def _read(connection: Connection, which: ColumnElement[bool]) -> list[Instance]:
    query = select(residues).where(which).order_by(residues.c.instance_uuid, residues.c.host)
    return [from_wire(Instance, row.handle) for row in connection.execute(query)]
