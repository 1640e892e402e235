# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Ports and addresses."""

from __future__ import annotations

from typing import Any, Iterable, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import ip_allocations, ports
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.volumes import only
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    DhcpPort,
    FixedIP,
    Instance,
    Network,
    Port,
    PortStatus,
    SecurityGroup,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from sqlalchemy import Connection, Row, delete, insert, or_, select, update

DHCP_OWNER = "network:dhcp"
COMPUTE_OWNER = "compute:"


def taken_addresses(connection: Connection, network_id: str) -> dict[str, set[str]]:
    """subnet id -> addresses that a port has."""
    result: dict[str, set[str]] = {}
    query = select(ip_allocations.c.subnet_id, ip_allocations.c.ip_address)
    for row in connection.execute(query.where(ip_allocations.c.network_id == network_id)):
        result.setdefault(row.subnet_id, set()).add(row.ip_address)
    return result


def taken_macs(connection: Connection, network_id: str) -> set[str]:
    """The network's MAC addresses."""
    return set(connection.scalars(select(ports.c.mac_address).where(ports.c.network_id == network_id)))


def create(
    connection: Connection,
    port: Port,
    *,
    owner: str,
    device_id: str,
    project_id: str,
    host: str | None,
    preserve: bool = False,
) -> None:
    """Insert the port and its addresses."""
    connection.execute(
        insert(ports).values(
            id=port.id,
            network_id=port.network.id,
            project_id=project_id,
            name=port.name,
            mac_address=port.mac_address,
            status=port.status,
            device_owner=owner,
            device_id=device_id,
            position=_next_position(connection, device_id),
            binding_host=host,
            security_groups=to_wire(port.security_groups),
            tag=port.tag,
            preserve=preserve,
        )
    )
    if port.fixed_ips:
        connection.execute(
            insert(ip_allocations),
            [{**to_wire(ip), "network_id": port.network.id, "port_id": port.id} for ip in port.fixed_ips],
        )


def restore(connection: Connection, instance: Instance) -> None:
    """In check mode: what the port phase would have left."""
    for port in instance.ports:
        if connection.execute(select(ports.c.id).where(ports.c.id == port.id)).first():
            own(connection, port.id, instance.uuid)
            continue
        create(
            connection,
            port,
            owner=COMPUTE_OWNER,
            device_id=instance.uuid,
            project_id=instance.project_id,
            host=instance.host,
        )


def dhcp_port(connection: Connection, network: Network, host: str) -> DhcpPort | None:
    """The network's DHCP port on this host."""
    row = connection.execute(
        select(ports).where(
            ports.c.network_id == network.id, ports.c.device_owner == DHCP_OWNER, ports.c.binding_host == host
        )
    ).first()
    if row is None:
        return None
    return DhcpPort(row.id, row.mac_address, _addresses(connection, [row.id]).get(row.id, ()))


def attach(connection: Connection, handle: Sequence[Instance]) -> list[Instance]:
    """The instances with their recorded ports."""
    rows = connection.execute(
        select(ports)
        .where(ports.c.device_id.in_([i.uuid for i in handle]))
        .order_by(ports.c.device_id, ports.c.position)
    ).fetchall()
    addresses = _addresses(connection, [row.id for row in rows])
    by_device: dict[str, list[Row[Any]]] = {}
    for row in rows:
        by_device.setdefault(row.device_id, []).append(row)
    known: dict[tuple[str, str | None], Network] = {}
    result = []
    for instance in handle:
        found = []
        for row in by_device.get(instance.uuid, []):
            network = next(
                from_wire(Network, item["network"])
                for item in instance.networks
                if item["network"]["id"] == row.network_id
            )
            key = (network.id, instance.host)
            if key not in known:
                server = dhcp_port(connection, network, instance.host) if instance.host else None
                known[key] = _with_dhcp(network, server)
            found.append(_port(row, known[key], addresses.get(row.id, ())))
        result.append(instance.with_(ports=tuple(found)))
    return result


def _with_dhcp(network: Network, server: DhcpPort | None) -> Network:
    return from_wire(Network, {**to_wire(network), "dhcp_port": to_wire(server)})


def _port(row: Row[Any], network: Network, addresses: tuple[FixedIP, ...]) -> Port:
    return Port(
        id=row.id,
        network=network,
        mac_address=row.mac_address,
        fixed_ips=addresses,
        security_groups=tuple(from_wire(SecurityGroup, group) for group in row.security_groups),
        status=row.status,
        name=row.name,
        tag=row.tag,
    )


