# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""From libvirt's capabilities XML to the facts that the scheduler weighs. Pure.

Mirrors nova.virt.libvirt.driver's ``get_available_resource`` and ``_get_cpu_info``.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any, Dict, List


def resolve_virt_type(wanted: str, kvm_usable: bool) -> str:
    """``kvm`` or ``qemu``; ``auto`` is kvm only where it works."""
    if wanted != "auto":
        return wanted
    return "kvm" if kvm_usable else "qemu"


def facts(capabilities: str, domain_capabilities: str, virt_type: str) -> Dict[str, Any]:
    """``numa_cells``, ``cpu_info``, ``supported_instances``, ``machine_types`` and ``firmware`` of a host.

    ``virt_type`` is resolved: kvm is not counted as supported where it is not what guests would use, since libvirt
    lists it wherever a /dev/kvm exists.
    """
    root = ET.fromstring(capabilities)  # noqa: S314 - libvirt's own answer
    guests = root.findall("./guest")
    return {
        "numa_cells": [_cell(cell) for cell in root.findall("./host/topology/cells/cell")],
        "cpu_info": _cpu(root),
        "supported_instances": [item for guest in guests for item in _supported(guest, virt_type)],
        "machine_types": _machine_types(guests),
        "firmware": _firmware(domain_capabilities),
    }


def _cpu(root: ET.Element) -> Dict[str, Any]:
    """Nova's ``cpu_info``; sockets, cores and threads are those of the whole host."""
    cpu = root.find("./host/cpu")
    if cpu is None:
        return {"arch": "", "model": "", "vendor": "", "features": [], "topology": {}}
    topology = cpu.find("topology")
    sizes = ("sockets", "cores", "threads")
    return {
        "arch": cpu.findtext("arch", ""),
        "model": cpu.findtext("model", ""),
        "vendor": cpu.findtext("vendor", ""),
        "features": sorted(feature.get("name", "") for feature in cpu.findall("feature")),
        "topology": {} if topology is None else {size: int(topology.get(size, "1")) for size in sizes},
    }


def _cell(cell: ET.Element) -> Dict[str, Any]:
    """A NUMA cell: ``siblings`` are the groups of CPUs that share a core, ``pages`` the memory's pages by size.

    ``socket`` is None where libvirt does not tell it, or the cell spans several.
    """
    memory = cell.find("memory")
    kib = {"b": 1 / 1024, "KiB": 1, "MiB": 1024, "GiB": 1024**2}
    cpus = cell.findall("./cpus/cpu")
    sockets = {cpu.get("socket_id") for cpu in cpus}
    socket = sockets.pop() if len(sockets) == 1 else None
    siblings = {tuple(_cpu_set(cpu.get("siblings", cpu.get("id", "")))) for cpu in cpus}
    return {
        "id": int(cell.get("id", "0")),
        "cpus": sorted(int(cpu.get("id", "0")) for cpu in cpus),
        "memory_mb": 0 if memory is None else int(int(memory.text or 0) * kib[memory.get("unit", "KiB")]) // 1024,
        "siblings": sorted(list(group) for group in siblings),
        "socket": None if socket is None else int(socket),
        "pages": [
            {"size_kb": int(int(page.get("size", "0")) * kib[page.get("unit", "KiB")]), "total": int(page.text or 0)}
            for page in cell.findall("pages")
        ],
    }


def with_memory(cell: Dict[str, Any], memory_mb: int) -> Dict[str, Any]:
    """A host's only cell with the memory that the kernel has: the ordinary pages make up what larger ones leave."""
    pages = sorted(cell["pages"], key=lambda page: int(page["size_kb"]))
    if pages:
        large = sum(page["size_kb"] * page["total"] for page in pages[1:])
        pages[0] = {**pages[0], "total": max(0, memory_mb * 1024 - large) // pages[0]["size_kb"]}
    return {**cell, "memory_mb": memory_mb, "pages": pages}


def _cpu_set(text: str) -> List[int]:
    """``0-2,4`` is [0, 1, 2, 4]."""
    cpus: List[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return sorted(cpus)


def _supported(guest: ET.Element, virt_type: str) -> List[List[str]]:
    """Nova's ``supported_instances``: (arch, hypervisor type, os type)."""
    arch = guest.find("arch")
    if arch is None:
        return []
    types = [domain.get("type", "") for domain in arch.findall("domain")]
    os_type = guest.findtext("os_type", "hvm")
    return [[arch.get("name", ""), kind, os_type] for kind in types if kind != "kvm" or virt_type == "kvm"]


def _machine_types(guests: List[ET.Element]) -> Dict[str, List[str]]:
    """For each arch the names of its machines, aliases such as ``pc`` among them."""
    found: Dict[str, List[str]] = {}
    for guest in guests:
        for arch in guest.findall("arch"):
            names = {machine.text or "" for machine in arch.iter("machine")}
            found[arch.get("name", "")] = sorted(names)
    return found


def _firmware(domain_capabilities: str) -> List[str]:
    """``bios`` is always there; ``efi`` where libvirt finds a firmware to choose."""
    root = ET.fromstring(domain_capabilities)  # noqa: S314 - libvirt's own answer
    values = [value.text for value in root.findall("./os/enum[@name='firmware']/value")]
    return ["bios", "efi"] if "efi" in values else ["bios"]
