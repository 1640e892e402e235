# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A PCI device of a host that guests may have, and the words of Nova's aliases and specs.

Mirrors nova.objects.pci_device. Addresses are ``dddd:bb:ss.f`` in hexadecimal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple


class DeviceType:
    """nova.objects.fields.PciDeviceType, without vDPA."""

    STANDARD = "type-PCI"
    PF = "type-PF"
    """An SR-IOV card itself."""
    VF = "type-VF"
    """A virtual function of such a card."""
    ALL = (STANDARD, PF, VF)


class PciAffinity:
    """nova.objects.fields.PCINUMAAffinityPolicy: how near to the guest's CPUs and memory a device has to be."""

    REQUIRED = "required"
    """In one of the guest's NUMA cells."""
    SOCKET = "socket"
    """In a cell of the same socket."""
    LEGACY = "legacy"
    """As required, but a device of which no cell is known will do."""
    PREFERRED = "preferred"
    """Anywhere, the nearest first."""
    ALL = (REQUIRED, LEGACY, PREFERRED, SOCKET)


@dataclass(frozen=True)
class PciDevice:
    """A device that the host variable ``pci_device_spec`` names."""

    address: str
    vendor_id: str
    """Four hexadecimal digits, lower case, as ``product_id``."""
    product_id: str
    dev_type: str = DeviceType.STANDARD
    numa_node: Optional[int] = None
    """None where the host does not tell."""
    parent_address: Optional[str] = None
    """Of a VF: its card."""
    tags: Tuple[Tuple[str, str], ...] = ()
    """What else its entry in ``pci_device_spec`` says, by name."""
    managed: bool = True
    """Whether libvirt takes it from its driver on the host, and gives it back."""
