# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Instances, their actions and events: rows to handles and back."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control.records import claims, ports, server_groups, volumes
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import (
    instance_action_events,
    instance_actions,
    instances,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance, TaskState, VmState
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from sqlalchemy import Connection, Row, bindparam, func, insert, or_, select, update

_DYNAMIC = (
    "id",
    "availability_zone",
    "vm_state",
    "task_state",
    "power_state",
    "host",
    "fault",
    "attempts",
    "launched_at",
)
"""What the columns hold; everything else of a handle is the ``spec``, or comes from another table."""
_ELSEWHERE = ("ports", "block_devices", "numa_topology", "pci_devices", "disks", "events", "stuck", "wait_for")

_going = or_(instances.c.deleted != 0, func.coalesce(instances.c.task_state, "") == TaskState.DELETING)


def create(connection: Connection, made: Sequence[tuple[Instance, Mapping[str, Any]]]) -> list[Instance]:
    """Insert the rows of these servers, each with its request; returns the instances with their numbers.

    They are members of their server groups from now on.
    """
    if not made:
        return []
    rows = [{**_columns(instance), "request": dict(request)} for instance, request in made]
    numbers = connection.scalars(insert(instances).returning(instances.c.id, sort_by_parameter_order=True), rows)
    result = [instance.with_(id=int(number)) for (instance, _request), number in zip(made, numbers.all())]
    server_groups.join(connection, result)
    return result


def _columns(instance: Instance) -> dict[str, Any]:
    wire = to_wire(instance)
    return {
        **{name: wire[name] for name in _DYNAMIC if name != "id"},
        "uuid": instance.uuid,
        "project_id": instance.project_id,
        "user_id": instance.user_id,
        "name": instance.name,
        **_spec(instance),
        "created_at": instance.created_at,
        "updated_at": instance.created_at,
        "deleted": 0,
    }


def _spec(instance: Instance) -> dict[str, Any]:
    """The columns that hold what the server is made from."""
    spec = {name: item for name, item in to_wire(instance).items() if name not in (*_DYNAMIC, *_ELSEWHERE)}
    return {"spec": spec, "vcpus": instance.flavor.vcpus, "memory_mb": instance.flavor.ram}


def respecify(connection: Connection, instance: Instance) -> None:
    """Write what the server is made from anew: nothing of it exists yet."""
    connection.execute(update(instances).where(instances.c.uuid == instance.uuid).values(**_spec(instance)))


def restore(connection: Connection, handle: Iterable[Instance]) -> None:
    """Insert the rows that the handle speaks of and the records lack: in check mode no earlier phase left them."""
    handle = list(handle)
    known = set(
        connection.scalars(select(instances.c.uuid).where(instances.c.uuid.in_([i.uuid for i in handle]))).all()
    )
    for instance in handle:
        if instance.uuid not in known:
            create(connection, [(instance, {})])
            volumes.restore(connection, instance)
            ports.restore(connection, instance)


def save(connection: Connection, instance: Instance, now: str) -> bool:
    """Write the states, the host and the fault. Whether that was done: a server that is being deleted stays so."""
    done = connection.execute(
        update(instances).where(instances.c.uuid == instance.uuid, ~_going).values(**_states(instance), updated_at=now)
    )
    return bool(done.rowcount)


def save_all(connection: Connection, handle: Sequence[Instance], now: str) -> None:
    """As :func:`save` does, these servers in one go."""
    if handle:
        names = [name for name in _DYNAMIC if name != "id"]
        query = update(instances).where(instances.c.uuid == bindparam("of"), ~_going)
        values: dict[Any, Any] = {instances.c[name]: bindparam(f"new_{name}") for name in names}
        connection.execute(
            query.values({**values, instances.c.updated_at: now}),
            [
                {"of": instance.uuid, **{f"new_{name}": value for name, value in _states(instance).items()}}
                for instance in handle
            ],
        )


def _states(instance: Instance) -> dict[str, Any]:
    return {name: to_wire(getattr(instance, name)) for name in _DYNAMIC if name != "id"}


def known(connection: Connection, uuids: Sequence[str]) -> dict[str, Instance]:
    """uuid -> the server as it is recorded, deleted ones too."""
    rows = connection.execute(select(instances).where(instances.c.uuid.in_(uuids))).fetchall()
    return {instance.uuid: instance for instance in handles(connection, rows)}


def request(connection: Connection, uuid: str) -> dict[str, Any]:
    """What was asked for."""
    return dict(connection.scalar(select(instances.c.request).where(instances.c.uuid == uuid)) or {})


def was_in_project(connection: Connection, project_id: str, name: str) -> bool:
    """Whether the project had a server of this name that is deleted."""
    query = select(instances.c.id).where(
        instances.c.deleted != 0, instances.c.project_id == project_id, instances.c.name == name
    )
    return connection.execute(query.limit(1)).first() is not None


def delete(connection: Connection, uuids: Sequence[str], now: str) -> None:
    """Mark the rows deleted, as Nova does: its name is free again, its actions can still be read."""
    connection.execute(
        update(instances)
        .where(instances.c.uuid.in_(uuids))
        .values(vm_state=VmState.DELETED, task_state=None, host=None, deleted=instances.c.id, deleted_at=now)
    )
    server_groups.leave(connection, uuids)


def in_project(connection: Connection, project_id: str, names: Sequence[str]) -> dict[str, Row[Any]]:
    """Name -> row of the project's servers with these names."""
    rows = connection.execute(
        select(instances).where(
            instances.c.deleted == 0, instances.c.project_id == project_id, instances.c.name.in_(names)
        )
    )
    return {row.name: row for row in rows}


def by_name_or_id(connection: Connection, references: Sequence[str]) -> list[Row[Any]]:
    """The servers of any project with one of these names or ids."""
    return list(
        connection.execute(
            select(instances)
            .where(instances.c.deleted == 0)
            .where(or_(instances.c.name.in_(references), instances.c.uuid.in_(references)))
            .order_by(instances.c.id)
        )
    )


def active(connection: Connection, hosts: Sequence[str], references: Sequence[str]) -> list[Row[Any]]:
    """The ACTIVE servers on these hosts, and those with these names or ids, of any project."""
    return list(
        connection.execute(
            select(instances)
            .where(instances.c.deleted == 0, instances.c.vm_state == VmState.ACTIVE, ~_going)
            .where(or_(instances.c.host.in_(hosts), instances.c.name.in_(references), instances.c.uuid.in_(references)))
            .order_by(instances.c.id)
        )
    )


def of_project(connection: Connection, project_id: str | None) -> list[Row[Any]]:
    """All servers of a project, or of all projects, oldest first."""
    query = select(instances).where(instances.c.deleted == 0).order_by(instances.c.id)
    if project_id is not None:
        query = query.where(instances.c.project_id == project_id)
    return list(connection.execute(query))


def usage(connection: Connection, project_id: str) -> dict[str, int]:
    """What the project has: ``instances``, ``cores`` and ``ram`` in MiB, as Nova's quota counts them."""
    row = connection.execute(
        select(
            func.count().label("instances"),
            func.coalesce(func.sum(instances.c.vcpus), 0).label("cores"),
            func.coalesce(func.sum(instances.c.memory_mb), 0).label("ram"),
        ).where(instances.c.deleted == 0, instances.c.project_id == project_id)
    ).one()
    return {"instances": int(row.instances), "cores": int(row.cores), "ram": int(row.ram)}


def handles(connection: Connection, rows: Sequence[Row[Any]]) -> list[Instance]:
    """Rows to handles, with their ports and block devices, and the CPUs and PCI devices that they claim."""
    uuids = [row.uuid for row in rows]
    devices = volumes.of_instances(connection, uuids)
    result = []
    for row in rows:
        spec = {**row.spec, **{name: getattr(row, name) for name in _DYNAMIC}}
        instance = from_wire(Instance, spec)
        result.append(instance.with_(block_devices=devices.get(row.uuid, ())))
    return claims.attach(connection, ports.attach(connection, result))


def start_actions(connection: Connection, handle: Sequence[Instance], action: str, user_id: str, now: str) -> None:
    """Begin an action (``create``, ``delete``) of each server that has none going on."""
    going = _open_actions(connection, handle)
    starting = [
        {
            "instance_uuid": instance.uuid,
            "action": action,
            "user_id": user_id,
            "project_id": instance.project_id,
            "start_time": now,
        }
        for instance in handle
        if instance.uuid not in going
    ]
    if starting:
        connection.execute(insert(instance_actions), starting)


def write_events(connection: Connection, handle: Sequence[Instance]) -> list[Instance]:
    """Move the handle's events into the records."""
    telling = [instance for instance in handle if instance.events]
    actions = _open_actions(connection, telling)
    values = [
        {"action_id": actions[instance.uuid], **to_wire(event), "traceback": _storable(event.traceback)}
        for instance in telling
        if instance.uuid in actions
        for event in instance.events
    ]
    if values:
        connection.execute(insert(instance_action_events), values)
    return [instance.with_(events=()) if instance.events else instance for instance in handle]


def _storable(text: str | None) -> str | None:
    """What a command printed, as both databases take it: without NUL, and bytes that are no UTF-8 spelt out."""
    return text and text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def finish_actions(connection: Connection, handle: Sequence[Instance], now: str, message: str | None = None) -> None:
    """End the actions that are going on; ``message`` is Nova's ``Error`` or None."""
    if handle:
        connection.execute(
            update(instance_actions)
            .where(
                instance_actions.c.instance_uuid.in_([instance.uuid for instance in handle]),
                instance_actions.c.finish_time.is_(None),
            )
            .values(finish_time=now, message=message)
        )


def _open_actions(connection: Connection, handle: Sequence[Instance]) -> dict[str, int]:
    """uuid -> the number of the action that is going on."""
    if not handle:
        return {}
    rows = connection.execute(
        select(instance_actions.c.instance_uuid, func.max(instance_actions.c.id).label("number"))
        .where(
            instance_actions.c.instance_uuid.in_([instance.uuid for instance in handle]),
            instance_actions.c.finish_time.is_(None),
        )
        .group_by(instance_actions.c.instance_uuid)
    )
    return {row.instance_uuid: row.number for row in rows}
