# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What the scheduler knows of a compute host: Nova's HostState with placement's inventories, frozen.

Nova's resource tracker counts reserved amounts as used; here they stay apart, as placement has them, and the
properties add them up where a weigher or a capability wants Nova's number.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VCPU = "VCPU"
MEMORY_MB = "MEMORY_MB"
DISK_GB = "DISK_GB"


@dataclass(frozen=True)
class Aggregate:
    """Nova's host aggregate."""

    name: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    availability_zone: str | None = None


@dataclass(frozen=True)
class Inventory:
    """Placement's inventory of one resource class, in the class's own unit (``MEMORY_MB`` in MiB, ``DISK_GB`` in GiB).

    ``max_unit`` None is the total: one server never exceeds the physical amount, whatever the ratio.
    """

    total: int
    reserved: int = 0
    allocation_ratio: float = 1.0
    min_unit: int = 1
    max_unit: int | None = None
    step_size: int = 1
    used: int = 0

    @property
    def capacity(self) -> float:
        """What may be allocated: ``(total - reserved) * allocation_ratio``."""
        return (self.total - self.reserved) * self.allocation_ratio

    def why_not(self, wanted: int) -> str | None:
        """None where ``wanted`` more fits by placement's rule, else the numbers compared."""
        if wanted == 0:
            return None
        most = self.total if self.max_unit is None else self.max_unit
        if wanted > most:
            return f"{wanted} wanted, at most {most} for one server"
        if wanted < self.min_unit:
            return f"{wanted} wanted, at least {self.min_unit} for one server"
        if wanted % self.step_size:
            return f"{wanted} wanted, only multiples of {self.step_size} for one server"
        if self.used + wanted <= self.capacity:
            return None
        usable = f"({self.total} - {self.reserved} reserved)" if self.reserved else str(self.total)
        free = math.floor(self.capacity - self.used)
        return f"{wanted} wanted, {free} free of {usable} x {float(self.allocation_ratio)}"


_NOTHING = Inventory(total=0)


@dataclass(frozen=True)
class HostState:
    """One compute host at the moment of the decision."""

    name: str
    availability_zone: str | None = None
    """None: the aggregates say, or else the host is in the default zone."""
    aggregates: tuple[Aggregate, ...] = ()
    enabled: bool = True
    disabled_reason: str = ""
    up: bool = True
    """Whether its heartbeat is recent enough; the caller knows the time."""
    last_seen: str = ""
    """When the heartbeat was; empty for never."""
    inventories: Mapping[str, Inventory] = field(default_factory=dict)
    supported_instances: tuple[tuple[str, str, str], ...] = ()
    """What it can run: (architecture, hypervisor type, vm mode), such as ``("x86_64", "kvm", "hvm")``."""
    hypervisor_type: str = ""
    hypervisor_version: int = 0
    """As libvirt gives it: 7002000 for 7.2.0."""
    cpu_info: Mapping[str, Any] = field(default_factory=dict)
    machine_types: tuple[str, ...] = ()
    """Names and aliases; empty where the host does not report them."""
    firmware_types: tuple[str, ...] = ()
    """``bios``, ``uefi``; empty where the host does not report them."""
    num_instances: int = 0
    num_io_ops: int = 0
    """Servers being built, migrated, rescued or snapshotted: Nova's io_workload."""
    failed_builds: int = 0
    disk_available_gb: int | None = None
    """GiB that the host measured as free once every sparse disk is full: Nova's disk_available_least."""
    stats: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else it reports, for extra specs to ask for."""

    def inventory(self, resource_class: str) -> Inventory:
        """The inventory of this class; one of nothing where the host has none."""
        return self.inventories.get(resource_class, _NOTHING)

    @property
    def key(self) -> str:
        """The name as requests are compared with it: without case."""
        return self.name.lower()

    @functools.cached_property
    def zone(self) -> str | None:
        """The availability zone that it is in, or None for the default one."""
        return self.availability_zone or next(
            (item.availability_zone for item in self.aggregates if item.availability_zone), None
        )

    @property
    def free_ram_mb(self) -> int:
        """MiB that no server and no reservation takes; the allocation ratio does not count, as in Nova."""
        memory = self.inventory(MEMORY_MB)
        return memory.total - memory.reserved - memory.used

    @property
    def free_disk_gb(self) -> int:
        """GiB that no server and no reservation takes, at most what the host measured as free."""
        disk = self.inventory(DISK_GB)
        free = disk.total - disk.reserved - disk.used
        return free if self.disk_available_gb is None else min(free, self.disk_available_gb)

    @property
    def vcpus_used(self) -> int:
        """VCPUs that servers and reservations take."""
        vcpu = self.inventory(VCPU)
        return vcpu.reserved + vcpu.used

    @functools.cached_property
    def capabilities(self) -> Mapping[str, Any]:
        """What extra specs may ask for, under the names of Nova's HostState; ``stats`` come besides."""
        vcpu, memory, disk = (self.inventory(name) for name in (VCPU, MEMORY_MB, DISK_GB))
        return {
            "host": self.name,
            "hypervisor_hostname": self.name,
            "hypervisor_type": self.hypervisor_type,
            "hypervisor_version": self.hypervisor_version,
            "supported_instances": [list(item) for item in self.supported_instances],
            "cpu_info": self.cpu_info,
            "machine_types": list(self.machine_types),
            "num_instances": self.num_instances,
            "num_io_ops": self.num_io_ops,
            "failed_builds": self.failed_builds,
            "vcpus_total": vcpu.total,
            "vcpus_used": self.vcpus_used,
            "free_ram_mb": self.free_ram_mb,
            "total_usable_ram_mb": memory.total,
            "free_disk_mb": self.free_disk_gb * 1024,
            "total_usable_disk_gb": disk.total,
            "disk_mb_used": (disk.reserved + disk.used) * 1024,
            "cpu_allocation_ratio": vcpu.allocation_ratio,
            "ram_allocation_ratio": memory.allocation_ratio,
            "disk_allocation_ratio": disk.allocation_ratio,
            "stats": self.stats,
        }

    def with_claim(self, resources: Mapping[str, int]) -> HostState:
        """A copy on which one more server takes ``resources`` and is being built: Nova's consume_from_request.

        The measured free disk goes down too, since Nova's free_disk_mb does.
        """
        inventories = dict(self.inventories)
        for resource_class, wanted in resources.items():
            if wanted:
                held = self.inventory(resource_class)
                inventories[resource_class] = dataclasses.replace(held, used=held.used + wanted)
        measured = self.disk_available_gb
        return dataclasses.replace(
            self,
            inventories=inventories,
            num_instances=self.num_instances + 1,
            num_io_ops=self.num_io_ops + 1,
            disk_available_gb=None if measured is None else measured - resources.get(DISK_GB, 0),
        )
