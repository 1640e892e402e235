# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The records against themselves and the inventory: claims, ports, volumes, leases, interrupted servers. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from ansible_collections.barestack.kvm.plugins.module_utils.control.audit import (
    DIFFERS,
    NOT_REACHED,
    ONLY_RECORDS,
    Finding,
    Mend,
    PortRecord,
    Recorded,
    Report,
    Scope,
    VolumeRecord,
    hosts_spoken_of,
    is_active,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.audit_hosts import compare_host
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance, TaskState, VmState

_DHCP_OWNER = "network:dhcp"
_NO_HOST = "-"


def compare(recorded: Recorded, scope: Scope) -> Report:
    """All differences with their cures, those of the hosts first, in the order of the hosts' names."""
    report = Report()
    alike = _alike(scope)
    for host in sorted({*scope.contents, *scope.unreached}):
        if host in scope.unreached:
            left = f"nothing is concluded about it: {scope.unreached[host]}"
            report.add(Finding(host, "host", host, NOT_REACHED, left=left))
        elif host in alike:
            left = f"nothing is concluded about it: it is the same machine as {alike[host]}, give it one name"
            report.add(Finding(host, "host", host, DIFFERS, left=left))
        else:
            compare_host(host, recorded, scope, report)
    for host, names in sorted(hosts_spoken_of(recorded).items()):
        if host not in scope.contents and host not in scope.unreached:
            left = f"the inventory's group compute has no such host, the records have {', '.join(names)} there"
            report.add(Finding(host, "host", host, ONLY_RECORDS, left=left))
    _servers(recorded, report)
    _residues(recorded, scope, report)
    _claims(recorded, report)
    _ports(recorded, report)
    _volumes(recorded, report)
    _leases(recorded, report)
    _inventories(recorded, report)
    return report


def _alike(scope: Scope) -> dict[str, str]:
    """host -> another name that the inventory has for the same machine."""
    found: dict[str, list[str]] = {}
    for host, contents in sorted(scope.contents.items()):
        if contents.machine:
            found.setdefault(contents.machine, []).append(host)
    return {
        host: next(other for other in names if other != host)
        for names in found.values()
        for host in names
        if len(names) > 1
    }


def _servers(recorded: Recorded, report: Report) -> None:
    """Boots and deletes that were interrupted, undos that did not end."""
    for server in _by_name(recorded.servers.values()):
        if server.uuid in recorded.busy:
            continue
        left = ""
        if server.task_state == TaskState.DELETING:
            left = "its delete was interrupted: run it again"
        elif server.vm_state == VmState.BUILDING:
            left = "its boot was interrupted: run it again"
        elif server.vm_state == VmState.ERROR and server.host:
            left = "its undo did not end: boot it again, or delete it"
        if left:
            state = f"{server.name}: {server.vm_state}" + (f", {server.task_state}" if server.task_state else "")
            report.add(Finding(server.host or _NO_HOST, "server", state, DIFFERS, server.name, server.uuid, left=left))


def _residues(recorded: Recorded, scope: Scope, report: Report) -> None:
    """What hosts have yet to undo."""
    for residue in _by_name(recorded.residues):
        host, told = str(residue.host), f"what is left of {residue.name}"
        if residue.uuid in recorded.busy:
            continue
        reached = host in scope.contents
        cure = "undone" if reached else ""
        left = "" if reached else "its host has to undo it, and was not reached"
        report.add(Finding(host, "server", told, DIFFERS, recorded.name(residue.uuid), residue.uuid, cure, left))
        if reached:
            report.undo_hosts.add(host)


def _claims(recorded: Recorded, report: Report) -> None:
    claims: dict[str, set[str]] = {}
    for uuid, host in (*recorded.claims, *recorded.held):
        claims.setdefault(uuid, set()).add(host)
    claiming = {uuid for uuid, _host in recorded.claims}
    for uuid, hosts in sorted(claims.items()):
        server, told = recorded.servers.get(uuid), ", ".join(sorted(hosts))
        if uuid in recorded.busy or (server and not _is_certain(server)):
            continue
        if server is None or not server.host:
            _mend(report, recorded, told, "claim", uuid, "given back", Mend("release_claim", (uuid,)))
        elif hosts != {server.host}:
            _mend(report, recorded, told, "claim", uuid, f"moved to {server.host}", Mend("claim", (uuid,)))
    for server in _by_name(recorded.servers.values()):
        if recorded.is_settled(server.uuid) and server.uuid not in claiming:
            mend = Mend("claim", (server.uuid,))
            _mend(report, recorded, str(server.host), "claim", server.uuid, f"claimed on {server.host}", mend)


