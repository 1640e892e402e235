# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What a weigher is, and how Nova normalises weights (nova.weights)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.hosts import HostState
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class Weigher:
    """One rule that ranks hosts: more is better, unless its multiplier is negative."""

    name: ClassVar[str]
    multiplier_option: ClassVar[str]
    """The option's name in nova.conf, which is also the aggregate metadata's."""
    default_multiplier: ClassVar[float] = 1.0
    minval: ClassVar[float | None] = None
    maxval: ClassVar[float | None] = None

    def __init__(self, options: Options) -> None:
        self.options = options

    def raw(self, host: HostState, spec: RequestSpec) -> float:
        """The host's weight in whatever unit."""
        raise NotImplementedError

    def multiplier(self, host: HostState) -> float:
        """The least of the host's aggregates' values, else the option.

        One value that is not a number makes the option count, as in nova.scheduler.utils.get_weight_multiplier.
        """
        key = self.multiplier_option
        option = self.options.multipliers.get(key, self.default_multiplier)
        values = [item.metadata[key] for item in host.aggregates if key in item.metadata]
        try:
            return min((float(value) for value in values), default=option)
        except ValueError:
            return option

    def weights(self, hosts: Sequence[HostState], spec: RequestSpec) -> list[float]:
        """Each host's ``multiplier * normalised weight``, in the hosts' order."""
        weights = [self.raw(host, spec) for host in hosts]
        if self.minval is not None:
            weights = [max(weight, self.minval) for weight in weights]
        if self.maxval is not None:
            weights = [min(weight, self.maxval) for weight in weights]
        normalised = normalise(weights, self.minval, self.maxval)
        return [self.multiplier(host) * weight for host, weight in zip(hosts, normalised)]


def normalise(weights: Sequence[float], minval: float | None = None, maxval: float | None = None) -> list[float]:
    """``(weight - low) / (high - low)``, where the ends are minval and maxval or else the least and the greatest.

    All 0 where both ends are the same. With minval 0, equal hosts that are not 0 therefore all get 1.
    """
    if not weights:
        return []
    low = float(min(weights) if minval is None else minval)
    high = float(max(weights) if maxval is None else maxval)
    if low == high:
        return [0.0] * len(weights)
    span = high - low
    return [(weight - low) / span for weight in weights]
