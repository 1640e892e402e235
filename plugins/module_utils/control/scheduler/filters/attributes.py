# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What extra specs and queries may ask of a host, under the names of Nova's HostState."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import (
    DISK_GB,
    EVERY,
    MEMORY_MB,
    VCPU,
    Distinct,
    Facts,
    Floats,
    Hosts,
    Ints,
    Where,
)


def _disk_used(hosts: Hosts, where: Where) -> Ints:
    disk = hosts.resource(DISK_GB)
    return (disk.reserved[where] + disk.used[where]) * 1024


_NUMBERS: dict[str, Callable[[Hosts, Where], Ints | Floats]] = {
    "cpu_allocation_ratio": lambda hosts, where: hosts.resource(VCPU).allocation_ratio[where],
    "disk_allocation_ratio": lambda hosts, where: hosts.resource(DISK_GB).allocation_ratio[where],
    "disk_mb_used": _disk_used,
    "failed_builds": lambda hosts, where: hosts.failed_builds[where],
    "free_disk_mb": lambda hosts, where: hosts.free_disk_mb(where),
    "free_ram_mb": lambda hosts, where: hosts.free_ram_mb(where),
    "num_instances": lambda hosts, where: hosts.num_instances[where],
    "num_io_ops": lambda hosts, where: hosts.num_io_ops[where],
    "ram_allocation_ratio": lambda hosts, where: hosts.resource(MEMORY_MB).allocation_ratio[where],
    "total_usable_disk_gb": lambda hosts, where: hosts.resource(DISK_GB).total[where],
    "total_usable_ram_mb": lambda hosts, where: hosts.resource(MEMORY_MB).total[where],
    "vcpus_total": lambda hosts, where: hosts.vcpus_total(where),
    "vcpus_used": lambda hosts, where: hosts.vcpus_used(where),
}
_TEXTS: dict[str, Callable[[Hosts], Sequence[str]]] = {
    "host": lambda hosts: hosts.names,
    "host_ip": lambda hosts: hosts.host_ip,
    "hypervisor_hostname": lambda hosts: hosts.names,
    "nodename": lambda hosts: hosts.names,
}
_FACTS: dict[str, Callable[[Facts], Any]] = {
    "cpu_info": lambda facts: facts.cpu_info,
    "hypervisor_type": lambda facts: facts.hypervisor_type,
    "hypervisor_version": lambda facts: facts.hypervisor_version,
    "machine_types": lambda facts: list(facts.machine_types),
    "stats": lambda facts: facts.stats,
    "supported_instances": lambda facts: [list(item) for item in facts.supported_instances],
    "traits": lambda facts: sorted(facts.traits),
}

NAMES = frozenset([*_NUMBERS, *_TEXTS, *_FACTS])
"""What every host has."""


def column(hosts: Hosts, name: str) -> Distinct[Any]:
    """The attribute of every host; other names are looked for in the hosts' ``stats``, None where they are not."""
    if name in _NUMBERS:
        values, codes = np.unique(_NUMBERS[name](hosts, EVERY), return_inverse=True)
        return Distinct(values.tolist(), codes)
    if name in _TEXTS:
        return Distinct.of(_TEXTS[name](hosts))
    read = _FACTS.get(name)
    found = [read(facts) if read else facts.stats.get(name) for facts in hosts.facts.values]
    return Distinct(found, hosts.facts.codes)


def value(hosts: Hosts, row: int, name: str) -> Any:
    """The attribute of one host; None where it has none of this name (``stats`` are not looked at)."""
    if name in _NUMBERS:
        return _NUMBERS[name](hosts, slice(row, row + 1)).item()
    if name in _TEXTS:
        return _TEXTS[name](hosts)[row]
    return _FACTS[name](hosts.facts[row]) if name in _FACTS else None


def walk(found: Any, path: Sequence[str]) -> Any:
    """The value at the path below ``found``, or None. Text on the way is read as JSON."""
    for name in path:
        if isinstance(found, str):
            try:
                found = json.loads(found)
            except ValueError:
                return None
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
