# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Keep some images to some hosts."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Bools, Hosts, flags
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class IsolatedHostsFilter(Filter):
    """Keeps ``isolated_images`` (ids) to ``isolated_hosts``, and other images off those hosts.

    With ``restrict_isolated_hosts_to_isolated_images`` false the isolated hosts take other images too. Without any
    ``isolated_images`` nothing may go to the isolated hosts, unless that option is false.
    """

    name = "IsolatedHostsFilter"
    once = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        if not self._isolated(spec) and not self.options.restrict_isolated_hosts_to_isolated_images:
            return hosts.everywhere
        isolated = set(self.options.isolated_hosts)
        mask = flags(name in isolated for name in hosts.names)
        return mask if self._isolated(spec) else ~mask

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        if self._isolated(spec):
            return f"image {spec.image.name} wants an isolated host, it is none"
        return f"it is an isolated host, image {spec.image.name} is not for it"

    def _isolated(self, spec: RequestSpec) -> bool:
        return spec.image.id in self.options.isolated_images
