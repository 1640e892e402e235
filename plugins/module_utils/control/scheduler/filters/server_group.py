# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Keep the servers of a group together, or apart."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Bools, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class ServerGroupAntiAffinityFilter(Filter):
    """Passes hosts that have fewer of the group's servers than ``max_server_per_host``, by default none.

    Only for groups of policy ``anti-affinity``.
    """

    name = "ServerGroupAntiAffinityFilter"

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        group = spec.group
        if not group or group.policy != "anti-affinity":
            return hosts.everywhere
        mask: Bools = hosts.members(group.members) < group.max_server_per_host
        if spec.instance_uuid in hosts.servers:  # it may stay where it is
            mask[hosts.servers[spec.instance_uuid]] = True
        return mask

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        group = spec.group
        assert group  # noqa: S101  without one every host passes
        return (
            f"at most {group.max_server_per_host} of group {group.name} wanted, "
            f"{hosts.members(group.members)[row]} there already"
        )


class ServerGroupAffinityFilter(Filter):
    """Passes the hosts that have servers of the group; every host as long as it has none.

    Only for groups of policy ``affinity``.
    """

    name = "ServerGroupAffinityFilter"

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        group = spec.group
        if not group or group.policy != "affinity":
            return hosts.everywhere
        mask: Bools = hosts.members(group.members) > 0
        return mask if mask.any() else hosts.everywhere

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        group = spec.group
        assert group  # noqa: S101  without one every host passes
        there = ", ".join(hosts.names[other] for other in hosts.members(group.members).nonzero()[0][:10])
        return f"together with group {group.name} wanted, which is on {there}"
