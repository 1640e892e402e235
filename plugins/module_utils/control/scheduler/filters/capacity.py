# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts with room."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.hosts import HostState
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class Capacity(Filter):
    """Passes hosts whose inventories hold every resource that the server takes.

    Placement's rule: ``used + wanted <= (total - reserved) * allocation_ratio``, and ``wanted`` within min_unit and
    max_unit and a multiple of step_size. It holds for a forced host too: the claim would fail there.
    """

    name = "Capacity"

    def reason(self, host: HostState, spec: RequestSpec) -> str | None:
        short = []
        for resource_class, wanted in spec.resources.items():
            if wanted and resource_class not in host.inventories:
                short.append(f"{resource_class}: {wanted} wanted, the host has none")
                continue
            why_not = host.inventory(resource_class).why_not(wanted)
            if why_not:
                short.append(f"{resource_class}: {why_not}")
        return " and ".join(short) or None

    reason_when_forced = reason
