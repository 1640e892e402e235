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
  - With I(state=present) a request is checked as a whole before anything is written, then each server's record is made
    (or found) and the handle that the next phases take is returned.
  - With I(state=building) the task state is set and the events of the phases so far are written.
  - With I(state=active) servers that every phase carried out become ACTIVE, and a notification is sent.
  - With I(state=error) servers that were rolled back become ERROR with their fault.
  - With I(state=deleting) servers are looked up by name or id and marked; with I(state=absent) their records are closed.
options:
  state:
    description: What to do, see the description.
    type: str
    choices: [present, building, active, error, deleting, absent]
    default: present
  requests:
    description:
      - For I(state=present), the servers wanted. Each entry uses the parameter names of M(openstack.cloud.server), and C(count).
    type: list
    elements: dict
    default: []
  names:
    description: For I(state=deleting), names or ids of servers.
    type: list
    elements: str
    default: []
  instances:
    description: For the other states, the handle.
    type: list
    elements: dict
    default: []
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
  description: For I(state=active), the servers that have to be rolled back.
  returned: when active
  type: list
  elements: dict
failures:
  description: For I(state=active), how many those are.
  returned: when active
  type: int
undo_hosts:
  description: For I(state=active), the hosts that they were placed on.
  returned: when active
  type: list
  elements: str
waiting:
  description: For I(state=active), the hosts with servers that are waited for.
  returned: when active
  type: list
  elements: str
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

import functools
from typing import Any, Callable

