# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts with the traits that are required, and without those that are forbidden."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Bools, Facts, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec

_IMAGE_PREFIXES = {
    "hw_cdrom_bus": "COMPUTE_STORAGE_BUS",
    "hw_disk_bus": "COMPUTE_STORAGE_BUS",
    "hw_video_model": "COMPUTE_GRAPHICS_MODEL",
    "hw_vif_model": "COMPUTE_NET_VIF_MODEL",
    "hw_architecture": "HW_ARCH",
    "hw_emulation_architecture": "COMPUTE_ARCH",
    "hw_viommu_model": "COMPUTE_VIOMMU",
}


class Traits(Filter):
    """Passes hosts that have every required trait and no forbidden one: placement's ``required=A,!B``.

    Traits come from the flavor's ``trait:NAME`` extra specs (``required`` or ``forbidden``) and the image's
    ``trait:NAME`` properties; with ``query_placement_for_image_type_support`` the image's format asks for
    COMPUTE_IMAGE_TYPE_..., and with ``image_metadata_prefilter`` its buses and models ask for the traits of theirs.
    """

    name = "Traits"
    once = always = holds_when_forced = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        required = self._required(spec)
        if not required and not spec.forbidden_traits:
            return hosts.everywhere

        def passes(facts: Facts) -> bool:
            return required <= facts.traits and not spec.forbidden_traits & facts.traits

        return hosts.facts.mask(passes)

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        held = hosts.facts[row].traits
        missing, unwanted = sorted(self._required(spec) - held), sorted(spec.forbidden_traits & held)
        reasons = [f"{', '.join(missing)} required, not among the {len(held)} that the host has"] if missing else []
        return " and ".join(reasons + ([f"{', '.join(unwanted)} forbidden, the host has it"] if unwanted else []))

    def _required(self, spec: RequestSpec) -> frozenset[str]:
        added = set()
        if self.options.query_placement_for_image_type_support:
            added.add(f"COMPUTE_IMAGE_TYPE_{spec.image.disk_format.upper()}")
        if self.options.image_metadata_prefilter:
            for key, prefix in _IMAGE_PREFIXES.items():
                value = spec.image.properties.get(key)
                if value:
                    added.add(f"{prefix}_{value.replace('-', '_').upper()}")
        return spec.required_traits | added if added else spec.required_traits
