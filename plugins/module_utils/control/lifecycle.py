# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A server's record from its request to its end: nova-api's and nova-conductor's part of the flow."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any, Callable, Mapping, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control import server_groups
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.identity import Identity
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import instances, ports, residues, volumes
from ansible_collections.barestack.kvm.plugins.module_utils.control.request import (
    Requested,
    default_hostname,
    differences,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    QuotaExceeded,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    BlockDevice,
    Instance,
    PowerState,
    ServerGroup,
    TaskState,
    VmState,
)
from sqlalchemy import Connection

HTTP_BAD_REQUEST = 400
_LONGEST = 255
"""Characters that a name may have."""
_STEM = _LONGEST - len("-blank-vol")


def check_existing(requested: Sequence[Requested], rows: dict[str, Any]) -> None:
    """Refuse a request that would change a server's immutable properties, or that meets a server being deleted."""
    problems = []
    for server in requested:
        row = rows.get(server.name)
        if row is None:
            continue
        if row.task_state == TaskState.DELETING:
            problems.append(
                f"Server {server.name} is being deleted: finish that with playbooks/delete_instance.yml first."
            )
        for difference in differences(server, row.request):
            problems.append(
                f"Server {server.name} exists and {difference}: this cannot be changed once a server is made; "
                "delete it and boot it again, or choose another name."
            )
    if problems:
        raise Conflict("\n".join(problems))


def check_quota(connection: Connection, catalog: Catalog, identity: Identity, new: Sequence[Requested]) -> None:
    """Nova's check of instances, cores and ram, in the transaction that creates the rows."""
    if not new:
        return
    used = instances.usage(connection, identity.project_id)
    wanted = {
        "instances": len(new),
        "cores": sum(server.flavor.vcpus for server in new),
        "ram": sum(server.flavor.ram for server in new),
    }
    quota = catalog.project(identity.project_id).quota
    for resource, amount in wanted.items():
        limit = getattr(quota, resource)
        if 0 <= limit < used[resource] + amount:
            raise QuotaExceeded(
                f"Quota exceeded for {resource} in project {identity.project_name}: requested {amount}, "
                f"but already used {used[resource]} of {limit} {resource}."
            )


def create(
    connection: Connection, catalog: Catalog, identity: Identity, servers: Sequence[Requested], now: str
) -> list[Instance]:
    """Insert the servers' records, their volumes and block device mappings, their memberships in server groups."""
    groups = server_groups.resolve(connection, catalog, identity, servers, now)
    together = not any(server.volumes for server in servers)  # else one may ask for another's volume
    made = []
    for part in [servers] if together else [[server] for server in servers]:
        new = [(requested(connection, catalog, identity, server, groups, now), server.to_record()) for server in part]
        made += instances.create(connection, new)
        for instance in made[-1:] if not together else ():
            volumes.create(connection, instance)
    instances.start_actions(connection, made, "create", identity.user_id, now)
    return made


def requested(
    connection: Connection,
    catalog: Catalog,
    identity: Identity,
    server: Requested,
    groups: Mapping[str, ServerGroup],
    now: str,
) -> Instance:
    """A server that is asked for, as it will be recorded; ``groups`` are by :func:`server_groups.key`."""
    identifier = str(uuid.uuid4())
    group = groups.get(server_groups.key(server.scheduler_hints))
    return Instance(
        id=0,
        uuid=identifier,
        name=server.name,
        hostname=server.hostname or default_hostname(identifier),
        project_id=identity.project_id,
        project_name=identity.project_name,
        user_id=identity.user_id,
        user_name=identity.user_name,
        created_at=now,
        description=server.description,
        key_name=server.key_name,
        metadata=server.metadata,
        user_data=server.user_data,
        config_drive=server.config_drive,
        availability_zone=server.availability_zone,
        scheduler_hints={**server.scheduler_hints, **({"group": group.uuid} if group else {})},
        requested_host=server.host,
        ignore_hosts=server.ignore_hosts,
        server_group=group,
        launch_index=server.launch_index,
        block_devices=tuple(_block_device(connection, identity, server, volume) for volume in server.volumes),
        **_from_catalog(connection, catalog, identity, server),
    )


