# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Keep hosts with free PCI devices for those who ask for devices."""

from __future__ import annotations

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Floats, Hosts, Rows
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher

_MOST = 100
"""Beyond so many there is no shortage, and hosts are alike."""


class PCIWeigher(Weigher):
    """Prefers the host with the fewest free PCI devices, so that who asks for none spares them, and who asks for some
    leaves others whole."""

    name = "PCIWeigher"
    multiplier_option = "pci_weight_multiplier"
    least_multiplier = 0.0

    def raw(self, hosts: Hosts, rows: Rows, spec: RequestSpec) -> Floats:
        return (_MOST - np.minimum(hosts.pci_free[rows], _MOST - 1)).astype(np.float64)
