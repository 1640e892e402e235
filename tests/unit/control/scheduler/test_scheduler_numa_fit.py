# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Cells and CPUs for guests: what fits where, why not, and what is left.

That the choice is Nova's is shown in tests/differential/test_numa_fit.py; here are the cases that people will ask
about, and Nova's bugs, which the choice does not share.
"""

from __future__ import annotations

import dataclasses

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import numa, pci
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.pci import PciRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import (
    PAGES_ANY,
    PAGES_LARGE,
    InstanceNUMACell,
    InstanceNUMATopology,
    NUMACell,
    NUMAPages,
    NUMATopology,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import PciDevice
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from hypothesis import given, settings
from hypothesis import strategies as st

NOBODY = frozenset[int]()


def host_cell(number: int = 0, cores: int = 4, threads: int = 2, **changed: object) -> NUMACell:
    """Cores of neighbouring CPUs, 4 GiB, none of it used; its CPUs are for everybody."""
    first = number * cores * threads
    siblings = tuple(frozenset(range(first + core * threads, first + (core + 1) * threads)) for core in range(cores))
    cpus = NOBODY.union(*siblings)
    cell = NUMACell(number, cpus, cpus, 4096, siblings, (NUMAPages(4, 1048576), NUMAPages(2048, 1024)), socket=number)
    return dataclasses.replace(cell, **changed)  # type: ignore[arg-type]


def own(count: int, memory: int = 512, number: int = 0, first: int = 0, **changed: object) -> InstanceNUMACell:
    """A cell whose CPUs are all the guest's own."""
    cell = InstanceNUMACell(number, NOBODY, frozenset(range(first, first + count)), memory, None, "dedicated")
    return dataclasses.replace(cell, **changed)  # type: ignore[arg-type]


def guest(*cells: InstanceNUMACell, emulator: str | None = None) -> InstanceNUMATopology:
    return InstanceNUMATopology(cells, emulator)


def pins(host: NUMATopology, wanted: InstanceNUMATopology) -> list[list[tuple[int, int]]] | None:
    placed = numa.fit(host, wanted)
    return [list(cell.cpu_pinning) for cell in placed.cells] if placed else None


def test_neighbours_share_a_core() -> None:
    host = NUMATopology((host_cell(),))
    assert pins(host, guest(own(3))) == [[(0, 0), (1, 1), (2, 2)]]


def test_emptier_cores_come_first() -> None:
    host = NUMATopology((host_cell(pinned_cpus=frozenset([0])),))
    assert pins(host, guest(own(2))) == [[(0, 2), (1, 3)]]
    assert pins(host, guest(own(7))) == [[(cpu, cpu + 1) for cpu in range(7)]]


@pytest.mark.parametrize(
    ("policy", "pinned", "expected"),
    [
        ("isolate", NOBODY, [[(0, 0), (1, 2)]]),
        ("isolate", frozenset([0, 4, 6]), None),
        ("require", frozenset([0, 2, 4]), [[(0, 6), (1, 7)]]),
        ("require", frozenset([0, 2, 4, 6]), None),
        ("prefer", frozenset([0, 2, 4, 6]), [[(0, 1), (1, 3)]]),
    ],
)
def test_thread_policies(policy: str, pinned: frozenset[int], expected: list[list[tuple[int, int]]] | None) -> None:
    host = NUMATopology((host_cell(pinned_cpus=pinned),))
    assert pins(host, guest(own(2, cpu_thread_policy=policy))) == expected


def test_isolated_guests_take_whole_cores() -> None:
    host = NUMATopology((host_cell(),))
    placed = numa.fit(host, guest(own(2, cpu_thread_policy="isolate")))
    assert placed
    assert numa.taken_cpus(host, placed) == {0, 1, 2, 3}
    assert numa.used(host, placed).cells[0].pinned_cpus == {0, 1, 2, 3}


def test_emulator_threads_get_a_cpu_apart() -> None:
    host = NUMATopology((host_cell(),))
    placed = numa.fit(host, guest(own(2), emulator="isolate"))
    assert placed and placed.cells[0].cpuset_reserved == {2}
    assert placed.pinned == {0, 1, 2}
    assert numa.fit(host, guest(own(8), emulator="isolate")) is None


def test_spread_or_packed() -> None:
    busy = host_cell(0, pinned_cpus=frozenset([0, 1]), memory_usage=1024)
    host = NUMATopology((busy, host_cell(1)))
    placed = [numa.fit(host, guest(own(2)), packing=packing) for packing in (False, True)]
    assert [found.cells[0].id for found in placed if found] == [1, 0]