def _block_device(connection: Connection, identity: Identity, server: Requested, volume: Any) -> BlockDevice:
    if volume.existing is None:
        return BlockDevice(
            id=str(uuid.uuid4()),
            source_type="blank",
            destination_type="volume",
            volume_id=str(uuid.uuid4()),
            volume_name=(volume.name or f"{server.name[:_STEM]}-blank-vol")[:_LONGEST],
            size=volume.size,
            delete_on_termination=volume.delete_on_termination,
        )
    row = volumes.find(connection, identity.project_id, volume.existing)
    if row is None:
        raise InvalidRequest(f"Server {server.name}: volume {volume.existing!r} does not exist in this project.")
    if row.status != "available":
        raise Conflict(
            f"Server {server.name}: Invalid volume: Volume {row.name} ({row.id}) status must be available, "
            f"but current status is: {row.status}."
        )
    return BlockDevice(
        id=str(uuid.uuid4()),
        source_type="volume",
        destination_type="volume",
        volume_id=row.id,
        volume_name=row.name,
        size=row.size,
        delete_on_termination=volume.delete_on_termination,
    )


def _nic(
    connection: Connection, catalog: Catalog, identity: Identity, server: Requested, nic: Mapping[str, Any]
) -> dict[str, Any]:
    """The NIC with its network; one that names a port gets the port's network, and the port must be free."""
    if not nic["port"]:
        taken = ports.taken_addresses(connection, nic["network"].id) if nic["fixed_ip"] else {}
        if any(nic["fixed_ip"] in addresses for addresses in taken.values()):
            raise Conflict(
                f"Server {server.name}: Fixed IP address {nic['fixed_ip']} is already in use "
                f"on network {nic['network'].name}."
            )
        return dict(nic)
    row = ports.find(connection, identity.project_id, nic["port"])
    if row is None:
        raise InvalidRequest(f"Server {server.name}: port {nic['port']!r} does not exist in this project.")
    if row.device_id:
        raise Conflict(f"Server {server.name}: Port {nic['port']} is still in use.")
    return {**nic, "network": catalog.network(row.network_id)}


def reported(recorded: Instance, given: Instance) -> Instance:
    """The server as recorded, with that of a handle which only its host knows: what the phases there made and found."""
    statuses = {port.id: port.status for port in given.ports}
    connections = {device.id: device.connection_info for device in given.block_devices}
    return recorded.with_(
        ports=tuple(dataclasses.replace(port, status=statuses.get(port.id, port.status)) for port in recorded.ports),
        block_devices=tuple(
            dataclasses.replace(device, connection_info=connections.get(device.id) or device.connection_info)
            for device in recorded.block_devices
        ),
        power_state=given.power_state,
        disks=given.disks,
        wait_for=given.wait_for,
        fault=given.fault,
        stuck=given.stuck,
        events=given.events,
    )


def retry(
    connection: Connection, catalog: Catalog, identity: Identity, instance: Instance, server: Requested
) -> Instance:
    """A server that ended in ERROR, on its way again.

    Where nothing of it is left on a host it is made from what the catalogue says now: what was wrong there may have
    been why it failed. Else its host may still run it, as its task state says.
    """
    if instance.host is None:
        ports.release(connection, instance.uuid)  # a run that was killed may not have come to it
        instance = instance.with_(**_from_catalog(connection, catalog, identity, server))
        instances.respecify(connection, instance)
    return instance.with_(
        availability_zone=instance.availability_zone if instance.host else server.availability_zone,
        vm_state=VmState.BUILDING,
        task_state=TaskState.SPAWNING if instance.host else TaskState.SCHEDULING,
        power_state=PowerState.NOSTATE,
        fault=None,
        attempts=(),
    )


