#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: image
short_description: Images in a compute host's cache
version_added: 0.1.0
description:
  - Fetches each image that the instances boot from once into the host's cache, named by the sha1 of its id as in
    Nova's C(_base).
  - A download that broke off, or was killed, is resumed. The checksum is verified before the image enters the cache,
    and of several runs at once one fetches while the others wait.
  - Refuses an image that is not of the format it claims (V(raw) or V(qcow2)), that names a backing file or an
    external data file, or that needs features which are not known, before QEMU or C(qemu-img) opens it freely.
  - An image in the cache is never written again. O(state=absent) leaves it there for the next server.
extends_documentation_fragment:
  - barestack.kvm.host_phase
  - barestack.kvm.paths
requirements:
  - qemu-img (qemu-utils)
  - prlimit (util-linux)
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Fetch the images of this host's servers
  barestack.kvm.image:
    instances: "{{ servers }}"
  register: fetched
"""

RETURN = r"""
instances:
  description:
    - The handle. It carries nothing new from this phase.
    - An instance that failed has a C(fault), or with O(state=absent) is C(stuck).
  returned: always
  type: str
effects:
  description: What was changed, or in check mode would be, each as the effect's name and its target.
  returned: always
  type: list
  elements: str
  sample:
    - image.base /var/lib/libvirt/images/barestack/_base/f2d1a8250ed3d4b744a8250dab8f6840179d502a
"""

from typing import List

from ansible_collections.barestack.kvm.plugins.module_utils.host.image import ImageCache
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance
from ansible_collections.barestack.kvm.plugins.module_utils.phase import HostPhase, run_module


class ImagePhase(HostPhase):
    """Each distinct image once, whichever instance comes first."""

    name = "image"
    argument_spec = {**Paths.argument_spec}

    def before(self, instances: List[Instance]) -> None:
        self._cache = ImageCache(Paths.of(self.params), self.effects)

    def present(self, instance: Instance) -> Instance:
        self._cache.ensure(instance.image)
        return instance

    def absent(self, instance: Instance) -> Instance:
        return instance


PHASE = ImagePhase


def main() -> None:
    """Run the module."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
