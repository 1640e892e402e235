#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: volume_attachment
short_description: Volumes of instances, connected on a compute host
version_added: 0.1.0
description:
  - For each block device of the volume type V(directory), makes the volume's qcow2 file where there is none yet, and
    puts its C(connection_info) and its disk into the handle.
  - A file that exists keeps what is in it. It is an error where it is smaller than the volume, or no plain qcow2
    file.
  - O(state=absent) deletes the files of volumes with C(delete_on_termination), and leaves the others as they are.
extends_documentation_fragment:
  - barestack.kvm.host_phase
  - barestack.kvm.paths
requirements:
  - qemu-img (qemu-utils)
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Connect the volumes
  barestack.kvm.volume_attachment:
    instances: "{{ servers }}"
  register: volumes

- name: Let go of the volumes of deleted servers
  barestack.kvm.volume_attachment:
    instances: "{{ servers }}"
    state: absent
"""

RETURN = r"""
instances:
  description:
    - The handle. With O(state=present) the block devices have their C(connection_info), and the volumes are among
      C(disks).
    - An instance that failed has a C(fault), or with O(state=absent) is C(stuck).
  returned: always
  type: str
effects:
  description: What was changed, or in check mode would be, each as the effect's name and its target.
  returned: always
  type: list
  elements: str
  sample:
    - volume.disk /var/lib/libvirt/images/barestack/volumes/volume-9a0e6a47-91c3-4c6e-8f4e-1f5f0c0c7c55
"""

from typing import List

from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.host.volume import Volumes
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance
from ansible_collections.barestack.kvm.plugins.module_utils.phase import HostPhase, run_module


class VolumeAttachment(HostPhase):
    """The instance's data volumes."""

    name = "volume_attachment"
    argument_spec = {**Paths.argument_spec}

    def before(self, instances: List[Instance]) -> None:
        self._volumes = Volumes(Paths.of(self.params), self.effects)

    def present(self, instance: Instance) -> Instance:
        return self._volumes.attach(instance)

    def absent(self, instance: Instance) -> Instance:
        self._volumes.detach(instance)
        return instance


PHASE = VolumeAttachment


def main() -> None:
    """Run the module."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
