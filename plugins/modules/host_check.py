#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: host_check
short_description: Say what a compute host lacks
version_added: 0.1.0
description:
  - Tries what the phases need on this host - commands, Python libraries, kernel features, room for disks, libvirt itself -
    and fails with one message that lists all that is missing.
  - Asking libvirt what it can do also fills its capability cache, which makes the first guest's definition take seconds
    or a minute on a host where nobody asked before.
  - Changes nothing.
options:
  commands:
    description: Commands that must be there; C(a|b) is either of the two.
    type: list
    elements: str
    default: []
  python_libraries:
    description: Libraries that this Python must be able to import.
    type: list
    elements: str
    default: []
  virt_type:
    description: V(auto) is V(kvm) where the CPU really has it, else V(qemu).
    type: str
    choices: [auto, kvm, qemu]
    default: auto
  minimum_free_gib:
    description: Room that the disks need, in GiB.
    type: float
    default: 2
extends_documentation_fragment:
  - barestack.kvm.paths
attributes:
  check_mode:
    description: Returns what is missing and does not fail, since the tasks before it did nothing.
    support: full
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Say what the host lacks
  barestack.kvm.host_check:
    commands: [ip, nft, dnsmasq, qemu-img, virsh]
    python_libraries: [libvirt, pyroute2]
"""

RETURN = r"""
problems:
  description: What is missing, a line each.
  returned: success
  type: list
  elements: str
  sample: []
virt_type:
  description: How guests will run here, V(kvm) or V(qemu).
  returned: success
  type: str
  sample: kvm
"""

from typing import Any, ClassVar, Dict, List

from ansible_collections.barestack.kvm.plugins.module_utils.host import preparation
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest.driver import kvm_usable
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest.hypervisor import resolve_virt_type
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError
from ansible_collections.barestack.kvm.plugins.module_utils.phase import Phase, run_module


class HostCheck(Phase):
    """Collect every problem before saying anything."""

    name = "host_check"
    argument_spec: ClassVar[Dict[str, Any]] = {
        **Paths.argument_spec,
        "commands": {"type": "list", "elements": "str", "default": []},
        "python_libraries": {"type": "list", "elements": "str", "default": []},
        "virt_type": {"type": "str", "choices": ["auto", "kvm", "qemu"], "default": "auto"},
        "minimum_free_gib": {"type": "float", "default": 2},
    }

    def run(self) -> Dict[str, Any]:
        """The problems, none outside check mode, and how guests will run."""
        virt_type = resolve_virt_type(self.params["virt_type"], kvm_usable())
        problems = self._problems(virt_type)
        if problems and not self.check_mode:
            raise HostError("this host cannot run guests yet:\n" + "\n".join(f"- {problem}" for problem in problems))
        return {"problems": problems, "virt_type": virt_type}

    def _problems(self, virt_type: str) -> List[str]:
        paths = Paths.of(self.params)
        return [
            *preparation.missing_commands(self.params["commands"]),
            *preparation.missing_libraries(self.params["python_libraries"]),
            *preparation.missing_kernel_features(),
            *preparation.missing_space(paths.instances_path, self.params["minimum_free_gib"]),
            *preparation.warm_libvirt(virt_type),
        ]


PHASE = HostCheck


def main() -> None:
    run_module(PHASE)


if __name__ == "__main__":
    main()
