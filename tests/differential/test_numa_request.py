# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The cells that flavors and images ask for, against nova.virt.hardware.numa_get_constraints."""

from __future__ import annotations

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import numa
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import to_wire
from hypothesis import given
from nova_client import Nova, NovaFailed
from numa_sites import asked, told_flavor

REFUSALS = {
    "BadRequirementEmulatorThreadsPolicy": "emulator_threads_policy",
    "CPUThreadPolicyConfigurationInvalid": "cpu_thread_policy",
    "FlavorImageConflict": "",
    "FlavorImageLockedMemoryConflict": "locked_memory",
    "ImageCPUPinningForbidden": "cpu_policy",
    "ImageCPUThreadPolicyForbidden": "cpu_thread_policy",
    "ImageNUMATopologyAsymmetric": "evenly",
    "ImageNUMATopologyCPUDuplicates": "another cell has already",
    "ImageNUMATopologyCPUOutOfRange": "the flavor's are",
    "ImageNUMATopologyCPUsUnassigned": "no numa_cpus has",
    "ImageNUMATopologyForbidden": "only one of them may",
    "ImageNUMATopologyIncomplete": "for each of them",
    "ImageNUMATopologyMemoryOutOfRange": "adds up to",
    "Invalid": "is not a set of CPUs",
    "InvalidCPUAllocationPolicy": "cpu_policy",
    "InvalidCPUThreadAllocationPolicy": "cpu_thread_policy",
    "InvalidEmulatorThreadsPolicy": "emulator_threads_policy",
    "InvalidMixedInstanceDedicatedMask": "cpu_dedicated_mask",
    "InvalidNUMANodesNumber": "numa_nodes",
    "InvalidRequest": "",
    "LockMemoryForbidden": "locked_memory",
    "MemoryPageSizeForbidden": "mem_page_size",
    "MemoryPageSizeInvalid": "mem_page_size",
    "RequiredMixedInstancePolicy": "cpu_dedicated_mask",
    "RequiredMixedOrRealtimeCPUMask": "cpu_dedicated_mask",
}
"""What Nova raises, and what our message then speaks of."""

AT_LOADING = "ValueError"
"""Nova reads an image's properties before it looks at a flavor: an image's bad value has no exception of its own, and
comes before all others. So has a flavor's numa_mem that is no number. Ours names the key, in the order of checks."""


@given(asked())
def test_same_cells_or_same_refusal(nova_numa: Nova, pair: tuple[Flavor, Image]) -> None:
    _compare(nova_numa, *pair)


@given(asked(wild=False))
def test_same_cells_of_reasonable_flavors(nova_numa: Nova, pair: tuple[Flavor, Image]) -> None:
    _compare(nova_numa, *pair)


def _compare(nova_numa: Nova, flavor: Flavor, image: Image) -> None:
    try:
        theirs = nova_numa.put({"ask": "request", **told_flavor(flavor, image)})
    except NovaFailed as refusal:
        name = str(refusal).partition(":")[0]
        with pytest.raises(InvalidRequest) as ours:
            numa.request_of(flavor, image)
        if name != AT_LOADING:
            assert REFUSALS[name] in str(ours.value), refusal
        return
    assert to_wire(numa.request_of(flavor, image)) == theirs
