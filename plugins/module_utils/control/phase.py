# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What the control host's phases share: who asks, one transaction, and whose servers they may touch."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Mapping, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control import lifecycle
from ansible_collections.barestack.kvm.plugins.module_utils.control.identity import Identity
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records, instances
from ansible_collections.barestack.kvm.plugins.module_utils.control.session import CONTROL_SPEC, identify
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Forbidden, InvalidRequest, NotFound
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Fault, Instance, TaskState, VmState
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import Phase, phase_name
from sqlalchemy import Connection


class ControlPhase(Phase):
    """A phase in the records: validates the token, then does :meth:`work` in one transaction."""

    on_control = True
    role: ClassVar[str] = "member"
    """The role that the token must carry."""

    def __init_subclass__(cls) -> None:
        cls.argument_spec = {**CONTROL_SPEC, **cls.__dict__.get("argument_spec", {})}

    def __init__(self, params: Any, effects: Effects) -> None:
        super().__init__(params, effects)
        self.identity: Identity

    def run(self) -> dict[str, Any]:
        """Validate, work, and after the commit :meth:`committed`."""
        self.identity = identify(self.params, self.role, self.check_mode)
        result = Records(self.params["records_url"], self.check_mode).run(self._attempt)
        return result if self.check_mode else {**result, **self.committed()}

    def _attempt(self, connection: Connection) -> dict[str, Any]:
        self.effects.forget()
        result = self.work(connection)
        return {**result, "hosts": _hosts(result.get("instances", []))}

    def work(self, connection: Connection) -> dict[str, Any]:
        """The phase's work; may be called again when the transaction is retried."""
        raise NotImplementedError

    def committed(self) -> dict[str, Any]:
        """What has to wait until the transaction is in the records; returns further result fields."""
        return {}

    def handle(self, connection: Connection) -> list[Instance]:
        """The ``instances`` option as a handle of servers that this user may touch.

        They are as the records have them now, whichever run wrote that, with what their hosts reported. One that
        another run deletes or gives up meanwhile gets a fault. In check mode they are as the option has them, and the
        rows that earlier phases rolled back are put into this transaction first.
        """
        given = self._given()
        known = instances.known(connection, [instance.uuid for instance in given])
        for instance in given:
            if not self.identity.may_touch(known.get(instance.uuid, instance).project_id):
                raise Forbidden(f"Server {instance.name} ({instance.uuid}) belongs to another project.")
            if instance.uuid not in known and not self.check_mode:
                raise NotFound(f"Server {instance.name} ({instance.uuid}) is not in the records.")
        if self.check_mode:
            instances.restore(connection, given)
            return given
        return [self._unless_superseded(lifecycle.reported(known[i.uuid], i), i) for i in given]

    def _given(self) -> list[Instance]:
        try:
            return [from_wire(Instance, item) for item in self.params["instances"]]
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidRequest(f"instances: this is no handle of an earlier phase: {error}") from None

    def _unless_superseded(self, instance: Instance, given: Instance) -> Instance:
        """Nova's UnexpectedDeletingTaskStateError: a build has to notice what was done to its server under it."""
        if given.fault or given.task_state == TaskState.DELETING:
            return instance
        if instance.vm_state == VmState.DELETED or instance.task_state == TaskState.DELETING:
            message = "the server was deleted by another run meanwhile; what this run made of it is removed"
        elif instance.vm_state == VmState.ERROR:
            message = "another run that booted this server failed and removes it; run again"
        else:
            return instance
        return instance.with_(fault=Fault(phase_name(type(self)), None, message, 409))

    def note_state(self, instance: Instance, before: str, after: str) -> None:
        """A change of state, as the diff shows it."""
        self.effects.note("instance.state", instance.name, before=f"{before}\n", after=f"{after}\n")


def _hosts(handle: Sequence[Mapping[str, Any]]) -> list[str]:
    """The hosts that the next host phases have to go to."""
    return sorted({instance["host"] for instance in handle if instance["host"] and not instance["fault"]})


def pretty(value: Any) -> str:
    """What the diff shows of a record."""
    return json.dumps(value, indent=2, sort_keys=True, default=str) + "\n"
