# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The audit's cures in the records, each by its name, all in the transaction that found them necessary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ansible_collections.barestack.kvm.plugins.module_utils.control import placement
from ansible_collections.barestack.kvm.plugins.module_utils.control.audit import Mend, Recorded
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import (
    audit,
    claims,
    compute_nodes,
    ports,
    volumes,
)
from sqlalchemy import Connection

_EFFECTS = {
    "release_claim": "allocation.claim",
    "claim": "allocation.claim",
    "recount": "allocation.claim",
    "release_ports": "port.record",
    "bind_ports": "port.record",
    "release_dhcp": "dhcp_port.record",
    "release_volumes": "volume.record",
    "free_volume": "volume.record",
    "use_volume": "volume.record",
    "drop_volume": "volume.record",
    "drop_lease": "instance.state",
}


def mend(connection: Connection, recorded: Recorded, what: Mend) -> tuple[str, str]:
    """Carry one cure out. Returns its effect and what that is on."""
    _ACTS[what.act](connection, recorded, what.target)
    first = what.target[0]
    return _EFFECTS[what.act], recorded.name(first) or first


def _claim(connection: Connection, recorded: Recorded, target: tuple[str, ...]) -> None:
    """The claim that the scheduler would have made, on the host where the server is.

    CPUs and devices that it has of that very host it keeps. Which it has elsewhere, only its guest there could say.
    """
    server = recorded.servers[target[0]]
    known = {row.host for row in compute_nodes.rows(connection)}
    if server.host in known:  # else the next look says that it still has none
        claim = placement.claim_of(server)
        if {host for uuid, host in recorded.held if uuid == server.uuid} != {server.host}:
            claim = dataclasses.replace(claim, numa=None, devices=())
        claims.release(connection, [server.uuid])
        claims.claim(connection, {server.uuid: claim})


_ACTS: dict[str, Callable[[Connection, Recorded, tuple[str, ...]], object]] = {
    "release_claim": lambda connection, _, target: claims.release(connection, target[:1]),
    "claim": _claim,
    "recount": lambda connection, _, target: claims.recount(connection, target),
    "release_ports": lambda connection, _, target: audit.release_ports(connection, target[0]),
    "bind_ports": lambda connection, recorded, target: audit.bind_ports(connection, recorded.servers[target[0]]),
    "release_dhcp": lambda connection, _, target: ports.release_dhcp(connection, target[0], target[1]),
    "release_volumes": lambda connection, _, target: audit.let_go_of_volumes(connection, target[0]),
    "free_volume": lambda connection, _, target: volumes.set_status(connection, target, "available"),
    "use_volume": lambda connection, _, target: volumes.set_status(connection, target, "in-use"),
    "drop_volume": lambda connection, _, target: audit.drop_volume(connection, target[0]),
    "drop_lease": lambda connection, _, target: audit.drop_lease(connection, target[0]),
}
