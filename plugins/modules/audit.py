#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: audit
short_description: Compares the records with what the compute hosts have
version_added: 0.1.0
description:
  - Compares both ways domains, disks, consoles, taps, bridges, DHCP servers and their entries, rules, volumes, and in the
    records claims, ports and leases. Says of each difference what would cure it, or why it is left alone.
  - With O(repair) it also prepares the cures. What is to go from a host is for M(barestack.kvm.clear), servers that lack
    something for their hosts' phases, and O(state=mended) cures the records.
  - A server that a run is at work on, or that changed while the hosts were looked at, is passed over. Nothing is concluded
    about a host that was not reached.
options:
  state:
    description:
      - V(begun) notes the servers' states, before the hosts are looked at.
      - V(compared) compares.
      - V(mended) compares and cures what is wrong in the records, all in one transaction; needs the role C(admin).
    type: str
    choices: [begun, compared, mended]
    default: compared
  contents:
    description:
      - For each host what M(barestack.kvm.contents) returned there, or why it did not.
    type: dict
    default: {}
  seen:
    description:
      - What O(state=begun) or O(state=mended) returned under this name.
    type: dict
    default: {}
  repair:
    description:
      - Whether the differences are to be cured; needs the role C(admin). The run takes the leases of the servers.
    type: bool
    default: false
extends_documentation_fragment:
  - barestack.kvm.control_phase
attributes:
  check_mode:
    description: Says what would be cured, and changes nothing.
    support: full
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Audit
  barestack.kvm.audit:
    token: "{{ token.token }}"
    catalog: "{{ catalog }}"
    contents: "{{ hostvars | barestack.kvm.looked_at(groups['compute'], 'contents') }}"
    seen: "{{ begun.seen }}"
  register: audited
"""

RETURN = r"""
findings:
  description:
    - Each difference, with C(host), C(kind), C(object), C(finding), the C(server)'s name and C(uuid) where it is known, and
      C(cure) or why it is C(left) alone. C(differs) is false for what is no difference, as on a host that other records share.
  returned: when O(state) is not V(begun)
  type: list
  elements: dict
differences:
  description: How many of them count.
  returned: when O(state) is not V(begun)
  type: int
table:
  description: The findings for people, a line each.
  returned: when O(state) is not V(begun)
  type: list
  elements: str
busy:
  description: The servers that were passed over, each by name with the reason.
  returned: when O(state) is not V(begun)
  type: list
  elements: str
seen:
  description: The servers' states, for the next O(state).
  returned: when O(state) is V(begun) or V(mended)
  type: str
leftovers:
  description: With O(repair), for each host what M(barestack.kvm.clear) is to remove.
  returned: when O(state=compared)
  type: dict
clear_hosts:
  description: With O(repair), the hosts in RV(leftovers).
  returned: when O(state=compared)
  type: list
  elements: str
heal:
  description: With O(repair), the ids of the servers that their hosts' phases are to be carried out for again.
  returned: when O(state=compared)
  type: list
  elements: str
undo_hosts:
  description: With O(repair), the hosts that have yet to undo what failed there.
  returned: when O(state=compared)
  type: list
  elements: str
again:
  description: Whether there are any in RV(heal) or RV(undo_hosts).
  returned: when O(state=compared)
  type: bool
cures:
  description: With O(repair), how many of the differences have a cure.
  returned: when O(state) is not V(begun)
  type: int
