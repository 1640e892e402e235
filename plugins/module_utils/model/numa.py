# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A host's NUMA cells with what is taken of them, and the cells that a guest asks for or has claimed.

Mirrors nova.objects.numa and nova.objects.instance_numa. Memory is in MiB, a page's size in KiB. CPUs of a host are
numbered as its kernel numbers them, CPUs of a guest from 0.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import FrozenSet, Iterable, List, Optional, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest

PAGES_SMALL = -1
"""As a request's ``pagesize``: the host's smallest size."""
PAGES_LARGE = -2
"""Any size but the smallest."""
PAGES_ANY = -3
"""Any size, the largest first."""

NO_CPUS: FrozenSet[int] = frozenset()

_SIZE = re.compile(r"(\d*\.?\d+)([KMGT]?)i?(B|b|bit)")


class CpuPolicy:
    """nova.objects.fields.CPUAllocationPolicy."""

    SHARED = "shared"
    DEDICATED = "dedicated"
    MIXED = "mixed"
    ALL = (SHARED, DEDICATED, MIXED)
    PINNING = (DEDICATED, MIXED)
    """Those with CPUs of the guest's own."""


class ThreadPolicy:
    """nova.objects.fields.CPUThreadAllocationPolicy."""

    PREFER = "prefer"
    ISOLATE = "isolate"
    REQUIRE = "require"
    ALL = (PREFER, ISOLATE, REQUIRE)


class EmulatorThreads:
    """nova.objects.fields.CPUEmulatorThreadsPolicy."""

    ISOLATE = "isolate"
    SHARE = "share"
    ALL = (ISOLATE, SHARE)


@dataclass(frozen=True)
class NUMAPages:
    """The pages of one size that a host's cell has, all in numbers of pages."""

    size_kb: int
    total: int
    used: int = 0
    reserved: int = 0
    """The host variable ``reserved_huge_pages``: kept for others than guests."""

    @property
    def free_kb(self) -> int:
        """KiB that are neither used nor reserved."""
        return (self.total - self.used - self.reserved) * self.size_kb

    @property
    def total_kb(self) -> int:
        """KiB in all."""
        return self.total * self.size_kb


@dataclass(frozen=True)
class NUMACell:
    """A NUMA cell of a host, with what guests use of it."""

    id: int
    cpuset: FrozenSet[int]
    """CPUs that guests share: of ``cpu_shared_set``, or all where neither set is given."""
    pcpuset: FrozenSet[int]
    """CPUs for guests' own: of ``cpu_dedicated_set``, or all where neither set is given."""
    memory: int
    siblings: Tuple[FrozenSet[int], ...] = ()
    """Its CPUs by core, those that guests may use."""
    pages: Tuple[NUMAPages, ...] = ()
    socket: Optional[int] = None
    """None where the cell spans several, or libvirt does not say."""
    cpu_usage: int = 0
    """Shared CPUs that guests have, which may be more than there are."""
    memory_usage: int = 0
    pinned_cpus: FrozenSet[int] = NO_CPUS

    @property
    def free_pcpus(self) -> FrozenSet[int]:
        """CPUs for guests' own that nobody has."""
        return self.pcpuset - self.pinned_cpus

    @property
    def free_siblings(self) -> List[FrozenSet[int]]:
        """For each core, those of its CPUs that are free for a guest's own."""
        free = self.free_pcpus
        return [core & free for core in self.siblings]

    @property
    def available_memory(self) -> int:
        """MiB that no guest of this cell has."""
        return self.memory - self.memory_usage

    @property
    def has_threads(self) -> bool:
        """Whether some core has several CPUs."""
        return any(len(core) > 1 for core in self.siblings)

    @property
    def smallest_page(self) -> Optional[int]:
        """KiB of the ordinary pages; None where the host does not tell its page sizes."""
        return min((page.size_kb for page in self.pages), default=None)


