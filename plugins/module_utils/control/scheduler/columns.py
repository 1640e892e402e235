# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What the scheduler knows of the compute hosts: Nova's HostState with placement's inventories, column by column.

Row ``i`` of every column is the host ``names[i]``. Plain numbers are arrays; whatever else a host has (facts,
aggregates) is a ``Distinct`` column, so that a rule looks at each value once however many hosts share it.

Nova's resource tracker counts reserved amounts as used; here they stay apart, as placement has them, and the methods
named as Nova's HostState add them up.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.numa import Limits, Taken, take
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.pci import PciPool
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import NUMATopology
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec

VCPU = "VCPU"
PCPU = "PCPU"
MEMORY_MB = "MEMORY_MB"
DISK_GB = "DISK_GB"

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Where = Rows | slice
"""Some rows, or ``EVERY`` one."""

EVERY = slice(None)

T = TypeVar("T")


def flags(values: Iterable[bool]) -> Bools:
    """A column of yes and no."""
    return np.array(list(values), dtype=np.bool_)


def integers(values: Iterable[int]) -> Ints:
    """A column of whole numbers."""
    return np.array(list(values), dtype=np.int64)


def floats(values: Iterable[float]) -> Floats:
    """A column of numbers."""
    return np.array(list(values), dtype=np.float64)


def rows_of(values: Iterable[int]) -> Rows:
    """Row numbers."""
    return np.array(list(values), dtype=np.intp)


class Distinct(Generic[T]):
    """A column that holds each value once: ``values``, and for each row the value's number in ``codes``."""

    __slots__ = ("codes", "values")

    def __init__(self, values: Iterable[T], codes: Iterable[int]) -> None:
        self.values = tuple(values)
        self.codes: Rows = codes if isinstance(codes, np.ndarray) else rows_of(codes)

    @classmethod
    def of(cls, items: Iterable[T], key: Callable[[T], Hashable] | None = None) -> Distinct[T]:
        """The column of these items, one a row. ``key`` says which are the same; without one, those that are equal."""
        known: dict[Hashable, int] = {}
        values: list[T] = []
        codes = []
        for item in items:
            code = known.setdefault(key(item) if key else item, len(values))
            if code == len(values):
                values.append(item)
            codes.append(code)
        return cls(values, codes)

    @classmethod
    def same(cls, value: T, length: int) -> Distinct[T]:
        """A column of ``length`` times this value."""
        return cls((value,), np.zeros(length, dtype=np.intp))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> T:
        value: T = self.values[self.codes[row]]
        return value

    def mask(self, test: Callable[[T], bool]) -> Bools:
        """Whether each row's value passes the test, which is asked once a value."""
        return np.fromiter((bool(test(value)) for value in self.values), np.bool_, len(self.values))[self.codes]

    def numbers(self, function: Callable[[T], float], where: Where = EVERY) -> Floats:
        """``function`` of the rows' values, worked out once a value."""
        return np.fromiter((function(value) for value in self.values), np.float64, len(self.values))[self.codes[where]]


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
        if not self.total:
            return f"{wanted} wanted, the host has none"
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


NOTHING = Inventory(total=0)

_AMOUNTS = 16
"""So many amounts are remembered with the hosts that have room for them."""


