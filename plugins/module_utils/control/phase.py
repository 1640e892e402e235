# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What the control host's phases share: who asks, one transaction, and whose servers they may touch."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Mapping, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control import lifecycle
from ansible_collections.barestack.kvm.plugins.module_utils.control.identity import Identity
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records, instances, leases
from ansible_collections.barestack.kvm.plugins.module_utils.control.session import CONTROL_SPEC, identify
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Forbidden, InvalidRequest, NotFound
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Fault, Instance, TaskState, VmState
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import Phase, now, phase_name
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
        self._lost: list[Instance] = []

    def run(self) -> dict[str, Any]:
        """Validate, work, and after the commit :meth:`committed`."""
        self.identity = identify(self.params, self.role, self.check_mode)
        result = Records(self.params["records_url"], self.check_mode).run(self._attempt)
        return result if self.check_mode else {**result, **self.committed()}

    def _attempt(self, connection: Connection) -> dict[str, Any]:
        self.effects.forget()
        self._lost = []
        result = self.work(connection)
        if "instances" in result:
            result["instances"] = [*result["instances"], *to_wire(self._lost)]
        return {**result, "hosts": _hosts(result.get("instances", [])), "at": now()}

    def work(self, connection: Connection) -> dict[str, Any]:
        """The phase's work; may be called again when the transaction is retried."""
        raise NotImplementedError

    def committed(self) -> dict[str, Any]:
        """What has to wait until the transaction is in the records; returns further result fields."""
        return {}

    def handle(self, connection: Connection) -> list[Instance]:
        """The ``instances`` option as a handle: as the records have the servers now, with what their hosts reported."""
        return [instance for _given, instance in self.pairs(connection)]

    def pairs(self, connection: Connection) -> list[tuple[Instance, Instance]]:
        """The ``instances`` option's servers, each as it came and as :meth:`handle` has it.

        Only what this user may touch and this run has the lease of: a server that another run took over gets a fault,
        and its records are not this run's to change. In check mode they are as the option has them, and the rows that
        earlier phases rolled back are put into this transaction first.
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
            return [(instance, instance) for instance in given]
        held = leases.held(connection, known, self.identity.audit_id)
        self._lost = [self._taken_over(instance) for instance in given if instance.uuid not in held]
        return [
            (instance, self._unless_ended(lifecycle.reported(known[instance.uuid], instance), instance, known))
            for instance in given
            if instance.uuid in held
        ]

    def _given(self) -> list[Instance]:
        try:
            return [from_wire(Instance, item) for item in self.params["instances"]]
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidRequest(f"instances: this is no handle of an earlier phase: {error}") from None

    def _taken_over(self, instance: Instance) -> Instance:
        """Another run's server: its lease expired while this run could not renew it, or was never this run's."""
        message = "this run has no lease of the server, another run took it over: its records were left alone"
        return (
            instance
            if instance.stuck
            else instance.with_(fault=instance.fault or Fault(phase_name(type(self)), None, message, 409))
        )

    def _unless_ended(self, instance: Instance, given: Instance, known: Mapping[str, Instance]) -> Instance:
        """Nova's UnexpectedDeletingTaskStateError: a build has to notice that its server is to be deleted.

        And one that was given up with something left on its host is not built until that is undone.
        """
        if given.fault or given.task_state == TaskState.DELETING:
            return instance
        if instance.task_state == TaskState.DELETING:
            message = "another run is to delete the server, and removes it now"
            return instance.with_(fault=Fault(phase_name(type(self)), None, message, 409))
        if instance.vm_state == VmState.ERROR and given.vm_state != VmState.ERROR:
            return instance.with_(fault=known[instance.uuid].fault)
        return instance

    def given_up(self, connection: Connection) -> list[Instance]:
        """Of a rollback's handle the servers whose placement ends with it, for the phases that take it back.

        Not those that something is left of on a host which may still run them, nor what an earlier attempt left on
        another host than the server's present one.
        """
        return [
            instance
            for given, instance in self.pairs(connection)
            if self.ends_here(given, instance) and not (given.stuck and instance.may_run)
        ]

    @staticmethod
    def ends_here(given: Instance, instance: Instance) -> bool:
        """Whether a rollback's server was undone on the very host where the records have it being built."""
        building = instance.vm_state in (VmState.BUILDING, VmState.ERROR)
        return building and given.host == instance.host and instance.task_state != TaskState.DELETING

    def note_state(self, instance: Instance, before: str, after: str) -> None:
        """A change of state, as the diff shows it."""
        self.effects.note("instance.state", instance.name, before=f"{before}\n", after=f"{after}\n")


def _hosts(handle: Sequence[Mapping[str, Any]]) -> list[str]:
    """The hosts that the next host phases have to go to."""
    return sorted({instance["host"] for instance in handle if instance["host"] and not instance["fault"]})


def replaced(handle: Sequence[Instance], by: Sequence[Instance]) -> list[Instance]:
    """The handle with these of its servers in the place of what they were."""
    new = {instance.uuid: instance for instance in by}
    return [new.get(instance.uuid, instance) for instance in handle]


def pretty(value: Any) -> str:
    """What the diff shows of a record."""
    return json.dumps(value, indent=2, sort_keys=True, default=str) + "\n"
