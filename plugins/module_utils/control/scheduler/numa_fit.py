# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Which cells of a host a guest's cells go to, on which of its CPUs, and what that leaves to the next.

Mirrors nova.virt.hardware's numa_fit_instance_to_host and numa_usage_from_instance_numa: the same cells, the same CPUs.
Where Nova's way has a bug (``tests/differential/test_numa_fit.py`` lists them), the answer here is the one that it
gives without the bug. Pure: nothing given is changed.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import pci
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import (
    NO_CPUS,
    PAGES_ANY,
    PAGES_LARGE,
    PAGES_SMALL,
    CpuPolicy,
    InstanceNUMACell,
    InstanceNUMATopology,
    NUMACell,
    NUMAPages,
    NUMATopology,
    ThreadPolicy,
    format_cpus,
)

_PAGE_NAMES = {PAGES_SMALL: "small", PAGES_LARGE: "large", PAGES_ANY: "any"}


@dataclass(frozen=True)
class Limits:
    """How far the shared CPUs and the memory of a cell may be given out (Nova's NUMATopologyLimits)."""

    cpu_allocation_ratio: float
    ram_allocation_ratio: float


@dataclass(frozen=True)
class Near:
    """The PCI devices that the guest asks for as well, and those that are free on the host."""

    requests: tuple[pci.PciRequest, ...] = ()
    pools: tuple[pci.PciPool, ...] = ()


_NO_DEVICES = Near()
_Fit = InstanceNUMACell | str
"""A cell with its place, or why it has none."""


def fit(
    host: NUMATopology,
    wanted: InstanceNUMATopology,
    limits: Limits | None = None,
    near: Near = _NO_DEVICES,
    packing: bool = False,
) -> InstanceNUMATopology | None:
    """The guest's cells with their places on the host; None where they do not fit.

    The emptiest cells of the host are tried first, with ``packing`` the fullest; those with PCI devices first where
    the guest asks for devices, else last. ``limits`` None: shared CPUs and memory may be given out without end.
    """
    return next(_ways(host, wanted, limits, near, packing), None)


def why_not(
    host: NUMATopology,
    wanted: InstanceNUMATopology,
    limits: Limits | None = None,
    near: Near = _NO_DEVICES,
) -> str:
    """The values by which a host that :func:`fit` has no answer for is too small."""
    if len(wanted.cells) > len(host.cells):
        return f"{_cells(len(wanted.cells))} wanted, the host has {len(host.cells)}"
    for number, cell in enumerate(wanted.cells):
        places = [(there.id, _fit_cell(there, cell, limits, _reserved(wanted, number))) for there in host.cells]
        if not any(isinstance(place, InstanceNUMACell) for _cell_id, place in places):
            return "; ".join(f"cell {cell_id}: {place}" for cell_id, place in places)
    if next(_ways(host, wanted, limits, _NO_DEVICES, False), None):
        return "no free cells are near enough to free PCI devices"
    return f"each of the {_cells(len(wanted.cells))} fits somewhere, but not all of them at once"


def used(host: NUMATopology, claimed: InstanceNUMATopology) -> NUMATopology:
    """The host with this guest on it; Conflict where a CPU of the guest's own is not free, or is not for that."""
    return NUMATopology(tuple(_changed(cell, claimed, 1) for cell in host.cells))


def freed(host: NUMATopology, claimed: InstanceNUMATopology) -> NUMATopology:
    """The host without this guest; Conflict where a CPU of the guest's own was not taken."""
    return NUMATopology(tuple(_changed(cell, claimed, -1) for cell in host.cells))


def taken_cpus(host: NUMATopology, claimed: InstanceNUMATopology) -> frozenset[int]:
    """The host's CPUs that no other guest may have a CPU of its own on.

    Those it is pinned to; under the thread policy ``isolate`` the rest of their cores too.
    """
    cells = {cell.id: cell for cell in host.cells}
    sets = [_taken(cells[cell.id], cell) for cell in claimed.cells if cell.id in cells]
    return frozenset(itertools.chain.from_iterable(sets))


def _ways(
    host: NUMATopology, wanted: InstanceNUMATopology, limits: Limits | None, near: Near, packing: bool
) -> Iterator[InstanceNUMATopology]:
    """Every way to place the guest's cells, the best first."""
    if not wanted.cells or len(wanted.cells) > len(host.cells):
        return
    cells: Sequence[NUMACell] = host.cells
    if len(host.cells) > len(wanted.cells):
        cells = _sorted(host.cells, wanted, near, packing)
    for places in _places(cells, wanted, limits):
        chosen = InstanceNUMATopology(places, wanted.emulator_threads_policy)
        if not near.requests or pci.consume(near.pools, near.requests, host, places) is not None:
            yield chosen