class Resource:
    """The inventories of one resource class, a row for each host; a total of 0 where a host has none.

    Only ``used`` changes, by :meth:`take`.
    """

    def __init__(
        self,
        total: Ints,
        reserved: Ints,
        min_unit: Ints,
        max_unit: Ints,
        step_size: Ints,
        allocation_ratio: Floats,
        used: Ints,
    ) -> None:
        self.total, self.reserved, self.used = total, reserved, used
        self.min_unit, self.max_unit, self.step_size = min_unit, max_unit, step_size
        self.allocation_ratio = allocation_ratio
        self.capacity: Floats = (total - reserved) * allocation_ratio
        self._known: dict[int, tuple[Bools, Bools]] = {}
        """Amount -> where one server may have so much, where so much fits now."""

    @classmethod
    def of(cls, inventories: Sequence[Inventory]) -> Resource:
        """The column of these inventories."""
        return cls(
            total=integers(item.total for item in inventories),
            reserved=integers(item.reserved for item in inventories),
            min_unit=integers(item.min_unit for item in inventories),
            max_unit=integers(item.total if item.max_unit is None else item.max_unit for item in inventories),
            step_size=integers(item.step_size for item in inventories),
            allocation_ratio=floats(item.allocation_ratio for item in inventories),
            used=integers(item.used for item in inventories),
        )

    def copy(self) -> Resource:
        """One whose ``used`` may be changed without this one noticing."""
        other = Resource.__new__(Resource)
        other.__dict__.update(self.__dict__)
        other.used = self.used.copy()
        other._known = dict(self._known)
        return other

    def __getitem__(self, row: int) -> Inventory:
        return Inventory(
            total=int(self.total[row]),
            reserved=int(self.reserved[row]),
            allocation_ratio=float(self.allocation_ratio[row]),
            min_unit=int(self.min_unit[row]),
            max_unit=int(self.max_unit[row]),
            step_size=int(self.step_size[row]),
            used=int(self.used[row]),
        )

    def fits(self, wanted: int) -> Bools:
        """Where ``wanted`` more fits by placement's rule; everywhere where nothing is wanted.

        The same array as long as nothing of it changed. Not to be written to.
        """
        if not wanted:
            return np.ones(len(self.total), dtype=np.bool_)
        if wanted not in self._known:
            if len(self._known) >= _AMOUNTS:
                self._known.clear()
            allowed = (wanted >= self.min_unit) & (wanted <= self.max_unit) & (wanted % self.step_size == 0)
            self._known[wanted] = allowed, allowed & (self.used + wanted <= self.capacity)
        return self._known[wanted][1]

    def take(self, row: int, amount: int) -> None:
        """The row's host has so much less."""
        self.used[row] += amount
        used, capacity = self.used[row], self.capacity[row]
        for wanted, (allowed, fits) in self._known.items():
            now = bool(allowed[row] and used + wanted <= capacity)
            if fits[row] != now:
                fits = fits.copy()
                fits[row] = now
                self._known[wanted] = allowed, fits

    def why_not(self, row: int, wanted: int) -> str | None:
        """None where ``wanted`` more fits on the row's host, else the numbers compared."""
        return self[row].why_not(wanted)


