#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: schedule
short_description: Choose a host for each server and claim its resources
version_added: 0.1.0
description:
  - Does what nova-scheduler and placement do. Filters and weighers run over the recorded hosts, and the claim is written in
    the transaction that checked the capacity.
  - CPUs of a server's own, memory of NUMA cells and PCI devices are claimed as amounts are. The hard policies of server groups
    are looked at in that transaction, too.
  - A server that already holds a claim keeps its host. A server that no host can take gets a fault that says which
    filter removed which host, with the values compared.
options:
  instances:
    description: The handle.
    type: list
    elements: dict
    required: true
  state:
    description: V(present) chooses and claims, V(absent) gives the claims back, V(rolled_back) those of servers that were rolled back.
    type: str
    choices: [present, rolled_back, absent]
    default: present
extends_documentation_fragment:
  - barestack.kvm.reports
  - barestack.kvm.decision
  - barestack.kvm.control_phase
attributes:
  check_mode:
    description: Computes in a transaction that is rolled back.
    support: full
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Schedule
  barestack.kvm.schedule:
    token: "{{ token.token }}"
    catalog: "{{ catalog }}"
    instances: "{{ instance.instances }}"
  register: schedule
"""

RETURN = r"""
instances:
  description: The handle, each server with its C(host).
  returned: always
  type: str
hosts:
  description: The hosts that have servers of this handle.
  returned: always
  type: list
  elements: str
decisions:
  description:
    - For each server that a host was looked for now, how many hosts entered, what removed which, and the weights of the others.
    - Of hosts that were removed and of hosts that fit the first ten are listed each.
  returned: always
  type: str
why:
  description: The same, short, for people.
  returned: always
  type: list
  elements: str
"""

from typing import Any, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control import inventory, placement
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.phase import ControlPhase
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import claims, instances
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import explain
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decision import Decision
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Fault, Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import now, run_module
from sqlalchemy import Connection


class Schedule(ControlPhase):
    """Place what has no claim yet."""

    name = "schedule"
    handles = ("instances", "decisions")
    argument_spec = {
        "instances": {"type": "list", "elements": "dict", "required": True},
        "state": {"type": "str", "choices": ["present", "rolled_back", "absent"], "default": "present"},
        "reports": inventory.REPORTS,
        **placement.DECISION_SPEC,
    }

    def work(self, connection: Connection) -> dict[str, Any]:
        """Dispatch by state."""
        if self.params["state"] == "present":
            self._catalog = Catalog.load(self.params["catalog"])
            self._options = placement.options_of(self.params)
            self._zones = placement.zones(self._catalog)
            return self._present(connection, self.handle(connection))
        if self.params["state"] == "rolled_back":
            return self._absent(connection, self.given_up(connection))
        return self._absent(connection, [i for i in self.handle(connection) if not i.stuck])

    def _absent(self, connection: Connection, handle: list[Instance]) -> dict[str, Any]:
        held = claims.release(connection, [instance.uuid for instance in handle])
        for instance in handle:
            if instance.uuid in held:
                self.effects.note("allocation.claim", instance.name, before=f"on {instance.host}\n")
        return {"instances": to_wire(handle), "decisions": {}, "why": []}

    def _present(self, connection: Connection, handle: list[Instance]) -> dict[str, Any]:
        if self.check_mode:  # compute_node wrote them in a transaction that was rolled back
            inventory.record(connection, self.params["reports"], now())
        kept = claims.holders(connection, [instance.uuid for instance in handle])
        wanting = [i for i in handle if i.uuid not in kept and not i.fault]
        decisions, made, faults = self._choose(connection, wanting) if wanting else ([], {}, {})
        why = self._tell(decisions, {instance.uuid: instance.name for instance in wanting})
        result = []
        for instance in handle:
            if instance.uuid in faults:
                instance = instance.with_(fault=faults[instance.uuid])
            elif instance.uuid in made:
                claim = made[instance.uuid]
                instance = instance.with_(numa_topology=claim.numa, pci_devices=claim.devices)
                instance = self._on(instance, claim.host)
            elif not instance.fault:
                instance = self._on(instance, kept[instance.uuid])
            result.append(instance)
        instances.save_all(connection, [new for new, old in zip(result, handle) if new.host != old.host], now())
        return {
            "instances": to_wire(result),
            "decisions": {decision.instance_uuid: explain.data(decision) for decision in decisions},
            "why": why,
        }

    def _choose(
        self, connection: Connection, wanting: list[Instance]
    ) -> tuple[Sequence[Decision], dict[str, claims.Claim], dict[str, Fault]]:
        """The decisions, the claims that came of them, and why the other servers have none."""
        outcome = placement.decide(connection, self._catalog, wanting, self.params, now())
        faults = {uuid: Fault("schedule", None, message, 400) for uuid, message in outcome.wrong.items()}
        for decision in outcome.decisions:
            if not decision.host:
                faults[decision.instance_uuid] = Fault("schedule", None, decision.explain)
        made = outcome.claims()
        for uuid, message in placement.against_policy(connection, outcome.specs, made).items():
            faults[uuid] = Fault("schedule", None, message, 400)
            del made[uuid]
        claims.claim(connection, made, outcome.generations)
        return outcome.decisions, made, faults

    def _tell(self, decisions: Sequence[Decision], names: dict[str, str]) -> list[str]:
        """For people: each server with its table."""
        why = []
        for decision in decisions:
            name, table = names[decision.instance_uuid], explain.table(decision)
            why.extend([f"{name}: {explain.counts(decision)}", *(f"  {line}" for line in table)])
            if decision.host:
                after = f"{decision.host}\n" + "".join(f"{line}\n" for line in table)
                self.effects.note("allocation.claim", name, after=after)
        return why

    def _on(self, instance: Instance, host: str) -> Instance:
        if host == instance.host:
            return instance
        zone = self._zones.get(host, self._options.default_availability_zone)
        return instance.with_(host=host, availability_zone=zone)


PHASE = Schedule


def main() -> None:
    """Ansible's entry."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
