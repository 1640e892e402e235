# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts that are in service."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.hosts import HostState
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class ComputeFilter(Filter):
    """Passes hosts that are enabled and whose heartbeat is recent.

    A forced host may be down, but not disabled: in Nova the request filter compute_status_filter sees to the latter.
    """

    name = "ComputeFilter"

    def reason(self, host: HostState, spec: RequestSpec) -> str | None:
        disabled = self.reason_when_forced(host, spec)
        if disabled or host.up:
            return disabled
        return f"down: last seen {host.last_seen}" if host.last_seen else "down: never seen"

    def reason_when_forced(self, host: HostState, spec: RequestSpec) -> str | None:
        if host.enabled:
            return None
        return f"disabled: {host.disabled_reason}" if host.disabled_reason else "disabled"
