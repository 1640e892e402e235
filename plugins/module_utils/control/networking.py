# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Ports for servers: nova.network.neutron.allocate_for_instance and Neutron's create_port, in the records."""

from __future__ import annotations

import dataclasses
import random
import uuid
from typing import Any, Mapping, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control import ipam
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.checks import Problems, check_name
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import ports
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict, InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    DhcpPort,
    Instance,
    Network,
    Port,
    PortStatus,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from sqlalchemy import Connection

_RANDOM = random.SystemRandom()


class Taken:
    """What the networks' ports have already, read once in a transaction that makes many.

    :meth:`forget` where one of them is undone.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.forget()

    def forget(self) -> None:
        """Read it again."""
        self._addresses: dict[str, dict[str, set[str]]] = {}
        self._macs: dict[str, set[str]] = {}
        self._served: set[tuple[str, str]] = set()

    def addresses(self, network: Network) -> dict[str, set[str]]:
        """subnet id -> addresses."""
        if network.id not in self._addresses:
            self._addresses[network.id] = ports.taken_addresses(self._connection, network.id)
        return self._addresses[network.id]

    def macs(self, network: Network) -> set[str]:
        """The network's MAC addresses."""
        if network.id not in self._macs:
            self._macs[network.id] = ports.taken_macs(self._connection, network.id)
        return self._macs[network.id]

    def add(self, port: Port) -> None:
        """One more."""
        self.macs(port.network).add(port.mac_address)
        for ip in port.fixed_ips:
            self.addresses(port.network).setdefault(ip.subnet_id, set()).add(ip.ip_address)

    def serves(self, network: Network, host: str) -> bool:
        """Whether the network needs no DHCP port on this host, or no other; asked before one is made."""
        key = (network.id, host)
        if key in self._served or not any(subnet.enable_dhcp for subnet in network.subnets):
            return True
        self._served.add(key)
        return ports.dhcp_port(self._connection, network, host) is not None


def allocate(connection: Connection, instance: Instance, taken: Taken) -> list[tuple[str, str, Any]]:
    """Make what is missing of the server's ports and of its networks' DHCP ports; :func:`bind` comes after.

    Returns (effect, target, what was made). Conflict or InvalidRequest as Neutron's port creation raises them.
    """
    if not instance.host:
        raise Conflict(f"Server {instance.name} has no host: schedule it first")
    made: list[tuple[str, str, Any]] = []
    for position, nic in enumerate(instance.networks):
        network = from_wire(Network, nic["network"])
        if position >= len(instance.ports):
            made.append(("port.record", instance.name, _port(connection, instance, network, nic, taken)))
        if not taken.serves(network, instance.host):
            made.append(("dhcp_port.record", network.name, _dhcp_port(connection, network, instance, taken)))
    return made


def bind(connection: Connection, handle: Sequence[Instance]) -> None:
    """Bind the servers' ports to their hosts."""
    by_host: dict[str, list[str]] = {}
    for instance in handle:
        if instance.networks:
            by_host.setdefault(str(instance.host), []).append(instance.uuid)
    for host, uuids in by_host.items():
        ports.bind(connection, uuids, host)


def refresh_groups(
    connection: Connection, catalog: Catalog, handle: Sequence[Instance]
) -> tuple[list[Instance], list[tuple[str, str, Any]]]:
    """Give the servers' ports the rules that their security groups have in the catalogue now, as Neutron's agents do.

    Returns the servers, and (effect, target, the groups) of each port that changed. A group that the catalogue no
    longer has keeps its last rules.
    """
    projects = {instance.project_id for instance in handle if instance.ports}
    current = {project: {group.id: group for group in catalog.security_groups(project)} for project in projects}
    result, changed = [], []
    for instance in handle:
        refreshed = []
        for port in instance.ports:
            known = current[instance.project_id]
            groups = tuple(known.get(group.id, group) for group in port.security_groups)
            if groups != port.security_groups:
                ports.set_groups(connection, port.id, groups)
                changed.append(("port.record", instance.name, {"security_groups": to_wire(groups)}))
            refreshed.append(dataclasses.replace(port, security_groups=groups))
        result.append(instance.with_(ports=tuple(refreshed)) if refreshed else instance)
    return result, changed


