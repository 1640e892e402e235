# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Prefer hosts with a newer hypervisor."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Floats, Hosts, Rows
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher


class HypervisorVersionWeigher(Weigher):
    """The hypervisor's version. A negative ``hypervisor_version_weight_multiplier`` prefers old ones."""

    name = "HypervisorVersionWeigher"
    multiplier_option = "hypervisor_version_weight_multiplier"

    def raw(self, hosts: Hosts, rows: Rows, spec: RequestSpec) -> Floats:
        return hosts.facts.numbers(lambda facts: facts.hypervisor_version or 0, rows)
