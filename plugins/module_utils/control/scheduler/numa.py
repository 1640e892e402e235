# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""NUMA cells, CPUs of a guest's own, pages and PCI devices: asked for, fitted, taken. The door to the rooms behind it.

``request_of`` (numa_request.py), ``fit``, ``why_not``, ``used``, ``freed``, ``taken_cpus`` (numa_fit.py), and
``take``, which claims cells and devices together. Types are in model/numa.py and model/pci.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import pci
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.numa_fit import (
    Limits,
    Near,
    fit,
    freed,
    taken_cpus,
    used,
    why_not,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.numa_request import request_of
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import InstanceNUMATopology, NUMATopology
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import PciDevice

__all__ = ["Limits", "Near", "Taken", "fit", "freed", "request_of", "take", "taken_cpus", "used", "why_not"]


@dataclass(frozen=True)
class Taken:
    """What one server takes of a host, and the host as it is then."""

    numa: InstanceNUMATopology | None
    """The server's cells with their places; None where it asked for none."""
    devices: tuple[PciDevice, ...]
    host_numa: NUMATopology | None
    host_pools: tuple[pci.PciPool, ...]


def take(
    host: NUMATopology | None,
    pools: tuple[pci.PciPool, ...],
    wanted: InstanceNUMATopology | None,
    requests: Sequence[pci.PciRequest] = (),
    limits: Limits | None = None,
    packing: bool = False,
) -> Taken | None:
    """The cells and devices for one server; None where the host lacks what is ``wanted`` or what ``requests`` ask for.

    As Nova claims: first the cells, near enough to devices, then the devices. ``host`` None: one that tells no cells.
    """
    placed = None
    if wanted is not None:
        placed = fit(host, wanted, limits, Near(tuple(requests), pools), packing) if host else None
        if host is None or placed is None:
            return None
        host_after: NUMATopology | None = used(host, placed)
    else:
        host_after = host
    answer = pci.consume(pools, requests, host, placed.cells if placed else ())
    if answer is None:
        return None
    pools, devices = answer
    return Taken(placed, devices, host_after, pools)
