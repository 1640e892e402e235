# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts with few servers."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Bools, Hosts, Ints
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters import aggregate_metadata
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec

_OPTION = "max_instances_per_host"


class NumInstancesFilter(Filter):
    """Passes hosts with fewer servers than ``max_instances_per_host``."""

    name = "NumInstancesFilter"

    def most(self, hosts: Hosts) -> Ints | int:
        """The limit, of all hosts or of each."""
        return self.options.max_instances_per_host

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        return hosts.num_instances < self.most(hosts)

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        most = self.most(hosts)
        limit = most if isinstance(most, int) else int(most[row])
        return f"fewer than {limit} servers wanted, {hosts.num_instances[row]} there"


class AggregateNumInstancesFilter(NumInstancesFilter):
    """The same, where an aggregate's ``max_instances_per_host`` goes before the option; the least of several."""

    name = "AggregateNumInstancesFilter"

    def most(self, hosts: Hosts) -> Ints | int:
        default = self.options.max_instances_per_host
        return hosts.aggregates.numbers(lambda item: aggregate_metadata.least(item, _OPTION, default)).astype("int64")
