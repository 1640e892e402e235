# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only the host that has the server's volumes."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.hosts import HostState
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class VolumeLocality(Filter):
    """Passes the host where the existing volumes lie that the server attaches; every host where it attaches none.

    Volumes on two hosts leave no host. In Cinder this is InstanceLocalityFilter, the other way round: the volume cannot
    move here either, so a forced host must have it too.
    """

    name = "VolumeLocality"

    def reason(self, host: HostState, spec: RequestSpec) -> str | None:
        elsewhere = [name for name in spec.volume_hosts if name != host.name]
        return f"volumes of the server lie on {', '.join(elsewhere)}" if elsewhere else None

    reason_when_forced = reason