@dataclass(frozen=True, eq=False)
class Facts:
    """What a host reports of itself and what seldom changes. Hosts of one make share one.

    Compared by identity: whoever makes them sees to it that hosts with the same facts share them.
    """

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
    traits: frozenset[str] = frozenset()
    """os_traits' names, and CUSTOM_ ones of the site."""
    stats: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else it reports, for extra specs to ask for."""


@dataclass(frozen=True)
class HostRow:
    """One host as a record, for small sites and tests; :meth:`Hosts.of` makes the columns."""

    name: str
    enabled: bool = True
    disabled_reason: str = ""
    up: bool = True
    """Whether its heartbeat is recent enough; the caller knows the time."""
    last_seen: str = ""
    """When the heartbeat was; empty for never."""
    inventories: Mapping[str, Inventory] = field(default_factory=dict)
    disk_available_gb: float = math.inf
    """GiB that the host measured as free once every sparse disk is full (Nova's disk_available_least); inf: unknown."""
    num_instances: int = 0
    num_io_ops: int = 0
    """Servers being built, migrated, rescued or snapshotted: Nova's io_workload."""
    failed_builds: int = 0
    facts: Facts = field(default_factory=Facts)
    aggregates: tuple[Aggregate, ...] = ()
    host_ip: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    servers: tuple[str, ...] = ()
    """Uuids of the servers on it."""
    image_properties: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(image property, its value) -> how many of its servers have it."""
    numa: NUMATopology | None = None
    """Its NUMA cells with what servers use of them; None where it does not tell."""
    pci: tuple[PciPool, ...] = ()
    """Its free PCI devices."""


@dataclass(eq=False)
class Hosts:
    """Every compute host at the moment of a decision."""

    names: Sequence[str]
    enabled: Bools
    disabled_reason: Distinct[str]
    up: Bools
    last_seen: Sequence[str]
    resources: dict[str, Resource]
    disk_available_gb: Floats
    num_instances: Ints
    num_io_ops: Ints
    failed_builds: Ints
    facts: Distinct[Facts]
    aggregates: Distinct[tuple[Aggregate, ...]]
    host_ip: Sequence[str]
    metrics: dict[str, Floats]
    """Name -> value; nan where a host does not report it."""
    servers: dict[str, int]
    """Uuid of a server -> its host's row."""
    image_properties: dict[tuple[str, str], Ints]
    """(image property, its value) -> how many servers of each host have it."""
    numa: list[NUMATopology | None]
    """Each host's NUMA cells with what servers use of them; None where it does not tell."""
    pci: list[tuple[PciPool, ...]]
    """Each host's free PCI devices."""

    @classmethod
    def of(cls, rows: Sequence[HostRow]) -> Hosts:
        """The columns of these hosts."""
        return cls(
            names=[row.name for row in rows],
            enabled=flags(row.enabled for row in rows),
            disabled_reason=Distinct.of(row.disabled_reason for row in rows),
            up=flags(row.up for row in rows),
            last_seen=[row.last_seen for row in rows],
            resources={
                name: Resource.of([row.inventories.get(name, NOTHING) for row in rows])
                for name in dict.fromkeys(name for row in rows for name in row.inventories)
            },
            disk_available_gb=floats(row.disk_available_gb for row in rows),
            num_instances=integers(row.num_instances for row in rows),
            num_io_ops=integers(row.num_io_ops for row in rows),
            failed_builds=integers(row.failed_builds for row in rows),
            facts=Distinct.of((row.facts for row in rows), key=repr),
            aggregates=Distinct.of((row.aggregates for row in rows), key=repr),
            host_ip=[row.host_ip for row in rows],
            metrics={
                name: floats(row.metrics.get(name, math.nan) for row in rows)
                for name in dict.fromkeys(name for row in rows for name in row.metrics)
            },
            servers={uuid: number for number, row in enumerate(rows) for uuid in row.servers},
            image_properties={
                pair: integers(row.image_properties.get(pair, 0) for row in rows)
                for pair in dict.fromkeys(pair for row in rows for pair in row.image_properties)
            },
            numa=[row.numa for row in rows],
            pci=[row.pci for row in rows],
        )

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def everywhere(self) -> Bools:
        """True for every host: the mask of a rule that does not concern a request. Not to be written to."""
        mask = np.ones(len(self), dtype=np.bool_)
        mask.flags.writeable = False
        return mask

    @functools.cached_property
    def keys(self) -> Sequence[str]:
        """The names as requests are compared with them: without case."""
        return [name.lower() for name in self.names]

    @functools.cached_property
    def _row_of(self) -> Mapping[str, int]:
        return {key: row for row, key in enumerate(self.keys)}

    @functools.cached_property
    def _nothing(self) -> Resource:
        return Resource.of([NOTHING] * len(self))

    @functools.cached_property
    def _counts(self) -> dict[frozenset[str], Ints]:
        return {}

    def row(self, name: str) -> int | None:
        """The row of the host of this name, whatever its case; None where there is none."""
        return self._row_of.get(name.lower())

    def resource(self, resource_class: str) -> Resource:
        """The class's inventories; of nothing where no host has any."""
        return self.resources.get(resource_class, self._nothing)

    def members(self, uuids: frozenset[str]) -> Ints:
        """How many of these servers each host has. Not to be written to."""
        if uuids not in self._counts:
            held = rows_of(self.servers[uuid] for uuid in uuids if uuid in self.servers)
            self._counts[uuids] = np.bincount(held, minlength=len(self)).astype(np.int64)
        return self._counts[uuids]

    def free_ram_mb(self, where: Where = EVERY) -> Ints:
        """MiB that no server and no reservation takes; the allocation ratio does not count, as in Nova."""
        memory = self.resource(MEMORY_MB)
        free: Ints = memory.total[where] - memory.reserved[where] - memory.used[where]
        return free

    def free_disk_mb(self, where: Where = EVERY) -> Ints:
        """MiB that no server and no reservation takes, at most what the host measured as free."""
        disk = self.resource(DISK_GB)
        recorded = disk.total[where] - disk.reserved[where] - disk.used[where]
        free: Ints = np.minimum(recorded, self.disk_available_gb[where]).astype(np.int64)
        return free * 1024

    def vcpus_total(self, where: Where = EVERY) -> Ints:
        """CPUs that servers share."""
        return self.resource(VCPU).total[where]

    def vcpus_used(self, where: Where = EVERY) -> Ints:
        """VCPUs that servers and reservations take; dedicated ones count, as in Nova."""
        vcpu = self.resource(VCPU)
        used: Ints = vcpu.reserved[where] + vcpu.used[where]
        return used + self.resource(PCPU).used[where]

    @functools.cached_property
    def pci_free(self) -> Ints:
        """How many PCI devices of each host are free. Not to be written to."""
        return integers(sum(pool.count for pool in pools) if pools else 0 for pools in self.pci)

    def limits(self, row: int) -> Limits:
        """How far the row's NUMA cells may be overcommitted: as far as the host is."""
        vcpu, memory = self.resource(VCPU), self.resource(MEMORY_MB)
        return Limits(float(vcpu.allocation_ratio[row]), float(memory.allocation_ratio[row]))

    def consume(self, row: int, spec: RequestSpec, uuid: str, packing: bool = False) -> Taken | None:
        """One more server of this request on the row's host, being built: Nova's consume_from_request.

        Returns the NUMA cells and PCI devices that it gets, where it asks for any; ``packing`` is the option
        packing_host_numa_cells_allocation_strategy. The measured free disk goes down too, since Nova's free_disk_mb
        does. Conflict, and nothing taken, where the cells or devices are not there.
        """
        taken = None
        if spec.numa is not None or spec.pci_requests:
            limits = self.limits(row)
            taken = take(self.numa[row], self.pci[row], spec.numa, spec.pci_requests, limits, packing)
            if taken is None:
                raise Conflict(
                    f"host {self.names[row]} has not the NUMA cells or PCI devices that server {uuid} asks for"
                )
            self.numa[row], self.pci[row] = taken.host_numa, taken.host_pools
            if "pci_free" in self.__dict__:
                self.pci_free[row] = sum(pool.count for pool in taken.host_pools)
        for resource_class, wanted in spec.resources.items():
            if resource_class in self.resources:
                self.resources[resource_class].take(row, wanted)
        self.disk_available_gb[row] -= spec.resources.get(DISK_GB, 0)
        self.num_instances[row] += 1
        self.num_io_ops[row] += 1
        self.servers[uuid] = row
        for uuids, count in self._counts.items():
            if uuid in uuids:
                count[row] += 1
        for pair in spec.image.properties.items():
            if pair not in self.image_properties:
                self.image_properties[pair] = np.zeros(len(self), dtype=np.int64)
            self.image_properties[pair][row] += 1
        return taken

    def copy(self) -> Hosts:
        """One that may be consumed without this one noticing; what claims do not change is shared."""
        other = dataclasses.replace(
            self,
            resources={name: resource.copy() for name, resource in self.resources.items()},
            disk_available_gb=self.disk_available_gb.copy(),
            num_instances=self.num_instances.copy(),
            num_io_ops=self.num_io_ops.copy(),
            servers=dict(self.servers),
            image_properties={pair: count.copy() for pair, count in self.image_properties.items()},
            numa=list(self.numa),
            pci=list(self.pci),
        )
        shared = ("everywhere", "keys", "_row_of", "_nothing")
        other.__dict__.update({name: self.__dict__[name] for name in shared if name in self.__dict__})
        if "pci_free" in self.__dict__:
            other.__dict__["pci_free"] = self.pci_free.copy()
        return other
