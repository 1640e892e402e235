# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Prefer hosts with free memory."""

from __future__ import annotations

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Floats, Hosts, Rows
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher


class RAMWeigher(Weigher):
    """Free MiB, reserved ones not counted. A negative ``ram_weight_multiplier`` stacks servers instead."""

    name = "RAMWeigher"
    multiplier_option = "ram_weight_multiplier"
    minval = 0

    def raw(self, hosts: Hosts, rows: Rows, spec: RequestSpec) -> Floats:
        return hosts.free_ram_mb(rows).astype(np.float64)
