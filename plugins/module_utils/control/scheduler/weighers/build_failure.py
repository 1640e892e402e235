# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Avoid hosts on which builds failed of late."""

from __future__ import annotations

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Floats, Hosts, Rows
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher


class BuildFailureWeigher(Weigher):
    """Builds that failed since the last one that went well; by default it outweighs all else.

    ``build_failure_weight_multiplier`` is positive: the weigher turns it round.
    """

    name = "BuildFailureWeigher"
    multiplier_option = "build_failure_weight_multiplier"
    default_multiplier = 1000000.0
    sign = -1.0

    def raw(self, hosts: Hosts, rows: Rows, spec: RequestSpec) -> Floats:
        return hosts.failed_builds[rows].astype(np.float64)
