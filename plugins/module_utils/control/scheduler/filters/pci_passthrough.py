# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts with the PCI devices that the server asks for."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import pci
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import RowFilter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class PciPassthroughFilter(RowFilter):
    """Passes hosts with enough free devices of each alias in the flavor's ``pci_passthrough:alias``.

    Whether they are near enough to the server's NUMA cells is NUMATopologyFilter's matter. It holds for a forced host
    too: the claim would fail there.
    """

    name = "PciPassthroughFilter"
    always = holds_when_forced = True

    def concerns(self, spec: RequestSpec) -> bool:
        return bool(spec.pci_requests)

    def passes(self, hosts: Hosts, row: int, spec: RequestSpec) -> bool:
        return pci.supports(hosts.pci[row], spec.pci_requests)

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        return pci.why_not(hosts.pci[row], spec.pci_requests)
