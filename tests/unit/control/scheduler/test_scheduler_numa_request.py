# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What flavors and images ask for, and what they are told where they ask for the impossible.

That the rules are Nova's is shown in tests/differential/test_numa_request.py.
"""

from __future__ import annotations

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import numa
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.numa_request import (
    is_true,
    pci_affinity_of,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import (
    PAGES_LARGE,
    InstanceNUMACell,
    InstanceNUMATopology,
    format_cpus,
    parse_cpus,
    parse_page_size,
)


def flavor(*, vcpus: int = 4, ram: int = 2048, **specs: str) -> Flavor:
    return Flavor("1", "m1.numa", vcpus, ram, 1, extra_specs={_key(name): value for name, value in specs.items()})


def image(**properties: str) -> Image:
    return Image("1", "debian", "", "", "raw", properties={f"hw_{name}": value for name, value in properties.items()})


def _key(name: str) -> str:
    """``cpu_policy`` is hw:cpu_policy, ``numa_cpus_0`` hw:numa_cpus.0, ``resources_PCPU`` resources:PCPU."""
    if name.startswith(("resources_", "trait_")):
        return name.replace("_", ":", 1)
    return "hw:" + (f"{name[:-2]}.{name[-1]}" if name[-1].isdigit() else name)


def test_nothing_asked_for_is_no_topology() -> None:
    assert numa.request_of(flavor(), image()) is None
    assert numa.request_of(flavor(cpu_policy="shared"), image()) is None


def test_cells_are_even_where_nothing_else_is_said() -> None:
    asked = numa.request_of(flavor(numa_nodes="2", mem_page_size="2MB"), image())
    nobody = frozenset[int]()
    assert asked == InstanceNUMATopology(
        (
            InstanceNUMACell(0, frozenset([0, 1]), nobody, 1024, 2048),
            InstanceNUMACell(1, frozenset([2, 3]), nobody, 1024, 2048),
        )
    )


def test_cells_as_they_are_listed() -> None:
    listed = {"numa_cpus_0": "0", "numa_cpus_1": "1-3", "numa_mem_0": "512", "numa_mem_1": "1536"}
    asked = numa.request_of(
        flavor(numa_nodes="2", cpu_policy="mixed", cpu_dedicated_mask="^0-1", **listed),
        image(cpu_thread_policy="require"),
    )
    assert asked
    assert [(sorted(cell.cpuset), sorted(cell.pcpuset), cell.memory) for cell in asked.cells] == [
        ([0], [], 512),
        ([1], [2, 3], 1536),
    ]
    assert {cell.cpu_thread_policy for cell in asked.cells} == {"require"}


def test_an_image_may_choose_what_the_flavor_leaves_open() -> None:
    asked = numa.request_of(flavor(mem_page_size="large"), image(mem_page_size="1GB", cpu_policy="dedicated"))
    assert asked and [(cell.pagesize, cell.cpu_policy) for cell in asked.cells] == [(1048576, "dedicated")]
    left_open = numa.request_of(flavor(mem_page_size="large"), image())
    assert left_open and left_open.cells[0].pagesize == PAGES_LARGE


def test_prefer_is_the_flavors_word_too() -> None:
    def policy(of_flavor: dict[str, str], **of_image: str) -> str | None:
        asked = numa.request_of(flavor(cpu_policy="dedicated", **of_flavor), image(**of_image))
        return asked.cells[0].cpu_thread_policy if asked else "none"

    assert policy({"cpu_thread_policy": "prefer"}, cpu_thread_policy="isolate") == "prefer"
    assert policy({}, cpu_thread_policy="isolate") == "isolate"
    with pytest.raises(InvalidRequest, match="hw_cpu_thread_policy=prefer conflicts with hw:cpu_thread_policy=require"):
        policy({"cpu_thread_policy": "require"}, cpu_thread_policy="prefer")


def test_resource_classes_say_the_policy_too() -> None:
    own = numa.request_of(flavor(resources_PCPU="4", trait_HW_CPU_HYPERTHREADING="forbidden"), image())
    assert own and [(cell.cpu_policy, cell.cpu_thread_policy) for cell in own.cells] == [("dedicated", "isolate")]


@pytest.mark.parametrize(
    ("asked", "properties", "message"),
    [
        ({"numa_nodes": "0"}, {}, "flavor m1.numa: hw:numa_nodes=0 must be a whole number from 1 to 128"),
        ({"numa_nodes": "3"}, {}, "numa_nodes=3 does not divide 4 vcpus and 2048 MiB evenly"),
        (
            {"numa_nodes": "2"},
            {"numa_nodes": "2"},
            "image debian: hw_numa_nodes=2: the flavor m1.numa says hw:numa_nodes",
        ),
        ({"cpu_policy": "own"}, {}, "flavor m1.numa: hw:cpu_policy=own is not one of shared, dedicated, mixed"),
        ({}, {"cpu_policy": "own"}, "image debian: hw_cpu_policy=own is not one of shared, dedicated, mixed"),
        (
            {"cpu_policy": "shared"},
            {"cpu_policy": "dedicated"},
            "image debian: hw_cpu_policy=dedicated conflicts with hw:cpu",
        ),
        ({"cpu_policy": "mixed"}, {}, "cpu_policy=mixed needs hw:cpu_dedicated_mask"),
        (
            {"cpu_policy": "mixed", "cpu_dedicated_mask": "0-3"},
            {},
            "must leave at least one CPU dedicated and one shared",
        ),
        (
            {"cpu_policy": "mixed", "cpu_dedicated_mask": "3-4"},
            {},
            "names CPUs that the flavor does not have: it has 0-3",
        ),
        ({"cpu_policy": "mixed", "cpu_dedicated_mask": "a"}, {}, "hw:cpu_dedicated_mask=a: 'a' is not a set of CPUs"),
        ({"cpu_dedicated_mask": "0"}, {}, "hw:cpu_dedicated_mask=0 needs hw:cpu_policy=mixed"),
        ({"cpu_thread_policy": "require"}, {}, "cpu_thread_policy=require needs hw:cpu_policy=dedicated or mixed"),
        (
            {"emulator_threads_policy": "isolate"},
            {},
            "hw:emulator_threads_policy=isolate needs hw:cpu_policy=dedicated",
        ),
        ({"mem_page_size": "big"}, {}, "hw:mem_page_size=big must be small, large, any, or a size"),
        ({}, {"mem_page_size": "large"}, "image debian: hw_mem_page_size=large: the flavor m1.numa does not allow it"),
        ({"mem_page_size": "4"}, {"mem_page_size": "2048"}, "hw_mem_page_size=2048 conflicts with hw:mem_page_size=4"),
        ({"locked_memory": "true"}, {}, "hw:locked_memory=true needs hw:mem_page_size"),
        ({"numa_nodes": "1", "numa_cpus_0": "0-3"}, {}, "1 NUMA cells need numa_cpus and numa_mem"),
        (
            {"numa_nodes": "1", "numa_cpus_0": "0-4", "numa_mem_0": "2048"},
            {},
            "numa_cpus.0 has CPU 4: the flavor's are 0-3",
        ),
        ({"numa_nodes": "1", "numa_cpus_0": "0-2", "numa_mem_0": "2048"}, {}, "no numa_cpus has CPU 3"),
        (
            {"numa_nodes": "1", "numa_cpus_0": "0-3", "numa_mem_0": "1"},
            {},
            "numa_mem adds up to 1 MiB, not the flavor's 2048",
        ),
        (
            {"numa_nodes": "1", "numa_cpus_0": "0-3", "numa_mem_0": "-1"},
            {},
            "hw:numa_mem.0=-1 must be a whole number of MiB",
        ),
        ({"resources_PCPU": "2"}, {}, "resources:PCPU=2 must be 4: the flavor's vcpus"),
        ({"resources_PCPU": "4", "cpu_policy": "shared"}, {}, "resources:VCPU or resources:PCPU and cpu_policy=shared"),
        ({"cpu_realtime": "yes"}, {}, "hw:cpu_realtime=yes: real-time CPUs are not supported: remove it"),
        ({"pmem": "16GB"}, {}, "hw:pmem=16GB: persistent memory is not supported"),
    ],
)
def test_refusals_name_the_field_and_the_value(asked: dict[str, str], properties: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        numa.request_of(flavor(**asked), image(**properties))
    assert message in str(refused.value)


def test_pci_affinity() -> None:
    assert pci_affinity_of(flavor(), image()) is None
    assert pci_affinity_of(flavor(pci_numa_affinity_policy="socket"), image()) == "socket"
    with pytest.raises(InvalidRequest, match="hw_pci_numa_affinity_policy=legacy conflicts with"):
        pci_affinity_of(flavor(pci_numa_affinity_policy="socket"), image(pci_numa_affinity_policy="legacy"))
    with pytest.raises(InvalidRequest, match="hw:pci_numa_affinity_policy=near is not one of required"):
        pci_affinity_of(flavor(pci_numa_affinity_policy="near"), image())


@pytest.mark.parametrize(
    ("text", "cpus"), [("", []), ("0-3,^2,8", [0, 1, 3, 8]), (" 5 , 5,", [5]), ("^1-2,0-4", [0, 3, 4])]
)
def test_sets_of_cpus(text: str, cpus: list[int]) -> None:
    assert sorted(parse_cpus(text, "x")) == cpus
    assert parse_cpus(format_cpus(cpus), "x") == frozenset(cpus)


@pytest.mark.parametrize("text", ["x", "3-1", "1-", "-1", "^", "1-2-3", "1,,a"])
def test_no_sets_of_cpus(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a set of CPUs"):
        parse_cpus(text, "cpu_shared_set")


@pytest.mark.parametrize(
    ("text", "size"), [("2048", 2048), ("2MB", 2048), ("1GiB", 1048576), ("16Mb", 2048), ("0", 0), ("2M", 0), ("-1", 0)]
)
def test_page_sizes(text: str, size: int) -> None:
    assert parse_page_size(text) == size


def test_words_for_true() -> None:
    assert [is_true(word) for word in ("Yes", "1", "no", "", "maybe")] == [True, True, False, False, False]