"""

import time
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control import audit, keeper, process
from ansible_collections.barestack.kvm.plugins.module_utils.control.audit_mend import mend
from ansible_collections.barestack.kvm.plugins.module_utils.control.audit_records import compare
from ansible_collections.barestack.kvm.plugins.module_utils.control.phase import ControlPhase
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import audit as records
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import leases
from ansible_collections.barestack.kvm.plugins.module_utils.model.contents import Contents
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import run_module
from sqlalchemy import Connection


class Audit(ControlPhase):
    """One method for each state."""

    name = "audit"
    role = "reader"
    handles = ("seen",)
    argument_spec = {
        "state": {"type": "str", "choices": ["begun", "compared", "mended"], "default": "compared"},
        "contents": {"type": "dict", "default": {}},
        "seen": {"type": "dict", "default": {}},
        "repair": {"type": "bool", "default": False},
    }

    def work(self, connection: Connection) -> dict[str, Any]:
        """Dispatch by state."""
        self._taken = self._inherited = False
        if self.params["state"] == "mended" or self.params["repair"]:
            self.identity.require("admin")
        if self.params["state"] == "begun":
            return {"seen": self._seen(connection)}
        recorded, report = self._compare(connection)
        result = {
            "findings": to_wire(report.findings),
            "differences": sum(finding.differs for finding in report.findings),
            "table": audit.table(report.findings),
            "busy": sorted(f"{recorded.name(uuid) or uuid}: {why}" for uuid, why in recorded.busy.items()),
        }
        if self.params["state"] == "mended":
            return {**result, "cures": self._mend(connection, recorded, report), "seen": self._seen(connection)}
        return {**result, **self._cures(connection, report)}

    def committed(self) -> dict[str, Any]:
        """Keep the leases while the cures are carried out."""
        if self._taken:
            keeper.start(self.params["records_url"], self.identity.audit_id, process.run_pid())
        if self._inherited:  # the dead run's modules end a moment later
            time.sleep(keeper.GRACE)
        return {}

    def _seen(self, connection: Connection) -> dict[str, str]:
        return records.state_of_servers(connection, self.identity.audit_id, process.is_gone)

    def _compare(self, connection: Connection) -> tuple[audit.Recorded, audit.Report]:
        scope = _scope(self.params["contents"])
        spoken_of = audit.uuids_spoken_of(scope.contents)
        owner, seen = self.identity.audit_id, self.params["seen"]
        recorded = records.load(connection, spoken_of, owner, process.is_gone, seen)
        return recorded, compare(recorded, scope)

    def _cures(self, connection: Connection, report: audit.Report) -> dict[str, Any]:
        """What the hosts have to do. Whoever wants one of the servers meanwhile waits for the look after the repair."""
        if not self.params["repair"]:
            leases.release(connection, self.identity.audit_id)
            return {"leftovers": {}, "clear_hosts": [], "heal": [], "undo_hosts": [], "again": False, "cures": 0}
        touched = sorted(report.touched)
        this = process.describe(process.run_pid())
        taken = leases.take(connection, touched, self.identity.audit_id, this, process.is_gone)
        self._taken, self._inherited = bool(touched), bool(taken.inherited)
        leftovers = {host: to_wire(item.leftovers()) for host, item in report.clearances.items()}
        leftovers = {host: item for host, item in leftovers.items() if any(item.values())}
        return {
            "leftovers": leftovers,
            "clear_hosts": sorted(leftovers),
            "heal": sorted(report.heal),
            "undo_hosts": sorted(report.undo_hosts),
            "again": bool(report.heal or report.undo_hosts),
            "cures": sum(bool(finding.cure) for finding in report.findings),
        }

    def _mend(self, connection: Connection, recorded: audit.Recorded, report: audit.Report) -> int:
        for what in report.mends:
            effect, target = mend(connection, recorded, what)
            self.effects.note(effect, target, after=f"{what.act}\n")
        return len(report.mends)


def _scope(given: dict[str, Any]) -> audit.Scope:
    """host -> {"contents": ...} or {"why": ...}."""
    try:
        found = {host: from_wire(Contents, item["contents"]) for host, item in given.items() if "contents" in item}
        missing = {host: str(item["why"]) for host, item in given.items() if "contents" not in item}
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise InvalidRequest(f"contents: this is nothing that the module contents returned: {error}") from None
    return audit.Scope(found, missing)


PHASE = Audit


def main() -> None:
    """Ansible's entry."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
