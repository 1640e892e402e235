# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The phases domain, hypervisor_info and console_log as Ansible runs them, against libvirtd."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import subprocess
import time
import uuid
from typing import Any, Iterator

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import driver
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Disk, Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import Phase, execute
from ansible_collections.barestack.kvm.plugins.modules.console_log import ConsoleLog
from ansible_collections.barestack.kvm.plugins.modules.domain import Domain
from ansible_collections.barestack.kvm.plugins.modules.hypervisor_info import HypervisorInfo

ROOTS = {"instances_path": "/var/lib/libvirt/images", "log_path": "/var/log/libvirt/barestack-test"}


def run(phase: type[Phase], check: bool = False, **options: Any) -> dict[str, Any]:
    validated = ArgumentSpecValidator(phase.argument_spec).validate({**ROOTS, **options})
    assert not validated.error_messages, validated.error_messages
    return execute(phase, validated.validated_parameters, check)


def domain(*instances: Instance, check: bool = False, **options: Any) -> tuple[dict[str, Any], list[Instance]]:
    result = run(Domain, check, instances=to_wire(list(instances)), virt_type="qemu", **options)
    return result, [from_wire(Instance, item) for item in result["instances"]]


def many(tiny: Instance, count: int) -> list[Instance]:
    return [tiny.with_(uuid=str(uuid.uuid4()), id=tiny.id + number, name=f"t{number}") for number in range(count)]


@pytest.fixture
def gone(tiny: Instance) -> Iterator[list[Instance]]:
    """Whatever a test puts in here is removed after it, and its console log with it."""
    shutil.rmtree(ROOTS["log_path"], ignore_errors=True)  # of a run that was killed
    doomed: list[Instance] = [tiny]
    yield doomed
    result, left = domain(*[instance.with_(fault=None, stuck=None) for instance in doomed], state="absent")
    assert [str(instance.stuck) for instance in left if instance.stuck] == []
    if os.path.isdir(ROOTS["log_path"]):
        os.rmdir(ROOTS["log_path"])


pytestmark = pytest.mark.usefixtures("need_system_libvirt")