def _sorted(cells: Sequence[NUMACell], wanted: InstanceNUMATopology, near: Near, packing: bool) -> Sequence[NUMACell]:
    """By PCI devices, then by CPUs, then by memory; cells that are alike in all keep their order."""
    ordered = sorted(cells, key=lambda cell: cell.available_memory, reverse=not packing)
    if wanted.cells[0].pins:
        ordered = sorted(ordered, key=lambda cell: len(cell.free_pcpus), reverse=not packing)
    else:
        ordered = sorted(ordered, key=lambda cell: cell.cpu_usage, reverse=packing)
    devices: dict[int | None, int] = {}
    for pool in near.pools:
        devices[pool.numa_node] = devices.get(pool.numa_node, 0) + pool.count
    return sorted(ordered, key=lambda cell: devices.get(cell.id, 0), reverse=bool(near.requests))


def _places(
    cells: Sequence[NUMACell], wanted: InstanceNUMATopology, limits: Limits | None
) -> Iterator[tuple[InstanceNUMACell, ...]]:
    """Depth first, which is the order of the cells' permutations without looking at those that cannot be."""
    known: dict[tuple[int, int], _Fit] = {}

    def place(number: int, free: list[int]) -> Iterator[tuple[InstanceNUMACell, ...]]:
        if number == len(wanted.cells):
            yield ()
            return
        for index in free:
            key = (number, index)
            if key not in known:
                known[key] = _fit_cell(cells[index], wanted.cells[number], limits, _reserved(wanted, number))
            first = known[key]
            if isinstance(first, InstanceNUMACell):
                for rest in place(number + 1, [other for other in free if other != index]):
                    yield (first, *rest)

    return place(0, list(range(len(cells))))


def _reserved(wanted: InstanceNUMATopology, number: int) -> int:
    """CPUs for the emulator threads alone: one, beside the guest's first cell, where they are isolated."""
    return int(wanted.emulator_threads_isolated and number == 0)


def _fit_cell(host: NUMACell, cell: InstanceNUMACell, limits: Limits | None, reserved: int) -> _Fit:
    """The guest's cell with its place on this cell of the host, or why it does not fit."""
    pagesize = cell.pagesize
    if pagesize:
        pagesize = _page_size(host, cell.memory, pagesize)
        if not pagesize:
            return _no_pages(host, cell)
    elif not _memory_fits(host, cell):
        there = host.available_memory if cell.pins else host.memory
        return f"{cell.memory} MiB wanted, {there} {'free' if cell.pins else 'in all'}"
    why_not = _too_few_cpus(host, cell, reserved)
    if why_not:
        return why_not
    pinning: tuple[tuple[int, int], ...] = ()
    emulator = NO_CPUS
    if cell.pins:
        pinned = _pin(host, cell, reserved)
        if pinned is None:
            return _no_cores(host, cell, reserved)
        pinning, emulator = pinned
    why_not = _over_limits(host, cell, limits)
    if why_not:
        return why_not
    return dataclasses.replace(cell, id=host.id, pagesize=pagesize, cpu_pinning=pinning, cpuset_reserved=emulator)


def _page_size(host: NUMACell, memory: int, wanted: int) -> int | None:
    """KiB of the largest pages that are asked for and hold this many MiB; None where there are none."""
    sizes = sorted(host.pages, key=lambda pages: pages.size_kb, reverse=True)
    allowed = {PAGES_SMALL: sizes[-1:], PAGES_LARGE: sizes[:-1], PAGES_ANY: sizes}
    candidates = allowed.get(wanted, [pages for pages in sizes if pages.size_kb == wanted])
    for pages in candidates:
        if _whole_pages(memory, pages) and memory * 1024 <= pages.free_kb:
            return pages.size_kb
    return None


def _whole_pages(memory: int, pages: NUMAPages) -> bool:
    return memory * 1024 % pages.size_kb == 0


def _memory_fits(host: NUMACell, cell: InstanceNUMACell) -> bool:
    """Where no page size is asked for. Memory may be given out twice, but not beside CPUs of the guest's own, and not
    to one guest: two guests of 1 GiB may share 1 GiB, one of 2 GiB does not fit."""
    if not host.pages:
        return cell.memory <= (host.available_memory if cell.pins else host.memory)
    pages = min(host.pages, key=lambda pages: pages.size_kb)
    there = pages.free_kb if cell.pins else pages.total_kb
    return cell.memory * 1024 <= there and _whole_pages(cell.memory, pages)


