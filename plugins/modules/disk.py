#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: disk
short_description: Root, ephemeral and swap disks of instances
version_added: 0.1.0
description:
  - Makes the disks that image and flavor ask for in the instance's directory, as Nova's image backends do, and lists
    them in the handle. The root disk has the size of the flavor's disk, or the image's where that is 0.
  - A disk is built under a temporary name and then renamed. One that exists is left alone, and is an error where it
    is not what it should be.
  - O(state=absent) removes the instance's directory.
options:
  images_type:
    description:
      - V(qcow2) makes overlays over the cached image.
      - V(flat) makes raw copies, for which there must be space.
    type: str
    choices: [qcow2, flat]
    default: qcow2
extends_documentation_fragment:
  - barestack.kvm.host_phase
  - barestack.kvm.paths
requirements:
  - qemu-img (qemu-utils)
  - mkfs.ext4 (e2fsprogs), for flavors with an ephemeral disk
  - mkswap (util-linux), for flavors with swap
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Make the disks
  barestack.kvm.disk:
    instances: "{{ fetched.instances }}"
  register: disks

- name: Make raw disks
  barestack.kvm.disk:
    instances: "{{ fetched.instances }}"
    images_type: flat

- name: Remove the disks of deleted servers
  barestack.kvm.disk:
    instances: "{{ servers }}"
    state: absent
"""

RETURN = r"""
instances:
  description:
    - The handle. With O(state=present) each instance has its C(disks).
    - An instance that failed has a C(fault), or with O(state=absent) is C(stuck).
  returned: always
  type: str
effects:
  description: What was changed, or in check mode would be, each as the effect's name and its target.
  returned: always
  type: list
  elements: str
  sample:
    - disk.root /var/lib/libvirt/images/barestack/3f1c5f2e-6f3c-4f0e-9a53-3d6f6c1d2b11/disk
"""

from typing import List

from ansible_collections.barestack.kvm.plugins.module_utils.host.disk import BACKENDS, Disks
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance
from ansible_collections.barestack.kvm.plugins.module_utils.phase import HostPhase, run_module


class DiskPhase(HostPhase):
    """The instance's own disks."""

    name = "disk"
    argument_spec = {
        **Paths.argument_spec,
        "images_type": {"type": "str", "choices": ["qcow2", "flat"], "default": "qcow2"},
    }

    def before(self, instances: List[Instance]) -> None:
        backend = BACKENDS[self.params["images_type"]]()
        self._disks = Disks(Paths.of(self.params), backend, self.effects)

    def present(self, instance: Instance) -> Instance:
        return self._disks.ensure(instance)

    def absent(self, instance: Instance) -> Instance:
        self._disks.remove(instance)
        return instance


PHASE = DiskPhase


def main() -> None:
    """Run the module."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
