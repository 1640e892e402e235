#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: instance_info
short_description: List servers
version_added: 0.1.0
description:
  - Lists the project's servers with their three states, host, addresses, age and fault; with the role C(admin) those of all projects.
options:
  names:
    description: Only these, by name or id; empty for all.
    type: list
    elements: str
    default: []
  all_projects:
    description: The servers of every project; needs the role C(admin).
    type: bool
    default: false
  console:
    description: Whether the consoles are to be read too; only answers on which hosts they are.
    type: bool
    default: false
extends_documentation_fragment:
  - barestack.kvm.control_phase
attributes:
  check_mode:
    description: Changes nothing anyway.
    support: full
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Servers
  barestack.kvm.instance_info:
    token: "{{ token.token }}"
    catalog: "{{ catalog }}"
  register: servers
"""

RETURN = r"""
instances:
  description: The servers, oldest first, as handles.
  returned: always
  type: list
  elements: dict
console_hosts:
  description: With O(console), the hosts that have these servers.
  returned: always
  type: list
  elements: str
table:
  description: The same for people, a line each.
  returned: always
  type: list
  elements: str
"""

from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control import lifecycle, report
from ansible_collections.barestack.kvm.plugins.module_utils.control.phase import ControlPhase
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import instances
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import NotFound
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import now, run_module
from sqlalchemy import Connection


class InstanceInfo(ControlPhase):
    """Reads only."""

    name = "instance_info"
    handles = ()
    role = "reader"
    argument_spec = {
        "names": {"type": "list", "elements": "str", "default": []},
        "all_projects": {"type": "bool", "default": False},
        "console": {"type": "bool", "default": False},
    }

    def work(self, connection: Connection) -> dict[str, Any]:
        """Load and lay out."""
        if self.params["all_projects"]:
            self.identity.require("admin")
        if self.params["names"]:
            rows, missing = lifecycle.resolve(connection, self.identity, self.params["names"])
            if missing:
                raise NotFound(f"No server with a name or id of {', '.join(map(repr, missing))} exists.")
        else:
            project = None if self.params["all_projects"] else self.identity.project_id
            rows = instances.of_project(connection, project)
        handle = instances.handles(connection, rows)
        consoles = sorted({i.host for i in handle if i.host}) if self.params["console"] else []
        return {"instances": to_wire(handle), "table": report.table(handle, now()), "console_hosts": consoles}


PHASE = InstanceInfo


def main() -> None:
    """Ansible's entry."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
