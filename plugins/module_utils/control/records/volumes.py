# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Volumes and block device mappings."""

from __future__ import annotations

from typing import Any, Iterable, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import (
    block_device_mappings,
    volumes,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import BlockDevice, Instance
from sqlalchemy import Connection, Row, delete, insert, or_, select, update

_MAPPING = ("id", "source_type", "destination_type", "volume_id", "boot_index", "delete_on_termination")


def create(connection: Connection, instance: Instance) -> None:
    """Insert the instance's mappings, and the volumes that the server brings itself (source ``blank``)."""
    for position, device in enumerate(instance.block_devices):
        if device.source_type == "blank":
            connection.execute(
                insert(volumes).values(
                    id=device.volume_id,
                    name=device.volume_name,
                    project_id=instance.project_id,
                    size=device.size,
                    volume_type=device.volume_type,
                    status="creating",
                    host=None,
                    created_at=instance.created_at,
                )
            )
        else:
            set_status(connection, [device.volume_id], "reserved")
        connection.execute(
            insert(block_device_mappings).values(
                **{name: getattr(device, name) for name in _MAPPING},
                instance_uuid=instance.uuid,
                position=position,
                connection_info=device.connection_info,
            )
        )


def restore(connection: Connection, instance: Instance) -> None:
    """In check mode: what :func:`create` would have left."""
    create(connection, instance)


def of_instances(connection: Connection, uuids: Iterable[str]) -> dict[str, tuple[BlockDevice, ...]]:
    """uuid -> block devices, in the order they were asked for."""
    rows = connection.execute(
        select(block_device_mappings, volumes.c.name, volumes.c.size, volumes.c.volume_type)
        .join(volumes, volumes.c.id == block_device_mappings.c.volume_id)
        .where(block_device_mappings.c.instance_uuid.in_(list(uuids)))
        .order_by(block_device_mappings.c.instance_uuid, block_device_mappings.c.position)
    )
    result: dict[str, tuple[BlockDevice, ...]] = {}
    for row in rows:
        device = BlockDevice(
            **{name: getattr(row, name) for name in _MAPPING},
            connection_info=row.connection_info,
            volume_name=row.name,
            size=row.size,
            volume_type=row.volume_type,
        )
        result[row.instance_uuid] = (*result.get(row.instance_uuid, ()), device)
    return result


def find(connection: Connection, project_id: str, reference: str) -> Row[Any] | None:
    """The project's volume with this id or name. InvalidRequest for a name that several volumes have."""
    rows = connection.execute(
        select(volumes).where(
            volumes.c.project_id == project_id, or_(volumes.c.id == reference, volumes.c.name == reference)
        )
    ).fetchall()
    return only("volume", reference, rows)


def only(kind: str, reference: str, rows: Sequence[Row[Any]]) -> Row[Any] | None:
    """The one that is meant, an id going before a name; None where there is none."""
    rows = [row for row in rows if row.id == reference] or rows
    if len(rows) > 1:
        ids = ", ".join(sorted(row.id for row in rows))
        raise InvalidRequest(f"More than one {kind} is named {reference!r}: use the id, one of {ids}")
    return rows[0] if rows else None


def hosts(connection: Connection, volume_ids: Sequence[str]) -> set[str]:
    """The hosts that these volumes lie on."""
    found = connection.scalars(select(volumes.c.host).where(volumes.c.id.in_(volume_ids), volumes.c.host.is_not(None)))
    return {str(host) for host in found}


def set_status(connection: Connection, volume_ids: Sequence[str], status: str, host: str | None = None) -> None:
    """Cinder's status; ``host`` where the volume now lies, None to leave it."""
    values = {"status": status} if host is None else {"status": status, "host": host}
    connection.execute(update(volumes).where(volumes.c.id.in_(volume_ids)).values(**values))


def set_connection_info(connection: Connection, device: BlockDevice) -> None:
    """What the host answered."""
    connection.execute(
        update(block_device_mappings)
        .where(block_device_mappings.c.id == device.id)
        .values(connection_info=device.connection_info)
    )


def place(connection: Connection, volume_ids: Sequence[str], host: str) -> bool:
    """Write down that these volumes are being attached on this host. Whether that is new."""
    done = connection.execute(
        update(volumes)
        .where(volumes.c.id.in_(volume_ids), or_(volumes.c.status != "attaching", volumes.c.host != host))
        .values(status="attaching", host=host)
    )
    return bool(done.rowcount)


def attached(connection: Connection, instance: Instance) -> None:
    """The server runs with its volumes: they are ``in-use`` and lie on its host."""
    set_status(connection, [device.volume_id for device in instance.block_devices], "in-use", instance.host)
    for device in instance.block_devices:
        set_connection_info(connection, device)


def roll_back(connection: Connection, instance: Instance) -> None:
    """After a rollback: volumes that the server brings itself lie nowhere any more, the others wait for it."""
    devices = of_instances(connection, [instance.uuid]).get(instance.uuid, ())
    for blank, values in ((True, {"status": "creating", "host": None}), (False, {"status": "reserved"})):
        ids = [device.volume_id for device in devices if (device.source_type == "blank") is blank]
        connection.execute(update(volumes).where(volumes.c.id.in_(ids)).values(**values))


def _mapped(connection: Connection, instance: Instance) -> tuple[list[str], list[str]]:
    """(ids of the server's volumes that go with it, ids of those that outlive it), by its mappings."""
    devices = of_instances(connection, [instance.uuid]).get(instance.uuid, ())
    gone = [device.volume_id for device in devices if device.delete_on_termination]
    return gone, [device.volume_id for device in devices if not device.delete_on_termination]


def release(connection: Connection, instance: Instance) -> bool:
    """Drop the mappings of a deleted server: its volumes become available, or go with it. Whether there were any."""
    gone, kept = _mapped(connection, instance)
    dropped = connection.execute(
        delete(block_device_mappings).where(block_device_mappings.c.instance_uuid == instance.uuid)
    )
    set_status(connection, kept, "available")
    # a kept volume that was never made on any host has nothing to keep
    connection.execute(delete(volumes).where(volumes.c.id.in_(kept), volumes.c.host.is_(None)))
    connection.execute(delete(volumes).where(volumes.c.id.in_(gone)))
    return bool(dropped.rowcount)