def test_no_two_cells_on_one() -> None:
    two = guest(own(2), own(2, number=1, first=2))
    assert numa.fit(NUMATopology((host_cell(),)), two) is None
    placed = numa.fit(NUMATopology((host_cell(0), host_cell(1))), two)
    assert placed and sorted(cell.id for cell in placed.cells) == [0, 1]


def test_what_nova_mixes_up() -> None:
    """Nova takes the second cell's failures for the first's once it has tried a cell or two, and finds no host."""
    host = NUMATopology((host_cell(1, cores=4), host_cell(0, cores=1), host_cell(2, cores=1)))
    placed = numa.fit(host, guest(own(2), own(8, number=1, first=2)))
    assert placed and [cell.id for cell in placed.cells] == [0, 1]


def test_large_pages() -> None:
    host = NUMATopology((host_cell(),))
    for asked, there in ((PAGES_LARGE, 2048), (PAGES_ANY, 2048), (4, 4), (2048, 2048)):
        placed = numa.fit(host, guest(own(1, memory=1024, pagesize=asked)))
        assert placed and placed.cells[0].pagesize == there
    kept = host_cell(pages=(NUMAPages(4, 1048576), NUMAPages(2048, 1024, used=500, reserved=20)))
    assert numa.fit(NUMATopology((kept,)), guest(own(1, memory=1008, pagesize=2048)))
    assert numa.fit(NUMATopology((kept,)), guest(own(1, memory=1010, pagesize=2048))) is None


def test_shared_memory_is_given_out_twice_but_not_to_one() -> None:
    host = NUMATopology((host_cell(memory_usage=4096, cpu_usage=8),))
    shared = InstanceNUMACell(0, frozenset([0]), NOBODY, 2048)
    assert numa.fit(host, guest(shared))
    assert numa.fit(host, guest(shared), numa.Limits(1.0, 1.0)) is None
    assert numa.fit(host, guest(shared), numa.Limits(2.0, 2.0))
    assert numa.fit(host, guest(dataclasses.replace(shared, memory=8192)), numa.Limits(2.0, 9.0)) is None


def test_cells_near_the_devices() -> None:
    host = NUMATopology((host_cell(0), host_cell(1)))
    near = numa.Near((PciRequest("gpu", 1, ((("vendor_id", "10de"),),), "required"),), pci.pools_of([_gpu(1)]))
    placed = numa.fit(host, guest(own(2)), near=near)
    assert placed and placed.cells[0].id == 1
    unasked = numa.fit(host, guest(own(2)), near=numa.Near((), near.pools))
    assert unasked and unasked.cells[0].id == 0
    taken = numa.take(host, near.pools, guest(own(2)), near.requests)
    assert taken and [device.address for device in taken.devices] == ["0000:81:00.0"]
    assert taken.host_pools == ()
    assert numa.take(taken.host_numa, taken.host_pools, guest(own(2)), near.requests) is None


def _gpu(node: int | None) -> PciDevice:
    return PciDevice("0000:81:00.0", "10de", "20b5", numa_node=node)


_MORE = "cell 0: "


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (guest(own(1), own(1, number=1, first=1)), "2 NUMA cells wanted, the host has 1"),
        (guest(own(9)), "cell 0: 9 CPUs of its own wanted, 7 free of 8"),
        (guest(own(7), emulator="isolate"), "cell 0: 8 CPUs of its own wanted, 7 free of 8"),
        (guest(InstanceNUMACell(0, frozenset(range(9)), NOBODY, 512)), "cell 0: 9 CPUs wanted, 8 in all"),
        (guest(own(1, memory=4096)), "cell 0: 4096 MiB wanted, 3072 free"),
        (guest(InstanceNUMACell(0, frozenset([0]), NOBODY, 8192)), "cell 0: 8192 MiB wanted, 4096 in all"),
        (
            guest(own(1, memory=4096, pagesize=PAGES_LARGE)),
            "cell 0: 4096 MiB in pages of large wanted, 4096 free of 4 KiB, 2048 free of 2048 KiB",
        ),
        (
            guest(own(4, cpu_thread_policy="isolate")),
            "cell 0: 4 CPUs of its own by thread policy isolate wanted, free by core: 1 2-3 4-5 6-7",
        ),
        (
            guest(InstanceNUMACell(0, frozenset([0, 1, 2]), NOBODY, 512)),
            "cell 0: 3 CPUs wanted, 2 free of 8 x 1",
        ),
        (
            guest(InstanceNUMACell(0, frozenset([0]), NOBODY, 3584)),
            "cell 0: 3584 MiB wanted, 3072 free of 4096 x 1",
        ),
    ],
)
def test_why_not(wanted: InstanceNUMATopology, reason: str) -> None:
    pages = (NUMAPages(4, 1048576), NUMAPages(2048, 1024))
    if "MiB wanted, 3072 free" in reason and "x" not in reason:
        pages = ()  # else the pages are what is compared
    cell = host_cell(pinned_cpus=frozenset([0]), memory_usage=1024, cpu_usage=6, pages=pages)
    host = NUMATopology((cell,))
    assert numa.fit(host, wanted, numa.Limits(1.0, 1.0)) is None
    assert numa.why_not(host, wanted, numa.Limits(1.0, 1.0)) == reason


