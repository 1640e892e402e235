# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Which CPUs and pages of a host are whose."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import cells
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import NUMATopology

FOUND: list[dict[str, Any]] = [
    {
        "id": number,
        "socket": number,
        "cpus": cpus,
        "siblings": [cpus[:2], cpus[2:]],
        "memory_mb": 4096,
        "pages": [{"size_kb": 4, "total": 900000}, {"size_kb": 2048, "total": 256}],
    }
    for number, cpus in ((0, [0, 1, 2, 3]), (1, [4, 5, 6, 7]))
]


def topology(shared: str = "", dedicated: str = "", reserved: list[dict[str, Any]] | None = None) -> NUMATopology:
    settings = {"cpu_shared_set": shared, "cpu_dedicated_set": dedicated, "reserved_huge_pages": reserved or []}
    found = cells.numa_topology(FOUND, settings)
    assert found
    return found


def sets(found: NUMATopology) -> list[tuple[list[int], list[int], list[list[int]]]]:
    return [
        (sorted(cell.cpuset), sorted(cell.pcpuset), [sorted(core) for core in cell.siblings]) for cell in found.cells
    ]


def test_without_sets_all_cpus_are_for_everybody() -> None:
    assert sets(topology()) == [
        ([0, 1, 2, 3], [0, 1, 2, 3], [[0, 1], [2, 3]]),
        ([4, 5, 6, 7], [4, 5, 6, 7], [[4, 5], [6, 7]]),
    ]


def test_both_sets() -> None:
    assert sets(topology("0,4-5", "2-3,7")) == [([0], [2, 3], [[0], [2, 3]]), ([4, 5], [7], [[4, 5], [7]])]


def test_one_set_leaves_nothing_of_the_other() -> None:
    assert sets(topology(dedicated="2-3")) == [([], [2, 3], [[2, 3]]), ([], [], [])]
    assert sets(topology(shared="0-3")) == [([0, 1, 2, 3], [], [[0, 1], [2, 3]]), ([], [], [])]


def test_what_libvirt_tells_of_the_cells() -> None:
    cell = topology(reserved=[{"node": 1, "size": "2MB", "count": 64}, {"node": "0", "size": 4, "count": "100"}]).cells[
        1
    ]
    assert (cell.memory, cell.socket, cell.has_threads, cell.smallest_page) == (4096, 1, True, 4)
    assert [(page.size_kb, page.total, page.reserved, page.used) for page in cell.pages] == [
        (4, 900000, 0, 0),
        (2048, 256, 64, 0),
    ]
    assert cells.numa_topology([], {"cpu_shared_set": "", "cpu_dedicated_set": ""}) is None


@pytest.mark.parametrize(
    ("shared", "dedicated", "message"),
    [
        ("a", "", "cpu_shared_set: 'a' is not a set of CPUs"),
        ("", "^1", "cpu_dedicated_set=^1 has no CPU: leave it out, or name some of 0-7"),
        ("0-8", "", "cpu_shared_set=0-8 has CPUs 8, which are not online: 0-7 are"),
        ("0-4", "3-7", "CPUs 3-4 are both in cpu_shared_set and in cpu_dedicated_set"),
    ],
)
def test_wrong_sets(shared: str, dedicated: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        topology(shared, dedicated)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"node": 0, "size": 2048}, "must have node, size, count, as {node: 0, size: 2MB, count: 64}"),
        ({"node": 2, "size": 2048, "count": 1}, "this host has no such pages: there are 4 KiB on node 0, 2048 KiB on"),
        ({"node": 0, "size": "1GB", "count": 1}, "this host has no such pages"),
        ({"node": 0, "size": 2048, "count": "few"}, "count=few must be a whole number"),
    ],
)
def test_wrong_reserved_pages(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        topology(reserved=[entry])
    assert f"reserved_huge_pages {entry}" in str(refused.value) and message in str(refused.value)
