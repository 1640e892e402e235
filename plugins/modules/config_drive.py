#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: config_drive
short_description: Config drives of instances
version_added: 0.1.0
description:
  - Builds an ISO 9660 image labelled C(config-2) with C(meta_data.json), C(network_data.json), C(vendor_data.json)
    and C(user_data), as Nova builds it and cloud-init's ConfigDrive source reads it.
  - Applies to instances with C(config_drive), and to those whose image has the property C(img_config_drive)
    V(mandatory).
  - A drive that exists is left as it is, as in Nova. The diff names its files and never shows what is in them.
extends_documentation_fragment:
  - barestack.kvm.host_phase
  - barestack.kvm.paths
requirements:
  - pycdlib (python3-pycdlib)
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Build the config drives
  barestack.kvm.config_drive:
    instances: "{{ disks.instances }}"
  register: drives
"""

RETURN = r"""
instances:
  description:
    - The handle. With O(state=present) the config drive is among C(disks).
    - An instance that failed has a C(fault), or with O(state=absent) is C(stuck).
  returned: always
  type: str
effects:
  description: What was changed, or in check mode would be, each as the effect's name and its target.
  returned: always
  type: list
  elements: str
  sample:
    - config_drive.iso /var/lib/libvirt/images/barestack/3f1c5f2e-6f3c-4f0e-9a53-3d6f6c1d2b11/disk.config
"""

from typing import List

from ansible_collections.barestack.kvm.plugins.module_utils.host.config_drive import ConfigDrives
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance
from ansible_collections.barestack.kvm.plugins.module_utils.phase import HostPhase, run_module


class ConfigDrive(HostPhase):
    """The instance's config drive."""

    name = "config_drive"
    argument_spec = {**Paths.argument_spec}

    def before(self, instances: List[Instance]) -> None:
        self._drives = ConfigDrives(Paths.of(self.params), self.effects)

    def present(self, instance: Instance) -> Instance:
        return self._drives.ensure(instance)

    def absent(self, instance: Instance) -> Instance:
        self._drives.remove(instance)
        return instance


PHASE = ConfigDrive


def main() -> None:
    """Run the module."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
