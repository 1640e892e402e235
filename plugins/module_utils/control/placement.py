# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""From the recorded hosts to what the scheduler's rules look at, and from its decisions to claims."""

from __future__ import annotations

import dataclasses
import datetime
import math
from typing import Any, Mapping, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import compute_nodes, residues, volumes
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import request
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.hosts import (
    DISK_GB,
    Aggregate,
    HostState,
    Inventory,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import to_wire
from sqlalchemy import Connection

REPORT_SPEC: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "hypervisor": {"type": "dict", "required": True},
    "cpu_allocation_ratio": {"type": "float", "default": 4.0},
    "ram_allocation_ratio": {"type": "float", "default": 1.0},
    "disk_allocation_ratio": {"type": "float", "default": 1.0},
    "reserved_host_cpus": {"type": "int", "default": 0},
    "reserved_host_memory_mb": {"type": "int", "default": 512},
    "reserved_host_disk_mb": {"type": "int", "default": 0},
}
"""A host's report with the inventory's settings for it; the defaults are Nova's."""

_VOLATILE = ("disk_available_gb", "running_domains")
"""What moves all the time and is no change of the host."""

_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


def age(recorded: str, now: str) -> float:
    """Seconds between two of the records' times."""
    return (datetime.datetime.strptime(now, _TIME) - datetime.datetime.strptime(recorded, _TIME)).total_seconds()


def inventories(hypervisor: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Inventory]:
    """What a host has, as nova.virt.libvirt.driver.update_provider_tree reports it.

    ``settings`` are Nova's options: ``*_allocation_ratio``, ``reserved_host_cpus``, ``reserved_host_memory_mb``,
    ``reserved_host_disk_mb``. ``max_unit`` is the total: one server never exceeds the physical host.
    """
    return {
        resource_class: Inventory(
            total=int(total),
            reserved=int(reserved),
            allocation_ratio=float(ratio),
            min_unit=1,
            max_unit=max(1, int(total)),
            step_size=1,
            used=0,
        )
        for resource_class, total, reserved, ratio in (
            ("VCPU", hypervisor["vcpus"], settings["reserved_host_cpus"], settings["cpu_allocation_ratio"]),
            (
                "MEMORY_MB",
                hypervisor["memory_mb"],
                settings["reserved_host_memory_mb"],
                settings["ram_allocation_ratio"],
            ),
            (
                "DISK_GB",
                hypervisor["disk_gb"],
                math.ceil(settings["reserved_host_disk_mb"] / 1024),
                settings["disk_allocation_ratio"],
            ),
        )
    }


def record(
    connection: Connection, reports: Sequence[Mapping[str, Any]], now: str
) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Write hosts' reports (as ``REPORT_SPEC``) and their heartbeats.

    Returns each host with what was known of it and what is now known.
    """
    known = {row.host: row.hypervisor for row in compute_nodes.rows(connection)} if reports else {}
    held = compute_nodes.load(connection) if reports else {}
    changes = []
    for report in reports:
        name, hypervisor = report["name"], report["hypervisor"]
        wanted = inventories(hypervisor, report)
        compute_nodes.save(connection, name, hypervisor, wanted, now)
        before = _comparable(known.get(name) or {}, held.get(name, {}))
        changes.append((name, before, _comparable(hypervisor, wanted)))
    return changes


def _comparable(hypervisor: Mapping[str, Any], held: Mapping[str, Inventory]) -> dict[str, Any]:
    return {
        "hypervisor": {key: value for key, value in hypervisor.items() if key not in _VOLATILE},
        "inventories": {name: to_wire(dataclasses.replace(inventory, used=0)) for name, inventory in held.items()},
    }


def load_hosts(connection: Connection, catalog: Catalog, now: str, down_time: float) -> list[HostState]:
    """Every recorded host as the rules see it. A host whose heartbeat is older than ``down_time`` seconds is down."""
    held = compute_nodes.load(connection)
    work = compute_nodes.workload(connection)
    return [
        _host_state(
            row, held.get(row.host, {}), work.get(row.host, (0, 0)), catalog, age(row.updated_at, now) <= down_time
        )
        for row in compute_nodes.rows(connection)
    ]


def _host_state(
    row: Any, inventories: Mapping[str, Inventory], work: tuple[int, int], catalog: Catalog, up: bool
) -> HostState:
    hypervisor = row.hypervisor
    servers, building = work
    return HostState(
        name=row.host,
        aggregates=tuple(
            Aggregate(item.name, item.metadata, item.availability_zone)
            for item in catalog.aggregates
            if row.host in item.hosts
        ),
        enabled=row.enabled,
        disabled_reason=row.disabled_reason,
        up=up,
        last_seen=row.updated_at,
        inventories=inventories,
        supported_instances=tuple(tuple(item) for item in hypervisor["supported_instances"]),
        hypervisor_type=hypervisor["hypervisor_type"],
        hypervisor_version=hypervisor["hypervisor_version"],
        cpu_info=hypervisor["cpu_info"],
        machine_types=tuple(name for names in hypervisor["machine_types"].values() for name in names),
        firmware_types=tuple("uefi" if name == "efi" else name for name in hypervisor["firmware"]),
        num_instances=servers,
        num_io_ops=building,
        failed_builds=row.failed_builds,
        disk_available_gb=hypervisor["disk_available_gb"],
        stats=hypervisor,
    )


def zone(catalog: Catalog, host: str) -> str:
    """The host's availability zone: its aggregate's, or Nova's default."""
    zones = (item.availability_zone for item in catalog.aggregates if host in item.hosts and item.availability_zone)
    return next(zones, Options().default_availability_zone)


def request_specs(connection: Connection, handle: Sequence[Instance]) -> list[RequestSpec]:
    """What the scheduler is asked for each server.

    A volume that lies on a host draws the server there, one that a rollback left of a blank volume too; blank volumes
    lie on the instances' file system here, so they count as disk.
    """
    left: dict[str, dict[str, str]] = {}
    for item in residues.of(connection, [instance.uuid for instance in handle]):
        left.setdefault(item.uuid, {})[str(item.host)] = "it has yet to undo what an earlier attempt left there"
    return [_request_spec(connection, instance, left.get(instance.uuid, {})) for instance in handle]


def _request_spec(connection: Connection, instance: Instance, left: Mapping[str, str]) -> RequestSpec:
    spec = request.request_spec(instance)
    existing = [device.volume_id for device in instance.block_devices]
    blank = sum(device.size for device in instance.block_devices if device.source_type == "blank")
    return dataclasses.replace(
        spec,
        tried={**left, **spec.tried},
        volume_hosts=tuple(sorted(volumes.hosts(connection, existing))) if existing else (),
        resources={**spec.resources, DISK_GB: spec.resources.get(DISK_GB, 0) + blank},
    )


def claimed(specs: Sequence[RequestSpec], chosen: Mapping[str, str]) -> dict[str, tuple[str, Mapping[str, int]]]:
    """uuid -> (host, resources), for the servers that found one."""
    return {
        spec.instance_uuid: (chosen[spec.instance_uuid], spec.resources)
        for spec in specs
        if spec.instance_uuid in chosen
    }
