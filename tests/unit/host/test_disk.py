# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The disk phase with the real qemu-img and mkfs, real kills, and a real full file system."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import time
import uuid
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image, Instance, VmState
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import execute
from ansible_collections.barestack.kvm.plugins.modules.disk import PHASE

MIB, GIB = 1 << 20, 1 << 30
IMAGE_SIZE = 8 * MIB
FORK = multiprocessing.get_context("fork")


def instance_of(number: int = 1, disk_format: str = "qcow2", **flavor: int) -> Instance:
    sizes = {"disk": 1, **flavor}
    return Instance(
        id=number,
        uuid=str(uuid.UUID(int=number)),
        name="web",
        hostname="web",
        project_id="p",
        user_id="u",
        flavor=Flavor("f", "m1.tiny", 1, 64, **sizes),
        image=Image("5c0e6f3a", "cirros", "/image", "", disk_format),
        created_at="",
    )


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    """Where instances live, with an image in the cache."""
    path = tmp_path / "instances"
    seed(path)
    return path


def seed(root: pathlib.Path, disk_format: str = "qcow2", data: bytes = b"\x42" * MIB) -> pathlib.Path:
    base = root / "_base" / hashlib.sha1(b"5c0e6f3a", usedforsecurity=False).hexdigest()
    base.parent.mkdir(parents=True, exist_ok=True)
    raw = root.with_suffix(".raw")
    raw.write_bytes(data.ljust(IMAGE_SIZE, b"\0"))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", disk_format, raw, base], check=True)
    raw.unlink()
    return base


def run(root: pathlib.Path, *instances: Instance, check: bool = False, **options: Any) -> dict[str, Any]:
    params = {
        "instances": [to_wire(instance) for instance in instances],
        "state": "present",
        "max_concurrent_builds": 10,
        "instances_path": str(root),
        "state_path": "/nonexistent",
        "log_path": "/nonexistent",
        "images_type": "qcow2",
        **options,
    }
    return execute(PHASE, params, check)


def fault(result: dict[str, Any]) -> str:
    message: str = result["instances"][0]["fault"]["message"]
    return message


def ok(result: dict[str, Any]) -> list[Instance]:
    instances = [from_wire(Instance, item) for item in result["instances"]]
    assert [instance.fault for instance in instances] == [None] * len(instances)
    return instances


def info(path: pathlib.Path) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(subprocess.check_output(["qemu-img", "info", "-U", "--output=json", str(path)]))
    return answer


def as_raw(path: pathlib.Path) -> pathlib.Path:
    raw = path.with_suffix(".as_raw")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw], check=True)
    return raw


def blkid(path: pathlib.Path) -> dict[str, str]:
    lines = subprocess.check_output(["blkid", "-p", "-o", "export", str(path)], text=True).splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_a_root_disk_is_an_overlay_as_large_as_the_flavors_disk(root: pathlib.Path) -> None:
    instance = instance_of()
    directory = root / instance.uuid

    result = run(root, instance)

    (disk,) = ok(result)[0].disks
    assert (disk.role, disk.path, disk.format, disk.boot_index) == ("root", f"{directory}/disk", "qcow2", 0)
    found = info(directory / "disk")
    assert (found["format"], found["virtual-size"]) == ("qcow2", GIB)
    (base,) = (root / "_base").iterdir()
    assert (found["full-backing-filename"], found["backing-filename-format"]) == (str(base), "qcow2")
    assert result["effects"] == [f"disk.directory {directory}", f"disk.root {directory}/disk"]
    assert directory.stat().st_mode & 0o777 == 0o711
    assert (directory / "disk").stat().st_mode & 0o777 == 0o600
    with as_raw(directory / "disk").open("rb") as stream:
        assert stream.read(2 * MIB) == b"\x42" * MIB + bytes(MIB)


