# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The weighers. To add one: a file beside this one, and its class in ``WEIGHERS``."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.build_failure import (
    BuildFailureWeigher,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.cpu import CPUWeigher
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.disk import DiskWeigher
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.hypervisor_version import (
    HypervisorVersionWeigher,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.image_properties import (
    ImagePropertiesWeigher,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.io_ops import IoOpsWeigher
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.metrics import MetricsWeigher
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.num_instances import (
    NumInstancesWeigher,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.pci import PCIWeigher
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.ram import RAMWeigher
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.server_group import (
    ServerGroupSoftAffinityWeigher,
    ServerGroupSoftAntiAffinityWeigher,
)

WEIGHERS: tuple[type[Weigher], ...] = (
    RAMWeigher,
    CPUWeigher,
    DiskWeigher,
    IoOpsWeigher,
    NumInstancesWeigher,
    HypervisorVersionWeigher,
    PCIWeigher,
    ServerGroupSoftAffinityWeigher,
    ServerGroupSoftAntiAffinityWeigher,
    BuildFailureWeigher,
    ImagePropertiesWeigher,
    MetricsWeigher,
)
