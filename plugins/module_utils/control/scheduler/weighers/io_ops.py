# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Spare hosts that are busy building."""

from __future__ import annotations

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Floats, Hosts, Rows
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher


class IoOpsWeigher(Weigher):
    """Servers being built, moved, rescued, snapshotted. A positive ``io_ops_weight_multiplier`` prefers busy hosts."""

    name = "IoOpsWeigher"
    multiplier_option = "io_ops_weight_multiplier"
    default_multiplier = -1.0
    minval = 0

    def raw(self, hosts: Hosts, rows: Rows, spec: RequestSpec) -> Floats:
        return hosts.num_io_ops[rows].astype(np.float64)
