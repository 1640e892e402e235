#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: port
short_description: The ports of servers, with their MAC and IP addresses
version_added: 0.1.0
description:
  - Does what Neutron does for Nova's allocate_for_instance. A port is made for each network that a server asked for, with a MAC from
    the base C(fa:16:3e) and the address asked for or one from the allocation pools, and is bound to the server's host.
  - An address is taken in the transaction that saw it free.
options:
  instances:
    description: The handle.
    type: list
    elements: dict
    default: []
  requests:
    description:
      - Ports to make on their own, for servers that name them in C(nics). They outlive the server.
      - One that exists in the project under this name is left as it is; one on another network or with another address is
        refused.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The port's name.
        type: str
        required: true
      network:
        description: The network's name or id.
        type: str
        required: true
      fixed_ip:
        description: The address wanted; without it one from the allocation pools.
        type: str
      security_groups:
        description: Names or ids of security groups.
        type: list
        elements: str
        default: [default]
  names:
    description: For I(state=absent), names or ids of such ports to delete; one that a server has is refused.
    type: list
    elements: str
    default: []
  state:
    description:
      - V(present) makes and binds the ports, V(absent) gives them back with their addresses.
      - V(rolled_back) takes the ports of servers that are tried on another host off their host, with their addresses, and gives
        back those of servers that are not.
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
- name: Port
  barestack.kvm.port:
    token: "{{ token.token }}"
    catalog: "{{ catalog }}"
    instances: "{{ schedule.instances }}"
  register: allocated

- name: A port with a known address, for a server that is not there yet
  barestack.kvm.port:
    token: "{{ token.token }}"
    catalog: "{{ catalog }}"
    requests:
      - name: db-address
        network: private
        fixed_ip: 10.133.0.5
"""

RETURN = r"""
instances:
  description: The handle, each server with its C(ports).
  returned: always
  type: str
ports:
  description: The ports of O(requests), each with C(id), C(mac_address) and C(fixed_ips).
  returned: always
  type: list
  elements: dict
"""

import contextlib
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control import lifecycle, networking
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.phase import ControlPhase, pretty, replaced
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import ports
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    Fault,
    Instance,
    TaskState,
    VmState,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import now, run_module
from sqlalchemy import Connection


class PortRecord(ControlPhase):
    """One method for each state."""

    name = "port"
    argument_spec = {
        "instances": {"type": "list", "elements": "dict", "default": []},
        "requests": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "name": {"type": "str", "required": True},
                "network": {"type": "str", "required": True},
                "fixed_ip": {"type": "str"},
                "security_groups": {"type": "list", "elements": "str", "default": ["default"]},
            },
        },
        "names": {"type": "list", "elements": "str", "default": []},
        "state": {"type": "str", "choices": ["present", "rolled_back", "absent"], "default": "present"},
    }

    def work(self, connection: Connection) -> dict[str, Any]:
        """Dispatch by state."""
        if self.params["state"] == "rolled_back":
            return self._rolled_back(connection)
        self._catalog = Catalog.load(self.params["catalog"])
        handle = self.handle(connection)
        if self.params["state"] == "absent":
            handle = [self._absent(connection, instance) for instance in handle]
            for name in self.params["names"]:
                if networking.delete_port(connection, self.identity.project_id, name):
                    self.effects.note("port.record", name, before="allocated\n")
            return {"instances": to_wire(handle), "ports": []}
        handle = self._present(connection, handle)
        own = self._own_ports(connection)
        return {"instances": to_wire(handle), "ports": to_wire(own)}

    def _own_ports(self, connection: Connection) -> list[dict[str, Any]]:
        answer = []
        for request in self.params["requests"]:
            port, made = networking.ensure_port(connection, self._catalog, self.identity.project_id, request)
            if made:
                self.effects.note("port.record", request["name"], after=pretty(port))
            answer.append(port)
        return answer

    def _present(self, connection: Connection, handle: list[Instance]) -> list[Instance]:
        good = [instance for instance in handle if not instance.fault]
        good = lifecycle.advance(connection, good, lambda _: TaskState.NETWORKING, now())
        taken = networking.Taken(connection)
        handle = replaced(handle, [self._allocate(connection, instance, taken) for instance in good])
        good = [instance for instance in handle if not instance.fault]
        networking.bind(connection, good)
        good, refreshed = networking.refresh_groups(connection, self._catalog, ports.attach(connection, good))
        for effect, target, what in refreshed:
            self.effects.note(effect, target, after=pretty(what))
        return replaced(handle, good)

    def _allocate(self, connection: Connection, instance: Instance, taken: networking.Taken) -> Instance:
        try:
            with connection.begin_nested() if instance.networks else contextlib.nullcontext():
                made = networking.allocate(connection, instance, taken)
        except BarestackError as error:
            taken.forget()
            return instance.with_(fault=Fault("port", None, str(error), error.code))
        for effect, target, what in made:
            self.effects.note(effect, target, after=pretty(what))
        return instance

    def _rolled_back(self, connection: Connection) -> dict[str, Any]:
        handle = self.given_up(connection)
        for instance in handle:
            keep = instance.vm_state == VmState.BUILDING
            for effect, target in networking.deallocate(connection, instance, keep):
                self.effects.note(effect, target, before=f"bound to {instance.host}\n")
        return {"instances": to_wire(handle), "ports": []}

    def _absent(self, connection: Connection, instance: Instance) -> Instance:
        if instance.stuck:
            return instance
        for effect, target in networking.deallocate(connection, instance):
            self.effects.note(effect, target, before="allocated\n")
        return instance


PHASE = PortRecord


def main() -> None:
    """Ansible's entry."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
