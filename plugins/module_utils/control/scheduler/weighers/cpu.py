# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Prefer hosts with free VCPUs."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import VCPU, Floats, Hosts, Rows
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher


class CPUWeigher(Weigher):
    """Free VCPUs with the allocation ratio. A negative ``cpu_weight_multiplier`` stacks servers instead."""

    name = "CPUWeigher"
    multiplier_option = "cpu_weight_multiplier"
    minval = 0

    def raw(self, hosts: Hosts, rows: Rows, spec: RequestSpec) -> Floats:
        ratio = hosts.resource(VCPU).allocation_ratio[rows]
        free: Floats = hosts.vcpus_total(rows) * ratio - hosts.vcpus_used(rows)
        return free
