# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The filters, in the order they are applied. To add one: a file beside this one, and its class in ``FILTERS``."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.availability_zone import (
    AvailabilityZone,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.capacity import Capacity
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.compute import ComputeFilter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.compute_capabilities import (
    ComputeCapabilitiesFilter,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.image_properties import (
    ImagePropertiesFilter,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.volume_locality import (
    VolumeLocality,
)

FILTERS: tuple[type[Filter], ...] = (
    ComputeFilter,
    AvailabilityZone,
    VolumeLocality,
    Capacity,
    ComputeCapabilitiesFilter,
    ImagePropertiesFilter,
)