def test_a_rerun_of_twenty_servers_starts_no_process_and_changes_nothing(
    root: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instances = [instance_of(number, ephemeral=1, swap=16) for number in range(1, 21)]
    first = run(root, *instances)
    ok(first)
    monkeypatch.setenv("PATH", "")

    second = run(root, *instances)

    assert second["changed"] is False
    assert [i.disks for i in ok(second)] == [i.disks for i in ok(first)]
    assert len(first["effects"]) == 20 * 4


def test_check_mode_hands_on_the_disks_and_touches_nothing(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "instances"

    planned = run(root, instance_of(ephemeral=1, swap=16), instance_of(2, disk=0), check=True)

    assert [disk.role for disk in ok(planned)[0].disks] == ["root", "ephemeral", "swap"]
    assert len(planned["effects"]) == 6
    assert not root.exists()


def test_a_flavor_without_a_disk_takes_the_images_size(root: pathlib.Path) -> None:
    ok(run(root, instance_of(disk=0)))

    assert info(root / instance_of().uuid / "disk")["virtual-size"] == IMAGE_SIZE


def test_an_image_that_does_not_fit_is_told_with_both_sizes(root: pathlib.Path) -> None:
    (base,) = (root / "_base").iterdir()
    subprocess.run(["qemu-img", "resize", "-q", "-f", "qcow2", str(base), "3G"], check=True)

    result = run(root, instance_of())

    assert "image cirros (5c0e6f3a) has a virtual size of 3.0 GiB (3221225472 bytes)" in fault(result)
    assert "flavor m1.tiny, 1 GiB: choose a flavor with a disk of at least 3 GiB" in fault(result)
    assert result["instances"][0]["fault"]["code"] == 400
    assert not (root / instance_of().uuid / "disk").exists()


def test_without_the_image_it_says_which_phase_is_missing(tmp_path: pathlib.Path) -> None:
    assert "is not in the cache: run the image phase first" in fault(run(tmp_path / "instances", instance_of()))


def test_an_ephemeral_disk_has_a_file_system_and_swap_is_swap(root: pathlib.Path) -> None:
    instance = instance_of(ephemeral=2, swap=64)

    roles = [(disk.role, disk.path.rsplit("/", 1)[-1], disk.format) for disk in ok(run(root, instance))[0].disks]

    assert roles == [("root", "disk", "qcow2"), ("ephemeral", "disk.local", "qcow2"), ("swap", "disk.swap", "qcow2")]
    directory = root / instance.uuid
    ephemeral = blkid(as_raw(directory / "disk.local"))
    assert (ephemeral["TYPE"], ephemeral["LABEL"]) == ("ext4", "ephemeral0")
    assert blkid(as_raw(directory / "disk.swap"))["TYPE"] == "swap"
    assert info(directory / "disk.local")["virtual-size"] == 2 * GIB
    assert info(directory / "disk.swap")["virtual-size"] == 64 * MIB
    subprocess.run(["e2fsck", "-fn", str(as_raw(directory / "disk.local"))], check=True, capture_output=True)
    formatted = root / "_base" / f"ephemeral_2_{hashlib.md5(b'ext4', usedforsecurity=False).hexdigest()[:7]}"
    assert formatted.stat().st_blocks * 512 < 64 * MIB
    assert (root / "_base" / "swap_64").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("disk_format", ["qcow2", "raw"])
def test_a_flat_disk_is_a_sparse_copy_of_its_own(tmp_path: pathlib.Path, disk_format: str) -> None:
    seed(tmp_path, disk_format)
    instance = instance_of(disk_format=disk_format, ephemeral=1)

    disks = ok(run(tmp_path, instance, images_type="flat"))[0].disks

    assert [disk.format for disk in disks] == ["raw", "raw"]
    path = tmp_path / instance.uuid / "disk"
    assert path.stat().st_size == GIB
    assert path.stat().st_blocks * 512 < 16 * MIB
    with path.open("rb") as stream:
        assert stream.read(2 * MIB) == b"\x42" * MIB + bytes(MIB)
    assert blkid(tmp_path / instance.uuid / "disk.local")["LABEL"] == "ephemeral0"
    assert run(tmp_path, instance, images_type="flat")["changed"] is False
    assert sorted(p.name for p in path.parent.iterdir()) == ["disk", "disk.local"]


def test_a_guest_that_writes_a_qcow2_header_on_its_flat_disk_gains_nothing(root: pathlib.Path) -> None:
    instance = instance_of()
    ok(run(root, instance, images_type="flat"))
    path = root / instance.uuid / "disk"
    fake = root / "fake"
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw", fake, "1G"], check=True
    )
    with path.open("r+b") as stream:
        stream.write(fake.read_bytes())

    again = run(root, instance, images_type="flat")
    other = run(root, instance, images_type="qcow2")

    assert again["changed"] is False
    assert ok(again)[0].disks[0].format == "raw"
    assert "but its backing file is /etc/shadow" in fault(other)


def test_a_flat_disk_needs_room(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12M", "none", str(root)], check=True)
    try:
        seed(root, data=b"\x42" * 6 * MIB)
        instance = instance_of()
        message = fault(run(root, instance, images_type="flat"))
        left = [path.name for path in (root / instance.uuid).iterdir()]
        overlay = run(root, instance, images_type="qcow2")
    finally:
        subprocess.run(["umount", str(root)], check=True)

    assert f"root disk {root}/{instance.uuid}/disk needs 8.0 MiB (8388608 bytes), but " in message
    assert "are free on the file system of" in message
    assert left == []
    ok(overlay)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("truncate -s 1M disk", "it does not start with qcow2's magic"),
        ("qemu-img create -q -f qcow2 disk 1G", "its backing file is None (None)"),
        ("qemu-img create -q -u -f qcow2 -b /etc/shadow -F raw disk 1G", "its backing file is /etc/shadow (raw)"),
        ("qemu-img create -q -u -f qcow2 -b {base} -F raw disk 1G", "its backing file is {base} (raw)"),
        ("qemu-img create -q -f qcow2 -b {base} -F qcow2 disk 512M", "its virtual size is 512.0 MiB"),
    ],
)
def test_an_existing_disk_that_is_something_else_is_left_alone(root: pathlib.Path, command: str, reason: str) -> None:
    instance = instance_of()
    directory = root / instance.uuid
    directory.mkdir(mode=0o711)
    (base,) = (root / "_base").iterdir()
    subprocess.run(command.format(base=base).split(), cwd=directory, check=True)
    before = (directory / "disk").read_bytes()

    result = run(root, instance)

    assert f"root disk {directory}/disk exists, but {reason.format(base=base)}" in fault(result)
    assert result["instances"][0]["fault"]["code"] == 409
    assert (directory / "disk").read_bytes() == before