from ansible_collections.barestack.kvm.plugins.module_utils.control import lifecycle, notify
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.phase import ControlPhase, pretty
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import (
    compute_nodes,
    instances,
    ports,
    volumes,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.request import parse
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import parse_availability_zone
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    Fault,
    Instance,
    PortStatus,
    PowerState,
    TaskState,
    VmState,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import now, run_module
from sqlalchemy import Connection


class InstanceRecord(ControlPhase):
    """One method for each state."""

    name = "instance"
    handles = ("instances", "to_undo")
    argument_spec = {
        "state": {
            "type": "str",
            "choices": ["present", "building", "active", "error", "deleting", "absent"],
            "default": "present",
        },
        "requests": {"type": "list", "elements": "dict", "default": []},
        "names": {"type": "list", "elements": "str", "default": []},
        "instances": {"type": "list", "elements": "dict", "default": []},
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
    }

    def work(self, connection: Connection) -> dict[str, Any]:
        """Dispatch by state."""
        self._now = now()
        self._notifications: list[dict[str, Any]] = []
        act: Callable[[Connection], dict[str, Any]] = getattr(self, f"_{self.params['state']}")
        return act(connection)

    def committed(self) -> dict[str, Any]:
        """Send what happened; a receiver that is down is a warning, the servers are what they are."""
        if not self._notifications:
            return {}
        warnings = []
        for target, send in (
            (self.params["notification_file"], notify.append),
            (self.params["notification_url"], notify.post),
        ):
            try:
                if target:
                    act = functools.partial(send, self._notifications, target)
                    self.effects.apply("notification.send", target, act, after=f"{len(self._notifications)} events\n")
            except BarestackError as error:
                warnings.append(str(error))
        return {"warnings": warnings} if warnings else {}

    def _present(self, connection: Connection) -> dict[str, Any]:
        catalog = Catalog.load(self.params["catalog"])
        requested = parse(self.params["requests"], catalog, self.identity)
        rows = instances.in_project(connection, self.identity.project_id, [server.name for server in requested])
        if any(parse_availability_zone(server.availability_zone)[1] for server in requested):
            self.identity.require("admin")  # as Nova's policy for zone:host
        lifecycle.check_existing(requested, rows)
        lifecycle.check_quota(
            connection, catalog, self.identity, [server for server in requested if server.name not in rows]
        )
        found = {i.name: i for i in instances.handles(connection, list(rows.values()))}
        handle = []
        for server in requested:
            instance = found.get(server.name)
            if instance is None:
                instance = lifecycle.create(connection, catalog, self.identity, server, self._now)
                self.effects.note("instance.record", instance.name, after=pretty(server.to_record()))
            elif instance.vm_state == VmState.ERROR:
                instance = lifecycle.retry(connection, catalog, self.identity, instance, server)
                instances.save(connection, instance, self._now)
                instances.start_action(connection, instance, "create", self.identity.user_id, self._now)
                self.note_state(instance, VmState.ERROR, VmState.BUILDING)
            handle.append(instance.with_(wait_for=server.wait_for))
        return {"instances": to_wire(handle)}

    def _building(self, connection: Connection) -> dict[str, Any]:
        handle = []
        for instance in self.handle(connection):
            if instance.vm_state == VmState.BUILDING and not instance.fault:
                instance = instance.with_(task_state=self.params["task_state"])
                instances.save(connection, instance, self._now)
                instance = instances.write_events(connection, instance)
            handle.append(instance)
        return {"instances": to_wire(handle)}

    def _active(self, connection: Connection) -> dict[str, Any]:
        handle = [self._finish(connection, instance) for instance in self.handle(connection)]
        failed = [i for i in handle if i.fault and i.vm_state == VmState.ERROR]
        undo = sorted({i.host for i in failed if i.host})
        waiting = sorted({str(i.host) for i in handle if i.wait_for and not i.fault})
        return {
            "instances": to_wire(handle),
            "failures": len(failed),
            "to_undo": to_wire(failed),
            "undo_hosts": undo,
            "waiting": waiting,
        }

    def _finish(self, connection: Connection, instance: Instance) -> Instance:
        """By what the records say now: of two runs that boot the same server one may have been faster.

        A server that is ACTIVE is never undone, whatever failed in this run. One that is to be undone is in ERROR
        from here on, so that the other run does not call it ACTIVE.
        """
        if instance.power_state != PowerState.RUNNING and not instance.fault:
            message = f"the guest is {instance.power_state}, not {PowerState.RUNNING}: not every phase was carried out"
            instance = instance.with_(fault=Fault(self.name, instance.host, message))
        active = instance.vm_state == VmState.ACTIVE and instance.task_state != TaskState.DELETING
        if instance.fault and not active:
            if instance.vm_state == VmState.BUILDING:
                instances.save(connection, instance.with_(vm_state=VmState.ERROR), self._now)
            return instance.with_(vm_state=VmState.ERROR)
        if active:
            return instance
        before = f"{instance.vm_state}/{instance.task_state}"
        instance = instance.with_(
            vm_state=VmState.ACTIVE,
            task_state=None,
            power_state=PowerState.RUNNING,
            launched_at=instance.launched_at or self._now,
        )
        instances.save(connection, instance, self._now)
        ports.set_status(connection, [p.id for p in instance.ports if p.status == PortStatus.ACTIVE], PortStatus.ACTIVE)
        volumes.attached(connection, instance)
        if instance.host:
            compute_nodes.count_build(connection, instance.host, failed=False)
        instance = instances.write_events(connection, instance)
        instances.finish_action(connection, instance, self._now)
        self.note_state(instance, before, f"{instance.vm_state}/None")
        self._notifications.append(notify.cloud_event("instance.create.end", instance, self._now))
        return instance

    def _error(self, connection: Connection) -> dict[str, Any]:
        handle = []
        for instance in self.handle(connection):
            host, kept = instance.host, instance.host if instance.stuck else None
            told = instance.vm_state == VmState.ERROR and instances.open_action(connection, instance) is None
            instance = instance.with_(vm_state=VmState.ERROR, task_state=None, host=kept)
            handle.append(instance.with_(events=()))
            if told or not instances.save(connection, instance, self._now):
                continue  # written down before, or another run deletes it and writes that down
            instances.write_events(connection, instance)
            instances.finish_action(connection, instance, self._now, "Error")
            if host:
                compute_nodes.count_build(connection, host, failed=True)
            self.note_state(instance, VmState.BUILDING, f"{VmState.ERROR}: {instance.fault}")
            self._notifications.append(notify.cloud_event("instance.create.error", instance, self._now))
        return {"instances": to_wire(handle)}

    def _deleting(self, connection: Connection) -> dict[str, Any]:
        rows, missing = lifecycle.resolve(connection, self.identity, self.params["names"])
        handle = []
        for instance in instances.handles(connection, rows):
            if instance.task_state != TaskState.DELETING:
                instances.finish_action(connection, instance, self._now, "Deleted")
                instances.start_action(connection, instance, "delete", self.identity.user_id, self._now)
                instance = instance.with_(task_state=TaskState.DELETING)
                instances.save(connection, instance, self._now)
                self.note_state(instance, instance.vm_state, TaskState.DELETING)
            handle.append(instance.with_(fault=None))
        return {"instances": to_wire(handle), "missing": missing, "found": len(handle)}

    def _absent(self, connection: Connection) -> dict[str, Any]:
        handle = self.handle(connection)
        for instance in handle:
            if instance.vm_state == VmState.DELETED:
                continue  # by another run, meanwhile
            instances.write_events(connection, instance)
            if not instance.stuck:
                instances.finish_action(connection, instance, self._now)
                instances.delete(connection, instance.uuid, self._now)
                self.effects.note("instance.record", instance.name, before=pretty({"uuid": instance.uuid}))
                gone = instance.with_(vm_state=VmState.DELETED, task_state=None)
                self._notifications.append(notify.cloud_event("instance.delete.end", gone, self._now))
        return {"instances": to_wire(handle)}


PHASE = InstanceRecord


def main() -> None:
    """Ansible's entry."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