def _too_few_cpus(host: NUMACell, cell: InstanceNUMACell, reserved: int) -> str:
    if cell.pins:
        wanted, there = len(cell.pcpuset) + reserved, len(host.free_pcpus)
        if wanted > there:
            return f"{_cpus(wanted)} of its own wanted, {there} free of {len(host.pcpuset)}"
    wanted, there = len(cell.cpuset), len(host.cpuset)
    return f"{_cpus(wanted)} wanted, {there} in all" if wanted > there else ""


def _over_limits(host: NUMACell, cell: InstanceNUMACell, limits: Limits | None) -> str:
    """The allocation ratios, which concern guests with shared CPUs."""
    if limits is None or cell.cpu_policy == CpuPolicy.DEDICATED:
        return ""
    cpus, memory = host.cpu_usage + len(cell.cpuset), host.memory_usage + cell.memory
    if cpus > len(host.cpuset) * limits.cpu_allocation_ratio:
        free = len(host.cpuset) * limits.cpu_allocation_ratio - host.cpu_usage
        ratio = f"{len(host.cpuset)} x {limits.cpu_allocation_ratio:g}"
        return f"{_cpus(len(cell.cpuset))} wanted, {free:g} free of {ratio}"
    if memory > host.memory * limits.ram_allocation_ratio:
        free = host.memory * limits.ram_allocation_ratio - host.memory_usage
        return f"{cell.memory} MiB wanted, {free:g} free of {host.memory} x {limits.ram_allocation_ratio:g}"
    return ""


_Pins = tuple[tuple[tuple[int, int], ...], frozenset[int]]
"""(CPU of the guest with CPU of the host), and the CPUs for the emulator threads."""


def _pin(host: NUMACell, cell: InstanceNUMACell, reserved: int) -> _Pins | None:
    """CPUs for the guest's own, by its thread policy; None where the cores that are free do not make that possible.

    Whole cores come first, so that neighbouring CPUs of the guest share one, and of the cores those with more free
    CPUs. Within a core the CPUs are taken in ascending order (Nova: as its hash table happens to have them).
    """
    if not cell.total_cpus:
        return None  # as Nova: a cell of memory alone goes only with shared CPUs
    width = max(map(len, host.siblings), default=1) or 1
    cores = [sorted(core) for core in host.free_siblings if core]
    widest = max(map(len, cores), default=0)
    by_width = {count: [core for core in cores if len(core) >= count] for count in range(1, widest + 1)}
    if cell.cpu_thread_policy == ThreadPolicy.ISOLATE:
        return _isolate(host, cell, reserved, width, by_width)
    if cell.cpu_thread_policy == ThreadPolicy.REQUIRE and width <= 1:
        return None
    least = 2 if cell.cpu_thread_policy == ThreadPolicy.REQUIRE else 1
    pinning: tuple[tuple[int, int], ...] | None = None
    emulator = NO_CPUS
    for count in sorted(by_width, reverse=True):
        if count < least:
            break
        pinning = _zip(count, by_width[count], cell)
        emulator = _emulator(by_width[1], pinning, reserved)
        if pinning is not None and (emulator or not reserved):
            return pinning, emulator
    if not pinning and cell.cpu_thread_policy != ThreadPolicy.REQUIRE:
        alone = [[cpu] for core in cores for cpu in core]
        pinning = _zip(1, alone, cell)
        emulator = _emulator(alone, pinning, reserved)
    return None if pinning is None or (reserved and not emulator) else (pinning, emulator)


def _isolate(
    host: NUMACell, cell: InstanceNUMACell, reserved: int, width: int, by_width: dict[int, list[list[int]]]
) -> _Pins | None:
    """One CPU of each core, the others left idle. On a host with ``cpu_dedicated_set`` and threads it is refused: its
    siblings may be other guests' shared CPUs."""
    if width not in by_width or (width != 1 and host.pcpuset != host.cpuset):
        return None
    pinning = _zip(1, by_width[width], cell)
    pinned = {cpu for _guest_cpu, cpu in pinning or ()}
    idle = [core for core in by_width[1] if not pinned.intersection(core)]
    emulator = _emulator(idle, pinning, reserved)
    return None if not pinning or (reserved and not emulator) else (pinning, emulator)


