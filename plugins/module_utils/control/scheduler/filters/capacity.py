# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts with room."""

from __future__ import annotations

import functools
import operator

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import (
    DISK_GB,
    MEMORY_MB,
    PCPU,
    VCPU,
    Bools,
    Hosts,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec

_SHORT = {VCPU: "vcpus", PCPU: "pcpus", MEMORY_MB: "ram", DISK_GB: "disk"}


class Capacity(Filter):
    """Passes hosts whose inventories hold every resource that the server takes.

    Placement's rule: ``used + wanted <= (total - reserved) * allocation_ratio``, and ``wanted`` within min_unit and
    max_unit and a multiple of step_size. VCPU and PCPU, MEMORY_MB, DISK_GB and whatever ``resources:`` extra specs ask
    for. It holds for a forced host too: the claim would fail there.
    """

    name = "Capacity"
    always = holds_when_forced = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        masks = [hosts.resource(resource_class).fits(wanted) for resource_class, wanted in spec.resources.items()]
        return functools.reduce(operator.and_, masks) if masks else hosts.everywhere

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        short = []
        for resource_class, wanted in spec.resources.items():
            why_not = hosts.resource(resource_class).why_not(row, wanted)
            if why_not:
                short.append(f"{_SHORT.get(resource_class, resource_class)}: {why_not}")
        return " and ".join(short)
