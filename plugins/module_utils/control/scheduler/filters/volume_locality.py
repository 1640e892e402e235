# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only the host that has the server's volumes."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Bools, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class VolumeLocality(Filter):
    """Passes the host where the existing volumes lie that the server attaches; every host where it attaches none.

    Volumes on two hosts leave no host. In Cinder this is InstanceLocalityFilter, the other way round: the volume cannot
    move here either, so a forced host must have it too.
    """

    name = "VolumeLocality"
    once = always = holds_when_forced = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        if not spec.volume_hosts:
            return hosts.everywhere
        mask = ~hosts.everywhere
        row = hosts.row(spec.volume_hosts[0])
        if row is not None and len(spec.volume_hosts) == 1:
            mask[row] = True
        return mask

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        elsewhere = [name for name in spec.volume_hosts if name.lower() != hosts.keys[row]]
        return f"volumes of the server lie on {', '.join(elsewhere)}"
