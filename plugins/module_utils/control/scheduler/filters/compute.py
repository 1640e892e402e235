# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts that are in service."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Bools, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class ComputeFilter(Filter):
    """Passes hosts that are enabled and whose heartbeat is recent. A forced host may be down."""

    name = "ComputeFilter"
    once = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        return hosts.enabled & hosts.up

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        if not hosts.enabled[row]:
            return "disabled"
        return f"down: last seen {hosts.last_seen[row]}" if hosts.last_seen[row] else "down: never seen"
