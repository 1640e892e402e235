# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts whose NUMA cells hold the server's."""

from __future__ import annotations

from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import numa
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import RowFilter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import CpuPolicy, ThreadPolicy


class NUMATopologyFilter(RowFilter):
    """Passes hosts with a cell for each of the server's: CPUs, CPUs of its own, memory in the pages that it asks for,
    and PCI devices near enough.

    It concerns servers whose flavor or image asks for cells (``hw:numa_nodes``), for CPUs of their own
    (``hw:cpu_policy``) or for a page size (``hw:mem_page_size``). It holds for a forced host too: the claim would fail
    there.
    """

    name = "NUMATopologyFilter"
    always = holds_when_forced = True

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._known: dict[tuple[int, ...], tuple[bool, Any]] = {}

    def concerns(self, spec: RequestSpec) -> bool:
        return spec.numa is not None

    def passes(self, hosts: Hosts, row: int, spec: RequestSpec) -> bool:
        topology, pools, wanted = hosts.numa[row], hosts.pci[row], spec.numa
        if topology is None or wanted is None or (_wants_threads(spec) and not topology.has_threads):
            return False
        # Hosts of one kind that are alike share their topology: one answer for all of them. The objects are kept, so
        # that their ids stay theirs.
        limits, requests = hosts.limits(row), spec.pci_requests
        ratios = (hash(limits.cpu_allocation_ratio), hash(limits.ram_allocation_ratio))
        key = (id(topology), id(pools), id(wanted), id(requests), *ratios)
        if key not in self._known:
            near = numa.Near(tuple(requests), pools)
            placed = numa.fit(topology, wanted, limits, near, self.options.packing_host_numa_cells_allocation_strategy)
            self._known[key] = (placed is not None, (topology, pools, wanted, requests))
        return self._known[key][0]

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        topology = hosts.numa[row]
        if topology is None or spec.numa is None:
            return "the server asks for NUMA cells, the host tells none"
        if _wants_threads(spec) and not topology.has_threads:
            return f"cpu_thread_policy={ThreadPolicy.REQUIRE} wanted, the host's cores have one CPU each"
        near = numa.Near(tuple(spec.pci_requests), hosts.pci[row])
        return numa.why_not(topology, spec.numa, hosts.limits(row), near)


def _wants_threads(spec: RequestSpec) -> bool:
    """Nova's look at what flavor and image say each, whichever of them counts in the end."""
    specs, properties = spec.flavor.extra_specs, spec.image.properties
    policies = (specs.get("hw:cpu_policy"), properties.get("hw_cpu_policy"))
    threads = (specs.get("hw:cpu_thread_policy"), properties.get("hw_cpu_thread_policy"))
    return CpuPolicy.DEDICATED in policies and ThreadPolicy.REQUIRE in threads
