# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations


class ModuleDocFragment:
    """What hosts report, with what the inventory says of them."""

    DOCUMENTATION = r"""
options:
  reports:
    description:
      - What hosts report. M(barestack.kvm.compute_node) records it with I(state=present); M(barestack.kvm.schedule) needs it in
        check mode alone, where nothing was recorded.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The host's name in Ansible's inventory.
        type: str
        required: true
      hypervisor:
        description: What M(barestack.kvm.hypervisor_info) returned.
        type: dict
        required: true
      cpu_allocation_ratio:
        description: Virtual CPUs given out for each physical one.
        type: float
        default: 4.0
      ram_allocation_ratio:
        description: Memory given out for each MiB there is.
        type: float
        default: 1.0
      disk_allocation_ratio:
        description: Disk given out for each GiB there is.
        type: float
        default: 1.0
      reserved_host_cpus:
        description: CPUs kept for the host.
        type: int
        default: 0
      reserved_host_memory_mb:
        description: MiB kept for the host.
        type: int
        default: 512
      reserved_host_disk_mb:
        description: MiB of disk kept for the host.
        type: int
        default: 0
      resources:
        description:
          - Resource classes of the site's own. A name that begins with C(CUSTOM_) to how many there are, or to a mapping with
            C(total), C(reserved), C(allocation_ratio), C(min_unit), C(max_unit), C(step_size).
        type: dict
        default: {}
      traits:
        description: What the host has besides what it reports, such as C(CUSTOM_FAST_DISK).
        type: list
        elements: str
        default: []
"""
