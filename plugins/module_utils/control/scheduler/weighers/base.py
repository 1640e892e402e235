# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What a weigher is, and how Nova normalises weights (nova.weights)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import (
    Aggregate,
    Floats,
    Hosts,
    Rows,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest


class Weigher:
    """One rule that ranks hosts: more is better, unless its multiplier is negative.

    A subclass has a ``name``, a ``multiplier_option`` and ``raw``.
    """

    name: ClassVar[str]
    multiplier_option: ClassVar[str]
    """The option's name in nova.conf, which is also the aggregate metadata's."""
    default_multiplier: ClassVar[float] = 1.0
    least_multiplier: ClassVar[float | None] = None
    """The least value that Nova allows the option."""
    sign: ClassVar[float] = 1.0
    """-1.0 where Nova turns the multiplier round."""
    minval: ClassVar[float | None] = None
    maxval: ClassVar[float | None] = None

    def __init__(self, options: Options) -> None:
        self.options = options

    def concerns(self, spec: RequestSpec) -> bool:
        """Whether the request is of a kind that this rule ranks hosts for; if not, all its weights are 0."""
        return True

    def raw(self, hosts: Hosts, rows: Rows, spec: RequestSpec) -> Floats:
        """The weights of these rows' hosts in whatever unit; each depends on its host alone."""
        raise NotImplementedError

    def multipliers(self, hosts: Hosts) -> float | Floats:
        """The multiplier for each host: one number where it is the same for all."""
        key = self.multiplier_option
        option = float(self.options.multipliers.get(key, self.default_multiplier))

        def multiplier(aggregates: tuple[Aggregate, ...]) -> float:
            # The least of the aggregates' values; one that is not a number makes the option count, as in
            # nova.scheduler.utils.get_weight_multiplier.
            values = [item.metadata[key] for item in aggregates if key in item.metadata]
            try:
                return self.sign * min((float(value) for value in values), default=option)
            except ValueError:
                return self.sign * option

        if any(key in item.metadata for aggregates in hosts.aggregates.values for item in aggregates):
            return hosts.aggregates.numbers(multiplier)
        return self.sign * option

    def weights(self, hosts: Hosts, rows: Rows, spec: RequestSpec) -> Floats:
        """``multiplier * normalised weight`` of these rows' hosts, the hosts that are left for the request."""
        if not self.concerns(spec):
            return np.zeros(len(rows))
        multipliers = self.multipliers(hosts)
        return normalise(self.clamped(hosts, rows, spec), self.minval, self.maxval) * (
            multipliers[rows] if isinstance(multipliers, np.ndarray) else multipliers
        )

    def clamped(self, hosts: Hosts, rows: Rows, spec: RequestSpec) -> Floats:
        """``raw`` within minval and maxval."""
        raw = np.asarray(self.raw(hosts, rows, spec), dtype=np.float64)
        if raw.shape != rows.shape:
            raise InvalidRequest(f"weigher {self.name}: {raw.size} weights for {len(rows)} hosts")
        if self.minval is not None:
            raw = np.maximum(raw, self.minval)
        if self.maxval is not None:
            raw = np.minimum(raw, self.maxval)
        return raw


def bounds(weights: Floats, minval: float | None = None, maxval: float | None = None) -> tuple[float, float]:
    """The ends that normalisation maps to 0 and 1: minval and maxval or else the least and the greatest weight."""
    low = float(weights.min() if minval is None else minval)
    high = float(weights.max() if maxval is None else maxval)
    return low, high


def normalise(weights: Floats, minval: float | None = None, maxval: float | None = None) -> Floats:
    """``(weight - low) / (high - low)``; all 0 where both ends are the same.

    With minval 0, equal hosts that are not 0 therefore all get 1.
    """
    if not len(weights):
        return weights
    low, high = bounds(weights, minval, maxval)
    if low == high:
        return np.zeros(len(weights))
    return (weights - low) / (high - low)
