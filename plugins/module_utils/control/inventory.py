# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A host's report and the inventory's settings for it: what is recorded of the host. Nova's resource tracker."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.checks import (
    Checker,
    Problems,
    check_range,
    plain,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import reports
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.reports import Report
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import (
    DISK_GB,
    MEMORY_MB,
    PCPU,
    VCPU,
    Inventory,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import PciDevice
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from sqlalchemy import Connection

REPORT_SPEC: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "hypervisor": {"type": "dict", "required": True},
    "cpu_allocation_ratio": {"type": "float", "default": 4.0},
    "ram_allocation_ratio": {"type": "float", "default": 1.0},
    "disk_allocation_ratio": {"type": "float", "default": 1.0},
    "reserved_host_cpus": {"type": "int", "default": 0},
    "reserved_host_memory_mb": {"type": "int", "default": 512},
    "reserved_host_disk_mb": {"type": "int", "default": 0},
    "resources": {"type": "dict", "default": {}},
    "traits": {"type": "list", "elements": "str", "default": []},
}
"""A host's report with the inventory's settings for it; the defaults are Nova's."""

REPORTS: dict[str, Any] = {"type": "list", "elements": "dict", "default": [], "options": REPORT_SPEC}
"""The option ``reports``."""

RESOURCE: dict[str, dict[str, Any]] = {
    "total": {"type": "int", "required": True, "description": "How many there are, at least 1."},
    "reserved": {"type": "int", "default": 0, "description": "How many the host keeps."},
    "allocation_ratio": {"type": "float", "default": 1.0, "description": "How many times each is given out."},
    "min_unit": {"type": "int", "default": 1, "description": "The fewest for one server."},
    "max_unit": {"type": "int", "description": "The most for one server. Default: the total."},
    "step_size": {"type": "int", "default": 1, "description": "A server takes multiples of it."},
}
"""An entry of ``resources``, in the words of placement."""

_OWN = ("hostname", "vcpus", "memory_mb", "disk_gb", "numa_cells", "numa_topology")
"""What of a host's report is its own, and recorded beside what hosts of one kind have in common."""
_ELSEWHERE = ("host_ip", "disk_available_gb", "running_domains", "metrics", "pci_devices", "traits")
"""What has a column or rows of its own, or moves all the time and is no change of the host."""
_CUSTOM = re.compile(r"CUSTOM_[A-Z0-9_]+")


def record(connection: Connection, told: Sequence[Mapping[str, Any]], now: str) -> list[tuple[str, Any, Any]]:
    """Write hosts' reports (as :data:`REPORTS`) and their heartbeats.

    Returns each host with what was known of it (None for nothing) and what is now known. InvalidRequest says which
    setting of which host is wrong.
    """
    if not told:
        return []
    wanted = [report(item) for item in told]
    known = reports.recorded(connection, [item.name for item in wanted])
    reports.save(connection, wanted, known, now)
    return [(item.name, _shown(known.get(item.name)), _shown(item)) for item in wanted]


def _shown(one: Report | None) -> Any:
    if one is None:
        return None
    fields = ("common", "own", "inventories", "devices", "host_ip", "metrics")
    return {name: to_wire(getattr(one, name)) for name in fields}


def report(told: Mapping[str, Any]) -> Report:
    """What is recorded of a host that reports this."""
    hypervisor = plain(told["hypervisor"])
    problems = Problems()
    custom = _custom(told, problems)
    traits = _traits(told, problems)
    problems.finish()
    common = {key: value for key, value in hypervisor.items() if key not in (*_OWN, *_ELSEWHERE)}
    return Report(
        name=told["name"],
        common={**common, "traits": sorted({*hypervisor.get("traits", ()), *traits})},
        own={key: value for key, value in hypervisor.items() if key in _OWN},
        inventories={**inventories(hypervisor, told), **custom},
        devices=tuple(from_wire(PciDevice, item) for item in hypervisor.get("pci_devices", ())),
        host_ip=hypervisor.get("host_ip"),
        disk_available_gb=hypervisor.get("disk_available_gb"),
        metrics=hypervisor.get("metrics") or None,
    )


def inventories(hypervisor: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Inventory]:
    """What a host has, as nova.virt.libvirt.driver.update_provider_tree reports it; a class of nothing is left out.

    ``settings`` are Nova's options: ``*_allocation_ratio``, ``reserved_host_*``. ``max_unit`` is the total: one server
    never exceeds the physical host.
    """
    shared, dedicated = _cpus(hypervisor)
    amounts = (
        (VCPU, shared, settings["reserved_host_cpus"], settings["cpu_allocation_ratio"]),
        (PCPU, dedicated, 0, 1.0),
        (MEMORY_MB, hypervisor["memory_mb"], settings["reserved_host_memory_mb"], settings["ram_allocation_ratio"]),
        (
            DISK_GB,
            hypervisor["disk_gb"],
            math.ceil(settings["reserved_host_disk_mb"] / 1024),
            settings["disk_allocation_ratio"],
        ),
    )
    return {
        resource_class: Inventory(int(total), int(reserved), float(ratio), max_unit=int(total))
        for resource_class, total, reserved, ratio in amounts
        if total
    }


def _cpus(hypervisor: Mapping[str, Any]) -> tuple[int, int]:
    """(CPUs that servers share, CPUs that they may have for their own).

    The host's cells have CPUs for both where neither cpu_shared_set nor cpu_dedicated_set is given: then there are none
    for servers' own, as in Nova.
    """
    cells = (hypervisor.get("numa_topology") or {}).get("cells", ())
    shared = {cpu for cell in cells for cpu in cell["cpuset"]}
    own = {cpu for cell in cells for cpu in cell["pcpuset"]}
    return (hypervisor["vcpus"], 0) if not cells or shared & own else (len(shared), len(own))


def _custom(told: Mapping[str, Any], problems: Problems) -> dict[str, Inventory]:
    """The host variable ``resources``: the site's own resource classes."""
    checker = Checker(RESOURCE)
    found = {}
    for name, item in told["resources"].items():
        path = f"{told['name']}: resources.{name}"
        if not _CUSTOM.fullmatch(name):
            problems.add(
                path, "a resource class of the site's own is CUSTOM_ with letters A-Z, digits and '_' after it"
            )
        entry = checker.check({"total": item} if isinstance(item, int) else item, path, problems)
        if entry is None:
            continue
        entry["max_unit"] = entry.get("max_unit") or entry["total"]
        for key, least in (("total", 1), ("reserved", 0), ("min_unit", 1), ("max_unit", 1), ("step_size", 1)):
            check_range(entry[key], least, None, f"{path}.{key}", problems)
        if entry["allocation_ratio"] <= 0:
            problems.add(
                f"{path}.allocation_ratio", f"{entry['allocation_ratio']:g} is not allowed, it must be above 0"
            )
        found[name] = Inventory(**entry)
    return found


def _traits(told: Mapping[str, Any], problems: Problems) -> list[str]:
    """The host variable ``traits``: the site's own, and what it knows better of the standard ones."""
    for name in told["traits"]:
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
            problems.add(
                f"{told['name']}: traits", f"{name!r} must be letters A-Z, digits and '_', such as CUSTOM_FAST_DISK"
            )
    return list(told["traits"])
