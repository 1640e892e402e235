# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The config drive: an ISO 9660 image labelled ``config-2`` that cloud-init's ConfigDrive source reads.

Mirrors nova.virt.configdrive, nova.api.metadata.base (``meta_data.json``) and nova.virt.netutils
(``network_data.json``, ``get_network_metadata``). There is no ``random_seed``: the guest has a virtio-rng device, and
the same server always gets the same files.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import json
import os
import re
import struct
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host.disk import (
    build_once,
    ensure_directory,
    part_of,
    require_uuid,
)
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Disk, Instance, Port, Subnet

LABEL = "config-2"
VERSIONS = ("2018-08-27", "latest")
"""The newest version that cloud-init asks for by name, and the one that others take."""
MODE = 0o640
_SECTOR = 2048


def meta_data(instance: Instance) -> Dict[str, Any]:
    """``meta_data.json``, as nova's ``InstanceMetadata._metadata_as_json`` of 2018-08-27."""
    found: Dict[str, Any] = {"uuid": instance.uuid}
    if instance.metadata:
        found["meta"] = dict(instance.metadata)
    if instance.key_name and instance.public_key:
        found["public_keys"] = {instance.key_name: instance.public_key}
        found["keys"] = [{"name": instance.key_name, "type": "ssh", "data": instance.public_key}]
    found["hostname"] = instance.hostname
    found["name"] = instance.name
    found["launch_index"] = instance.launch_index
    found["availability_zone"] = instance.availability_zone
    found["project_id"] = instance.project_id
    found["devices"] = []
    return found


def network_data(ports: Iterable[Port]) -> Dict[str, Any]:
    """``network_data.json``, as nova.virt.netutils.get_network_metadata: links, networks and services.

    Of each port its first IPv4 and its first IPv6 address are told, as in Nova; ports without addresses are not.
    """
    links: List[Dict[str, Any]] = []
    networks: List[Dict[str, Any]] = []
    services: List[Dict[str, str]] = []
    for port in ports:
        addresses = [_first_address(port, version) for version in (4, 6)]
        told = [item for item in addresses if item]
        if not told:
            continue
        links.append(_link(port, [subnet for subnet, _ in told]))
        for subnet, address in told:
            networks.append(_network(port, subnet, address, f"network{len(networks)}"))
            services += [service for service in _dns_services(subnet) if service not in services]
    return {"links": links, "networks": networks, "services": services} if links else {}


def _first_address(port: Port, version: int) -> Optional[Tuple[Subnet, str]]:
    for fixed_ip in port.fixed_ips:
        subnet = port.network.subnet(fixed_ip.subnet_id)
        if subnet.version == version:
            return subnet, fixed_ip.ip_address
    return None


def _link(port: Port, subnets: Iterable[Subnet]) -> Dict[str, Any]:
    return {
        "id": port.tap_device,
        "vif_id": port.id,
        "type": "bridge",
        # Nova leaves the MTU to DHCP where there is DHCP.
        "mtu": None if any(subnet.enable_dhcp for subnet in subnets) else port.network.mtu,
        "ethernet_mac_address": port.mac_address,
    }


def _network(port: Port, subnet: Subnet, address: str, name: str) -> Dict[str, Any]:
    found: Dict[str, Any] = {
        "id": name,
        "type": f"ipv{subnet.version}",
        "link": port.tap_device,
        "network_id": port.network.id,
    }
    if subnet.enable_dhcp:
        found["type"] += "_dhcp"
        return found
    found["ip_address"] = address
    found["netmask"] = str(ipaddress.ip_network(subnet.cidr, strict=False).netmask)
    default = [("::/0" if subnet.version == 6 else "0.0.0.0/0", subnet.gateway_ip)] if subnet.gateway_ip else []
    found["routes"] = [_route(destination, nexthop) for destination, nexthop in [*default, *subnet.host_routes]]
    found["services"] = _dns_services(subnet)
    return found


def _route(destination: str, nexthop: str) -> Dict[str, str]:
    network = ipaddress.ip_network(destination, strict=False)
    return {"network": str(network.network_address), "netmask": str(network.netmask), "gateway": nexthop}


def _dns_services(subnet: Subnet) -> List[Dict[str, str]]:
    return [{"type": "dns", "address": address} for address in subnet.dns_nameservers]