def deallocate(connection: Connection, instance: Instance, keep: bool = False) -> list[tuple[str, str]]:
    """Give the server's ports back, and a network's DHCP port with the last port on the host. Returns the effects.

    With ``keep`` the ports are only taken off their host, for a server that is tried elsewhere.
    """
    undone = []
    for network_id, host in (ports.unbind if keep else ports.release)(connection, instance.uuid):
        undone.append(("port.record", instance.name))
        if ports.release_dhcp(connection, network_id, host):
            undone.append(("dhcp_port.record", network_id))
    return undone


def ensure_port(
    connection: Connection, catalog: Catalog, project_id: str, request: Mapping[str, Any]
) -> tuple[dict[str, Any], bool]:
    """A port on its own, as Neutron's create_port makes it. Returns it, and whether it is new.

    Conflict where the project has one of this name on another network or with another address.
    """
    problems = Problems()
    check_name(request["name"], f"requests {request['name'][:60]!r}", problems)
    problems.finish()
    network = catalog.network(request["network"], project_id)
    row = ports.find(connection, project_id, request["name"])
    if row is not None:
        shown = ports.show(connection, row)
        addresses = [fixed["ip_address"] for fixed in shown["fixed_ips"]]
        if row.network_id != network.id or request["fixed_ip"] not in (None, *addresses):
            raise Conflict(
                f"Port {request['name']} exists on network {row.network_id} with {', '.join(addresses)}: "
                "delete it first, or choose another name"
            )
        return shown, False
    groups = tuple(catalog.security_group(name, project_id) for name in request["security_groups"])
    port = new_port(network, Taken(connection), fixed_ip=request["fixed_ip"])
    port = dataclasses.replace(port, name=request["name"], security_groups=groups)
    ports.create(connection, port, owner="", device_id="", project_id=project_id, host=None, preserve=True)
    return ports.show(connection, ports.find(connection, project_id, port.id)), True


def delete_port(connection: Connection, project_id: str, name_or_id: str) -> bool:
    """Delete a port that was made on its own. Whether it was there; Conflict while a server has it."""
    row = ports.find(connection, project_id, name_or_id)
    if row is None:
        return False
    if row.device_id or not row.preserve:
        raise Conflict(f"Port {name_or_id} cannot be deleted directly: server {row.device_id} has it.")
    ports.delete_one(connection, row.id)
    return True


def _port(connection: Connection, instance: Instance, network: Network, nic: Mapping[str, Any], taken: Taken) -> Any:
    if nic.get("port"):
        row = ports.find(connection, instance.project_id, nic["port"])
        if row is None:
            raise InvalidRequest(f"Port {nic['port']} could not be found.")
        if row.device_id not in ("", instance.uuid):
            raise Conflict(f"Port {nic['port']} is still in use.")
        ports.own(connection, row.id, instance.uuid)
        return {"id": row.id, "mac_address": row.mac_address}
    port = new_port(network, taken, fixed_ip=nic.get("fixed_ip"), tag=nic.get("tag"))
    port = dataclasses.replace(port, security_groups=instance.security_groups)
    taken.add(port)
    ports.create(
        connection,
        port,
        owner=ports.COMPUTE_OWNER,
        device_id=instance.uuid,
        project_id=instance.project_id,
        host=instance.host,
    )
    return {
        "id": port.id,
        "mac_address": port.mac_address,
        "fixed_ips": to_wire(port.fixed_ips),
        "network": network.name,
    }


def new_port(network: Network, taken: Taken, *, fixed_ip: str | None = None, tag: str | None = None) -> Port:
    """A port with a free MAC and free addresses; not yet in the records."""
    addresses = ipam.choose_fixed_ips(network, taken.addresses(network), fixed_ip, _RANDOM)
    mac = ipam.random_mac(taken.macs(network), _RANDOM)
    return Port(str(uuid.uuid4()), network, mac, addresses, status=PortStatus.DOWN, tag=tag)


def _dhcp_port(connection: Connection, network: Network, instance: Instance, taken: Taken) -> Any:
    addresses = ipam.choose_dhcp_fixed_ips(network, taken.addresses(network))
    mac = ipam.random_mac(taken.macs(network), _RANDOM)
    server = DhcpPort(str(uuid.uuid4()), mac, addresses)
    port = Port(server.id, network, mac, addresses, port_security_enabled=False, status=PortStatus.ACTIVE)
    taken.add(port)
    ports.create(
        connection,
        port,
        owner=ports.DHCP_OWNER,
        device_id=f"dhcp-{instance.host}-{network.id}",
        project_id=instance.project_id,
        host=instance.host,
    )
    return {"id": server.id, "mac_address": mac, "fixed_ips": to_wire(addresses), "host": instance.host}
