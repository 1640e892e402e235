# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts with the capabilities that the flavor's extra specs ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters import extra_specs_ops
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.hosts import HostState
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class ComputeCapabilitiesFilter(Filter):
    """Passes hosts that meet every ``capabilities:<name>[:<name>...]`` extra spec of the flavor.

    The names walk through what the host reports (``capabilities:cpu_info:arch``); a value that is not reported
    fails. A key without a colon counts only where the host reports it; keys of another scope (``hw:``, ``quota:``) are
    not for this filter, but for ``hw:maxphysaddr_bits``, which asks for at least so many bits of physical addresses.
    The value may start with an operator (see ``extra_specs_ops``).
    """

    name = "ComputeCapabilitiesFilter"

    def reason(self, host: HostState, spec: RequestSpec) -> str | None:
        if not spec.flavor.extra_specs:
            return None
        for key, path, wanted in _requirements(host, spec.flavor.extra_specs):
            value = _lookup(host, path)
            if value is None:
                return f"{key}: {wanted!r} wanted, not reported"
            if not extra_specs_ops.match(str(value), wanted):
                return f"{key}: {wanted!r} wanted, {str(value)!r} reported"
        return None


def _requirements(host: HostState, extra_specs: Mapping[str, str]) -> Iterator[tuple[str, Sequence[str], str]]:
    """(key, path, requirement) of each extra spec that is for this filter."""
    for key, wanted in extra_specs.items():
        scope, *path = key.split(":")
        if key == "hw:maxphysaddr_bits":
            yield key, ("cpu_info", "maxphysaddr", "bits"), f">= {wanted}"
        elif not path:
            if scope in host.capabilities or scope in host.stats:
                yield key, (scope,), str(wanted)
        elif scope == "capabilities":
            yield key, path, str(wanted)


def _lookup(host: HostState, path: Sequence[str]) -> Any:
    """The value at ``path``, or None. Text on the way is read as JSON; ``stats`` hold what the host itself does not."""
    value: Any = host.capabilities.get(path[0])
    if value is None:
        value = host.stats.get(path[0])
    for name in path[1:]:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                return None
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
