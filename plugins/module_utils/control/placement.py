# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""From the recorded hosts to what the scheduler's rules look at, and from its decisions to claims."""

from __future__ import annotations

import datetime
import math
from typing import Any, Mapping, Sequence

from sqlalchemy import Connection

from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import compute_nodes, volumes
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.hosts import (
    HostState,
    Inventory,
    RequestSpec,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance

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


def load_hosts(connection: Connection, catalog: Catalog, now: str, down_time: float) -> list[HostState]:
    """Every recorded host as the rules see it. A host whose heartbeat is older than ``down_time`` seconds is down."""
    held = compute_nodes.load(connection)
    work = compute_nodes.workload(connection)
    result = []
    for row in compute_nodes.rows(connection):
        aggregates = catalog.aggregates_of(row.host)
        zone = next((a.availability_zone for a in aggregates if a.availability_zone), "nova")
        servers, building = work.get(row.host, (0, 0))
        hypervisor = row.hypervisor
        result.append(
            HostState(
                name=row.host,
                availability_zone=zone,
                aggregates=tuple(aggregates),
                enabled=row.enabled,
                disabled_reason=row.disabled_reason,
                up=age(row.updated_at, now) <= down_time,
                last_seen=row.updated_at,
                inventories=held.get(row.host, {}),
                supported_instances=tuple(tuple(item) for item in hypervisor["supported_instances"]),
                hypervisor_type=hypervisor["hypervisor_type"],
                hypervisor_version=hypervisor["hypervisor_version"],
                cpu_info=hypervisor["cpu_info"],
                machine_types=hypervisor["machine_types"],
                num_instances=servers,
                num_io_ops=building,
                failed_builds=row.failed_builds,
                disk_available_gb=hypervisor["disk_available_gb"],
                stats={"firmware": hypervisor["firmware"]},
            )
        )
    return result


def resources(instance: Instance) -> dict[str, int]:
    """What the server claims, as nova.scheduler.utils.resources_from_flavor: VCPU, MEMORY_MB, DISK_GB.

    Its blank volumes lie on the same file system here, so they count as disk.
    """
    flavor = instance.flavor
    disk = (flavor.disk or instance.image.min_disk) + flavor.ephemeral + math.ceil(flavor.swap / 1024)
    blank = sum(device.size for device in instance.block_devices if device.source_type == "blank")
    return {"VCPU": flavor.vcpus, "MEMORY_MB": flavor.ram, "DISK_GB": disk + blank}


def request_spec(connection: Connection, instance: Instance) -> RequestSpec:
    """What the scheduler is asked for one server. A volume that exists lies on one host, and the server goes there."""
    zone, forced = _zone(instance.availability_zone)
    existing = [device.volume_id for device in instance.block_devices if device.source_type == "volume"]
    bound = volumes.hosts(connection, existing) if existing else set()
    return RequestSpec(
        instance_uuid=instance.uuid,
        flavor=instance.flavor,
        image=instance.image,
        project_id=instance.project_id,
        availability_zone=zone,
        forced_host=forced,
        volume_hosts=tuple(sorted(bound)),
        scheduler_hints=instance.scheduler_hints,
        resources=resources(instance),
    )


def _zone(asked: str | None) -> tuple[str | None, str | None]:
    """Nova's ``zone`` or ``zone:host``."""
    zone, _, host = (asked or "").partition(":")
    return zone or None, host or None


def claimed(specs: Sequence[RequestSpec], chosen: Mapping[str, str]) -> dict[str, tuple[str, Mapping[str, int]]]:
    """uuid -> (host, resources), for the servers that found one."""
    return {
        spec.instance_uuid: (chosen[spec.instance_uuid], spec.resources)
        for spec in specs
        if spec.instance_uuid in chosen
    }
