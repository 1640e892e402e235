# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The host's NUMA cells as guests may have them: what libvirt tells, and what the site sets aside. Pure.

Mirrors nova.virt.libvirt.driver's ``_get_host_numa_topology`` and the options ``[compute]cpu_shared_set``,
``[compute]cpu_dedicated_set`` and ``reserved_huge_pages``.
"""

from __future__ import annotations

from typing import Any, Dict, FrozenSet, Mapping, Optional, Sequence, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import (
    NO_CPUS,
    NUMACell,
    NUMAPages,
    NUMATopology,
    format_cpus,
    parse_cpus,
    parse_page_size,
)

ARGUMENT_SPEC: Dict[str, Any] = {
    "cpu_shared_set": {"type": "str", "default": ""},
    "cpu_dedicated_set": {"type": "str", "default": ""},
}
RESERVED_SPEC: Dict[str, Any] = {"reserved_huge_pages": {"type": "list", "elements": "dict", "default": []}}
_PAGE_KEYS = ("node", "size", "count")


def numa_topology(cells: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Optional[NUMATopology]:
    """The host's cells with nothing used of them; None where libvirt tells none.

    ``cells`` as ``hypervisor.facts`` gives them, ``settings`` as ARGUMENT_SPEC, and RESERVED_SPEC where
    the pages that the host keeps matter. InvalidRequest names the setting.
    """
    online = frozenset(cpu for cell in cells for cpu in cell["cpus"])
    if not cells:
        return None
    shared, own = cpu_sets(online, settings)
    reserved = _reserved(settings.get("reserved_huge_pages", []), cells)
    return NUMATopology(tuple(_cell(cell, shared, own, reserved) for cell in cells))


def cpu_sets(online: FrozenSet[int], settings: Mapping[str, Any]) -> Tuple[FrozenSet[int], FrozenSet[int]]:
    """(CPUs that guests share, CPUs for guests' own). Where neither set is given, all are both, as in Nova.

    InvalidRequest where a set is no set of CPUs, is empty, names a CPU that is not there, or overlaps the other.
    """
    sets = {}
    for name in ("cpu_shared_set", "cpu_dedicated_set"):
        text = str(settings[name] or "")
        sets[name] = parse_cpus(text, name)
        if text.strip() and not sets[name]:
            raise InvalidRequest(f"{name}={text} has no CPU: leave it out, or name some of {format_cpus(online)}")
        missing = sets[name] - online
        if missing:
            there = format_cpus(online)
            raise InvalidRequest(f"{name}={text} has CPUs {format_cpus(missing)}, which are not online: {there} are")
    shared, own = sets["cpu_shared_set"], sets["cpu_dedicated_set"]
    if shared & own:
        raise InvalidRequest(f"CPUs {format_cpus(shared & own)} are both in cpu_shared_set and in cpu_dedicated_set")
    if not shared and not own:
        return online, online
    return shared, own


def _cell(
    cell: Mapping[str, Any], shared: FrozenSet[int], own: FrozenSet[int], reserved: Mapping[Tuple[int, int], int]
) -> NUMACell:
    cpus = frozenset(cell["cpus"])
    usable = cpus & (shared | own)
    cores = [frozenset(core) & usable for core in cell["siblings"]]
    return NUMACell(
        id=cell["id"],
        cpuset=cpus & shared,
        pcpuset=cpus & own,
        memory=cell["memory_mb"],
        siblings=tuple(core for core in cores if core),
        pages=tuple(
            NUMAPages(page["size_kb"], page["total"], reserved=reserved.get((cell["id"], page["size_kb"]), 0))
            for page in cell["pages"]
        ),
        socket=cell["socket"],
        pinned_cpus=NO_CPUS,
    )


def _reserved(entries: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]]) -> Dict[Tuple[int, int], int]:
    """(cell, KiB of a page) -> pages that the host keeps."""
    there: Dict[Tuple[int, int], int] = {
        (cell["id"], page["size_kb"]): page["total"] for cell in cells for page in cell["pages"]
    }
    kept = {}
    for entry in entries:
        where = f"reserved_huge_pages {dict(entry)}"
        if sorted(entry) != sorted(_PAGE_KEYS):
            raise InvalidRequest(f"{where} must have {', '.join(_PAGE_KEYS)}, as {{node: 0, size: 2MB, count: 64}}")
        node, count = _number(entry["node"], f"{where}: node"), _number(entry["count"], f"{where}: count")
        size = parse_page_size(str(entry["size"]))
        if (node, size) not in there:
            sizes = ", ".join(f"{size} KiB on node {node}" for node, size in sorted(there))
            raise InvalidRequest(f"{where}: this host has no such pages: there are {sizes or 'none'}")
        kept[node, size] = count
    return kept


def _number(value: Any, where: str) -> int:
    if isinstance(value, bool) or not str(value).isdecimal():
        raise InvalidRequest(f"{where}={value} must be a whole number")
    return int(value)
