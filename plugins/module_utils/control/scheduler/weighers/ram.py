# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Prefer hosts with free memory."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.hosts import HostState
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher


class RAMWeigher(Weigher):
    """Free MiB, reserved ones not counted. A negative ``ram_weight_multiplier`` stacks servers instead."""

    name = "RAMWeigher"
    multiplier_option = "ram_weight_multiplier"
    minval = 0

    def raw(self, host: HostState, spec: RequestSpec) -> float:
        return host.free_ram_mb
