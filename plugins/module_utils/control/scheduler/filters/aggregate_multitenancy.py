# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Keep aggregates that name projects to those projects."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Aggregate, Bools, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters import aggregate_metadata
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class AggregateMultiTenancyIsolation(Filter):
    """Passes hosts whose aggregates name no project, and those that name the request's.

    Projects are the values of metadata keys that begin with ``filter_tenant_id``, several with commas.
    """

    name = "AggregateMultiTenancyIsolation"
    once = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        def passes(aggregates: tuple[Aggregate, ...]) -> bool:
            projects = _projects(aggregates)
            return not projects or spec.project_id in projects

        return hosts.aggregates.mask(passes)

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        return f"project {spec.project_id} wants it, it is for {', '.join(sorted(_projects(hosts.aggregates[row])))}"


def _projects(aggregates: tuple[Aggregate, ...]) -> set[str]:
    metadata = aggregate_metadata.values(aggregates)
    return {value for key, values in metadata.items() if key.startswith("filter_tenant_id") for value in values}
