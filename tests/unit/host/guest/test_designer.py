# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The designer against whole golden files, and the golden files against libvirt's own schema and libvirtd.

BARESTACK_GOLDEN=write writes them anew: read the difference before you keep it.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import uuid
from typing import Callable

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import config, driver
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest.designer import HostOptions, design
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError, InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Disk, Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import (
    InstanceNUMACell,
    InstanceNUMATopology,
    NUMACell,
    NUMAPages,
    NUMATopology,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import PciDevice

GOLDEN = pathlib.Path(__file__).with_name("golden")
SCHEMA = pathlib.Path("/usr/share/libvirt/schemas/domain.rng")
QEMU = HostOptions("qemu", Paths())
KVM = HostOptions("kvm", Paths())


def _host_cell(number: int, first: int) -> NUMACell:
    """Of this machine's size, so that libvirtd takes what is placed there: two cores, the first for guests to share."""
    cores = tuple(frozenset([cpu]) for cpu in (first, first + 1))
    pages = (NUMAPages(4, 1000000), NUMAPages(2048, 1024))
    return NUMACell(number, cores[0], cores[1], 8192, cores, pages)


CELLS = dataclasses.replace(
    KVM, cpu_shared_set=frozenset([0, 2]), topology=NUMATopology((_host_cell(0, 0), _host_cell(1, 2)))
)
ONE_CELL = dataclasses.replace(
    QEMU, topology=NUMATopology((dataclasses.replace(_host_cell(0, 0), cpuset=frozenset([0, 1])),))
)


def placed(server: Instance, emulator: str | None = None, **cell: object) -> Instance:
    """With a shared CPU and one of its own, each in a cell, the other way round than on the host."""
    own, nobody = frozenset([1]), frozenset[int]()
    first = InstanceNUMACell(1, frozenset([0]), nobody, 1024, 2048, "mixed")
    second = InstanceNUMACell(0, nobody, own, 1024, 2048, "mixed", "prefer", ((1, 1),))
    claimed = InstanceNUMATopology((first, dataclasses.replace(second, **cell)), emulator)  # type: ignore[arg-type]
    return server.with_(numa_topology=claimed)


def changed(server: Instance, specs: dict[str, str] | None = None, **properties: str) -> Instance:
    flavor = dataclasses.replace(server.flavor, extra_specs=specs or {})
    return server.with_(flavor=flavor, image=dataclasses.replace(server.image, properties=properties))


CASES: dict[str, Callable[[Instance], config.Domain]] = {
    "plain_kvm": lambda server: design(server, KVM),
    "plain_qemu": lambda server: design(server, QEMU),
    "bare_qemu": lambda server: design(server.with_(disks=(), ports=()), QEMU),
    "uefi_pc": lambda server: design(changed(server, hw_firmware_type="uefi"), QEMU),
    "uefi_q35_secure_boot": lambda server: design(
        changed(server, hw_machine_type="q35", hw_firmware_type="uefi", os_secure_boot="required"), QEMU
    ),
    "no_direct_io_custom_cpu": lambda server: design(
        server, dataclasses.replace(QEMU, direct_io=False, cpu_mode="custom", cpu_model="Nehalem")
    ),
    "windows": lambda server: design(
        changed(
            server,
            os_type="windows",
            hw_disk_bus="sata",
            hw_vif_model="e1000",
            hw_pointer_model="usbtablet",
            hw_video_model="vga",
            hw_time_hpet="true",
            hw_boot_menu="true",
        ),
        KVM,
    ),
    "tuned": lambda server: design(
        changed(
            server,
            {
                "quota:cpu_shares": "512",
                "quota:cpu_period": "20000",
                "quota:cpu_quota": "10000",
                "quota:disk_read_bytes_sec": "1048576",
                "quota:disk_total_iops_sec": "100",
                "quota:vif_inbound_average": "1000",
                "quota:vif_inbound_peak": "2000",
                "quota:vif_outbound_burst": "1",
                "hw:vif_multiqueue_enabled": "true",
                "hw:watchdog_action": "reset",
                "hw_rng:rate_bytes": "1024",
                "hw_rng:rate_period": "1000",
            },
            hw_disk_bus="scsi",
            hw_watchdog_action="poweroff",
        ),
        QEMU,
    ),
    "cells_and_devices": lambda server: design(
        placed(changed(server, {"quota:cpu_shares": "512"})).with_(
            pci_devices=(
                PciDevice("0000:81:02.3", "8086", "1889"),
                PciDevice("0001:00:00.0", "10de", "1", managed=False),
            )
        ),
        CELLS,
    ),
    "pinned_to_one_cell": lambda server: design(
        server.with_(
            numa_topology=InstanceNUMATopology(
                (InstanceNUMACell(0, frozenset(), frozenset([0, 1]), 2048, None, "dedicated", None, ((0, 1), (1, 0))),)
            )
        ),
        ONE_CELL,
    ),
    "shared_cpus_locked_memory": lambda server: design(
        changed(server, {"hw:mem_page_size": "small", "hw:locked_memory": "true"}),
        dataclasses.replace(QEMU, cpu_shared_set=frozenset([0])),
    ),
    "nothing_extra": lambda server: design(
        changed(server, {"hw_rng:allowed": "False"}, hw_video_model="none"), dataclasses.replace(KVM, cpu_mode="none")
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_whole_xml(case: str, server: Instance) -> None:
    rendered = CASES[case](server).render()
    path = GOLDEN / f"{case}.xml"
    if os.environ.get("BARESTACK_GOLDEN") == "write":
        path.write_text(rendered)
    assert rendered == path.read_text()


def test_each_golden_file_has_its_case() -> None:
    assert {path.stem for path in GOLDEN.glob("*.xml")} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_schema(case: str) -> None:
    etree = pytest.importorskip("lxml.etree")
    if not SCHEMA.exists():
        pytest.skip("libvirt's schemas are not installed")
    schema = etree.RelaxNG(etree.parse(str(SCHEMA)))
    schema.assertValid(etree.parse(str(GOLDEN / f"{case}.xml")))


@pytest.mark.usefixtures("need_system_libvirt")
@pytest.mark.parametrize("case", CASES)
def test_libvirtd_takes_it(case: str, server: Instance) -> None:
    fresh = uuid.uuid4()
    wanted = CASES[case](server.with_(uuid=str(fresh), id=fresh.int & 0x7FFFFFFF | 0x70000000))
    with driver.connect() as hypervisor:
        if wanted.type == "kvm" and "type='kvm'" not in hypervisor.capabilities():
            pytest.skip("no KVM here")
        if wanted.os.secure_boot and "<value>yes</value>" not in _secure(hypervisor):
            pytest.skip("no firmware with secure boot here")
        try:
            hypervisor.define(wanted.render(), validate=True)
            assert hypervisor.digest(str(fresh)) == wanted.digest
        finally:
            hypervisor.undefine(str(fresh))


def _secure(hypervisor: driver.Hypervisor) -> str:
    xml = hypervisor.domain_capabilities("x86_64", "qemu", "q35")
    return xml[xml.index("<enum name='secure'>") :].partition("</enum>")[0]


def test_digest_says_what_changed(server: Instance) -> None:
    one = design(server, QEMU)
    assert one.digest == design(server, QEMU).digest
    assert one.digest != design(server.with_(name="vm2"), QEMU).digest
    assert one.digest in one.render()


def test_order_of_properties_is_no_change(server: Instance) -> None:
    one = design(changed(server, {"a": "1", "b": "2"}, p="1", q="2"), QEMU)
    two = design(changed(server, {"b": "2", "a": "1"}, q="2", p="1"), QEMU)
    assert one.digest == two.digest


def test_creation_time_is_utc(server: Instance) -> None:
    there = design(server.with_(created_at="2025-11-23T01:36:00+02:00"), QEMU)
    assert there.metadata.creation_time == "2025-11-22 23:36:00"


def test_any_name_makes_good_xml(server: Instance) -> None:
    xml = design(server.with_(name='<b a="&">\x00\ud800 ünï'), QEMU).render()
    xml.encode()
    assert '&lt;b a="&amp;"&gt;\ufffd\ufffd ünï' in xml


def test_many_disks_have_their_names(server: Instance) -> None:
    disks = tuple(Disk("volume", f"/x/{number}", "raw", serial=str(number)) for number in range(28))
    targets = [disk.target for disk in design(server.with_(disks=disks), QEMU).disks]
    assert [targets[index] for index in (0, 1, 25, 26, 27)] == ["vda", "vdb", "vdz", "vdaa", "vdab"]


def test_disks_of_two_buses_that_share_a_prefix(server: Instance) -> None:
    domain = design(changed(server, hw_machine_type="q35", hw_disk_bus="scsi"), QEMU)
    targets = [disk.target for disk in domain.disks if isinstance(disk, config.Disk)]
    assert targets == ["sda", "sdb", "sdc", "sdd", "sde"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hw_disk_bus", "floppy"),
        ("hw_cdrom_bus", "virtio"),
        ("hw_vif_model", "carrier-pigeon"),
        ("hw_firmware_type", "coreboot"),
        ("hw_video_model", "cga"),
        ("hw_watchdog_action", "bark"),
    ],
)
def test_image_property_out_of_range(name: str, value: str, server: Instance) -> None:
    with pytest.raises(InvalidRequest, match=rf"image debian: {name}={value} is not one of"):
        design(changed(server, **{name: value}), QEMU)


def test_emulator_threads(server: Instance) -> None:
    def pinned(host: HostOptions, emulator: str | None, **cell: object) -> frozenset[int]:
        tune = design(placed(server, emulator, **cell), host).cputune
        assert tune
        return tune.emulatorpin

    assert pinned(CELLS, None) == {1, 2}, "where its CPUs are"
    assert pinned(CELLS, "share") == {0, 2}
    assert pinned(dataclasses.replace(CELLS, cpu_shared_set=frozenset()), "share") == {1, 2}
    assert pinned(CELLS, "isolate", cpuset_reserved=frozenset([3])) == {3}


def test_ordinary_pages_are_no_large_ones(server: Instance) -> None:
    domain = design(placed(server, pagesize=4), CELLS)
    assert domain.memory_backing == config.MemoryBacking(((0, 2048),))
    assert [cell.shared for cell in domain.cpu.cells] == [True, True]


def test_a_claim_that_the_host_cannot_keep(server: Instance) -> None:
    with pytest.raises(HostError, match="libvirt tells no NUMA cells here"):
        design(placed(server), KVM)
    with pytest.raises(HostError, match="claimed NUMA cell 1, which is not here: there are 0"):
        design(placed(server), dataclasses.replace(KVM, topology=NUMATopology((_host_cell(0, 0),))))
    unshared = NUMATopology((_host_cell(0, 0), dataclasses.replace(_host_cell(1, 2), cpuset=frozenset())))
    with pytest.raises(HostError, match="claimed shared CPUs of NUMA cell 1, which has none"):
        design(placed(server), dataclasses.replace(KVM, topology=unshared))


def test_secure_boot_needs_q35(server: Instance) -> None:
    with pytest.raises(InvalidRequest, match="needs machine type q35, not pc"):
        design(changed(server, hw_firmware_type="uefi", os_secure_boot="required"), QEMU)


def test_quota_must_be_a_number(server: Instance) -> None:
    with pytest.raises(InvalidRequest, match="flavor m1.small: quota:cpu_shares=lots is not a whole number"):
        design(changed(server, {"quota:cpu_shares": "lots"}), QEMU)