def test_why_not_isolated() -> None:
    shared = host_cell(cpuset=frozenset([0, 1]), pcpuset=frozenset(range(2, 8)))
    wanted = guest(own(2, cpu_thread_policy="isolate"))
    assert numa.fit(NUMATopology((shared,)), wanted) is None
    reason = (
        "cell 0: cores without threads wanted, the host's have 2 CPUs each (cpu_dedicated_set may name one of each)"
    )
    assert numa.why_not(NUMATopology((shared,)), wanted) == reason
    one_of_each = dataclasses.replace(shared, siblings=tuple(frozenset([cpu]) for cpu in (0, 2, 4, 6)))
    assert numa.fit(NUMATopology((one_of_each,)), wanted)


def test_why_not_together() -> None:
    host = NUMATopology((host_cell(0, cores=1), host_cell(1, cores=4)))
    wanted = guest(own(4), own(4, number=1, first=4))
    assert numa.why_not(host, wanted) == "each of the 2 NUMA cells fits somewhere, but not all of them at once"
    near = numa.Near((PciRequest("gpu", 1, ((("vendor_id", "10de"),),), "required"),), pci.pools_of([_gpu(0)]))
    assert numa.why_not(host, guest(own(4)), near=near) == "no free cells are near enough to free PCI devices"


def test_a_cpu_is_never_given_twice() -> None:
    host = NUMATopology((host_cell(),))
    placed = numa.fit(host, guest(own(2)))
    assert placed
    after = numa.used(host, placed)
    with pytest.raises(Conflict, match="cell 0: CPUs 0-1 are another guest's already"):
        numa.used(after, placed)
    with pytest.raises(Conflict, match="cell 0: CPUs 0-1 are nobody's"):
        numa.freed(host, placed)
    with pytest.raises(Conflict, match="CPUs 0 are not for guests' own: these are 1-7"):
        numa.used(NUMATopology((dataclasses.replace(host.cells[0], pcpuset=frozenset(range(1, 8))),)), placed)


@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from([None, "isolate", "require"])), max_size=8))
@settings(max_examples=60, deadline=None)
def test_guests_come_and_go(asked: list[tuple[int, str | None]]) -> None:
    """Whoever is on the host has CPUs that no one else has; when all are gone, it is as it was."""
    empty = host = NUMATopology((host_cell(0), host_cell(1)))
    there: list[InstanceNUMATopology] = []
    for count, policy in asked:
        placed = numa.fit(host, guest(own(count, cpu_thread_policy=policy, pagesize=2048)))
        if placed:
            taken = numa.taken_cpus(host, placed)
            assert len(placed.cells[0].cpu_pinning) == count
            assert not taken & NOBODY.union(*(numa.taken_cpus(empty, other) for other in there))
            host = numa.used(host, placed)
            there.append(placed)
    for gone in there:
        host = numa.freed(host, gone)
    assert host == empty


def test_claims_travel_with_the_server(tmp_path: object) -> None:
    host = NUMATopology((host_cell(),))
    placed = numa.fit(host, guest(own(2, pagesize=2048), emulator="isolate"))
    wire = {"numa_topology": to_wire(placed), "pci_devices": to_wire([_gpu(None)])}
    assert from_wire(InstanceNUMATopology, wire["numa_topology"]) == placed
    assert from_wire(NUMATopology, to_wire(host)) == host
    fields = {field.name: field.default for field in dataclasses.fields(Instance)}
    assert fields["numa_topology"] is None and fields["pci_devices"] == ()
