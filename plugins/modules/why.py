#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: why
short_description: Why the scheduler would choose which host for a server
version_added: 0.1.0
description:
  - Decides as M(barestack.kvm.schedule) does, in a transaction that is rolled back, and says everything that was compared.
  - A server that exists is decided on as if it were asked for now and had no claim, each one alone. Servers that are only asked
    about are decided on together, as a boot would.
options:
  names:
    description: Names or ids of servers that exist.
    type: list
    elements: str
    default: []
  requests:
    description: Servers that are only asked about, as O(barestack.kvm.instance#module:requests).
    type: list
    elements: dict
    default: []
  hosts:
    description: Say something of these hosts only, and all of it. Without any, the first ten that fit and the first ten that do not.
    type: list
    elements: str
    default: []
extends_documentation_fragment:
  - barestack.kvm.decision
  - barestack.kvm.control_phase
attributes:
  check_mode:
    description: Changes nothing.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Why is it where it is?
  barestack.kvm.why:
    token: "{{ token.token }}"
    catalog: "{{ catalog }}"
    names: [web]
  register: why

- name: Why would kvm07 not do?
  barestack.kvm.why:
    token: "{{ token.token }}"
    catalog: "{{ catalog }}"
    requests:
      - {name: db, flavor: m1.large, image: debian-12, network: private}
    hosts: [kvm07]
"""

RETURN = r"""
why:
  description: The table of each server, for people.
  returned: always
  type: list
  elements: str
decisions:
  description:
    - For each server everything that was compared. C(name), C(host), C(alternates), C(hosts_entered), C(filters) with every host that each
      one removed, C(removed) with the reasons, C(weights) with each weigher's score, C(explain), and C(error) where the request
      cannot be read.
  returned: always
  type: list
  elements: dict
"""

from typing import Any, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control import lifecycle, placement, server_groups
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.phase import ControlPhase
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records, claims, instances
from ansible_collections.barestack.kvm.plugins.module_utils.control.request import parse
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import explain
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decision import Decision
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import parse_availability_zone
from ansible_collections.barestack.kvm.plugins.module_utils.control.session import identify
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import NotFound
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance, VmState
from ansible_collections.barestack.kvm.plugins.module_utils.phase import now, run_module
from sqlalchemy import Connection


class Why(ControlPhase):
    """Decides, and takes everything back."""

    name = "why"
    handles = ()
    role = "reader"
    argument_spec = {
        "names": {"type": "list", "elements": "str", "default": []},
        "requests": {"type": "list", "elements": "dict", "default": []},
        "hosts": {"type": "list", "elements": "str", "default": []},
        **placement.DECISION_SPEC,
    }

    def run(self) -> dict[str, Any]:
        """As every phase in the records, but nothing of it is ever committed."""
        self.identity = identify(self.params, self.role, self.check_mode)
        return Records(self.params["records_url"], check_mode=True).run(self._attempt)

    def work(self, connection: Connection) -> dict[str, Any]:
        """The servers that exist, then those that are only asked about."""
        self._catalog = Catalog.load(self.params["catalog"])
        self._now = now()
        answers = [self._again(connection, instance) for instance in self._existing(connection)]
        answers.append(self._decide(connection, self._asked_about(connection)))
        return {
            "why": [line for _data, lines in answers for line in lines],
            "decisions": [item for data, _lines in answers for item in data],
        }

    def _existing(self, connection: Connection) -> list[Instance]:
        rows, missing = lifecycle.resolve(connection, self.identity, self.params["names"])
        if missing:
            raise NotFound(f"No server with a name or id of {', '.join(map(repr, missing))} exists.")
        return instances.handles(connection, rows)

    def _again(self, connection: Connection, instance: Instance) -> tuple[list[dict[str, Any]], list[str]]:
        """A server as if it were asked for now; where it is, another one could be, which comes back after that."""
        with connection.begin_nested() as kept:
            claims.release(connection, [instance.uuid])
            new = lifecycle.again(connection, instance).with_(vm_state=VmState.BUILDING, attempts=())
            instances.save_all(connection, [new], self._now)
            data, lines = self._decide(connection, [new])
            kept.rollback()
        return data, [f"{lines[0]}; now on {instance.host or 'no host'}", *lines[1:]]

    def _asked_about(self, connection: Connection) -> list[Instance]:
        requested = parse(self.params["requests"], self._catalog, self.identity)
        if any(server.host or parse_availability_zone(server.availability_zone)[1] for server in requested):
            self.identity.require("admin")
        groups = server_groups.resolve(connection, self._catalog, self.identity, requested, self._now)
        return [
            lifecycle.requested(connection, self._catalog, self.identity, server, groups, self._now)
            for server in requested
        ]

    def _decide(self, connection: Connection, handle: Sequence[Instance]) -> tuple[list[dict[str, Any]], list[str]]:
        """(data, lines for people)."""
        if not handle:
            return [], []
        outcome = placement.decide(connection, self._catalog, handle, self.params, self._now, complete=True)
        decided = {decision.instance_uuid: decision for decision in outcome.decisions}
        data, lines = [], []
        for instance in handle:
            decision = decided.get(instance.uuid)
            if decision is None:
                data.append({"name": instance.name, "error": outcome.wrong[instance.uuid]})
                lines.append(f"{instance.name}: {outcome.wrong[instance.uuid]}")
            else:
                data.append({"name": instance.name, **explain.data(decision, complete=True)})
                lines.append(f"{instance.name}: {explain.counts(decision)}")
                lines.extend(f"  {line}" for line in self._table(decision))
        return data, lines

    def _table(self, decision: Decision) -> list[str]:
        if not self.params["hosts"]:
            return explain.table(decision)
        wanted = {name.lower() for name in self.params["hosts"]}
        known = {name.lower() for name in decision.names}
        lines = [line for line in explain.table(decision, complete=True) if line.split(" ", 1)[0].lower() in wanted]
        return lines + [f"{name} is not recorded" for name in self.params["hosts"] if name.lower() not in known]


PHASE = Why


def main() -> None:
    """Ansible's entry."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
