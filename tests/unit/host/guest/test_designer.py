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
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Disk, Instance

GOLDEN = pathlib.Path(__file__).with_name("golden")
SCHEMA = pathlib.Path("/usr/share/libvirt/schemas/domain.rng")
QEMU = HostOptions("qemu", Paths())
KVM = HostOptions("kvm", Paths())


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


def test_secure_boot_needs_q35(server: Instance) -> None:
    with pytest.raises(InvalidRequest, match="needs machine type q35, not pc"):
        design(changed(server, hw_firmware_type="uefi", os_secure_boot="required"), QEMU)


def test_quota_must_be_a_number(server: Instance) -> None:
    with pytest.raises(InvalidRequest, match="flavor m1.small: quota:cpu_shares=lots is not a whole number"):
        design(changed(server, {"quota:cpu_shares": "lots"}), QEMU)