def _is_certain(server: Instance) -> bool:
    """Whether the server's state says what it must have in the records: it is ACTIVE, or ERROR with nothing left."""
    failed = server.vm_state == VmState.ERROR and server.task_state is None and not server.host
    return is_active(server) or failed


def _ports(recorded: Recorded, report: Report) -> None:
    bound = {(row.network_id, row.host) for row in recorded.ports if row.device_owner != _DHCP_OWNER and row.host}
    for row in recorded.ports:
        if row.device_owner == _DHCP_OWNER:
            if (row.network_id, row.host) not in bound:
                told = Finding(row.host or _NO_HOST, "DHCP port", _port(row), ONLY_RECORDS, cure="deleted")
                report.add(told)
                report.mends.append(Mend("release_dhcp", (row.network_id, row.host)))
        elif row.device_id:
            _servers_port(recorded, report, row)


def _servers_port(recorded: Recorded, report: Report, row: PortRecord) -> None:
    server = recorded.servers.get(row.device_id)
    if row.device_id in recorded.busy or (server and not _is_certain(server)):
        return
    if server is None or not server.host:
        mend = Mend("release_ports", (row.device_id,))
        _mend(report, recorded, row.host, "port", row.device_id, "released", mend, _port(row))
    elif row.host != server.host:
        mend, told = Mend("bind_ports", (server.uuid,)), f"{_port(row)} on {row.host or 'no host'}"
        _mend(report, recorded, server.host, "port", server.uuid, f"bound to {server.host}", mend, told, DIFFERS)


def _port(row: PortRecord) -> str:
    return " ".join([row.id, *row.addresses])


def _volumes(recorded: Recorded, report: Report) -> None:
    for row in sorted(recorded.volumes, key=lambda row: (row.name, row.id)):
        server = recorded.servers.get(row.server)
        if row.server in recorded.busy or (server and not _is_certain(server)):
            continue
        told = f"{row.name or row.id}: {row.status}"
        if row.server and server is None:
            mend = Mend("release_volumes", (row.server,))
            _mend(report, recorded, row.host, "volume", row.server, "its volumes are made available", mend, told)
        elif not row.server and row.status != "available":
            _unmapped(recorded, report, row, told)
        elif server and is_active(server) and row.host != server.host:
            left = f"it lies on {row.host or 'no host'} and its server lives on {server.host}: volumes are never moved"
            report.add(Finding(row.host or _NO_HOST, "volume", told, DIFFERS, server.name, server.uuid, left=left))
        elif server and is_active(server) and row.status != "in-use":
            mend = Mend("use_volume", (row.id,))
            _mend(report, recorded, row.host, "volume", row.server, "made in-use", mend, told, DIFFERS)


def _unmapped(recorded: Recorded, report: Report, row: VolumeRecord, told: str) -> None:
    """No server has it: it is free, or was never made on any host."""
    if row.host:
        _mend(report, recorded, row.host, "volume", "", "made available", Mend("free_volume", (row.id,)), told, DIFFERS)
    else:
        _mend(report, recorded, "", "volume", "", "deleted: it was never made", Mend("drop_volume", (row.id,)), told)


def _leases(recorded: Recorded, report: Report) -> None:
    for uuid in recorded.dead_leases:
        server = recorded.servers.get(uuid)
        if server is None or _is_certain(server):  # of one that was interrupted its next run takes the lease over
            told = f"lease of {recorded.name(uuid) or uuid}"
            mend = Mend("drop_lease", (uuid,))
            _mend(report, recorded, server.host if server else "", "lease", uuid, "dropped", mend, told)


def _inventories(recorded: Recorded, report: Report) -> None:
    """After all claims are as they should be: what is used of each host is what they come to."""
    for host, told in recorded.miscounted:
        _mend(report, recorded, host, "inventory", "", "counted anew", Mend("recount", (host,)), told, DIFFERS)


def _mend(  # noqa: PLR0913 - a finding has as many fields
    report: Report,
    recorded: Recorded,
    host: str | None,
    kind: str,
    uuid: str,
    cure: str,
    mend: Mend,
    told: str = "",
    finding: str = ONLY_RECORDS,
) -> None:
    """A finding that is cured in the records."""
    name = recorded.name(uuid)
    report.add(Finding(host or _NO_HOST, kind, told or f"of {name or uuid}", finding, name, uuid, cure=cure))
    if mend not in report.mends:
        report.mends.append(mend)
    if uuid in recorded.servers:
        report.touched.add(uuid)


def _by_name(servers: Iterable[Instance]) -> list[Instance]:
    return sorted(servers, key=lambda server: (server.name, server.uuid))
