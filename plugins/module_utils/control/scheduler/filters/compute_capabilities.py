# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts with the capabilities that the flavor's extra specs ask for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Bools, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters import attributes, extra_specs_ops
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class ComputeCapabilitiesFilter(Filter):
    """Passes hosts that meet every ``capabilities:<name>[:<name>...]`` extra spec of the flavor.

    The names walk through what the host reports (``capabilities:cpu_info:arch``); a value that is not reported
    fails. A key without a colon counts only where the host reports it; keys of another scope (``hw:``, ``quota:``) are
    not for this filter, but for ``hw:maxphysaddr_bits``, which asks for at least so many bits of physical addresses.
    The value may start with an operator (see ``extra_specs_ops``).
    """

    name = "ComputeCapabilitiesFilter"
    once = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        mask = hosts.everywhere
        for item in _requirements(spec.flavor.extra_specs):
            mask = mask & attributes.column(hosts, item.path[0]).mask(item.meets)
        return mask

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        for item in _requirements(spec.flavor.extra_specs):
            value = attributes.column(hosts, item.path[0])[row]
            if not item.meets(value):
                found = attributes.walk(value, item.path[1:])
                return f"{item.key}: {item.wanted!r} wanted, {'not' if found is None else repr(str(found))} reported"
        return ""


class _Requirement(NamedTuple):
    key: str
    path: Sequence[str]
    wanted: str
    optional: bool = False
    """Says nothing of hosts that do not report it."""

    def meets(self, value: Any) -> bool:
        """Whether what a host has under the path's first name meets it."""
        if value is None and self.optional:
            return True
        found = attributes.walk(value, self.path[1:])
        return found is not None and extra_specs_ops.match(str(found), self.wanted)


def _requirements(extra_specs: Mapping[str, str]) -> Iterator[_Requirement]:
    """Those extra specs that are for this filter."""
    for key, wanted in extra_specs.items():
        scope, *path = key.split(":")
        if key == "hw:maxphysaddr_bits":
            yield _Requirement(key, ("cpu_info", "maxphysaddr", "bits"), f">= {wanted}")
        elif not path:
            yield _Requirement(key, (scope,), str(wanted), optional=True)
        elif scope == "capabilities":
            yield _Requirement(key, path, str(wanted))
