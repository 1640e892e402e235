#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: compute_node
short_description: The records of the compute hosts
version_added: 0.1.0
description:
  - Does what Nova's resource tracker reports. Writes what M(barestack.kvm.hypervisor_info) found on a host as its inventories, with
    reserved amounts and allocation ratios from the inventory, and its heartbeat.
  - Enables or disables a host for new servers, and forgets one that is gone.
options:
  state:
    description:
      - V(present) records the hosts in O(reports).
      - V(stale) only answers which of O(names) have no heartbeat younger than O(heartbeat_max_age).
      - V(enabled) and V(disabled) let new servers onto the hosts, or not. V(drained) is as V(disabled), for those who want to
        wait until the RV(left) servers are gone.
      - V(absent) forgets the hosts. One that has servers, or something of one to undo, is refused.
    type: str
    choices: [present, stale, enabled, disabled, drained, absent]
    default: present
  names:
    description: For the other states, the hosts' names.
    type: list
    elements: str
    default: []
  heartbeat_max_age:
    description: Seconds after which a host's report is stale.
    type: float
    default: 300
  reason:
    description: For I(state=disabled) and I(state=drained), why; the scheduler shows it.
    type: str
    default: ""
extends_documentation_fragment:
  - barestack.kvm.reports
  - barestack.kvm.control_phase
attributes:
  check_mode:
    description: Computes in a transaction that is rolled back.
    support: full
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Record a host
  barestack.kvm.compute_node:
    token: "{{ token.token }}"
    catalog: "{{ catalog }}"
    reports:
      - name: kvm01
        hypervisor: "{{ hostvars['kvm01'].hypervisor_info.hypervisor }}"
        cpu_allocation_ratio: 8
"""

RETURN = r"""
stale:
  description: The hosts whose report is missing or too old.
  returned: when O(state=stale)
  type: list
  elements: str
servers:
  description: For each host, the names of the servers that it has, or has something of to undo.
  returned: when enabled, disabled, drained or absent
  type: dict
left:
  description: A line for each host that has servers.
  returned: when enabled, disabled, drained or absent
  type: list
  elements: str
"""

from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control import inventory, placement
from ansible_collections.barestack.kvm.plugins.module_utils.control.phase import ControlPhase, pretty
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import compute_nodes
from ansible_collections.barestack.kvm.plugins.module_utils.phase import now, run_module
from sqlalchemy import Connection


class ComputeNode(ControlPhase):
    """One method for each state."""

    name = "compute_node"
    argument_spec = {
        "state": {
            "type": "str",
            "choices": ["present", "stale", "enabled", "disabled", "drained", "absent"],
            "default": "present",
        },
        "names": {"type": "list", "elements": "str", "default": []},
        "reports": inventory.REPORTS,
        "heartbeat_max_age": {"type": "float", "default": 300},
        "reason": {"type": "str", "default": ""},
    }

    def work(self, connection: Connection) -> dict[str, Any]:
        """Dispatch by state."""
        if self.params["state"] == "stale":
            return self._stale(connection)
        if self.params["state"] == "present":
            for name, before, after in inventory.record(connection, self.params["reports"], now()):
                if before != after:
                    known = pretty(before) if before else ""
                    self.effects.note("compute_node.record", name, before=known, after=pretty(after))
            return {}
        self.identity.require("admin")
        names = self.params["names"]
        for name in names:
            if self.params["state"] == "absent":
                if compute_nodes.remove(connection, name):
                    self.effects.note("compute_node.record", name, before="recorded\n")
            else:
                self._enable(connection, name, self.params["state"] == "enabled")
        servers = {name: compute_nodes.servers(connection, name) for name in names}
        left = [f"{name} has {len(has)} servers: {', '.join(has)}" for name, has in servers.items() if has]
        return {"servers": servers, "left": left}

    def _stale(self, connection: Connection) -> dict[str, Any]:
        limit = self.params["heartbeat_max_age"]
        time = now()
        fresh = {row.host for row in compute_nodes.rows(connection) if placement.age(row.updated_at, time) <= limit}
        return {"stale": [name for name in self.params["names"] if name not in fresh]}

    def _enable(self, connection: Connection, name: str, enabled: bool) -> None:
        rows = {row.host: (row.enabled, row.disabled_reason) for row in compute_nodes.rows(connection)}
        reason = "" if enabled else self.params["reason"]
        compute_nodes.set_enabled(connection, name, enabled, reason)
        if rows[name] != (enabled, reason):
            self.effects.note("compute_node.record", name, before=pretty(rows[name]), after=pretty((enabled, reason)))


PHASE = ComputeNode


def main() -> None:
    """Ansible's entry."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
