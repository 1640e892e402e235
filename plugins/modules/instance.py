#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: instance
short_description: The record of a server, from its request to its end
version_added: 0.1.0
description:
  - Does what nova-api and nova-conductor do with an instance's record.
  - With I(state=present) the request and the scheduler's options and rules are checked as a whole before anything is written,
    then each server's record is made (or found) and the handle that the next phases take is returned.
  - With I(state=building) the task state is set and the events of the phases so far are written.
  - With I(state=active) servers that every phase carried out become ACTIVE, and a notification is sent. The others are
    given up here, to be rolled back.
  - With I(state=rolled_back) servers that were rolled back are ready for the next attempt on another host, or become
    ERROR with the faults of all attempts.
  - With I(state=recorded) ACTIVE servers are returned as they are recorded, to carry them through their host's phases again.
  - With I(state=deleting) servers are looked up by name or id and marked; with I(state=absent) their records are closed.
options:
  state:
    description: What to do, see the description.
    type: str
    choices: [present, recorded, building, active, rolled_back, deleting, absent]
    default: present
  requests:
    description:
      - For I(state=present), the servers wanted. Each entry uses the parameter names of M(openstack.cloud.server), and C(count).
    type: list
    elements: dict
    default: []
  names:
    description: For I(state=deleting) and I(state=recorded), names or ids of servers.
    type: list
    elements: str
    default: []
  hosts:
    description: For I(state=recorded), compute hosts, all of whose servers are meant.
    type: list
    elements: str
    default: []
  instances:
    description: For the other states, the handle.
    type: list
    elements: dict
    default: []
  earlier:
    description: For I(state=active) and I(state=rolled_back), the handle that the attempt before returned; its other servers are passed on.
    type: list
    elements: dict
    default: []
  max_attempts:
    description: For I(state=active), on how many hosts a server is tried before it ends in ERROR.
    type: int
    choices: [1, 2, 3]
    default: 3
  lease_timeout:
    description: How many seconds to wait for servers that another run is at work on, before they are left to it.
    type: float
    default: 600
  task_state:
    description: For I(state=building), Nova's task state.
    type: str
    choices: [scheduling, networking, block_device_mapping, spawning]
  notification_file:
    description: Where notifications are appended, one CloudEvents JSON object a line; empty for none.
    type: path
    default: /var/lib/barestack/control/notifications.jsonl
  notification_url:
    description: Where notifications are sent as a CloudEvents batch by POST; empty for none.
    type: str
    default: ""
extends_documentation_fragment:
  - barestack.kvm.decision.scheduler
  - barestack.kvm.control_phase
attributes:
  check_mode:
    description: Computes in a transaction that is rolled back.
    support: full
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Instance record
  barestack.kvm.instance:
    token: "{{ token.token }}"
    catalog: "{{ catalog }}"
    requests:
      - name: web
        flavor: m1.small
        image: debian-12
        network: private
        count: 3
  register: instance
"""

RETURN = r"""
instances:
  description: The handle, in the order of the request.
  returned: always
  type: str
to_undo:
  description: The servers that have to be rolled back, or that an earlier run left to be.
  returned: when present, active or deleting
  type: str
failures:
  description: How many those are.
  returned: when present, active or deleting
  type: int
undo_hosts:
  description: The hosts that they were placed on.
  returned: when present, active or deleting
  type: list
  elements: str
waiting:
  description: For I(state=active), the hosts with servers that are waited for.
  returned: when active
  type: list
  elements: str
retry:
  description: The servers that are tried on another host.
  returned: when rolled_back
  type: str
retrying:
  description: How many those are.
  returned: when rolled_back
  type: int
hosts:
  description: The hosts that the next phases go to.
  returned: always
  type: list
  elements: str
found:
  description: For I(state=deleting), how many servers were found.
  returned: when deleting
  type: int
missing:
  description: For I(state=deleting), what named no server.
  returned: when deleting
  type: list
  elements: str
