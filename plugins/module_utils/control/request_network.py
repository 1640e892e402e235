# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The networks of a request: Nova's validate_networks and Neutron's checks of a fixed IP."""

from __future__ import annotations

import ipaddress
from typing import Any, Mapping

from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_network import first_and_last
from ansible_collections.barestack.kvm.plugins.module_utils.control.checks import Problems, address, say, unknown
from ansible_collections.barestack.kvm.plugins.module_utils.control.request_spec import NIC_KEYS, NO_NICS
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Network

Nic = dict[str, Any]


def nics_of(
    entry: Mapping[str, Any], catalog: Catalog, project: tuple[str, str], path: str, problems: Problems
) -> tuple[Nic, ...]:
    """One ``{"network", "fixed_ip", "port", "tag"}`` for each NIC asked for; ``project`` is (id, name).

    A NIC that names a port has no network here: the port's own is known to the records. With nothing asked for, the
    only network that the project may use is taken, as Nova does; ``none`` in place of NICs asks for none.
    """
    nics, network = entry.get("nics"), entry.get("network")
    if nics and network is not None:
        problems.add(path, "network and nics exclude each other: give one")
    elif nics == NO_NICS:
        return ()
    elif nics:
        asked = _flatten(nics, f"{path}.nics", problems)
        return tuple(_nic(item, catalog, project[0], where, problems) for where, item in asked)
    elif network is not None:
        return (_nic({"network": network}, catalog, project[0], path, problems),)
    else:
        return _only_network(catalog, project, path, problems)
    return ()


def check_multiple(nics: tuple[Nic, ...], count: int, path: str, problems: Problems) -> None:
    """Nova's check of what one address or port cannot do for several servers."""
    if count <= 1:
        return
    if any(nic["port"] for nic in nics):
        problems.add(
            f"{path}.count",
            "Failed to launch instances: Unable to launch multiple instances with a single configured port ID. "
            "Please launch your instance one by one with different ports.",
        )
    if any(nic["fixed_ip"] for nic in nics):
        problems.add(
            f"{path}.count",
            "Failed to launch instances: max_count cannot be greater than 1 if an fixed_ip is specified.",
        )


def _only_network(catalog: Catalog, project: tuple[str, str], path: str, problems: Problems) -> tuple[Nic, ...]:
    available = catalog.networks_for(project[0])
    if len(available) == 1:
        return ({"network": available[0], "fixed_ip": None, "port": None, "tag": None},)
    if available:
        problems.add(
            f"{path}.network",
            "Multiple possible networks found, use a Network ID to be more specific. "
            f"Known: {', '.join(network.name for network in available)}",
        )
    else:
        problems.add(f"{path}.network", f"no network of the catalogue is available to project {project[1]!r}")
    return ()


def _flatten(items: list[Any], path: str, problems: Problems) -> list[tuple[str, Nic]]:
    """Mappings as they are; in a string every ``net-...=`` or ``port-...=`` begins a NIC, other keys add to it."""
    found: list[tuple[str, Nic]] = []
    for index, item in enumerate(items):
        where = f"{path}[{index}]"
        if isinstance(item, Mapping):
            found.append((where, _canonical(item, where, problems)))
        elif isinstance(item, str) and "=" in item:
            for piece in item.split(","):
                key, _, value = piece.strip().partition("=")
                part = _canonical({key: value}, where, problems)
                if found and found[-1][0] == where and not part.keys() & {"network", "port"}:
                    found[-1][1].update(part)
                else:
                    found.append((where, part))
        else:
            problems.add(where, f"must be a mapping or a string such as net-name=private, not {say(item)}")
    return found


def _canonical(item: Mapping[str, Any], path: str, problems: Problems) -> Nic:
    nic: Nic = {}
    for key, value in item.items():
        name = NIC_KEYS.get(key)
        if name is None:
            problems.add(path, unknown("key", str(key), NIC_KEYS))
        elif isinstance(value, (Mapping, list, bool)):
            problems.add(f"{path}.{key}", f"must be a string, not {say(value)}")
        elif name in nic:
            problems.add(f"{path}.{key}", f"{name.replace('_', ' ')} is given twice")
        elif value not in (None, ""):
            nic[name] = str(value)
    return nic


def _nic(asked: Nic, catalog: Catalog, project_id: str, path: str, problems: Problems) -> Nic:
    nic: Nic = {"network": None, "fixed_ip": asked.get("fixed_ip"), "port": asked.get("port"), "tag": asked.get("tag")}
    if nic["tag"] is not None and (len(nic["tag"]) > 60 or set(nic["tag"]) & {",", "/"}):
        problems.add(f"{path}.tag", f"{nic['tag']!r} is no tag: at most 60 characters without ',' and '/'")
    if nic["port"] is not None:
        if "network" in asked:
            problems.add(path, "network and port exclude each other: the port knows its network")
        if nic["fixed_ip"] is not None:
            problems.add(
                path,
                f"Specified Fixed IP '{nic['fixed_ip']}' cannot be used with port '{nic['port']}': the two cannot be "
                "specified together.",
            )
    elif "network" not in asked:
        problems.add(path, "names neither a network (net-id, net-name, network) nor a port (port-id, port-name, port)")
    else:
        try:
            nic["network"] = catalog.network(asked["network"], project_id)
        except InvalidRequest as error:
            problems.add(f"{path}.network", str(error))
    if nic["network"] is not None and nic["fixed_ip"] is not None:
        nic["fixed_ip"] = _fixed_ip(nic["fixed_ip"], nic["network"], f"{path}.fixed_ip", problems)
    return nic


def _fixed_ip(value: str, network: Network, path: str, problems: Problems) -> str | None:
    """The address in its usual spelling. As in Neutron it may lie outside the allocation pools."""
    ip = address(value)
    if ip is None:
        problems.add(path, f"{value!r} is not an IP address")
        return None
    for subnet in network.subnets:
        cidr = ipaddress.ip_network(subnet.cidr)
        if ip.version != cidr.version or ip not in cidr:
            continue
        low, high = first_and_last(cidr)
        if not int(low) <= int(ip) <= int(high):
            problems.add(path, f"IP address {ip} is the network's or the broadcast address of {cidr}")
        elif str(ip) == subnet.gateway_ip:
            problems.add(path, f"IP address {ip} is the gateway of {cidr}")
        return str(ip)
    cidrs = ", ".join(subnet.cidr for subnet in network.subnets)
    problems.add(
        path,
        f"IP address {ip} is not a valid IP for any of the subnets on the specified network. "
        f"Network {network.name} has {cidrs}",
    )
    return None
