# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Which PCI devices of the host guests may have: libvirt's node devices, and the variable ``pci_device_spec``. Pure.

Mirrors nova.virt.libvirt.host's ``_get_pcidev_info`` and nova.pci.devspec: an entry names devices by vendor, product
and address, or a network interface by its name; whatever else it says is a tag. The first entry that fits counts.
"""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import DeviceType, PciDevice

_PARTS = (("domain", 0xFFFF, 4), ("bus", 0xFF, 2), ("slot", 0x1F, 2), ("function", 7, 1))
"""Of an address: name, greatest value, digits."""
_FLAGS = ("managed", "live_migratable", "remote_managed")
_NOT_HERE = ("resource_class", "traits", "one_time_use")
_ANY = "*"
_BOOLEANS = {**dict.fromkeys(("true", "yes", "on", "1"), True), **dict.fromkeys(("false", "no", "off", "0"), False)}

Match = Callable[[PciDevice], bool]


def assignable(xmls: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> Tuple[PciDevice, ...]:
    """The devices that the entries of ``pci_device_spec`` name, with their tags, by address.

    ``xmls`` are libvirt's node devices of the capabilities pci and net. InvalidRequest names the entry and the key.
    """
    devices, interfaces = read(xmls)
    rules = [_rule(entry, devices, interfaces) for entry in entries]
    found = []
    for device in devices:
        for match, tags in rules:
            if match(device):
                managed = dict(tags).get("managed", "true") == "true"
                found.append(dataclasses.replace(device, tags=tags, managed=managed))
                break
    return tuple(sorted(found, key=lambda device: device.address))


def read(xmls: Sequence[str]) -> Tuple[List[PciDevice], Dict[str, str]]:
    """(PCI devices, interface name -> address of its device)."""
    roots = [ET.fromstring(xml) for xml in xmls]  # noqa: S314 - libvirt's own answers
    devices, names = [], {}
    for root in roots:
        capability = root.find("./capability[@type='pci']")
        if capability is not None:
            device = _device(capability)
            devices.append(device)
            names[root.findtext("name", "")] = device.address
    interfaces = {}
    for root in roots:
        interface = root.findtext("./capability[@type='net']/interface")
        parent = root.findtext("parent", "")
        if interface and parent in names:
            interfaces[interface] = names[parent]
    return devices, interfaces


def _device(capability: ET.Element) -> PciDevice:
    numbers = [int(capability.findtext(name, "0"), 0) for name, _most, _digits in _PARTS]
    node = capability.find("numa")
    card = capability.find("./capability[@type='phys_function']/address")
    if capability.find("./capability[@type='virt_functions']") is not None:
        kind = DeviceType.PF
    else:
        kind = DeviceType.VF if card is not None else DeviceType.STANDARD
    return PciDevice(
        address=_address(numbers),
        vendor_id=_id(capability, "vendor"),
        product_id=_id(capability, "product"),
        dev_type=kind,
        numa_node=None if node is None else int(node.get("node", "0")),
        parent_address=_address([int(card.get(name, "0"), 0) for name, _most, _digits in _PARTS])
        if card is not None and kind == DeviceType.VF
        else None,
    )


def _id(capability: ET.Element, name: str) -> str:
    element = capability.find(name)
    return f"{int(element.get('id', '0') if element is not None else '0', 0):04x}"


def _address(numbers: Sequence[int]) -> str:
    domain, bus, slot, function = numbers
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"


def _rule(
    entry: Mapping[str, Any], devices: Sequence[PciDevice], interfaces: Mapping[str, str]
) -> Tuple[Match, Tuple[Tuple[str, str], ...]]:
    where = f"pci_device_spec {dict(entry)}"
    rest = {str(key): value for key, value in entry.items() if value is not None}
    vendor, product = (_hex(rest.pop(key, _ANY), 0xFFFF, 4, f"{where}: {key}") for key in ("vendor_id", "product_id"))
    address, name = rest.pop("address", None), rest.pop("devname", None)
    if address is not None and name is not None:
        raise InvalidRequest(f"{where}: address and devname: use one of them")
    if not entry or (vendor == product == _ANY and address is None and name is None):
        raise InvalidRequest(f"{where} names no device: give vendor_id, product_id, address or devname")
    if name is not None:
        address = interfaces.get(str(name), "")  # an interface that is not there yet is no error, as in Nova
    there = _place(address, devices, where)
    tags = _tags(rest, where)

    def match(device: PciDevice) -> bool:
        return vendor in (_ANY, device.vendor_id) and product in (_ANY, device.product_id) and there(device)

    return match, tags


def _tags(rest: Mapping[str, Any], where: str) -> Tuple[Tuple[str, str], ...]:
    tags = {}
    for key, value in rest.items():
        if key in _NOT_HERE:
            raise InvalidRequest(f"{where}: {key} is for devices in placement, which there is not here")
        tags[key] = str(value)
        if key in _FLAGS:
            if str(value).lower() not in _BOOLEANS:
                raise InvalidRequest(f"{where}: {key}={value} must be true or false")
            tags[key] = "true" if _BOOLEANS[str(value).lower()] else "false"
    return tuple(sorted(tags.items()))


def _place(address: Any, devices: Sequence[PciDevice], where: str) -> Match:
    """Whether a device is at the address, or is a virtual function of the one card that the address names."""
    if address == "":
        return lambda device: False
    if isinstance(address, Mapping):
        patterns = [_pattern(address, name, where) for name, _most, _digits in _PARTS]
        return lambda device: all(pattern.match(part) for pattern, part in zip(patterns, _split(device.address)))
    wanted = _glob(_ANY if address is None else str(address), where)
    cards = {device.address for device in devices if device.dev_type == DeviceType.PF}
    card: Optional[str] = None if _ANY in wanted else "{}:{}:{}.{}".format(*wanted)

    def match(device: PciDevice) -> bool:
        if card in cards and device.parent_address == card:
            return True
        return all(part in (_ANY, there) for part, there in zip(wanted, _split(device.address)))

    return match


def _glob(text: str, where: str) -> List[str]:
    """The parts of an address as ``*:0a:00.*``: what is left out in front, or is empty, is any."""
    before, _dot, function = text.partition(".")
    parts = [part.strip() or _ANY for part in before.split(":")]
    if len(parts) > 3:
        raise InvalidRequest(f"{where}: address={text} must be as 0000:81:00.0, with * for any part")
    parts = [_ANY] * (3 - len(parts)) + parts + [function.strip() or _ANY]
    return [_hex(part, most, digits, f"{where}: {name}") for part, (name, most, digits) in zip(parts, _PARTS)]


def _pattern(address: Mapping[str, Any], name: str, where: str) -> re.Pattern[str]:
    try:
        return re.compile(str(address.get(name, ".*")))
    except re.error as error:
        raise InvalidRequest(f"{where}: {name}={address[name]} is no regular expression: {error}") from None


def _hex(value: Any, most: int, digits: int, where: str) -> str:
    text = str(value).strip()
    if text == _ANY:
        return text
    try:
        number = int(text, 16)
    except ValueError:
        number = -1
    if not 0 <= number <= most:
        raise InvalidRequest(f"{where}={value} must be hexadecimal, at most {most:x}, or * for any")
    return f"{number:0{digits}x}"


def _split(address: str) -> List[str]:
    return re.split("[:.]", address)
