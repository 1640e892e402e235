# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""From a guest's claim on NUMA cells and CPUs to what its domain says of them. Pure; knows no XML.

Mirrors nova.virt.libvirt.driver's ``_get_guest_numa_config`` and ``_get_guest_memory_backing_config``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import FrozenSet, Optional, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import config
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import (
    NO_CPUS,
    EmulatorThreads,
    InstanceNUMACell,
    InstanceNUMATopology,
    NUMATopology,
)


@dataclass(frozen=True)
class Placed:
    """The parts of a domain that say where it runs."""

    cpuset: FrozenSet[int] = NO_CPUS
    emulatorpin: FrozenSet[int] = NO_CPUS
    vcpupin: Tuple[Tuple[int, FrozenSet[int]], ...] = ()
    numatune: Optional[config.NumaTune] = None
    memory_backing: Optional[config.MemoryBacking] = None
    cells: Tuple[config.NumaCell, ...] = ()


def place(
    claimed: Optional[InstanceNUMATopology], host: Optional[NUMATopology], shared: FrozenSet[int], locked: bool
) -> Placed:
    """Where a guest runs that ``claimed`` these cells of the ``host``; without a claim, on the ``shared`` CPUs.

    ``shared`` is what ``cpu_shared_set`` says, empty for nothing. HostError where the host lacks a cell of the claim.
    """
    if claimed is None:
        return Placed(cpuset=shared, memory_backing=config.MemoryBacking(locked=True) if locked else None)
    if host is None:
        raise HostError("libvirt tells no NUMA cells here, but the server claimed some: schedule it anew")
    pins = {cpu: cpus for cell in claimed.cells for cpu, cpus in _pins(cell, host).items()}
    sizes = _large_pages(claimed, host)
    return Placed(
        emulatorpin=_emulatorpin(claimed, frozenset().union(*pins.values()), shared),
        vcpupin=tuple(sorted(pins.items())),
        numatune=config.NumaTune(tuple(cell.id for cell in claimed.cells)),
        memory_backing=config.MemoryBacking(sizes, locked) if sizes or locked else None,
        cells=tuple(
            config.NumaCell(number, cell.total_cpus, cell.memory, shared=bool(sizes))
            for number, cell in enumerate(claimed.cells)
        ),
    )


def _pins(cell: InstanceNUMACell, host: NUMATopology) -> dict[int, FrozenSet[int]]:
    """CPU of the guest -> CPUs of the host: the one that it has for its own, or the shared ones of the cell."""
    try:
        floating = host.cell(cell.id).cpuset
    except KeyError:
        there = ", ".join(str(one.id) for one in host.cells)
        raise HostError(f"the server claimed NUMA cell {cell.id}, which is not here: there are {there}") from None
    if cell.cpuset and not floating:
        raise HostError(f"the server claimed shared CPUs of NUMA cell {cell.id}, which has none: see cpu_shared_set")
    own = dict(cell.cpu_pinning)
    return {cpu: frozenset([own[cpu]]) if cpu in own else floating for cpu in cell.total_cpus}


def _emulatorpin(claimed: InstanceNUMATopology, pinned: FrozenSet[int], shared: FrozenSet[int]) -> FrozenSet[int]:
    """A CPU apart where the threads are isolated, the site's shared ones where they are shared, else the guest's."""
    if claimed.emulator_threads_isolated:
        return frozenset().union(*(cell.cpuset_reserved for cell in claimed.cells))
    if claimed.emulator_threads_policy == EmulatorThreads.SHARE and shared:
        return shared
    return pinned


def _large_pages(claimed: InstanceNUMATopology, host: NUMATopology) -> Tuple[Tuple[int, int], ...]:
    """(cell of the guest, KiB of a page), of cells on pages larger than the host's ordinary ones."""
    smallest = host.cells[0].smallest_page or 0
    return tuple(
        (number, cell.pagesize)
        for number, cell in enumerate(claimed.cells)
        if cell.pagesize and smallest and cell.pagesize > smallest
    )
