# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The volume_attachment phase with the real qemu-img."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import uuid
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    BlockDevice,
    Disk,
    Flavor,
    Image,
    Instance,
    TaskState,
    VmState,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import execute
from ansible_collections.barestack.kvm.plugins.modules.volume_attachment import PHASE

GIB = 1 << 30
VOLUME = str(uuid.UUID(int=7))


def device_of(volume_id: str = VOLUME, **changes: Any) -> BlockDevice:
    return BlockDevice(**{"id": "b", "source_type": "blank", "destination_type": "volume", "volume_id": volume_id,
                          "size": 2, **changes})  # fmt: skip


def instance_of(*devices: BlockDevice) -> Instance:
    return Instance(
        id=1,
        uuid=str(uuid.UUID(int=1)),
        name="web",
        hostname="web",
        project_id="p",
        user_id="u",
        flavor=Flavor("f", "m1.tiny", 1, 64, 1),
        image=Image("i", "cirros", "/image", "", "qcow2"),
        created_at="",
        block_devices=devices,
        disks=(Disk("root", "/disk", "qcow2"), Disk("config_drive", "/disk.config", "raw")),
    )


def run(root: pathlib.Path, instance: Instance, state: str = "present", check: bool = False) -> dict[str, Any]:
    params = {
        "instances": [to_wire(instance)],
        "state": state,
        "max_concurrent_builds": 10,
        "instances_path": str(root),
        "state_path": "/nonexistent",
        "log_path": "/nonexistent",
    }
    return execute(PHASE, params, check)


def ok(result: dict[str, Any]) -> Instance:
    instance = from_wire(Instance, result["instances"][0])
    assert instance.fault is None
    return instance


def path_of(root: pathlib.Path, volume_id: str = VOLUME) -> pathlib.Path:
    return root / "volumes" / f"volume-{volume_id}"


def test_a_volume_is_made_and_attached_and_a_rerun_changes_nothing(tmp_path: pathlib.Path) -> None:
    path = path_of(tmp_path)

    result = run(tmp_path, instance_of(device_of()))

    instance = ok(result)
    assert result["effects"] == [f"volume.disk {path}"]
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", path]))
    assert (info["format"], info["virtual-size"]) == ("qcow2", 2 * GIB)
    assert path.stat().st_mode & 0o777 == 0o600
    assert instance.block_devices[0].connection_info == {
        "driver_volume_type": "local",
        "data": {"device_path": str(path), "format": "qcow2"},
    }
    assert instance.disks[1] == Disk("volume", str(path), "qcow2", serial=VOLUME)
    assert [disk.role for disk in instance.disks] == ["root", "volume", "config_drive"]
    again = run(tmp_path, instance)
    assert again["changed"] is False
    assert ok(again).with_(events=()) == instance.with_(events=())


def test_check_mode_hands_on_the_volume_and_touches_nothing(tmp_path: pathlib.Path) -> None:
    planned = run(tmp_path, instance_of(device_of()), check=True)

    assert ok(planned).disks[1].serial == VOLUME
    assert planned["effects"] == [f"volume.disk {path_of(tmp_path)}"]
    assert list(tmp_path.iterdir()) == []


def test_a_strict_umask_locks_nobody_out(tmp_path: pathlib.Path) -> None:
    before = os.umask(0o077)
    try:
        ok(run(tmp_path / "instances", instance_of(device_of())))
    finally:
        os.umask(before)

    for directory in (tmp_path / "instances", tmp_path / "instances" / "volumes"):
        assert directory.stat().st_mode & 0o777 == 0o711


