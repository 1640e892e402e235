# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts that are enabled."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Bools, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class ComputeStatus(Filter):
    """Passes hosts that nobody disabled.

    In Nova this is the request filter compute_status_filter, which forbids the trait COMPUTE_STATUS_DISABLED, so that a
    disabled host cannot be forced either.
    """

    name = "ComputeStatus"
    once = always = holds_when_forced = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        return hosts.enabled

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        why = hosts.disabled_reason[row]
        return f"disabled: {why}" if why else "disabled"