def _zip(count: int, cores: Sequence[Sequence[int]], cell: InstanceNUMACell) -> tuple[tuple[int, int], ...] | None:
    """Each CPU of the guest's own on one of the first ``count`` CPUs of the cores; None where they are too few."""
    if count * len(cores) < len(cell.pcpuset):
        return None
    return tuple(zip(sorted(cell.pcpuset), itertools.chain.from_iterable(core[:count] for core in cores)))


def _emulator(cores: Sequence[Sequence[int]], pinning: Sequence[tuple[int, int]] | None, count: int) -> frozenset[int]:
    """The first CPUs that the guest's own are not on; none where it has none of its own."""
    if not count or not pinning:
        return NO_CPUS
    pinned = {cpu for _guest_cpu, cpu in pinning}
    free = (cpu for core in cores for cpu in core if cpu not in pinned)
    return frozenset(itertools.islice(free, count))


def _changed(host: NUMACell, claimed: InstanceNUMATopology, sign: int) -> NUMACell:
    """A host's cell with (1) or without (-1) those of the guest's cells that are on it."""
    for cell in claimed.cells:
        if cell.id == host.id:
            host = dataclasses.replace(
                host,
                pages=_changed_pages(host, cell, sign),
                cpu_usage=max(0, host.cpu_usage + sign * len(cell.cpuset)),
                memory_usage=max(0, host.memory_usage + sign * cell.memory),
                pinned_cpus=_pinned(host, _taken(host, cell), sign),
            )
    return host


def _changed_pages(host: NUMACell, cell: InstanceNUMACell, sign: int) -> tuple[NUMAPages, ...]:
    size = cell.pagesize or host.smallest_page
    return tuple(
        dataclasses.replace(pages, used=max(0, pages.used + sign * (cell.memory * 1024 // pages.size_kb)))
        if pages.size_kb == size
        else pages
        for pages in host.pages
    )


def _taken(host: NUMACell, cell: InstanceNUMACell) -> frozenset[int]:
    if not cell.pins:
        return NO_CPUS
    cpus = frozenset(cpu for _guest_cpu, cpu in cell.cpu_pinning) | cell.cpuset_reserved
    if cell.cpu_thread_policy == ThreadPolicy.ISOLATE:
        return frozenset(itertools.chain.from_iterable(core for core in host.siblings if core & cpus))
    return cpus


def _pinned(host: NUMACell, cpus: frozenset[int], sign: int) -> frozenset[int]:
    if cpus - host.pcpuset:
        raise Conflict(
            f"cell {host.id}: CPUs {format_cpus(cpus - host.pcpuset)} are not for guests' own: "
            f"these are {format_cpus(host.pcpuset)}"
        )
    if sign > 0 and cpus & host.pinned_cpus:
        raise Conflict(f"cell {host.id}: CPUs {format_cpus(cpus & host.pinned_cpus)} are another guest's already")
    if sign < 0 and cpus - host.pinned_cpus:
        raise Conflict(f"cell {host.id}: CPUs {format_cpus(cpus - host.pinned_cpus)} are nobody's")
    return host.pinned_cpus | cpus if sign > 0 else host.pinned_cpus - cpus


def _no_pages(host: NUMACell, cell: InstanceNUMACell) -> str:
    size = cell.pagesize or 0
    wanted = f"{cell.memory} MiB in pages of {_PAGE_NAMES.get(size) or f'{size} KiB'} wanted"
    there = [f"{pages.free_kb // 1024} free of {pages.size_kb} KiB" for pages in host.pages]
    return f"{wanted}, {', '.join(there) or 'no page sizes known'}"


def _no_cores(host: NUMACell, cell: InstanceNUMACell, reserved: int) -> str:
    free = " ".join(format_cpus(core) for core in host.free_siblings if core)
    width = max(map(len, host.siblings), default=1)
    if cell.cpu_thread_policy == ThreadPolicy.ISOLATE and width > 1 and host.pcpuset != host.cpuset:
        return (
            f"cores without threads wanted, the host's have {width} CPUs each (cpu_dedicated_set may name one of each)"
        )
    extra = " and one for its emulator threads" if reserved else ""
    policy = cell.cpu_thread_policy or ThreadPolicy.PREFER
    return (
        f"{_cpus(len(cell.pcpuset))} of its own{extra} by thread policy {policy} wanted, free by core: {free or 'none'}"
    )


def _cpus(number: int) -> str:
    return f"{number} CPU{'' if number == 1 else 's'}"


def _cells(number: int) -> str:
    return f"{number} NUMA cell{'' if number == 1 else 's'}"