def find(connection: Connection, project_id: str, reference: str) -> Row[Any] | None:
    """The project's port with this id or name. InvalidRequest for a name that several ports have."""
    rows = connection.execute(
        select(ports).where(ports.c.project_id == project_id, or_(ports.c.id == reference, ports.c.name == reference))
    ).fetchall()
    return only("port", reference, rows)


def own(connection: Connection, port_id: str, device_id: str) -> None:
    """Give a port that was made on its own to a server, as its last NIC so far."""
    connection.execute(
        update(ports)
        .where(ports.c.id == port_id)
        .values(device_id=device_id, device_owner=COMPUTE_OWNER, position=_next_position(connection, device_id))
    )


def show(connection: Connection, row: Any) -> dict[str, Any]:
    """What a user sees of a port."""
    return {
        "id": row.id,
        "name": row.name,
        "network_id": row.network_id,
        "mac_address": row.mac_address,
        "fixed_ips": to_wire(_addresses(connection, [row.id]).get(row.id, ())),
        "status": row.status,
        "device_id": row.device_id,
    }


def delete_one(connection: Connection, port_id: str) -> None:
    """Delete a port with its addresses."""
    _drop(connection, [port_id])


def _next_position(connection: Connection, device_id: str) -> int:
    return len(connection.execute(select(ports.c.id).where(ports.c.device_id == device_id)).fetchall())


def bind(connection: Connection, uuids: Sequence[str], host: str) -> None:
    """Bind the ports of a host's instances to it: DOWN becomes BUILD."""
    connection.execute(
        update(ports)
        .where(ports.c.device_id.in_(uuids), ports.c.status != PortStatus.ACTIVE)
        .values(binding_host=host, status=PortStatus.BUILD)
    )


def set_groups(connection: Connection, port_id: str, groups: Sequence[SecurityGroup]) -> None:
    """The security groups with their rules."""
    connection.execute(update(ports).where(ports.c.id == port_id).values(security_groups=to_wire(groups)))


def set_status(connection: Connection, port_ids: Iterable[str], status: str) -> None:
    """Neutron's port status."""
    connection.execute(update(ports).where(ports.c.id.in_(list(port_ids))).values(status=status))


def release(connection: Connection, uuid: str) -> list[tuple[str, str]]:
    """Delete a server's ports with their addresses, unbind those that were made on their own.

    Returns (network id, host) of each that was there.
    """
    rows = connection.execute(select(ports).where(ports.c.device_id == uuid)).fetchall()
    _drop(connection, [row.id for row in rows if not row.preserve])
    connection.execute(
        update(ports)
        .where(ports.c.device_id == uuid)
        .values(device_id="", device_owner="", binding_host=None, status=PortStatus.DOWN)
    )
    return [(row.network_id, row.binding_host) for row in rows if row.binding_host]


def unbind(connection: Connection, uuid: str) -> list[tuple[str, str]]:
    """Take a server's ports off their host; they keep their addresses. Returns (network id, host) of each."""
    rows = connection.execute(
        select(ports).where(ports.c.device_id == uuid, ports.c.binding_host.is_not(None))
    ).fetchall()
    connection.execute(update(ports).where(ports.c.device_id == uuid).values(binding_host=None, status=PortStatus.DOWN))
    return [(row.network_id, row.binding_host) for row in rows]


def release_dhcp(connection: Connection, network_id: str, host: str) -> bool:
    """Delete the network's DHCP port on a host once no server's port is bound there. Whether it was."""
    left = connection.execute(
        select(ports.c.id).where(
            ports.c.network_id == network_id, ports.c.binding_host == host, ports.c.device_owner != DHCP_OWNER
        )
    ).first()
    if left is not None:
        return False
    rows = connection.scalars(
        select(ports.c.id).where(
            ports.c.network_id == network_id, ports.c.binding_host == host, ports.c.device_owner == DHCP_OWNER
        )
    ).all()
    _drop(connection, rows)
    return bool(rows)


def _drop(connection: Connection, port_ids: Sequence[str]) -> None:
    connection.execute(delete(ip_allocations).where(ip_allocations.c.port_id.in_(port_ids)))
    connection.execute(delete(ports).where(ports.c.id.in_(port_ids)))


def _addresses(connection: Connection, port_ids: Sequence[str]) -> dict[str, tuple[FixedIP, ...]]:
    result: dict[str, tuple[FixedIP, ...]] = {}
    for row in connection.execute(select(ip_allocations).where(ip_allocations.c.port_id.in_(port_ids))):
        result[row.port_id] = (*result.get(row.port_id, ()), FixedIP(row.subnet_id, row.ip_address))
    return result
