# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Keep aggregates that name flavors to those flavors."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Aggregate, Bools, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters import aggregate_metadata
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec

_KEY = "instance_type"


class AggregateTypeAffinityFilter(Filter):
    """Passes hosts whose aggregates name no flavor, and those that name the request's in ``instance_type``."""

    name = "AggregateTypeAffinityFilter"
    once = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        def passes(aggregates: tuple[Aggregate, ...]) -> bool:
            flavors = aggregate_metadata.values(aggregates).get(_KEY)
            return flavors is None or spec.flavor.name in flavors

        return hosts.aggregates.mask(passes)

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        flavors = aggregate_metadata.values(hosts.aggregates[row]).get(_KEY, set())
        return f"flavor {spec.flavor.name} wanted, it is for {', '.join(sorted(flavors))}"
