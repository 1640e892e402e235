# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Prefer hosts with many, or with few, servers of the group."""

from __future__ import annotations

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Floats, Hosts, Rows
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher


class ServerGroupSoftAffinityWeigher(Weigher):
    """Servers of the group that the host has, for groups of policy ``soft-affinity``."""

    name = "ServerGroupSoftAffinityWeigher"
    multiplier_option = "soft_affinity_weight_multiplier"
    least_multiplier = 0.0

    def concerns(self, spec: RequestSpec) -> bool:
        return spec.group is not None and spec.group.policy == "soft-affinity"

    def raw(self, hosts: Hosts, rows: Rows, spec: RequestSpec) -> Floats:
        return _members(hosts, rows, spec)


class ServerGroupSoftAntiAffinityWeigher(Weigher):
    """The fewer servers of the group a host has the better, for groups of policy ``soft-anti-affinity``."""

    name = "ServerGroupSoftAntiAffinityWeigher"
    multiplier_option = "soft_anti_affinity_weight_multiplier"
    least_multiplier = 0.0

    def concerns(self, spec: RequestSpec) -> bool:
        return spec.group is not None and spec.group.policy == "soft-anti-affinity"

    def raw(self, hosts: Hosts, rows: Rows, spec: RequestSpec) -> Floats:
        return -_members(hosts, rows, spec)


def _members(hosts: Hosts, rows: Rows, spec: RequestSpec) -> Floats:
    members = spec.group.members if spec.group else frozenset()
    return hosts.members(members)[rows].astype(np.float64)