def test_what_is_in_a_volume_is_kept(tmp_path: pathlib.Path) -> None:
    ok(run(tmp_path, instance_of(device_of())))
    path = path_of(tmp_path)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 0 1M", path], check=True, capture_output=True)
    before = path.read_bytes()

    assert run(tmp_path, instance_of(device_of(size=1)))["changed"] is False

    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("qemu-img create -q -f qcow2 {path} 1G", "its virtual size is 1.0 GiB"),
        ("qemu-img create -q -f raw {path} 2G", "it does not start with qcow2's magic"),
        ("qemu-img create -q -u -f qcow2 -b /etc/shadow -F raw {path} 2G", "it names a backing file"),
    ],
)
def test_a_file_that_is_not_the_volume_is_left_alone(tmp_path: pathlib.Path, command: str, reason: str) -> None:
    path = path_of(tmp_path)
    path.parent.mkdir()
    subprocess.run(command.format(path=path).split(), check=True)

    result = run(tmp_path, instance_of(device_of(volume_name="data")))

    problem = result["instances"][0]["fault"]
    assert f"volume data: its file {path} exists, but {reason}" in problem["message"]
    assert problem["code"] == 409
    assert path.exists()


@pytest.mark.parametrize(
    "state",
    [
        {"launched_at": "2026-01-01T00:00:00.000000Z"},
        {"launched_at": "2026-01-01T00:00:00.000000Z", "task_state": TaskState.DELETING},
        {"task_state": TaskState.DELETING},
    ],
    ids=["was ACTIVE", "was ACTIVE and is deleted", "is deleted"],
)
def test_absent_deletes_only_what_goes_with_the_server(tmp_path: pathlib.Path, state: dict[str, Any]) -> None:
    other = str(uuid.UUID(int=8))
    instance = ok(run(tmp_path, instance_of(device_of(delete_on_termination=True), device_of(other))))
    instance = instance.with_(**state)
    part = path_of(tmp_path).with_name(path_of(tmp_path).name + ".part")
    part.touch()

    checked = run(tmp_path, instance, "absent", check=True)
    first = run(tmp_path, instance, "absent")
    second = run(tmp_path, instance, "absent")

    assert checked["effects"] == first["effects"] == [f"volume.disk {path_of(tmp_path)}"]
    assert second["changed"] is False
    assert list((tmp_path / "volumes").iterdir()) == [path_of(tmp_path, other)]


def test_a_build_that_is_undone_leaves_the_volumes_that_were_there_before(tmp_path: pathlib.Path) -> None:
    """What it made itself is empty, and is made again where the server is tried next."""
    other = str(uuid.UUID(int=8))
    ok(run(tmp_path, instance_of(device_of(other))))
    instance = instance_of(device_of(), device_of(other, source_type="volume"))
    instance = ok(run(tmp_path, instance)).with_(task_state=TaskState.SPAWNING)

    first = run(tmp_path, instance, "absent")

    assert first["effects"] == [f"volume.disk {path_of(tmp_path)}"]
    assert run(tmp_path, instance, "absent")["changed"] is False
    assert list((tmp_path / "volumes").iterdir()) == [path_of(tmp_path, other)]


def test_volumes_of_other_types_are_not_ours(tmp_path: pathlib.Path) -> None:
    instance = instance_of(device_of(volume_type="rbd", delete_on_termination=True))

    assert run(tmp_path, instance)["changed"] is False
    assert ok(run(tmp_path, instance)).block_devices == instance.block_devices
    assert run(tmp_path, instance, "absent")["changed"] is False


def test_what_is_no_uuid_never_becomes_a_path(tmp_path: pathlib.Path) -> None:
    instance = instance_of(device_of("x/../../../etc/passwd", delete_on_termination=True))

    assert "is not a UUID" in run(tmp_path, instance)["instances"][0]["fault"]["message"]
    assert "is not a UUID" in run(tmp_path, instance, "absent")["instances"][0]["stuck"]["message"]


@pytest.mark.parametrize("kind", ["of a server that ran", "that existed before its server"])
def test_a_volume_that_held_data_and_is_gone_is_not_replaced_by_an_empty_one(tmp_path: pathlib.Path, kind: str) -> None:
    if kind == "of a server that ran":
        server = instance_of(device_of()).with_(vm_state=VmState.ACTIVE)
    else:
        server = instance_of(device_of(source_type="volume"))
    result = run(tmp_path, server)
    assert "is gone, with all that a guest wrote on it" in result["instances"][0]["fault"]["message"]
    assert not path_of(tmp_path).exists()
