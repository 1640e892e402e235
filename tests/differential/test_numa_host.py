# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The host's side of cells and devices, against nova.virt.libvirt.driver, nova.pci.whitelist and os_traits.

DIFFERENCES, all on purpose:

* Nova looks for the CPU feature ``sse3``, which libvirt calls ``pni``: ours tells the trait HW_CPU_X86_SSE3.
* Guests here have no I/O threads, so that there is nothing to pin them to.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import numa
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import (
    config,
    designer,
    passthrough,
    placement,
    traits,
)
from ansible_collections.barestack.kvm.plugins.module_utils.host.image_format import DISK_FORMATS
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import InstanceNUMATopology, NUMATopology
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import PciDevice
from hypothesis import assume, given
from hypothesis import strategies as st
from nova_client import Nova, NovaFailed
from numa_sites import devices, guests, hosts, told


@given(hosts(), guests(), st.sampled_from(("", "0", "0-1")), st.booleans())
def test_same_domain(
    nova_numa: Nova, host: NUMATopology, guest: InstanceNUMATopology, shared: str, locked: bool
) -> None:
    claimed = numa.fit(host, guest)
    assume(claimed is not None and all(cell.smallest_page for cell in host.cells))
    there = {cpu for cell in host.cells for core in cell.siblings for cpu in core}
    wanted = frozenset({"": [], "0": [0], "0-1": [0, 1]}[shared])
    assume(wanted <= there)
    assert claimed
    cpus = sum(len(cell.total_cpus) for cell in claimed.cells)
    specs = {"hw:locked_memory": "true", "hw:mem_page_size": "any"} if locked else {}
    flavor = {"vcpus": cpus, "ram": sum(cell.memory for cell in claimed.cells), "extra_specs": specs}
    question = {"host": told(host), "guest": told(claimed), "flavor": flavor, "cpu_shared_set": shared}
    theirs = nova_numa.put({"ask": "domain", **question})
    placed = placement.place(claimed, host, wanted, locked)
    tune = config.CpuTune(emulatorpin=placed.emulatorpin, vcpupin=placed.vcpupin)
    cells = config.Cpu(cpus, cells=placed.cells).element().find("numa")
    parts = [part.element() if part else None for part in (placed.numatune, placed.memory_backing)]
    ours = [tune.element(), cells, *parts]
    assert [_plain(part) for part in ours] == [_plain(part and ET.fromstring(part)) for part in theirs["parts"]]
    assert not placed.cpuset and not theirs["cpuset"]


def _plain(element: ET.Element | None) -> Any:
    """An element as data, without what the two write differently: units that are the default, I/O threads, no CPUs."""
    if element is None:
        return None
    attributes = {key: value for key, value in element.attrib.items() if key != "unit" and value}
    children = [_plain(child) for child in element if child.tag not in ("iothreadpin",)]
    empty = ("emulatorpin", {}, [])
    return element.tag, attributes, [child for child in children if child != empty]


_address = st.sampled_from(
    (
        "00f1:00:00.0",
        "00f1:01:00.0",
        "f1:01:00.0",
        "*:01:00.*",
        "01:",
        ":00.1",
        ".2",
        "1:2:3:4.5",
        "00f1:20:20.0",
        "zz:00.0",
        {"bus": "0[0-1]"},
        {"function": "1"},
        {"slot": "00", "bus": "."},
    )  # fmt: skip
)
_entries = st.lists(
    st.fixed_dictionaries(
        {"vendor_id": st.sampled_from(("8086", "0x8086", "*", "10de", "x", "12345"))},
        optional={
            "product_id": st.sampled_from(("1889", "1572", "ABCD", "abcd", "*")),
            "address": _address,
            "physical_network": st.sampled_from(("net1", "Net2")),
            "managed": st.sampled_from(("true", "no", "perhaps")),
            "live_migratable": st.sampled_from(("yes", "false")),
        },
    ),
    max_size=3,
)


@given(devices(), _entries)
def test_same_devices_for_guests(nova_numa: Nova, there: tuple[PciDevice, ...], entries: list[dict[str, Any]]) -> None:
    named = [
        entry
        for entry in entries
        if entry["vendor_id"] != "*" or entry.get("product_id", "*") != "*" or "address" in entry
    ]
    assume(named == entries)
    lowered = [{**told(device), "product_id": device.product_id.lower(), "tags": []} for device in there]
    try:
        theirs = nova_numa.put({"ask": "device_spec", "devices": lowered, "entries": entries})
    except NovaFailed:
        with pytest.raises(InvalidRequest):
            passthrough.assignable([_node(device) for device in there], entries)
        return
    ours = passthrough.assignable([_node(device) for device in there], entries)
    assert {device.address: dict(device.tags) for device in ours} == theirs
    for device in ours:
        assert device.managed == (dict(device.tags).get("managed", "true") == "true")


def _node(device: PciDevice) -> str:
    """As libvirt tells it."""
    inside = {"type-PF": "<capability type='virt_functions'/>", "type-PCI": ""}.get(device.dev_type)
    if inside is None:
        inside = f"<capability type='phys_function'><address {_parts(device.parent_address or '', True)}/></capability>"
    node = "" if device.numa_node is None else f"<numa node='{device.numa_node}'/>"
    ids = f"<product id='0x{device.product_id}'/><vendor id='0x{device.vendor_id}'/>"
    return f"<device><capability type='pci'>{_parts(device.address, False)}{ids}{inside}{node}</capability></device>"


def _parts(address: str, attributes: bool) -> str:
    domain, bus, slot, function = (int(part, 16) for part in address.replace(".", ":").split(":"))
    parts = {"domain": domain, "bus": bus, "slot": slot, "function": function}
    if attributes:
        return " ".join(f"{name}='{value:#x}'" for name, value in parts.items())
    return "".join(f"<{name}>{value}</{name}>" for name, value in parts.items())


FEATURES = sorted({*traits._SAME_NAME.split(), *traits._OTHER_NAMES})


@given(st.sets(st.sampled_from([*FEATURES, "ht", "lm"])))
def test_same_cpu_traits(nova_numa: Nova, features: set[str]) -> None:
    theirs = nova_numa.put(
        {"ask": "traits", "features": ["sse3" if name == "pni" else name for name in features], "names": []}
    )
    offered: dict[str, Any] = dict.fromkeys(("disk_bus", "video", "vif", "disk_format"), ())
    ours = traits.traits("<domainCapabilities/>", frozenset(features), "x86_64", False, offered)
    assert [name for name in ours if name.startswith("HW_CPU")] == theirs["traits"]


def test_every_trait_is_one_of_os_traits(nova_numa: Nova) -> None:
    buses, models = (
        "".join(f"<value>{name}</value>" for name in designer.OFFERED[key]) for key in ("disk_bus", "video")
    )
    devices_xml = f"<disk><enum name='bus'>{buses}</enum></disk><video><enum name='modelType'>{models}</enum></video>"
    loader = "<os><loader><enum name='secure'><value>yes</value></enum></loader></os>"
    capabilities = f"<domainCapabilities>{loader}<devices>{devices_xml}</devices></domainCapabilities>"
    offered = {**designer.OFFERED, "disk_format": DISK_FORMATS}
    found = traits.traits(capabilities, frozenset(FEATURES), "x86_64", True, offered)
    assert len(found) > 50
    assert nova_numa.put({"ask": "traits", "features": [], "names": found})["unknown"] == []
