# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Prefer hosts with free disk."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.hosts import HostState
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher


class DiskWeigher(Weigher):
    """Free MiB of disk. A negative ``disk_weight_multiplier`` stacks servers instead."""

    name = "DiskWeigher"
    multiplier_option = "disk_weight_multiplier"
    minval = 0

    def raw(self, host: HostState, spec: RequestSpec) -> float:
        return host.free_disk_gb * 1024