def test_a_directory_that_qemu_cannot_enter_is_corrected(root: pathlib.Path) -> None:
    instance = instance_of()
    (root / instance.uuid).mkdir(mode=0o700)

    assert f"disk.directory {root / instance.uuid}" in run(root, instance)["effects"]
    assert (root / instance.uuid).stat().st_mode & 0o777 == 0o711


def test_a_strict_umask_locks_nobody_out(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "instances"
    before = os.umask(0o077)
    try:
        seed(root)
        (root / "_base").chmod(0o711)
        root.chmod(0o711)
        instance = instance_of(swap=16)
        ok(run(root, instance))
    finally:
        os.umask(before)

    assert (root / instance.uuid).stat().st_mode & 0o777 == 0o711
    assert (root / "_base" / "swap_16").stat().st_mode & 0o777 == 0o644


def run_in_child(root: pathlib.Path, instances: list[Instance]) -> None:
    sys.exit(0 if not any(item["fault"] for item in run(root, *instances)["instances"]) else 1)


def test_several_runs_at_once_make_each_disk_once(root: pathlib.Path) -> None:
    instances = [instance_of(number, ephemeral=1, swap=16) for number in range(1, 6)]
    children = [FORK.Process(target=run_in_child, args=(root, instances)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)

    assert [child.exitcode for child in children] == [0] * 4
    assert run(root, *instances)["changed"] is False
    assert list(root.rglob("*.part")) == []


@pytest.mark.parametrize(("images_type", "command"), [("qcow2", "create"), ("flat", "convert")])
def test_a_kill_in_the_middle_of_a_build_is_healed_by_the_next_run(
    root: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, images_type: str, command: str
) -> None:
    """The disk is written, and the build killed before it can say so: by a qemu-img that does not come back."""
    slow = tmp_path / "bin" / "qemu-img"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\n/usr/bin/qemu-img "$@"\n[ "$1" = {command} ] && touch {tmp_path}/written\nsleep 60\n')
    slow.chmod(0o755)
    instance = instance_of()
    with monkeypatch.context() as patched:
        patched.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
        child = FORK.Process(target=in_own_group, args=(root, instance, images_type))
        child.start()
        deadline = time.monotonic() + 20
        while not (tmp_path / "written").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert child.pid
        os.killpg(child.pid, 9)
        child.join()
    directory = root / instance.uuid
    assert [path.name for path in directory.iterdir()] == ["disk.part"]

    ok(run(root, instance, images_type=images_type))

    assert [path.name for path in directory.iterdir()] == ["disk"]
    assert run(root, instance, images_type=images_type)["changed"] is False
    subprocess.run(
        ["qemu-img", "compare", "-q", "-U", directory / "disk", next((root / "_base").iterdir())], check=True
    )


def in_own_group(root: pathlib.Path, instance: Instance, images_type: str) -> None:
    os.setpgid(0, 0)
    run(root, instance, images_type=images_type)


def test_absent_removes_everything_once(root: pathlib.Path) -> None:
    instance = instance_of(ephemeral=1)
    ok(run(root, instance))
    directory = root / instance.uuid
    (directory / "disk.swap.part").touch()

    checked = run(root, instance, state="absent", check=True)
    first = run(root, instance, state="absent")
    second = run(root, instance, state="absent")

    assert checked["effects"] == first["effects"] == [f"disk.directory {directory}"]
    assert second["changed"] is False
    assert [path.name for path in root.iterdir()] == ["_base"]
    assert len(list((root / "_base").iterdir())) == 2, "the cache stays"


def test_what_a_lost_build_left_in_the_cache_goes_unless_somebody_writes_it(root: pathlib.Path) -> None:
    """The host was lost in the middle of a download, and the server is built on another now."""
    instance = instance_of(ephemeral=1)
    ok(run(root, instance))
    bases = sorted((root / "_base").iterdir())
    idle, held = (base.with_name(f"{base.name}.part") for base in bases[:2])
    idle.write_bytes(b"half")
    held.write_bytes(b"half")
    with held.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        checked = run(root, instance, state="absent", check=True)
        first = run(root, instance, state="absent")
        assert checked["effects"] == first["effects"]
        assert f"leftover.part {idle}" in first["effects"]
        assert run(root, instance, state="absent")["changed"] is False
        assert not idle.exists()
        assert held.exists()
    assert run(root, instance, state="absent")["effects"] == [f"leftover.part {held}"]
    assert sorted((root / "_base").iterdir()) == bases, "the cache stays"


def test_a_removal_that_was_killed_is_finished(root: pathlib.Path) -> None:
    instance = instance_of()
    ok(run(root, instance))
    (root / instance.uuid).rename(root / f"{instance.uuid}_del")
    ok(run(root, instance))

    assert run(root, instance, state="absent")["changed"] is True

    assert [path.name for path in root.iterdir()] == ["_base"]
    (root / f"{instance.uuid}_del").mkdir()
    assert run(root, instance, state="absent")["changed"] is True
    assert [path.name for path in root.iterdir()] == ["_base"]


def test_removal_follows_no_symbolic_link(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    inside, itself = instance_of(1), instance_of(2)
    ok(run(root, inside))
    (root / inside.uuid / "link").symlink_to(precious)
    (root / itself.uuid).symlink_to(precious)

    run(root, inside, itself, state="absent")

    assert [path.name for path in root.iterdir()] == ["_base"]
    assert (precious / "file").exists()


@pytest.mark.parametrize("identifier", ["", "..", "_base", "../../etc", "{00000000-0000-0000-0000-000000000001}"])
def test_what_is_no_uuid_never_becomes_a_path(root: pathlib.Path, identifier: str) -> None:
    instance = dataclasses.replace(instance_of(), uuid=identifier)

    for state in ("present", "absent"):
        result = run(root, instance, state=state)
        problem = result["instances"][0]["fault"] or result["instances"][0]["stuck"]
        assert problem["message"] == f"instance {identifier!r} is not a UUID"
        assert result["changed"] is False
    assert (root / "_base").exists()


def test_a_disk_that_a_running_server_lost_is_not_replaced_by_an_empty_one(root: pathlib.Path) -> None:
    server = instance_of().with_(vm_state=VmState.ACTIVE)
    (lost,) = run(root, server)["instances"]
    assert "is gone, with all that a guest wrote on it" in lost["fault"]["message"]
    assert os.listdir(root) == ["_base"]