def drive_files(instance: Instance) -> Dict[str, bytes]:
    """All files of the drive: path to content."""
    files = {
        "meta_data.json": _json(meta_data(instance)),
        "network_data.json": _json(network_data(instance.ports)),
        "vendor_data.json": _json({}),
    }
    if instance.user_data is not None:
        files["user_data"] = instance.user_data.encode()
    return {f"openstack/{version}/{name}": data for version in VERSIONS for name, data in files.items()}


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def is_wanted(instance: Instance) -> bool:
    """Whether the request or the image asks for a drive (nova.virt.configdrive.required_by)."""
    return instance.config_drive or instance.image.properties.get("img_config_drive") == "mandatory"


def write_iso(path: str, files: Mapping[str, bytes]) -> None:
    """An ISO 9660 image with Joliet and Rock Ridge names. HostError where pycdlib is missing."""
    try:
        import pycdlib  # 25 ms, which a run that writes no drive does not pay
    except ImportError:
        raise HostError("python3-pycdlib is not installed here: run playbooks/prepare_hosts.yml") from None
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    try:
        for directory in sorted({part for name in files for part in _parents(name)}):
            iso.add_directory(_iso_path(directory), rr_name=os.path.basename(directory), joliet_path=f"/{directory}")
        for name, data in files.items():
            iso.add_fp(
                io.BytesIO(data),
                len(data),
                f"{_iso_path(name, file=True)};1",
                rr_name=os.path.basename(name),
                joliet_path=f"/{name}",
            )
        iso.write(path)
    finally:
        iso.close()


def _parents(path: str) -> List[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: index + 1]) for index in range(len(parts))]


def _iso_path(path: str, file: bool = False) -> str:
    """The plain ISO 9660 name: capitals, digits and underscores. Readers see the Rock Ridge or Joliet name."""
    directory, name = os.path.split(path)
    stem, dot, extension = name.partition(".") if file else (name, "", "")
    plain = re.sub(r"[^A-Z0-9_]", "_", stem.upper()) + ("." if file else "") + extension.upper()
    return f"{_iso_path(directory) if directory else ''}/{plain}"


def is_config_drive(path: str) -> bool:
    """Whether a file is a whole ISO 9660 image labelled ``config-2``, from its primary volume descriptor."""
    with open(path, "rb") as stream:
        stream.seek(16 * _SECTOR)
        descriptor = stream.read(_SECTOR)
        size = os.fstat(stream.fileno()).st_size
    if len(descriptor) < _SECTOR or descriptor[:6] != b"\x01CD001":
        return False
    (sectors,) = struct.unpack_from("<I", descriptor, 80)
    return descriptor[40:72].rstrip() == LABEL.encode() and size >= sectors * _SECTOR


class ConfigDrives:
    """The config drives of this host's instances. Safe to share between threads."""

    def __init__(self, paths: Paths, effects: Effects) -> None:
        self._paths = paths
        self._effects = effects

    def ensure(self, instance: Instance) -> Instance:
        """The instance with its config drive, where it is to have one.

        A drive that exists stays as it is, as in Nova: it tells what was so when the server was made.
        """
        if not is_wanted(instance):
            return instance
        path = self._path(instance)
        files = drive_files(instance)
        if not (os.path.lexists(path) and is_config_drive(path)):
            listing = "\n".join(f"{name} ({len(data)} bytes)" for name, data in sorted(files.items()))
            self._effects.apply("config_drive.iso", path, lambda: _make(path, files), after=listing)
        return instance.with_disk(Disk("config_drive", path, "raw"))

    def remove(self, instance: Instance) -> None:
        """Remove the drive, and what a killed build left."""
        path = self._path(instance)
        if os.path.lexists(path) or os.path.lexists(part_of(path)):
            self._effects.apply("config_drive.iso", path, lambda: _unlink(path), before=f"ISO 9660, {LABEL}")

    def _path(self, instance: Instance) -> str:
        return self._paths.disk(require_uuid("instance", instance.uuid), "disk.config")


def _make(path: str, files: Mapping[str, bytes]) -> None:
    if os.path.lexists(path) and not is_config_drive(path):
        os.unlink(path)
    ensure_directory(os.path.dirname(path))
    build_once(path, lambda part: write_iso(part, files), MODE)


def _unlink(path: str) -> None:
    for name in (path, part_of(path)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
