# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Keep hosts that are set apart for a trait to those that require it."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Aggregate, Bools, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class IsolatedAggregates(Filter):
    """Passes hosts none of whose aggregates is set apart for a trait that the request does not require.

    An aggregate is set apart by ``trait:NAME: required`` in its metadata. Only with
    ``enable_isolated_aggregate_filtering``: Nova's request filter isolate_aggregates.
    """

    name = "IsolatedAggregates"
    once = always = holds_when_forced = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        if not self.options.enable_isolated_aggregate_filtering:
            return hosts.everywhere
        return hosts.aggregates.mask(lambda aggregates: not _foreign(aggregates, spec))

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        foreign = ", ".join(f"{name} (for {trait})" for name, trait in _foreign(hosts.aggregates[row], spec))
        return f"in {foreign}, which the request does not require"


def _foreign(aggregates: tuple[Aggregate, ...], spec: RequestSpec) -> list[tuple[str, str]]:
    """(aggregate, trait) of those that are set apart for a trait not required."""
    return [
        (item.name, key.removeprefix("trait:"))
        for item in aggregates
        for key, value in item.metadata.items()
        if key.startswith("trait:") and value == "required" and key.removeprefix("trait:") not in spec.required_traits
    ]