def test_create_again_delete_again(tiny: Instance, gone: list[Instance]) -> None:
    planned, [as_planned] = domain(tiny, check=True)
    assert planned["changed"]
    assert as_planned.power_state == "PAUSED"
    assert as_planned.events == ()
    assert f"<uuid>{tiny.uuid}</uuid>" in planned["diff"][-2]["after"]
    assert not os.path.exists(ROOTS["log_path"])

    made, [instance] = domain(tiny)
    assert made["effects"] == planned["effects"]
    assert made["effects"][-2:] == [f"domain.definition {tiny.domain_name}", f"domain.running {tiny.domain_name}"]
    assert (instance.fault, instance.power_state) == (None, "PAUSED")
    assert os.stat(ROOTS["log_path"]).st_mode & 0o777 == 0o711
    assert os.path.exists(f"{ROOTS['log_path']}/{tiny.uuid}.console.log")
    told = subprocess.run(["virsh", "domstate", tiny.domain_name], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "paused"
    assert not domain(tiny)[0]["changed"]
    assert not domain(tiny, check=True)[0]["changed"]

    would, _ = domain(tiny, check=True, state="absent")
    assert would["changed"]
    pathlib.Path(ROOTS["log_path"], f"{tiny.uuid}.console.log.0").write_text("rotated")
    removed, _ = domain(tiny, state="absent")
    assert removed["effects"][:2] == would["effects"][:2]
    assert os.listdir(ROOTS["log_path"]) == []
    assert subprocess.run(["virsh", "domstate", tiny.domain_name], capture_output=True, check=False).returncode
    assert not domain(tiny, state="absent")[0]["changed"]


def define_only(*instances: Instance) -> None:
    """As a run that was killed between define and start leaves them."""
    planned, _ = domain(*instances, check=True)
    with driver.connect() as hypervisor:
        for change in planned["diff"]:
            if change["after_header"].startswith("domain.definition"):
                hypervisor.define(change["after"])


def test_rerun_after_a_kill_then_a_difference(tiny: Instance, gone: list[Instance]) -> None:
    define_only(tiny)
    would, _ = domain(tiny, check=True)
    assert [effect for effect in would["effects"] if "console_log" not in effect] == [
        f"domain.running {tiny.domain_name}"
    ]

    other = tiny.with_(flavor=dataclasses.replace(tiny.flavor, ram=80))
    made, [instance] = domain(other)
    assert [effect.split()[0] for effect in made["effects"]][-2:] == ["domain.definition", "domain.running"]
    assert "<memory unit='KiB'>65536</memory>" in made["diff"][-2]["before"]
    assert '<memory unit="KiB">81920</memory>' in made["diff"][-2]["after"]
    assert instance.power_state == "PAUSED"

    refused, [instance] = domain(tiny)
    assert not refused["changed"]
    assert instance.fault
    assert instance.fault.code == 409
    assert "is active and differs from what is asked for" in instance.fault.message

    with driver.connect() as hypervisor:
        hypervisor.resume(tiny.uuid, 20)
    again, [instance] = domain(other)
    assert not again["changed"]
    assert (instance.fault, instance.power_state) == (None, "RUNNING")


def test_a_strangers_domain_is_not_touched(tiny: Instance, gone: list[Instance], tmp_path: pathlib.Path) -> None:
    def stranger(identity: str, name: str) -> None:
        text = f"<domain type='qemu'><uuid>{identity}</uuid><name>{name}</name><memory>65536</memory>"
        (tmp_path / "x.xml").write_text(f"{text}<os><type>hvm</type></os></domain>")
        subprocess.run(["virsh", "define", str(tmp_path / "x.xml")], capture_output=True, check=True)

    stranger(tiny.uuid, "barestack-test-stranger")
    try:
        for state, field in (("present", "fault"), ("absent", "stuck")):
            result, [instance] = domain(tiny, state=state)
            assert "exists and is not ours" in getattr(instance, field).message
            assert [effect for effect in result["effects"] if "console_log" not in effect] == []
    finally:
        subprocess.run(["virsh", "undefine", "barestack-test-stranger"], capture_output=True, check=True)

    stranger(str(uuid.uuid4()), tiny.domain_name)
    try:
        _, [instance] = domain(tiny)
        assert instance.fault
        assert f"the name {tiny.domain_name} is taken by domain" in instance.fault.message
        result, [instance] = domain(tiny, state="absent")
        assert (instance.stuck, result["changed"]) == (None, False)
        subprocess.run(["virsh", "dominfo", tiny.domain_name], capture_output=True, check=True)
    finally:
        subprocess.run(["virsh", "undefine", tiny.domain_name], capture_output=True, check=True)


def test_one_that_cannot_start_does_not_stop_its_neighbours(tiny: Instance, gone: list[Instance]) -> None:
    """And the disks stay when the domain goes."""
    bad, good = many(tiny, 2)
    gone += [bad, good]
    path = f"/var/lib/libvirt/images/barestack-test-{tiny.uuid[:8]}"
    bad = bad.with_(disks=(Disk("root", f"{path}-is-not-there", "qcow2"),))
    good = good.with_(disks=(Disk("root", path, "qcow2"), Disk("config_drive", f"{path}.iso", "raw")))
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"], check=True)
    pathlib.Path(f"{path}.iso").write_bytes(bytes(1 << 20))
    try:
        _, [failed, well] = domain(bad, good)
        assert failed.fault
        assert f"cannot start domain {bad.domain_name} ({bad.uuid})" in failed.fault.message
        assert f"{path}-is-not-there" in failed.fault.message
        assert (well.fault, well.power_state) == (None, "PAUSED")
        domain(good, state="absent")
        assert os.path.exists(path)
    finally:
        domain(good, state="absent")
        os.unlink(path)
        os.unlink(f"{path}.iso")


def test_uefi_leaves_no_nvram(tiny: Instance, gone: list[Instance]) -> None:
    uefi = tiny.with_(image=dataclasses.replace(tiny.image, properties={"hw_firmware_type": "uefi"}))
    nvram = pathlib.Path(driver.NVRAM_DIRECTORY, f"{tiny.domain_name}_VARS.fd")
    _, [instance] = domain(uefi)
    assert instance.fault is None
    assert nvram.exists()
    domain(uefi, state="absent")
    assert not nvram.exists()
    nvram.write_text("left by somebody who undefined without --nvram")
    result, _ = domain(uefi, state="absent")
    assert result["effects"] == [f"domain.definition {nvram}"]
    assert not nvram.exists()


def test_twenty_unchanged_are_quick(tiny: Instance, gone: list[Instance]) -> None:
    twenty = many(tiny, 20)
    gone += twenty
    define_only(*twenty)
    started = time.monotonic()
    result, _ = domain(*twenty, check=True)
    assert time.monotonic() - started < 0.5  # 0.05 on an idle machine
    assert not [effect for effect in result["effects"] if effect.startswith("domain.definition")]


def test_a_host_without_libvirt(tiny: Instance) -> None:
    nowhere = "qemu:///session?socket=/nowhere"
    planned, [instance] = domain(tiny, check=True, libvirt_uri=nowhere)
    assert instance.fault is None
    assert planned["effects"][-2:] == [f"domain.definition {tiny.domain_name}", f"domain.running {tiny.domain_name}"]
    _, [instance] = domain(tiny, state="absent", libvirt_uri=nowhere)
    assert instance.stuck
    assert "cannot open libvirt" in instance.stuck.message


def test_custom_cpu_needs_a_model(tiny: Instance) -> None:
    with pytest.raises(InvalidRequest, match="cpu_model names no model"):
        domain(tiny, cpu_mode="custom")


def test_hypervisor_info() -> None:
    found = run(HypervisorInfo)
    assert not found["changed"]
    node = found["hypervisor"]
    assert set(node) == {
        "hostname",
        "host_ip",
        "hypervisor_type",
        "hypervisor_version",
        "libvirt_version",
        "vcpus",
        "memory_mb",
        "disk_gb",
        "disk_available_gb",
        "numa_cells",
        "numa_topology",
        "pci_devices",
        "traits",
        "cpu_info",
        "supported_instances",
        "machine_types",
        "virt_type",
        "firmware",
        "running_domains",
    }
    meminfo = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    assert node["memory_mb"] == int(meminfo["MemTotal"].split()[0]) // 1024
    assert node["vcpus"] == os.cpu_count()
    assert "pc" in node["machine_types"]["x86_64"]
    assert ["x86_64", "qemu", "hvm"] in node["supported_instances"]
    assert 0 < node["disk_available_gb"] <= node["disk_gb"]
    assert sum(cell["memory_mb"] for cell in node["numa_cells"]) <= node["memory_mb"]
    assert len(node["numa_cells"]) != 1 or node["numa_cells"][0]["memory_mb"] == node["memory_mb"]
    assert sum(len(cell["cpus"]) for cell in node["numa_cells"]) == node["vcpus"]
    assert [cell["cpuset"] for cell in node["numa_topology"]["cells"]] == [cell["cpus"] for cell in node["numa_cells"]]
    assert {"COMPUTE_STORAGE_BUS_VIRTIO", "COMPUTE_IMAGE_TYPE_QCOW2", "HW_CPU_X86_SSE2"} <= set(node["traits"])
    assert node["pci_devices"] == []


def test_console_log(tmp_path: pathlib.Path) -> None:
    one, two = str(uuid.uuid4()), str(uuid.uuid4())
    log = tmp_path / f"{one}.console.log"
    log.write_bytes(b"\x1b[2J\x1b[1;31mred\x1b[0m\r\n\x1b]0;title\x07last \xff\tline\r\nlogin: ")
    (tmp_path / f"{one}.console.log.0").write_bytes(b"older\n")
    found = run(ConsoleLog, uuids=[one, two], log_path=str(tmp_path))
    assert found["consoles"] == {one: ["older", "red", "last \ufffd\tline", "login:"], two: []}
    assert run(ConsoleLog, uuids=[one], lines=1, log_path=str(tmp_path))["consoles"] == {one: ["login:"]}


@pytest.mark.parametrize("options", [{"uuids": ["../../etc/passwd"]}, {"uuids": [], "lines": 0}])
def test_console_log_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        run(ConsoleLog, **options)