@dataclass(frozen=True)
class NUMATopology:
    """All NUMA cells of a host."""

    cells: Tuple[NUMACell, ...]

    @property
    def has_threads(self) -> bool:
        """Whether some core has several CPUs."""
        return any(cell.has_threads for cell in self.cells)

    def cell(self, cell_id: int) -> NUMACell:
        """The cell of this number; KeyError where there is none."""
        for cell in self.cells:
            if cell.id == cell_id:
                return cell
        raise KeyError(cell_id)


@dataclass(frozen=True)
class InstanceNUMACell:
    """A NUMA cell of a guest: as asked for, or, once claimed, with its place on the host."""

    id: int
    """As asked for, its own number; claimed, the host's cell that it is on."""
    cpuset: FrozenSet[int]
    """The guest's CPUs that float over the host's shared ones."""
    pcpuset: FrozenSet[int]
    """The guest's CPUs that have a CPU of the host each."""
    memory: int
    pagesize: Optional[int] = None
    """KiB, or as asked for one of the PAGES; None where the request does not say."""
    cpu_policy: Optional[str] = None
    cpu_thread_policy: Optional[str] = None
    cpu_pinning: Tuple[Tuple[int, int], ...] = ()
    """Claimed: (CPU of the guest, CPU of the host), by the first."""
    cpuset_reserved: FrozenSet[int] = NO_CPUS
    """Claimed: CPUs of the host for the guest's emulator threads alone."""

    @property
    def total_cpus(self) -> FrozenSet[int]:
        """All its CPUs."""
        return self.cpuset | self.pcpuset

    @property
    def pins(self) -> bool:
        """Whether it asks for CPUs of its own."""
        return self.cpu_policy in CpuPolicy.PINNING


@dataclass(frozen=True)
class InstanceNUMATopology:
    """All NUMA cells of a guest."""

    cells: Tuple[InstanceNUMACell, ...]
    emulator_threads_policy: Optional[str] = None

    @property
    def cpu_policy(self) -> Optional[str]:
        """The same in all cells."""
        return self.cells[0].cpu_policy

    @property
    def emulator_threads_isolated(self) -> bool:
        """Whether its emulator threads get a CPU of their own."""
        return self.emulator_threads_policy == EmulatorThreads.ISOLATE

    @property
    def pinned(self) -> FrozenSet[int]:
        """Claimed: the host's CPUs that its CPUs and its emulator threads are pinned to."""
        cpus = {cpu for cell in self.cells for _guest_cpu, cpu in cell.cpu_pinning}
        return frozenset(cpus.union(*(cell.cpuset_reserved for cell in self.cells)))


def parse_page_size(text: str) -> int:
    """KiB of ``2048`` or of a number with its unit, as ``2MB`` or ``1GiB``; 0 for what is no such size."""
    if text.isdecimal():
        return int(text)
    match = _SIZE.fullmatch(text)
    if not match:
        return 0
    number, prefix, unit = match.groups()
    size = float(number) * 1024.0 ** " KMGT".index(prefix or " ")
    return math.ceil(size if unit == "B" else size / 8) // 1024


def parse_cpus(text: str, what: str) -> FrozenSet[int]:
    """``0-3,^2,8`` is {0, 1, 3, 8}: numbers, ranges, and either of them taken out with a caret.

    InvalidRequest names ``what`` where the text is anything else. nova.virt.hardware.parse_cpu_spec.
    """
    taken: set[int] = set()
    refused: set[int] = set()
    for rule in filter(None, (part.strip() for part in text.split(","))):
        caret = rule.startswith("^")
        first, dash, last = (rule[1:] if caret else rule).partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            low, high = 1, 0
        if low > high or low < 0:
            raise InvalidRequest(f"{what}: {text!r} is not a set of CPUs: {rule!r} must be as 3, 4-7, ^3 or ^4-7")
        (refused if caret else taken).update(range(low, high + 1))
    return frozenset(taken - refused)


def format_cpus(cpus: Iterable[int]) -> str:
    """{0, 1, 3} is ``0-1,3``, as libvirt writes it."""
    ranges: List[List[int]] = []
    for cpu in sorted(cpus):
        if ranges and ranges[-1][1] == cpu - 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
