# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The NUMA cells that a flavor and an image ask for, their conflicts refused.

Mirrors nova.virt.hardware.numa_get_constraints, in the order of its checks. An image may speak where the flavor leaves
it free to; what both of them say has to agree, or is refused, as Nova does it for each key.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, TypeVar

from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import (
    NO_CPUS,
    PAGES_ANY,
    PAGES_LARGE,
    PAGES_SMALL,
    CpuPolicy,
    EmulatorThreads,
    InstanceNUMACell,
    InstanceNUMATopology,
    ThreadPolicy,
    parse_cpus,
    parse_page_size,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import PciAffinity

_MAX_CELLS = 128
_PAGE_WORDS = {"any": PAGES_ANY, "large": PAGES_LARGE, "small": PAGES_SMALL}
_TRUE = ("1", "t", "true", "on", "y", "yes")
_Value = TypeVar("_Value")
_UNSUPPORTED = {
    "hw:pmem": "persistent memory is not supported",
    "hw:cpu_realtime": "real-time CPUs are not supported",
}


def request_of(flavor: Flavor, image: Image) -> InstanceNUMATopology | None:
    """The cells that this flavor and this image ask for; None where they leave it to the host's kernel.

    Whatever needs a cell makes one: ``hw:numa_nodes``, ``hw:cpu_policy`` dedicated or mixed, ``hw:mem_page_size``.
    InvalidRequest names the flavor or the image, the key, its value, and what is allowed.
    """
    return _Request(flavor, image).topology()


def pci_affinity_of(flavor: Flavor, image: Image) -> str | None:
    """``hw:pci_numa_affinity_policy``, or the image's; InvalidRequest where they differ or it is none of Nova's."""
    return _Request(flavor, image).pci_affinity()


def is_true(value: str) -> bool:
    """A boolean as Nova reads extra specs: what is not a word for true is false."""
    return value.strip().lower() in _TRUE


class _Request:
    """One flavor with one image. Every method is one of Nova's constraints."""

    def __init__(self, flavor: Flavor, image: Image) -> None:
        self._flavor = flavor
        self._image = image
        self._specs = {key: str(value) for key, value in flavor.extra_specs.items()}
        self._properties = {key: str(value) for key, value in image.properties.items()}
        self._cpus = frozenset(range(flavor.vcpus))

    def topology(self) -> InstanceNUMATopology | None:
        """The cells, or None."""
        self._read_image()
        self._refuse_unsupported()
        policy, thread_policy = self._cpu_policy(), self._thread_policy()
        mask = self._dedicated_mask()
        emulator = self._emulator_threads()
        policy = self._explicit_resources(policy, emulator)
        thread_policy = self._hyperthreading(thread_policy)
        self._check_policies(policy, thread_policy, mask, emulator)
        nodes, pagesize = self._nodes(), self._pagesize()
        self.locked_memory()
        if not nodes and not pagesize and policy not in CpuPolicy.PINNING:
            return None
        pinned = self._cpus if policy == CpuPolicy.DEDICATED else mask or NO_CPUS
        cells = [
            InstanceNUMACell(number, cpus - pinned, cpus & pinned, memory, pagesize, policy, thread_policy)
            for number, (cpus, memory) in enumerate(self._cells(nodes or 1))
        ]
        return InstanceNUMATopology(tuple(cells), emulator)

    def pci_affinity(self) -> str | None:
        """How near a PCI device has to be."""
        flavor, image = self._both("pci_numa_affinity_policy")
        if flavor and image and flavor != image:
            self._conflict("pci_numa_affinity_policy", flavor, image)
        return self._one_of("pci_numa_affinity_policy", flavor, image, PciAffinity.ALL)

    def locked_memory(self) -> bool:
        """Whether the guest's memory is never swapped out, which needs a page size to be asked for."""
        flavor, image = self._both("locked_memory")
        if flavor is not None and image is not None and is_true(flavor) != is_true(image):
            self._conflict("locked_memory", flavor, image)
        locked = is_true(flavor if flavor is not None else image or "")
        if locked and not any(self._both("mem_page_size")):
            where = self._spec("locked_memory") if flavor is not None else self._property("locked_memory")
            raise InvalidRequest(f"{where} needs hw:mem_page_size in the flavor too")
        return locked

    def _read_image(self) -> None:
        """Refuse what no flavor could make good."""
        allowed = {"cpu_policy": CpuPolicy.ALL, "cpu_thread_policy": ThreadPolicy.ALL}
        for key, words in {**allowed, "pci_numa_affinity_policy": PciAffinity.ALL}.items():
            self._one_of(key, None, self._properties.get(f"hw_{key}"), words)
        where = f"image {self._image.name}"
        for text, what in _numbered(self._properties, "hw_numa_cpus", where):
            parse_cpus(text, what)
        for text, what in _numbered(self._properties, "hw_numa_mem", where):
            _mebibytes(text, what)

    def _refuse_unsupported(self) -> None:
        for key, why in _UNSUPPORTED.items():
            value = self._specs.get(key, "").strip(" ,")
            if is_true(value) or (value and key == "hw:pmem"):
                raise InvalidRequest(f"flavor {self._flavor.name}: {key}={value}: {why}: remove it")

    def _cpu_policy(self) -> str | None:
        """The flavor's word binds the image; one that asks for less leaves the image no more either."""
        flavor, image = self._both("cpu_policy")
        self._one_of("cpu_policy", flavor, image, CpuPolicy.ALL)
        weaker = {CpuPolicy.MIXED: (CpuPolicy.DEDICATED,), CpuPolicy.SHARED: CpuPolicy.PINNING}
        if flavor and image in weaker.get(flavor, ()):
            self._conflict("cpu_policy", flavor, image)
        return flavor or image or None

    def _thread_policy(self) -> str | None:
        flavor, image = self._both("cpu_thread_policy")
        self._one_of("cpu_thread_policy", flavor, image, ThreadPolicy.ALL)
        if flavor in (None, ThreadPolicy.PREFER):
            return flavor or image or None
        if flavor and image and image != flavor:
            self._conflict("cpu_thread_policy", flavor, image)
        return flavor

    def _dedicated_mask(self) -> frozenset[int] | None:
        """The guest's CPUs that have one of the host's each, under the policy mixed; None where not given."""
        text = self._specs.get("hw:cpu_dedicated_mask", "")
        if not text:
            return None
        where = self._spec("cpu_dedicated_mask")
        last = self._flavor.vcpus - 1
        mask = parse_cpus(f"0-{last},{text}" if text.strip().startswith("^") else text, where)
        if not mask or not self._cpus - mask:
            raise InvalidRequest(f"{where} must leave at least one CPU dedicated and one shared, of CPUs 0-{last}")
        if not mask <= self._cpus:
            raise InvalidRequest(f"{where} names CPUs that the flavor does not have: it has 0-{last}")
        return mask

    def _emulator_threads(self) -> str | None:
        return self._one_of(
            "emulator_threads_policy", self._specs.get("hw:emulator_threads_policy"), None, EmulatorThreads.ALL
        )

    def _explicit_resources(self, policy: str | None, emulator: str | None) -> str | None:
        """``resources:VCPU`` and ``resources:PCPU``, the other way to say which policy."""
        shared, own = self._resources("VCPU"), self._resources("PCPU")
        name = f"flavor {self._flavor.name}"
        if policy and (shared or own):
            raise InvalidRequest(f"{name}: resources:VCPU or resources:PCPU and cpu_policy={policy}: use one of them")
        if shared and own:
            raise InvalidRequest(f"{name}: resources:VCPU={shared} and resources:PCPU={own}: use one of them")
        if own:
            wanted = self._flavor.vcpus + (emulator == EmulatorThreads.ISOLATE)
            if own != wanted:
                extra = " and one for the isolated emulator threads" if wanted > self._flavor.vcpus else ""
                raise InvalidRequest(f"{name}: resources:PCPU={own} must be {wanted}: the flavor's vcpus{extra}")
            return CpuPolicy.DEDICATED
        return CpuPolicy.SHARED if shared else policy

    def _resources(self, name: str) -> int:
        """The sum of ``resources:NAME`` and of its numbered groups; what is no number is refused elsewhere."""
        pattern = re.compile(f"resources([1-9][0-9]*)?:{name}")
        values = [value.strip() for key, value in self._specs.items() if pattern.fullmatch(key)]
        return sum(int(value) for value in values if value.isdecimal())

    def _hyperthreading(self, thread_policy: str | None) -> str | None:
        """``trait:HW_CPU_HYPERTHREADING``, the other way to say which thread policy."""
        pattern = re.compile("trait([1-9][0-9]*)?:HW_CPU_HYPERTHREADING")
        wanted = next((value for key, value in self._specs.items() if pattern.fullmatch(key)), "")
        if not wanted and self._properties.get("trait:HW_CPU_HYPERTHREADING") == "required":
            wanted = "required"
        if thread_policy and wanted:
            raise InvalidRequest(
                f"flavor {self._flavor.name}, image {self._image.name}: trait:HW_CPU_HYPERTHREADING={wanted} and "
                f"cpu_thread_policy={thread_policy}: use one of them"
            )
        by_trait = {"forbidden": ThreadPolicy.ISOLATE, "required": ThreadPolicy.REQUIRE}
        return by_trait.get(wanted, thread_policy)

    def _check_policies(
        self, policy: str | None, thread_policy: str | None, mask: frozenset[int] | None, emulator: str | None
    ) -> None:
        """What makes sense only together."""
        name = f"flavor {self._flavor.name}"
        if policy not in CpuPolicy.PINNING:
            if thread_policy:
                where = f"{name}, image {self._image.name}: cpu_thread_policy={thread_policy}"
                raise InvalidRequest(f"{where} needs hw:cpu_policy=dedicated or mixed")
            if emulator == EmulatorThreads.ISOLATE:
                raise InvalidRequest(f"{self._spec('emulator_threads_policy')} needs hw:cpu_policy=dedicated or mixed")
        if mask and policy != CpuPolicy.MIXED:
            raise InvalidRequest(f"{self._spec('cpu_dedicated_mask')} needs hw:cpu_policy=mixed, not {policy}")
        if policy == CpuPolicy.MIXED and not mask:
            raise InvalidRequest(f"{name}: cpu_policy=mixed needs hw:cpu_dedicated_mask: which CPUs are dedicated")

    def _nodes(self) -> int | None:
        flavor, image = self._both("numa_nodes")
        if image and image.strip().isdecimal():
            image = str(int(image))  # Nova reads an image's as a number, a flavor's as it is written
        if flavor and image and image != "0":
            self._forbidden("numa_nodes")
        nodes = flavor or image
        if not nodes:
            return None
        count = _whole(nodes)
        if count is None or not 1 <= count <= _MAX_CELLS:
            where = self._spec("numa_nodes") if flavor else self._property("numa_nodes")
            raise InvalidRequest(f"{where} must be a whole number from 1 to {_MAX_CELLS}")
        return count

    def _pagesize(self) -> int | None:
        """KiB or one of the PAGES. An image may choose only where the flavor lets it, by large or any."""
        flavor, image = self._both("mem_page_size")
        if not flavor:
            if image:
                raise InvalidRequest(
                    f"{self._property('mem_page_size')}: the flavor {self._flavor.name} does not allow it: "
                    "set its hw:mem_page_size to large or any"
                )
            return None
        size = _pages(flavor, self._spec("mem_page_size"))
        if not image:
            return size
        if size not in (PAGES_ANY, PAGES_LARGE):
            self._conflict("mem_page_size", flavor, image)
        return _pages(image, self._property("mem_page_size"))

    def _cells(self, nodes: int) -> Sequence[tuple[frozenset[int], int]]:
        """(CPUs, MiB) of each cell."""
        cpus = self._listed("numa_cpus", parse_cpus)
        memory = self._listed("numa_mem", _mebibytes)
        if not cpus and not memory:
            return self._even(nodes)
        if len(cpus) != nodes or len(memory) != nodes:
            raise InvalidRequest(
                f"flavor {self._flavor.name}, image {self._image.name}: {nodes} NUMA cells need numa_cpus and numa_mem "
                f"for each of them, numbered from 0: there are {len(cpus)} and {len(memory)}"
            )
        self._check_cells(cpus, memory)
        return list(zip(cpus, memory))

    def _even(self, nodes: int) -> Sequence[tuple[frozenset[int], int]]:
        vcpus, ram = self._flavor.vcpus, self._flavor.ram
        if vcpus % nodes or ram % nodes:
            raise InvalidRequest(
                f"flavor {self._flavor.name}: numa_nodes={nodes} does not divide {vcpus} vcpus and {ram} MiB evenly: "
                "say numa_cpus and numa_mem for each cell"
            )
        each = vcpus // nodes
        return [(frozenset(range(node * each, (node + 1) * each)), ram // nodes) for node in range(nodes)]

    def _check_cells(self, cpus: Sequence[frozenset[int]], memory: Sequence[int]) -> None:
        name = f"flavor {self._flavor.name}, image {self._image.name}"
        seen: set[int] = set()
        for number, cell in enumerate(cpus):
            for cpu in sorted(cell):
                if cpu not in self._cpus:
                    raise InvalidRequest(
                        f"{name}: numa_cpus.{number} has CPU {cpu}: the flavor's are 0-{self._flavor.vcpus - 1}"
                    )
                if cpu in seen:
                    raise InvalidRequest(f"{name}: numa_cpus.{number} has CPU {cpu}, which another cell has already")
                seen.add(cpu)
        left = sorted(self._cpus - seen)
        if left:
            raise InvalidRequest(f"{name}: no numa_cpus has CPU {', '.join(map(str, left))}")
        if sum(memory) != self._flavor.ram:
            raise InvalidRequest(f"{name}: numa_mem adds up to {sum(memory)} MiB, not the flavor's {self._flavor.ram}")

    def _listed(self, key: str, read: Callable[[str, str], _Value]) -> list[_Value]:
        """``hw:key.0``, ``hw:key.1``, ... of the flavor, or the image's."""
        flavor = [read(*item) for item in _numbered(self._specs, f"hw:{key}", f"flavor {self._flavor.name}")]
        image = [read(*item) for item in _numbered(self._properties, f"hw_{key}", f"image {self._image.name}")]
        if flavor and image:
            self._forbidden(f"{key}.0")
        return flavor or image

    def _both(self, key: str) -> tuple[str | None, str | None]:
        return self._specs.get(f"hw:{key}"), self._properties.get(f"hw_{key}")

    def _one_of(self, key: str, flavor: str | None, image: str | None, allowed: Sequence[str]) -> str | None:
        """The flavor's word, else the image's; both must be allowed ones."""
        for value, where in ((flavor, f"flavor {self._flavor.name}: hw:"), (image, f"image {self._image.name}: hw_")):
            if value and value not in allowed:
                raise InvalidRequest(f"{where}{key}={value} is not one of {', '.join(allowed)}")
        return flavor or image or None

    def _conflict(self, key: str, flavor: str, image: str) -> NoReturn:
        raise InvalidRequest(
            f"image {self._image.name}: hw_{key}={image} conflicts with hw:{key}={flavor} of flavor {self._flavor.name}"
        )

    def _forbidden(self, key: str) -> NoReturn:
        raise InvalidRequest(
            f"{self._property(key)}: the flavor {self._flavor.name} says hw:{key} already: only one of them may"
        )

    def _spec(self, key: str) -> str:
        return f"flavor {self._flavor.name}: hw:{key}={self._specs.get(f'hw:{key}')}"

    def _property(self, key: str) -> str:
        return f"image {self._image.name}: hw_{key}={self._properties.get(f'hw_{key}')}"


def _numbered(values: dict[str, str], key: str, whose: str) -> Iterator[tuple[str, str]]:
    """(text, what it is called) of ``key.0``, ``key.1``, ... as far as they go."""
    for number in itertools.takewhile(lambda number: f"{key}.{number}" in values, range(_MAX_CELLS)):
        text = values[f"{key}.{number}"]
        yield text, f"{whose}: {key}.{number}={text}"


def _whole(text: str) -> int | None:
    """A number written the ordinary way, or None."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if str(number) == text else None


def _mebibytes(text: str, where: str) -> int:
    size = _whole(text.strip())
    if size is None or size < 1:
        raise InvalidRequest(f"{where} must be a whole number of MiB, 1 or more")
    return size


def _pages(text: str, where: str) -> int:
    """A page size: one of Nova's words, or KiB."""
    size = _PAGE_WORDS.get(text) or parse_page_size(text)
    if not size:
        raise InvalidRequest(f"{where} must be small, large, any, or a size of 1 KiB or more, as 2048, 2MB or 1GB")
    return size
