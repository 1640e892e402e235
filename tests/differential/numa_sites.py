# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Hosts with NUMA cells and PCI devices, and flavors and images that ask for them, made up by hypothesis.

Numbers are few and small, so that what is asked for is often just there, or just not.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.pci import PciRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import (
    NO_CPUS,
    InstanceNUMACell,
    InstanceNUMATopology,
    NUMACell,
    NUMAPages,
    NUMATopology,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import PciDevice
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import to_wire
from hypothesis import strategies as st

WORDS = {
    "numa_nodes": ("0", "1", "2", "3", "x", "-1", "02"),
    "cpu_policy": ("dedicated", "dedicated", "mixed", "shared", "strict"),
    "cpu_thread_policy": ("prefer", "isolate", "require", "avoid"),
    "mem_page_size": ("small", "large", "any", "4", "2048", "1048576", "2MB", "1GB", "16Mb", "2M", "huge"),
    "locked_memory": ("true", "false"),
}
FLAVOR_WORDS = {
    "hw:cpu_dedicated_mask": ("0", "0-1", "^0", "^1-2", "0-63", "9", "1-", ""),
    "hw:emulator_threads_policy": ("share", "isolate", "float"),
    "resources:VCPU": ("2", "0", "x"),
    "resources:PCPU": ("2", "3", "4"),
    "resources1:PCPU": ("1",),
    "trait:HW_CPU_HYPERTHREADING": ("required", "forbidden"),
}
CPUS = ("0", "1", "0-1", "2-3", "0,2", "1,3", "0-3,^2", "0-3", "5", "", "x")
MEMORY = ("512", "1024", "1536", "2048", "3072", "x")


@st.composite
def asked(draw: st.DrawFn, wild: bool = True) -> tuple[Flavor, Image]:
    """A flavor and an image; ``wild``: with words that are not allowed, too."""
    specs = {f"hw:{key}": value for key, value in draw(_some(WORDS, wild)).items()}
    specs.update(draw(_some(FLAVOR_WORDS, wild)))
    properties = {f"hw_{key}": value for key, value in draw(_some(WORDS, wild)).items()} if draw(st.booleans()) else {}
    if not draw(st.integers(0, 9)):
        properties["trait:HW_CPU_HYPERTHREADING"] = draw(st.sampled_from(("required", "forbidden")))
    for values, prefix in ((specs, "hw:"), (properties, "hw_")):
        if not draw(st.integers(0, 4)):
            values.update(draw(_lists(prefix)))
    if not wild and "hw:cpu_policy" not in specs and draw(st.booleans()):
        specs["hw:numa_nodes"] = draw(st.sampled_from(("1", "2", "3")))
    if not wild and specs.get("hw:cpu_policy") == "mixed":
        specs.setdefault("hw:cpu_dedicated_mask", "^0")
    flavor = Flavor("1", "flavor", draw(st.sampled_from((1, 2, 3, 4, 6, 8))), draw(_memory), 1, extra_specs=specs)
    return flavor, Image("1", "image", "", "", "raw", properties=properties)


_memory = st.sampled_from((512, 1024, 2048, 3072, 4096))


def _some(words: dict[str, tuple[str, ...]], wild: bool) -> st.SearchStrategy[dict[str, str]]:
    keys = st.lists(st.sampled_from(sorted(words)), max_size=3, unique=True)
    allowed = {key: values if wild else values[:4] for key, values in words.items()}
    return keys.flatmap(lambda chosen: st.fixed_dictionaries({key: st.sampled_from(allowed[key]) for key in chosen}))


@st.composite
def _lists(draw: st.DrawFn, prefix: str) -> dict[str, str]:
    cpus = draw(st.lists(st.sampled_from(CPUS), max_size=3))
    memory = draw(st.lists(st.sampled_from(MEMORY), max_size=3))
    return {f"{prefix}numa_cpus.{number}": text for number, text in enumerate(cpus)} | {
        f"{prefix}numa_mem.{number}": text for number, text in enumerate(memory)
    }


@st.composite
def hosts(draw: st.DrawFn) -> NUMATopology:
    """Up to four cells, of cores with one, two or four CPUs, numbered core by core or all first threads first."""
    count, cores, threads = (
        draw(st.sampled_from((1, 2, 2, 3, 4))),
        draw(st.integers(1, 4)),
        draw(st.sampled_from((1, 2, 2, 4))),
    )
    strided = draw(st.booleans())
    total = count * cores
    sizes = draw(st.sampled_from(((), (4,), (4, 2048), (4, 2048, 1048576))))
    split = draw(st.sampled_from(("none", "none", "dedicated", "both")))
    sockets = draw(st.sampled_from((None, 1, 2)))
    cells = []
    for number in range(count):
        own = range(number * cores, (number + 1) * cores)
        siblings = [
            frozenset(core + thread * total if strided else core * threads + thread for thread in range(threads))
            for core in own
        ]
        cells.append(_cell(draw, number, siblings, sizes, split, sockets and number // sockets))
    order = draw(st.permutations(cells))
    return NUMATopology(tuple(order))


def _cell(draw: Any, number: int, siblings: list[frozenset[int]], sizes: Any, split: str, socket: Any) -> NUMACell:
    cpus = frozenset().union(*siblings)
    shared, own = cpus, cpus
    if split != "none":
        own = frozenset(draw(st.sets(st.sampled_from(sorted(cpus)))))
        shared = cpus - own if split == "both" else NO_CPUS
    siblings = [core & (shared | own) for core in siblings]
    memory = draw(st.sampled_from((1024, 2048, 4096, 6144)))
    pages = []
    for size in sizes:
        there = memory * 1024 // size if size != 1048576 else draw(st.integers(0, 4))
        used = draw(st.sampled_from((0, 0, there // 2, there)))
        pages.append(NUMAPages(size, there, used, draw(st.sampled_from((0, 0, 1, there // 4)))))
    return NUMACell(
        id=number,
        cpuset=shared,
        pcpuset=own,
        memory=memory,
        siblings=tuple(core for core in siblings if core),
        pages=tuple(draw(st.permutations(pages))),
        socket=socket,
        cpu_usage=draw(st.integers(0, 6)),
        memory_usage=draw(st.sampled_from((0, 0, 512, 1024, 4096))),
        pinned_cpus=frozenset(draw(st.sets(st.sampled_from(sorted(own))))) if own and draw(st.booleans()) else NO_CPUS,
    )


@st.composite
def guests(draw: st.DrawFn) -> InstanceNUMATopology:
    """Cells as no flavor may be able to ask for them."""
    policy = draw(st.sampled_from((None, "shared", "dedicated", "dedicated", "mixed")))
    threads = (
        draw(st.sampled_from((None, None, "prefer", "isolate", "require")))
        if policy in ("dedicated", "mixed")
        else None
    )
    pagesize = draw(st.sampled_from((None, None, -1, -2, -3, 4, 2048, 1048576)))
    cells, first = [], 0
    for number in range(draw(st.sampled_from((1, 1, 2, 2, 3)))):
        cpus = range(first, first + draw(st.integers(0 if number else 1, 4)))
        first = cpus.stop
        pinned = (
            set(cpus)
            if policy == "dedicated"
            else draw(st.sets(st.sampled_from(cpus)))
            if policy == "mixed" and cpus
            else set()
        )
        memory = draw(st.sampled_from((256, 512, 1024, 1025, 2048)))
        shared = frozenset(set(cpus) - pinned)
        cells.append(InstanceNUMACell(number, shared, frozenset(pinned), memory, pagesize, policy, threads))
    emulator = draw(st.sampled_from((None, None, "share", "isolate"))) if policy in ("dedicated", "mixed") else None
    return InstanceNUMATopology(tuple(cells), emulator)


@st.composite
def devices(draw: st.DrawFn) -> tuple[PciDevice, ...]:
    """Plain devices of two kinds, and cards with their virtual functions."""
    found = []
    for number in range(draw(st.integers(0, 4))):
        node = draw(st.sampled_from((0, 0, 1, 2, None)))
        address, tags = f"00f1:{number:02x}:00.0", draw(_tags)
        if draw(st.booleans()):
            product = draw(st.sampled_from(("0443", "ABCD")))
            found.append(PciDevice(address, "8086", product, "type-PCI", node, None, tags))
            continue
        found.append(PciDevice(address, "8086", "1572", "type-PF", node, None, tags))
        for function in range(1, 1 + draw(st.integers(0, 3))):
            vf = f"00f1:{number:02x}:00.{function}"
            product = draw(st.sampled_from(("1889", "1572")))
            found.append(PciDevice(vf, "8086", product, "type-VF", node, address, tags))
    return tuple(draw(st.permutations(found)))


_tags = st.sampled_from(
    (
        (),
        (),
        (("physical_network", "Physnet"),),
        (("live_migratable", "true"),),
        (("live_migratable", "false"), ("trusted", "yes")),
        (("remote_managed", "false"),),
    )
)
_specs = st.sampled_from(
    (
        {"vendor_id": "8086", "product_id": "0443"},
        {"vendor_id": "8086", "product_id": "abcd"},
        {"vendor_id": "8086", "product_id": "1889", "dev_type": "type-VF"},
        {"vendor_id": "8086", "product_id": "1572", "dev_type": "type-PF"},
        {"vendor_id": "8086", "product_id": "1572", "dev_type": "type-VF"},
        {"vendor_id": "8086", "product_id": "1572"},
        {"vendor_id": "8086", "product_id": "0443", "live_migratable": "true"},
    )
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[PciRequest, ...]:
    """One or two; the alternatives of each are of one type, as aliases have to be."""
    made = []
    for number in range(draw(st.sampled_from((0, 1, 1, 2)))):
        first = draw(_specs)
        others = [spec for spec in draw(st.lists(_specs, max_size=1)) if spec.get("dev_type") == first.get("dev_type")]
        specs = tuple(tuple(sorted(spec.items())) for spec in (first, *others))
        policy = draw(st.sampled_from(("legacy", "legacy", "required", "preferred", "socket")))
        made.append(PciRequest(f"alias{number}", draw(st.sampled_from((1, 1, 2, 3))), specs, policy))
    return tuple(made)


def told(value: Any) -> Any:
    """What the oracle understands."""
    if isinstance(value, (tuple, list)):
        return [told(item) for item in value]
    return to_wire(value) if dataclasses.is_dataclass(value) else value


def told_flavor(flavor: Flavor, image: Image) -> dict[str, Any]:
    """A flavor and an image, as the oracle understands them."""
    return {
        "flavor": {"vcpus": flavor.vcpus, "ram": flavor.ram, "extra_specs": flavor.extra_specs},
        "image": image.properties,
    }
