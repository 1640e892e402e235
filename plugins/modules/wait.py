#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: wait
short_description: Waits until servers are ready for use
version_added: 0.1.0
description:
  - ACTIVE says that a server runs, not that its guest is up. For each instance with C(wait_for) this waits until the
    guest has its DHCP lease (C(lease)), has written a text on its console (C(console)), or answers as an SSH server
    (C(ssh)).
  - All waits run side by side, each with its own deadline. Leases and consoles are watched with inotify.
  - A wait that fails is a C(fault) in this phase's handle only, with the last thing seen. The server stays ACTIVE.
  - Changes nothing. In check mode, and with O(state=absent), there is nothing to wait for.
options:
  max_concurrent_builds:
    description:
      - Taken, so that one C(module_defaults) serves all phases, but not used. All waits run side by side.
extends_documentation_fragment:
  - barestack.kvm.host_phase
  - barestack.kvm.paths
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Wait
  barestack.kvm.wait:
    instances: "{{ vif.instances }}"
  register: wait

- name: Servers that are not ready
  ansible.builtin.debug:
    msg: "{{ wait.instances | selectattr('fault') | map(attribute='fault.message') }}"
"""

RETURN = r"""
instances:
  description: The handle; an instance whose wait failed has a C(fault) whose C(phase) is V(wait).
  returned: success
  type: str
"""

from typing import Any, ClassVar, Dict, Mapping

from ansible_collections.barestack.kvm.plugins.module_utils.host import readiness
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance
from ansible_collections.barestack.kvm.plugins.module_utils.phase import HostPhase, run_module


class Wait(HostPhase):
    """One wait for each instance that asks for one."""

    name = "wait"
    argument_spec: ClassVar[Dict[str, Any]] = {**Paths.argument_spec}

    def __init__(self, params: Mapping[str, Any], effects: Effects) -> None:
        super().__init__({**params, "max_concurrent_builds": len(params["instances"])}, effects)
        self._paths = Paths.of(params)

    def present(self, instance: Instance) -> Instance:
        """Return once ready; Timeout at the deadline."""
        if instance.wait_for and not self.check_mode:
            readiness.wait(instance, instance.wait_for, self._paths)
        return instance

    def absent(self, instance: Instance) -> Instance:
        """Nothing was made."""
        return instance


PHASE = Wait


def main() -> None:
    run_module(PHASE)


if __name__ == "__main__":
    main()
