# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A control phase that begins a run's work on servers: it takes their leases, and waits where other runs hold them."""

from __future__ import annotations

import time
from typing import Any, ClassVar, Iterable, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control import keeper, process
from ansible_collections.barestack.kvm.plugins.module_utils.control.phase import ControlPhase
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import leases
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Fault, Instance
from ansible_collections.barestack.kvm.plugins.module_utils.phase import phase_name
from sqlalchemy import Connection

_POLL = 1.0
"""Seconds between two looks at a lease that another run holds."""


class LeasingPhase(ControlPhase):
    """:meth:`work` calls :meth:`lease`, and returns ``busy``, the names it has to wait for, before it writes anything
    that a second call must not write again."""

    argument_spec: ClassVar[dict[str, Any]] = {}
    lease_spec: ClassVar[dict[str, Any]] = {"lease_timeout": {"type": "float", "default": 600}}

    def __init_subclass__(cls) -> None:
        cls.argument_spec = {**LeasingPhase.lease_spec, **cls.__dict__.get("argument_spec", {})}
        super().__init_subclass__()

    def __init__(self, params: Any, effects: Effects) -> None:
        super().__init__(params, effects)
        self.patient = True
        """Whether busy servers are worth waiting for; later they are left alone."""
        self._took = self._inherited = False

    def run(self) -> dict[str, Any]:
        """As of every phase in the records, again and again until nothing is busy or ``lease_timeout`` is over."""
        started = time.monotonic()
        waited: dict[str, None] = {}
        result = super().run()
        while result.get("busy"):
            waited.update(dict.fromkeys(result["busy"]))
            time.sleep(_POLL)
            self.patient = time.monotonic() - started < self.params["lease_timeout"]
            result = super().run()
        if waited:
            told = (
                f"waited {time.monotonic() - started:.0f} s for another run, which was at work on {', '.join(waited)}"
            )
            result["warnings"] = [*result.get("warnings", []), told]
        return result

    def lease(self, connection: Connection, servers: Iterable[Any]) -> set[str]:
        """Take the leases of these rows or instances. Returns the uuids of those that other runs are at work on."""
        uuids = [server.uuid for server in servers]
        if self.check_mode or not uuids:
            return set()
        mine = process.describe(process.run_pid())
        taken = leases.take(connection, uuids, self.identity.audit_id, mine, process.is_gone)
        self._took = self._took or len(taken.busy) < len(uuids)
        self._inherited = self._inherited or bool(taken.inherited)
        return set(taken.busy)

    def release(self, connection: Connection, servers: Sequence[Instance]) -> None:
        """Give the leases of these servers back: this run is done with them."""
        leases.release(connection, self.identity.audit_id, [server.uuid for server in servers])

    def committed(self) -> dict[str, Any]:
        """Have the leases kept. A dead run's modules may still be at work for a moment: that is waited out."""
        if self._took:
            keeper.start(self.params["records_url"], self.identity.audit_id, process.run_pid())
            self._took = False
        if self._inherited:
            time.sleep(keeper.GRACE)
        return {}

    def left(self, instance: Instance) -> Instance:
        """A server that is another run's, which this one leaves alone."""
        message = (
            f"another run is at work on the server, and still was after {self.params['lease_timeout']:.0f} s: "
            "it was left to that run; run again"
        )
        return instance.with_(fault=Fault(phase_name(type(self)), None, message, 409))