def again(connection: Connection, instance: Instance) -> Instance:
    """A server whose attempt was undone, ready for the next one: on no host, and with the zone that was asked for."""
    return instance.with_(
        availability_zone=instances.request(connection, instance.uuid).get("availability_zone"),
        task_state=TaskState.SCHEDULING,
        power_state=PowerState.NOSTATE,
        host=None,
        numa_topology=None,
        pci_devices=(),
        disks=(),
        fault=None,
        stuck=None,
    )


_ORDER = (TaskState.SCHEDULING, TaskState.NETWORKING, TaskState.BLOCK_DEVICE_MAPPING, TaskState.SPAWNING)


def advance(
    connection: Connection, handle: Sequence[Instance], task_state: Callable[[Instance], str], now: str
) -> list[Instance]:
    """The servers, those that are being built in this task state: written down unless they are further already.

    They never go back on one host: what an earlier, killed run may have made there is still there.
    """
    result = [
        instance.with_(task_state=task_state(instance)) if _goes_on(instance, task_state(instance)) else instance
        for instance in handle
    ]
    instances.save_all(connection, [new for new, old in zip(result, handle) if new is not old], now)
    return result


def _goes_on(instance: Instance, task_state: str) -> bool:
    further = instance.task_state in _ORDER and _ORDER.index(instance.task_state) >= _ORDER.index(task_state)
    return instance.vm_state == VmState.BUILDING and not further


def give_up(connection: Connection, instance: Instance, max_attempts: int, now: str) -> Instance:
    """A server whose attempt failed: what its host has to undo is written down, and whether it is tried elsewhere.

    ``instance.vm_state`` is BUILDING where it is, else ERROR. As in nova.conductor, a request that cannot be right
    anywhere (a fault of code 400, or one that no host had a part in) is not tried again.
    """
    fault = instance.fault
    if fault is None:
        return instance
    attempts = (*instance.attempts, fault) if fault.host else instance.attempts
    final = not fault.host or fault.code == HTTP_BAD_REQUEST or len(attempts) >= max_attempts
    if len(attempts) > 1 or (attempts and not fault.host):
        told = "; ".join(f"{number}. {item}" for number, item in enumerate(attempts, 1))
        fault = dataclasses.replace(fault, message=f"{fault.message} (all attempts: {told})")
    instance = instance.with_(vm_state=VmState.ERROR if final else VmState.BUILDING, attempts=attempts, fault=fault)
    instances.save(connection, instance, now)
    residues.write(connection, [instance])
    return instance


def _from_catalog(connection: Connection, catalog: Catalog, identity: Identity, server: Requested) -> dict[str, Any]:
    """The instance's fields that hold objects of the catalogue."""
    return {
        "flavor": server.flavor,
        "image": server.image,
        "networks": tuple(_nic(connection, catalog, identity, server, nic) for nic in server.networks),
        "security_groups": server.security_groups,
        "public_key": server.public_key,
    }


def resolve(connection: Connection, identity: Identity, references: Sequence[str]) -> tuple[list[Any], list[str]]:
    """(rows, references that name nothing). An id goes before a name, the own project's name before another's.

    Another project's server is refused, but for the name of one that this project had and deleted: that one is gone.
    """
    found, missing = [], []
    candidates = instances.by_name_or_id(connection, references)
    for reference in references:
        rows = [row for row in candidates if row.uuid == reference] or [
            row for row in candidates if row.name == reference
        ]
        own = [row for row in rows if row.project_id == identity.project_id] or [
            row for row in rows if identity.may_touch(row.project_id)
        ]
        if rows and not own and not instances.was_in_project(connection, identity.project_id, reference):
            raise Forbidden(f"Server {reference} belongs to another project.")
        if len(own) > 1:
            raise InvalidRequest(
                f"More than one server is named {reference}: use the id, one of " + ", ".join(row.uuid for row in own)
            )
        if own:
            found.append(own[0])
        else:
            missing.append(reference)
    return list({row.uuid: row for row in found}.values()), missing
