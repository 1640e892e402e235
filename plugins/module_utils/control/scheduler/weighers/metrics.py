# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Prefer hosts by metrics that the site's hosts report."""

from __future__ import annotations

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Floats, Hosts, Rows
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest


class MetricsWeigher(Weigher):
    """``metrics_weight_setting`` gives each metric its ratio; the weight is the sum of ``metric * ratio``.

    A host that does not report one of them is an error with ``metrics_required`` (MetricsFilter keeps such hosts out);
    without, it weighs ``metrics_weight_of_unavailable``.
    """

    name = "MetricsWeigher"
    multiplier_option = "metrics_weight_multiplier"

    def concerns(self, spec: RequestSpec) -> bool:
        return bool(self.options.metrics_weight_setting)

    def raw(self, hosts: Hosts, rows: Rows, spec: RequestSpec) -> Floats:
        weights, unavailable = np.zeros(len(rows)), np.zeros(len(rows), dtype=np.bool_)
        multipliers = self.multipliers(hosts)
        counts = (multipliers[rows] if isinstance(multipliers, np.ndarray) else multipliers) != 0
        for name, ratio in self.options.weights("metrics_weight_setting"):
            values = hosts.metrics[name][rows] if name in hosts.metrics else np.full(len(rows), np.nan)
            missing = np.isnan(values)
            if self.options.metrics_required and missing.any():
                host = hosts.names[rows[missing.argmax()]]
                raise InvalidRequest(
                    f"scheduler: {host} does not report the metric {name} of metrics_weight_setting; enable "
                    "MetricsFilter, or set metrics_required to false"
                )
            unavailable |= missing & counts & (ratio != 0)
            weights += np.where(missing, 0.0, values) * ratio
        return np.where(unavailable, self.options.metrics_weight_of_unavailable, weights)
