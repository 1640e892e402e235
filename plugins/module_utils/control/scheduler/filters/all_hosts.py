# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""No rule at all."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Bools, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class AllHostsFilter(Filter):
    """Passes every host."""

    name = "AllHostsFilter"
    once = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        return hosts.everywhere

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        return ""
