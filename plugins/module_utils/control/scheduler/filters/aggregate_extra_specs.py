# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts whose aggregates have what the flavor's extra specs ask for."""

from __future__ import annotations

from collections.abc import Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Aggregate, Bools, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters import (
    aggregate_metadata,
    extra_specs_ops,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec

_SCOPE = "aggregate_instance_extra_specs"


class AggregateInstanceExtraSpecsFilter(Filter):
    """Passes hosts whose aggregates' metadata meets the flavor's extra specs.

    Those of scope ``aggregate_instance_extra_specs:`` and those without a scope count; each must be a key of the
    metadata, and one of its values must match (see ``extra_specs_ops`` for operators).
    """

    name = "AggregateInstanceExtraSpecsFilter"
    once = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        wanted = _wanted(spec)
        if not wanted:
            return hosts.everywhere
        return hosts.aggregates.mask(lambda aggregates: not _unmet(aggregates, wanted))

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        key, wanted, found = _unmet(hosts.aggregates[row], _wanted(spec))[0]
        has = f"its aggregates have {', '.join(sorted(found))}" if found else "its aggregates do not have it"
        return f"{key}: {wanted!r} wanted, {has}"


def _wanted(spec: RequestSpec) -> list[tuple[str, str]]:
    """(key, requirement); a key with the scope and one without may ask for the same, and then both count."""
    split = [(key.split(":", 1), wanted) for key, wanted in spec.flavor.extra_specs.items()]
    return [(path[-1], wanted) for path, wanted in split if len(path) == 1 or path[0] == _SCOPE]


def _unmet(aggregates: tuple[Aggregate, ...], wanted: Sequence[tuple[str, str]]) -> list[tuple[str, str, set[str]]]:
    """(key, requirement, values found) of those that are not met."""
    metadata = aggregate_metadata.values(aggregates)
    return [
        (key, requirement, metadata.get(key, set()))
        for key, requirement in wanted
        if not any(extra_specs_ops.match(value, requirement) for value in metadata.get(key, ()))
    ]
