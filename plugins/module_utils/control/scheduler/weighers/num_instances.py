# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Prefer hosts by the number of their servers."""

from __future__ import annotations

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Floats, Hosts, Rows
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher


class NumInstancesWeigher(Weigher):
    """The number of servers. Off by default; a negative ``num_instances_weight_multiplier`` spreads, others stack."""

    name = "NumInstancesWeigher"
    multiplier_option = "num_instances_weight_multiplier"
    default_multiplier = 0.0

    def raw(self, hosts: Hosts, rows: Rows, spec: RequestSpec) -> Floats:
        return hosts.num_instances[rows].astype(np.float64)
