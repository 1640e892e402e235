# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The filters, in the order they are applied. To add one: a file beside this one, and its class in ``FILTERS``.

``DEFAULT`` is what is on besides those that are ``always``: Nova's default of ``enabled_filters``.
"""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.affinity import (
    DifferentHostFilter,
    SameHostFilter,
    SimpleCIDRAffinityFilter,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.aggregate_extra_specs import (
    AggregateInstanceExtraSpecsFilter,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.aggregate_images import (
    AggregateImagePropertiesIsolation,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.aggregate_multitenancy import (
    AggregateMultiTenancyIsolation,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.aggregate_tenants import (
    TenantAggregate,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.aggregate_traits import (
    IsolatedAggregates,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.aggregate_type_affinity import (
    AggregateTypeAffinityFilter,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.all_hosts import AllHostsFilter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.availability_zone import (
    AvailabilityZone,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.capacity import Capacity
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.compute import ComputeFilter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.compute_capabilities import (
    ComputeCapabilitiesFilter,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.compute_status import (
    ComputeStatus,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.image_properties import (
    ImagePropertiesFilter,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.io_ops import (
    AggregateIoOpsFilter,
    IoOpsFilter,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.isolated_hosts import (
    IsolatedHostsFilter,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.json_query import JsonFilter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.metrics import MetricsFilter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.num_instances import (
    AggregateNumInstancesFilter,
    NumInstancesFilter,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.numa_topology import (
    NUMATopologyFilter,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.pci_passthrough import (
    PciPassthroughFilter,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.server_group import (
    ServerGroupAffinityFilter,
    ServerGroupAntiAffinityFilter,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.traits import Traits
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.volume_locality import (
    VolumeLocality,
)

FILTERS: tuple[type[Filter], ...] = (
    ComputeStatus,
    AvailabilityZone,
    TenantAggregate,
    IsolatedAggregates,
    Traits,
    VolumeLocality,
    Capacity,
    ComputeFilter,
    ComputeCapabilitiesFilter,
    ImagePropertiesFilter,
    ServerGroupAntiAffinityFilter,
    ServerGroupAffinityFilter,
    AggregateImagePropertiesIsolation,
    AggregateInstanceExtraSpecsFilter,
    AggregateMultiTenancyIsolation,
    AggregateTypeAffinityFilter,
    AllHostsFilter,
    DifferentHostFilter,
    SameHostFilter,
    SimpleCIDRAffinityFilter,
    IsolatedHostsFilter,
    IoOpsFilter,
    AggregateIoOpsFilter,
    NumInstancesFilter,
    AggregateNumInstancesFilter,
    JsonFilter,
    MetricsFilter,
    NUMATopologyFilter,
    PciPassthroughFilter,
)

DEFAULT: tuple[str, ...] = (
    "ComputeFilter",
    "ComputeCapabilitiesFilter",
    "ImagePropertiesFilter",
    "ServerGroupAntiAffinityFilter",
    "ServerGroupAffinityFilter",
)
