# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts of the project's own aggregates."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Aggregate, Bools, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec

_KEY = "filter_tenant_id"


class TenantAggregate(Filter):
    """Passes hosts of aggregates that name the project in a ``filter_tenant_id*`` key, where there are any.

    Where no aggregate names it every host passes, or none with ``placement_aggregate_required_for_tenants``. Only with
    ``limit_tenants_to_placement_aggregate``: Nova's request filter require_tenant_aggregate.
    """

    name = "TenantAggregate"
    once = always = holds_when_forced = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        if not self.options.limit_tenants_to_placement_aggregate:
            return hosts.everywhere
        mask = hosts.aggregates.mask(lambda aggregates: _names(aggregates, spec.project_id))
        if mask.any() or self.options.placement_aggregate_required_for_tenants:
            return mask
        return hosts.everywhere

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        return f"project {spec.project_id} wants its own aggregates, the host is in none of them"


def _names(aggregates: tuple[Aggregate, ...], project: str) -> bool:
    return any(key.startswith(_KEY) and value == project for item in aggregates for key, value in item.metadata.items())
