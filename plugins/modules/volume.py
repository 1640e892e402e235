#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: volume
short_description: The records of servers' volumes
version_added: 0.1.0
description:
  - Does Cinder's and Nova's part on the control host. The volumes of the handle's servers are placed on their hosts and
    the task state becomes C(block_device_mapping); M(barestack.kvm.volume_attachment) then makes them on the host.
  - A server without volumes goes on to C(spawning) at once.
options:
  instances:
    description: The handle.
    type: list
    elements: dict
    required: true
  state:
    description:
      - V(present) places the volumes.
      - V(rolled_back) takes the volumes that a failed server brought itself off its host again; existing ones stay there,
        and the server is booted again where they lie.
      - V(absent) drops a deleted server's mappings, and those volumes that go with it.
    type: str
    choices: [present, rolled_back, absent]
    default: present
extends_documentation_fragment:
  - barestack.kvm.control_phase
attributes:
  check_mode:
    description: Computes in a transaction that is rolled back.
    support: full
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Volumes
  barestack.kvm.volume:
    token: "{{ token.token }}"
    catalog: "{{ catalog }}"
    instances: "{{ firewall.instances }}"
"""

RETURN = r"""
attach_hosts:
  description: The hosts that have volumes to attach.
  returned: always
  type: list
  elements: str
instances:
  description: The handle.
  returned: always
  type: str
"""

from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control import lifecycle
from ansible_collections.barestack.kvm.plugins.module_utils.control.phase import ControlPhase, replaced
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import instances, volumes
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    Fault,
    Instance,
    TaskState,
    VmState,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import now, run_module
from sqlalchemy import Connection


class Volume(ControlPhase):
    """One method for each state."""

    name = "volume"
    argument_spec = {
        "instances": {"type": "list", "elements": "dict", "required": True},
        "state": {"type": "str", "choices": ["present", "rolled_back", "absent"], "default": "present"},
    }

    def work(self, connection: Connection) -> dict[str, Any]:
        """Dispatch by state."""
        if self.params["state"] == "rolled_back":
            handle = self.given_up(connection)
            for instance in handle:
                volumes.roll_back(connection, instance)
            return {"instances": to_wire(handle)}
        handle = self.handle(connection)
        if self.params["state"] == "absent":
            handle = [self._absent(connection, instance) for instance in handle]
        else:
            handle = self._present(connection, handle)
        attach = sorted({str(i.host) for i in handle if i.host and i.block_devices and not i.fault})
        return {"instances": to_wire(handle), "attach_hosts": attach}

    def _present(self, connection: Connection, handle: list[Instance]) -> list[Instance]:
        handle = [self._unless_nowhere(instance) for instance in handle]
        going = [i for i in handle if not i.fault and i.vm_state == VmState.BUILDING]
        going = lifecycle.advance(connection, going, _task_state, now())
        for instance in going:
            placed = [device.volume_id for device in instance.block_devices]
            if placed and volumes.place(connection, placed, str(instance.host)):
                names = ", ".join(device.volume_name for device in instance.block_devices)
                self.effects.note("volume.record", instance.name, after=f"{names} on {instance.host}\n")
        return replaced(handle, instances.write_events(connection, going))

    def _unless_nowhere(self, instance: Instance) -> Instance:
        if instance.fault or instance.vm_state != VmState.BUILDING or instance.host:
            return instance
        return instance.with_(
            fault=Fault(self.name, None, f"Server {instance.name} has no host: schedule it first", 409)
        )

    def _absent(self, connection: Connection, instance: Instance) -> Instance:
        if not instance.stuck and instance.block_devices and volumes.release(connection, instance):
            self.effects.note("volume.record", instance.name, before="attached\n")
        return instance


def _task_state(instance: Instance) -> str:
    return TaskState.BLOCK_DEVICE_MAPPING if instance.block_devices else TaskState.SPAWNING


PHASE = Volume


def main() -> None:
    """Ansible's entry."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
