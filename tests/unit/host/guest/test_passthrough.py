# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""PCI devices as libvirt tells them, and which of them guests may have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import driver, passthrough
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import PciDevice


def node(bus: int, slot: int, function: int, product: str, inside: str = "", vendor: str = "0x8086") -> str:
    name = f"pci_0000_{bus:02x}_{slot:02x}_{function}"
    return f"""
<device><name>{name}</name><parent>computer</parent><capability type='pci'><class>0x020000</class>
  <domain>0</domain><bus>{bus}</bus><slot>{slot}</slot><function>{function}</function>
  <product id='{product}'>Some card</product><vendor id='{vendor}'>Some firm</vendor>{inside}
</capability></device>"""


def address(bus: int, slot: int, function: int) -> str:
    return f"<address domain='0x0000' bus='{bus:#x}' slot='{slot:#x}' function='{function:#x}'/>"


FUNCTIONS = f"<capability type='virt_functions' maxCount='8'>{address(0x81, 2, 0)}{address(0x81, 2, 1)}</capability>"
OF_CARD = f"<capability type='phys_function'>{address(0x81, 0, 0)}</capability>"
NODES = [
    node(0x81, 0, 0, "0x1572", FUNCTIONS + "<numa node='1'/>"),
    node(0x81, 2, 0, "0x154c", OF_CARD + "<numa node='1'/>"),
    node(0x81, 2, 1, "0x154c", OF_CARD + "<numa node='1'/>"),
    node(0x41, 0, 0, "0x20b5", vendor="0x10de"),
]
NETWORK = """
<device><name>net_ens1_00</name><parent>pci_0000_81_00_0</parent>
<capability type='net'><interface>ens1</interface><address>aa:bb:cc:dd:ee:ff</address></capability></device>"""
CARD, GPU = "0000:81:00.0", "0000:41:00.0"
VFS = ["0000:81:02.0", "0000:81:02.1"]


def named(*entries: dict[str, Any]) -> list[str]:
    return [device.address for device in passthrough.assignable([*NODES, NETWORK], entries)]


def test_what_libvirt_tells_of_devices() -> None:
    devices, interfaces = passthrough.read([*NODES, NETWORK, "<device><name>computer</name></device>"])
    assert devices == [
        PciDevice(CARD, "8086", "1572", "type-PF", 1),
        PciDevice(VFS[0], "8086", "154c", "type-VF", 1, CARD),
        PciDevice(VFS[1], "8086", "154c", "type-VF", 1, CARD),
        PciDevice(GPU, "10de", "20b5", "type-PCI", None),
    ]
    assert interfaces == {"ens1": CARD}


def test_libvirt_itself_lists_them(tmp_path: Path) -> None:
    """Its test driver, with such devices: what is read is libvirt's own XML, not ours."""
    site = tmp_path / "site.xml"
    hardware = "<hardware><uuid>11111111-2222-3333-4444-555555555555</uuid></hardware>"
    system = f"<capability type='system'>{hardware}<firmware/></capability>"
    root = f"<device><name>computer</name>{system}</device>"
    site.write_text(f"<node>{root}{''.join(NODES)}{NETWORK}</node>")
    with driver.connect(f"test://{site}") as hypervisor:
        found = passthrough.read(hypervisor.node_devices())
    devices, interfaces = passthrough.read([*NODES, NETWORK])
    assert sorted(found[0], key=repr) == sorted(devices, key=repr)
    assert found[1] == interfaces


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"vendor_id": "8086"}, [CARD, *VFS]),
        ({"vendor_id": "8086", "product_id": "154C"}, VFS),
        ({"vendor_id": "0x10de", "product_id": "*"}, [GPU]),
        ({"address": CARD}, [CARD, *VFS]),
        ({"address": CARD, "product_id": "154c"}, VFS),
        ({"address": VFS[1]}, [VFS[1]]),
        ({"address": "*:81:02.*"}, VFS),
        ({"address": "41:"}, [GPU]),
        ({"address": "41:00"}, [GPU]),
        ({"address": ".1"}, [VFS[1]]),
        ({"address": {"bus": "81", "function": "[1-7]"}}, [VFS[1]]),
        ({"devname": "ens1", "product_id": "154c"}, VFS),
        ({"devname": "ens9"}, []),
    ],
)
def test_entries(entry: dict[str, Any], expected: list[str]) -> None:
    assert named(entry) == expected


def test_without_entries_guests_get_none() -> None:
    assert named() == []


def test_the_first_entry_that_fits_gives_the_tags() -> None:
    first = {"address": VFS[0], "trusted": True, "managed": "no"}
    second = {"product_id": "154c", "physical_network": "Net1", "live_migratable": True}
    found = passthrough.assignable(NODES, [first, second])
    assert [(device.tags, device.managed) for device in found] == [
        ((("managed", "false"), ("trusted", "True")), False),
        ((("live_migratable", "true"), ("physical_network", "Net1")), True),
    ]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({}, "names no device: give vendor_id, product_id, address or devname"),
        ({"physical_network": "net1"}, "names no device"),
        ({"vendor_id": "intel"}, "vendor_id=intel must be hexadecimal, at most ffff, or * for any"),
        ({"product_id": "12345"}, "product_id=12345 must be hexadecimal"),
        ({"address": "0000:81:20.0"}, "slot=20 must be hexadecimal, at most 1f"),
        ({"address": "0:0000:81:00.0"}, "address=0:0000:81:00.0 must be as 0000:81:00.0, with * for any part"),
        ({"address": {"bus": "["}}, "bus=[ is no regular expression"),
        ({"address": CARD, "devname": "ens1"}, "address and devname: use one of them"),
        ({"vendor_id": "8086", "managed": "perhaps"}, "managed=perhaps must be true or false"),
        ({"vendor_id": "8086", "resource_class": "CUSTOM_A"}, "resource_class is for devices in placement"),
    ],
)
def test_wrong_entries(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        named(entry)
    assert str(refused.value).startswith(f"pci_device_spec {entry}") and message in str(refused.value)
