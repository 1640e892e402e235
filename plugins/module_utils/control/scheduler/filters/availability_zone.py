# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts of the zone that was asked for."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.hosts import HostState
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class AvailabilityZone(Filter):
    """Passes hosts of the requested availability zone; every host where the request names none.

    A host that no aggregate puts into a zone is in ``default_availability_zone`` ("nova"). In Nova this is the request
    filter map_az_to_placement_aggregate, so it holds for a forced host too. (Nova lets a request for the default zone
    land anywhere; here it means the hosts in no other zone, as its ``availability zone list`` shows them.)
    """

    name = "AvailabilityZone"

    def reason(self, host: HostState, spec: RequestSpec) -> str | None:
        wanted = spec.availability_zone
        if not wanted:
            return None
        zone = host.zone or self.options.default_availability_zone
        return None if zone == wanted else f"zone {wanted} wanted, in {zone}"

    reason_when_forced = reason
