# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts of the zone that was asked for."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Aggregate, Bools, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class AvailabilityZone(Filter):
    """Passes hosts of the requested availability zone; every host where the request names none.

    A host that no aggregate puts into a zone is in ``default_availability_zone`` ("nova"). In Nova this is the request
    filter map_az_to_placement_aggregate, so it holds for a forced host too. (Nova lets a request for the default zone
    land anywhere; here it means the hosts in no other zone, as its ``availability zone list`` shows them.)
    """

    name = "AvailabilityZone"
    once = always = holds_when_forced = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        wanted = spec.availability_zone
        return hosts.aggregates.mask(lambda item: self._zone(item) == wanted) if wanted else hosts.everywhere

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        return f"zone {spec.availability_zone} wanted, in {self._zone(hosts.aggregates[row])}"

    def _zone(self, aggregates: tuple[Aggregate, ...]) -> str:
        zones = (item.availability_zone for item in aggregates if item.availability_zone)
        return next(zones, self.options.default_availability_zone)
