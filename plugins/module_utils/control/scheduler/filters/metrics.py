# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts that report what MetricsWeigher weighs."""

from __future__ import annotations

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Bools, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class MetricsFilter(Filter):
    """Passes hosts that report every metric of ``metrics_weight_setting``, so that MetricsWeigher does not fail."""

    name = "MetricsFilter"

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        mask = hosts.everywhere
        for name in self._names():
            mask = mask & (~np.isnan(hosts.metrics[name]) if name in hosts.metrics else ~hosts.everywhere)
        return mask

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        missing = [name for name in self._names() if name not in hosts.metrics or np.isnan(hosts.metrics[name][row])]
        return f"{', '.join(missing)} not reported"

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ratio in self.options.weights("metrics_weight_setting")))