"""

from typing import Any, Callable, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control import lifecycle, notify, placement
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.leasing import LeasingPhase
from ansible_collections.barestack.kvm.plugins.module_utils.control.phase import pretty, replaced
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import (
    compute_nodes,
    instances,
    ports,
    residues,
    volumes,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.request import Requested, parse
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import SCHEDULER_SPEC
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import parse_availability_zone
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    Fault,
    Instance,
    PortStatus,
    PowerState,
    TaskState,
    VmState,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import now, run_module
from sqlalchemy import Connection


class InstanceRecord(LeasingPhase):
    """One method for each state."""

    name = "instance"
    handles = ("instances", "to_undo", "retry")
    argument_spec = {
        "state": {
            "type": "str",
            "choices": ["present", "recorded", "building", "active", "rolled_back", "deleting", "absent"],
            "default": "present",
        },
        "requests": {"type": "list", "elements": "dict", "default": []},
        "names": {"type": "list", "elements": "str", "default": []},
        "hosts": {"type": "list", "elements": "str", "default": []},
        "instances": {"type": "list", "elements": "dict", "default": []},
        "earlier": {"type": "list", "elements": "dict", "default": []},
        "max_attempts": {"type": "int", "choices": [1, 2, 3], "default": 3},
        "task_state": {
            "type": "str",
            "choices": [
                TaskState.SCHEDULING,
                TaskState.NETWORKING,
                TaskState.BLOCK_DEVICE_MAPPING,
                TaskState.SPAWNING,
            ],
        },
        "notification_file": {"type": "path", "default": "/var/lib/barestack/control/notifications.jsonl"},
        "notification_url": {"type": "str", "default": ""},
        **SCHEDULER_SPEC,
    }

    def work(self, connection: Connection) -> dict[str, Any]:
        """Dispatch by state."""
        self._now = now()
        self._notifications: list[dict[str, Any]] = []
        act: Callable[[Connection], dict[str, Any]] = getattr(self, f"_{self.params['state']}")
        return act(connection)

    def committed(self) -> dict[str, Any]:
        """Send what happened; a receiver that is down is a warning, the servers are what they are."""
        super().committed()
        targets = (self.params["notification_file"], notify.append), (self.params["notification_url"], notify.post)
        warnings = notify.send(self.effects, self._notifications, targets)
        return {"warnings": warnings} if warnings else {}

    def _present(self, connection: Connection) -> dict[str, Any]:
        placement.check(self.params)  # here, where nothing is written yet
        catalog = Catalog.load(self.params["catalog"])
        requested = parse(self.params["requests"], catalog, self.identity)
        rows = instances.in_project(connection, self.identity.project_id, [server.name for server in requested])
        busy = self.lease(connection, rows.values())
        if busy and self.patient:
            return {"busy": [name for name, row in rows.items() if row.uuid in busy]}
        if any(server.host or parse_availability_zone(server.availability_zone)[1] for server in requested):
            self.identity.require("admin")  # as Nova's policies for host and for zone:host
        lifecycle.check_existing(requested, rows)
        lifecycle.check_quota(
            connection, catalog, self.identity, [server for server in requested if server.name not in rows]
        )
        found = {i.name: i for i in instances.handles(connection, list(rows.values()))}
        new = self._create(connection, catalog, [server for server in requested if server.name not in found])
        handle = []
        for server in requested:
            instance = found.get(server.name) or new[server.name]
            if server.name in new:
                self.effects.note("instance.record", instance.name, after=pretty(server.to_record()))
            elif instance.uuid in busy:
                instance = self.left(instance)
            elif instance.vm_state == VmState.ERROR:
                instance = lifecycle.retry(connection, catalog, self.identity, instance, server)
                instances.save(connection, instance, self._now)
                instances.start_actions(connection, [instance], "create", self.identity.user_id, self._now)
                self.note_state(instance, VmState.ERROR, VmState.BUILDING)
            elif instance.attempts:  # of a run that was killed: this one begins anew
                instance = instance.with_(attempts=(), fault=None)
                instances.save(connection, instance, self._now)
            handle.append(instance.with_(wait_for=server.wait_for))
        left = residues.of(connection, [instance.uuid for instance in handle if instance.uuid not in busy])
        return {"instances": to_wire(handle), **_to_undo(left)}

    def _create(self, connection: Connection, catalog: Catalog, requested: Sequence[Requested]) -> dict[str, Instance]:
        """Name to server, of those that there were none of: with their leases."""
        made = lifecycle.create(connection, catalog, self.identity, requested, self._now)
        self.lease(connection, made)
        return {instance.name: instance for instance in made}

    def _recorded(self, connection: Connection) -> dict[str, Any]:
        self.identity.require("admin")
        rows = instances.active(connection, self.params["hosts"], self.params["names"])
        left = residues.on(connection, self.params["hosts"])
        busy = self.lease(connection, {server.uuid: server for server in (*rows, *left)}.values())
        if busy and self.patient:
            return {"busy": sorted({server.name for server in (*rows, *left) if server.uuid in busy})}
        handle = [self.left(i) if i.uuid in busy else i for i in instances.handles(connection, rows)]
        return {"instances": to_wire(handle), **_to_undo([item for item in left if item.uuid not in busy])}

    def _building(self, connection: Connection) -> dict[str, Any]:
        handle = self.handle(connection)
        good = [instance for instance in handle if not instance.fault]
        good = lifecycle.advance(connection, good, lambda _: self.params["task_state"], self._now)
        return {"instances": to_wire(replaced(handle, instances.write_events(connection, good)))}

    def _active(self, connection: Connection) -> dict[str, Any]:
        handle, failed = [], []
        for instance in self._finish(connection, self.handle(connection)):
            if instance.fault and instance.vm_state == VmState.BUILDING and instance.task_state != TaskState.DELETING:
                instance = lifecycle.give_up(connection, instance, self.params["max_attempts"], self._now)
                failed.append(instance)
            handle.append(instance)
        self.release(connection, [instance for instance in handle if instance not in failed])
        everyone = self._with_earlier(handle)
        waiting = sorted({str(instance.host) for instance in everyone if instance.wait_for and not instance.fault})
        return {"instances": to_wire(everyone), "waiting": waiting, **_to_undo(failed)}

    def _finish(self, connection: Connection, handle: list[Instance]) -> list[Instance]:
        """ACTIVE, those that run. One that is ACTIVE already stays so, whatever failed in this run."""
        handle = [self._unless_off(instance) for instance in handle]
        ready = [i for i in handle if not i.fault and i.vm_state != VmState.ACTIVE]
        done = [
            instance.with_(
                vm_state=VmState.ACTIVE,
                task_state=None,
                attempts=(),
                power_state=PowerState.RUNNING,
                launched_at=instance.launched_at or self._now,
            )
            for instance in ready
        ]
        instances.save_all(connection, done, self._now)
        active = [port.id for i in done for port in i.ports if port.status == PortStatus.ACTIVE]
        if active:
            ports.set_status(connection, active, PortStatus.ACTIVE)
        for instance in done:
            if instance.block_devices:
                volumes.attached(connection, instance)
        compute_nodes.built(connection, {instance.host for instance in done if instance.host})
        done = instances.write_events(connection, done)
        instances.finish_actions(connection, done, self._now)
        for before, instance in zip(ready, done):
            self.note_state(instance, f"{before.vm_state}/{before.task_state}", f"{instance.vm_state}/None")
            self._notifications.append(notify.cloud_event("instance.create.end", instance, self._now))
        return replaced(handle, done)

    def _unless_off(self, instance: Instance) -> Instance:
        if instance.power_state == PowerState.RUNNING or instance.fault:
            return instance
        message = f"the guest is {instance.power_state}, not {PowerState.RUNNING}: not every phase was carried out"
        return instance.with_(fault=Fault(self.name, instance.host, message))

    def _rolled_back(self, connection: Connection) -> dict[str, Any]:
        failed, retry, going, warnings = [], [], [], []
        for given, instance in self.pairs(connection):
            if given.stuck:
                warnings.append(f"{given.host} has yet to undo what it made of {given.name}: {given.stuck.message}")
            else:
                residues.remove(connection, [given])
            if instance.task_state == TaskState.DELETING and given.host == instance.host:
                going.append(instance)  # the run that is to delete it waits for the lease
            if not self.ends_here(given, instance):
                continue
            self._count_failure(connection, instance)
            if instance.vm_state == VmState.BUILDING and not (given.stuck and instance.may_run):
                warnings.extend(f"{instance.name} is tried on another host: {why}" for why in instance.attempts[-1:])
                retry.append(self._again(connection, instance))
            else:
                failed.append(self._failed(connection, instance))
        self.release(connection, [*failed, *going])
        return {
            "instances": to_wire(self._with_earlier(failed)),
            "retry": to_wire(retry),
            "retrying": len(retry),
            "warnings": warnings,
        }

    def _deleting(self, connection: Connection) -> dict[str, Any]:
        rows, missing = lifecycle.resolve(connection, self.identity, self.params["names"])
        busy = self.lease(connection, rows)
        handle = []
        known = instances.handles(connection, rows)
        marked = [i.with_(task_state=TaskState.DELETING) for i in known if i.task_state != TaskState.DELETING]
        instances.finish_actions(connection, marked, self._now, "Deleted")
        instances.start_actions(connection, marked, "delete", self.identity.user_id, self._now)
        instances.save_all(connection, marked, self._now)
        for instance in marked:
            self.note_state(instance, instance.vm_state, TaskState.DELETING)
        for instance in replaced(known, marked):
            stuck = self.left(instance).fault if instance.uuid in busy else None
            handle.append(instance.with_(fault=None, stuck=stuck))
        if busy and self.patient:
            return {"busy": [instance.name for instance in handle if instance.uuid in busy]}
        ours = {instance.uuid: instance.host for instance in handle if instance.uuid not in busy}
        elsewhere = [left for left in residues.of(connection, list(ours)) if left.host != ours[left.uuid]]
        return {"instances": to_wire(handle), "missing": missing, "found": len(handle), **_to_undo(elsewhere)}

    def _absent(self, connection: Connection) -> dict[str, Any]:
        handle = self.handle(connection)
        instances.write_events(connection, handle)
        gone = [instance for instance in handle if not instance.stuck]
        residues.remove(connection, gone)
        instances.finish_actions(connection, gone, self._now)
        instances.delete(connection, [instance.uuid for instance in gone], self._now)
        for instance in gone:
            self.effects.note("instance.record", instance.name, before=pretty({"uuid": instance.uuid}))
            deleted = instance.with_(vm_state=VmState.DELETED, task_state=None)
            self._notifications.append(notify.cloud_event("instance.delete.end", deleted, self._now))
        self.release(connection, handle)
        return {"instances": to_wire(handle)}

    def _again(self, connection: Connection, instance: Instance) -> Instance:
        """Out of a failed attempt, into the next."""
        before = f"{instance.vm_state}/{instance.task_state} on {instance.host}"
        instances.write_events(connection, [instance])
        instance = lifecycle.again(connection, instance).with_(events=())
        instances.save(connection, instance, self._now)
        self.note_state(instance, before, f"{instance.vm_state}/{instance.task_state}")
        return instance

    def _failed(self, connection: Connection, instance: Instance) -> Instance:
        """ERROR for good. One that is stuck keeps its host, which has to undo it first."""
        before = instance.vm_state
        instance = instance.with_(
            vm_state=VmState.ERROR,
            task_state=None,
            host=instance.host if instance.stuck and instance.may_run else None,
            fault=instance.fault or instance.stuck,
        )
        if instances.save(connection, instance, self._now):
            instances.write_events(connection, [instance])
            instances.finish_actions(connection, [instance], self._now, "Error")
            self.note_state(instance, before, f"{VmState.ERROR}: {instance.fault}")
            self._notifications.append(notify.cloud_event("instance.create.error", instance, self._now))
        return instance.with_(events=())

    def _count_failure(self, connection: Connection, instance: Instance) -> None:
        if instance.host:
            compute_nodes.count_failure(connection, instance.host)

    def _with_earlier(self, handle: list[Instance]) -> list[Instance]:
        """This attempt's servers, and those that only earlier ones had to do with."""
        now_here = {instance.uuid for instance in handle}
        earlier = [from_wire(Instance, item) for item in self.params["earlier"]]
        return [*(instance for instance in earlier if instance.uuid not in now_here), *handle]


def _to_undo(failed: list[Instance]) -> dict[str, Any]:
    """What a rollback takes: the handle, how many those are, and their hosts."""
    hosts = sorted({instance.host for instance in failed if instance.host})
    return {"to_undo": to_wire(failed), "failures": len(failed), "undo_hosts": hosts}


PHASE = InstanceRecord


def main() -> None:
    """Ansible's entry."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
