# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Data volumes of the type ``directory``: qcow2 files in a directory of the host.

Mirrors Cinder's ``create_volume`` and ``initialize_connection`` of the local drivers, and Nova's
``_prep_block_device``: what comes out is the ``connection_info`` that the domain phase opens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from typing import Any, Dict, Optional

from ansible_collections.barestack.kvm.plugins.module_utils.host import image_format
from ansible_collections.barestack.kvm.plugins.module_utils.host.disk import (
    GIB,
    build_once,
    ensure_directory,
    human,
    part_of,
    require_kept,
    require_uuid,
)
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.host.system import run
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict, InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    BlockDevice,
    Disk,
    Instance,
    TaskState,
    VmState,
)

VOLUME_TYPE = "directory"
VOLUME_FORMAT = "qcow2"


class Volumes:
    """The directory pool of this host. Safe to share between threads."""

    def __init__(self, paths: Paths, effects: Effects) -> None:
        self._paths = paths
        self._effects = effects

    def attach(self, instance: Instance) -> Instance:
        """The instance with a disk for each of its volumes, and their block devices' ``connection_info``.

        A volume that the server brings itself gets an empty file; a file that exists keeps what is in it. Raises
        Conflict where such a file is not what the block device says, HostError where one that held data is gone.
        """
        devices = []
        for device in instance.block_devices:
            if device.volume_type == VOLUME_TYPE:
                path = self._ensure(instance, device)
                device = dataclasses.replace(device, connection_info=connection_info(path))
                instance = instance.with_disk(
                    Disk("volume", path, VOLUME_FORMAT, serial=device.volume_id, boot_index=device.boot_index)
                )
            devices.append(device)
        return instance.with_(block_devices=tuple(devices))

    def _ensure(self, instance: Instance, device: BlockDevice) -> str:
        path = self._paths.volume(require_uuid("volume", device.volume_id))
        if instance.vm_state == VmState.ACTIVE or device.source_type == "volume":
            require_kept(f"volume {device.volume_name or device.volume_id}, {path},", path)
        size = device.size * GIB
        if os.path.lexists(path):
            fault = _fault(path, size)
            if fault:
                raise Conflict(
                    f"volume {device.volume_name or device.volume_id}: its file {path} exists, but {fault}, where a "
                    f"{VOLUME_FORMAT} file of {human(size)} was expected: it is left alone; move it away or correct "
                    f"the volume"
                )
        else:
            self._effects.apply(
                "volume.disk", path, lambda: self._create(path, size), after=f"{VOLUME_FORMAT}, {human(size)}"
            )
        return path

    def _create(self, path: str, size: int) -> None:
        ensure_directory(self._paths.volumes_directory)
        build_once(path, lambda part: _write(part, size))

    def detach(self, instance: Instance) -> None:
        """Delete the files of the volumes that go with the server; the others stay as they are.

        So do those that a server brings itself which never was ACTIVE and is not deleted: it is tried elsewhere.
        """
        undone = instance.launched_at is None and instance.task_state != TaskState.DELETING
        for device in instance.block_devices:
            goes = device.delete_on_termination or (undone and device.source_type == "blank")
            if device.volume_type == VOLUME_TYPE and goes:
                path = self._paths.volume(require_uuid("volume", device.volume_id))
                if os.path.lexists(path) or os.path.lexists(part_of(path)):
                    self._effects.apply("volume.disk", path, functools.partial(_delete, path), before=VOLUME_FORMAT)


def connection_info(path: str) -> Dict[str, Any]:
    """What the host needs to open the volume, in the shape of Cinder's ``initialize_connection``."""
    return {"driver_volume_type": "local", "data": {"device_path": path, "format": VOLUME_FORMAT}}


def _write(part: str, size: int) -> None:
    run("qemu-img", "create", "-q", "-f", VOLUME_FORMAT, part, str(size))


def _fault(path: str, size: int) -> Optional[str]:
    try:
        header = image_format.read_qcow2(path)
    except InvalidRequest as error:
        return str(error)
    if header.virtual_size < size:
        return f"its virtual size is {human(header.virtual_size)}"
    return header.danger()


def _delete(path: str) -> None:
    for name in (path, part_of(path)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
