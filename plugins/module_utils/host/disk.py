# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The instance's own disks: root, ephemeral and swap, as nova.virt.libvirt.imagebackend makes them.

Every file of the storage phases is built by :func:`build_once`: under a temporary name that is its lock too, then
renamed. So a disk that exists is whole, and a kill leaves at most a ``.part`` which the next run builds anew.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import os
import shutil
import stat
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Callable, ClassVar, Dict, Optional, Tuple, Type

from ansible_collections.barestack.kvm.plugins.module_utils.host import image_format
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.host.system import (
    locked,
    names,
    remove_file,
    run,
    unwritten,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict, HostError, InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Disk, Instance, VmState

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
DIRECTORY_MODE = 0o711
"""libvirt's QEMU user may pass through, and list nothing."""
BASE_MODE = 0o644
DISK_MODE = 0o600
"""Readable by root until libvirt gives the disk to QEMU's user, by no other."""

EPHEMERAL_FILE_SYSTEM = "ext4"


def part_of(path: str) -> str:
    """The temporary name under which ``path`` is built."""
    return f"{path}.part"


def build_once(path: str, write: Callable[[str], None], mode: int = DISK_MODE, keep_partial: bool = False) -> bool:
    """Make ``path`` by ``write(temporary name)`` and a rename; False where another run had made it meanwhile.

    The temporary file is locked while it is written, so of two builders the second waits and finds the work done.
    Where ``write`` fails, the temporary file goes, or with ``keep_partial`` stays for ``write`` to resume.
    """
    part = part_of(path)
    while not os.path.lexists(path):
        with locked(part) as descriptor:
            if not names(part, descriptor):
                continue  # renamed or removed by the builder that we waited for
            if os.path.lexists(path):
                os.unlink(part)
                return False
            try:
                write(part)
            except BaseException:
                if not keep_partial:
                    with contextlib.suppress(FileNotFoundError):  # qemu-img removes what it could not finish
                        os.unlink(part)
                raise
            os.chmod(part, mode)
            os.rename(part, path)
            return True
    return False


def discard(part: str, effects: Effects) -> None:
    """Remove a temporary file, where there is one that nobody writes."""
    with unwritten(part) as idle:
        if idle:
            effects.apply("leftover.part", part, partial(remove_file, part), before="temporary file")


def require_space(path: str, need: int, what: str) -> None:
    """HostError unless ``need`` bytes are free on the file system that holds the directory ``path``."""
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    if need > free:
        raise HostError(
            f"{what} needs {human(need)}, but {human(free)} are free on the file system of {path}: "
            f"free some space there, or choose a smaller flavor or another host"
        )


def human(size: int) -> str:
    """Bytes for people: ``2.0 GiB (2147483648 bytes)``."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name} ({size} bytes)"
    return f"{size} bytes"


def require_uuid(kind: str, value: str) -> str:
    """The value, which becomes part of a path: InvalidRequest where it is no UUID."""
    try:
        if str(uuid.UUID(value)) == value.lower():
            return value
    except ValueError:
        pass
    raise InvalidRequest(f"{kind} {value!r} is not a UUID")


def ensure_directory(path: str, mode: int = DIRECTORY_MODE) -> None:
    """The directory and what is above it, passable for QEMU's user whatever the umask."""
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory)
        os.chmod(directory, mode)


class Backend(abc.ABC):
    """One kind of disk. To add one: a class, and its line in ``BACKENDS``."""

    format: ClassVar[str]
    """What the guest's definition says it is: ``qcow2`` or ``raw``."""

    @abc.abstractmethod
    def build(self, wanted: WantedDisk, path: str, size: int) -> None:
        """Write the disk of ``size`` bytes to ``path``, an empty file, from ``wanted.base``."""

    @abc.abstractmethod
    def fault(self, wanted: WantedDisk, size: int) -> Optional[str]:
        """What is wrong with the existing ``wanted.path``, or None. Starts no process."""


class Qcow2(Backend):
    """An overlay over the cached image: made at once, holds what the guest changes (nova's ``Qcow2``)."""

    format = "qcow2"

    def build(self, wanted: WantedDisk, path: str, size: int) -> None:
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", wanted.base, "-F", wanted.base_format, path, str(size))

    def fault(self, wanted: WantedDisk, size: int) -> Optional[str]:
        try:
            header = image_format.read_qcow2(wanted.path)
        except InvalidRequest as error:
            return str(error)
        if (header.backing_file, header.backing_format) != (wanted.base, wanted.base_format):
            return f"its backing file is {header.backing_file} ({header.backing_format})"
        if header.external_data:
            return "it keeps its data in an external data file"
        if header.virtual_size < size:
            return f"its virtual size is {human(header.virtual_size)}"
        return None


class Flat(Backend):
    """A raw copy of its own, sparse where the image is: no cache behind it (nova's ``Flat``)."""

    format = "raw"

    def build(self, wanted: WantedDisk, path: str, size: int) -> None:
        data = image_format.virtual_size(wanted.base, wanted.base_format)
        directory = os.path.dirname(path)
        require_space(directory, data, f"{wanted.role} disk {wanted.path}")
        cache = "none" if _direct_io_works(directory) else "writeback"
        run("qemu-img", "convert", "-t", cache, "-f", wanted.base_format, "-O", "raw", wanted.base, path)
        if size > os.path.getsize(path):
            os.truncate(path, size)

    def fault(self, wanted: WantedDisk, size: int) -> Optional[str]:
        # Its content is the guest's: a qcow2 header in there means nothing.
        status = os.stat(wanted.path, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            return "it is not a regular file"
        return f"its size is {human(status.st_size)}" if status.st_size < size else None


BACKENDS: Dict[str, Type[Backend]] = {"qcow2": Qcow2, "flat": Flat}
"""``images_type`` to its class."""


def _direct_io_works(directory: str) -> bool:
    """Whether O_DIRECT opens there, as nova's ``supports_direct_io`` finds out; tmpfs of old kernels refuses it."""
    probe = os.path.join(directory, f".directio.{uuid.uuid4()}")
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o600))
    except OSError:
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(probe)
    return True


@dataclass(frozen=True)
class WantedDisk:
    """A disk that image and flavor ask for. ``size`` in bytes, 0 for as large as its base."""

    role: str
    path: str
    size: int
    base: str
    base_format: str
    format_base: Optional[Callable[[str], None]] = None
    """Formats the base, an empty raw file of ``size`` bytes, where it is not an image."""


def wanted_disks(instance: Instance, paths: Paths) -> Tuple[WantedDisk, ...]:
    """Root, and ephemeral and swap where the flavor has them, with the names that Nova gives them and their bases."""
    flavor, image = instance.flavor, instance.image
    found = [
        WantedDisk(
            "root", paths.disk(instance.uuid, "disk"), flavor.disk * GIB, paths.base(image.id), image.disk_format
        )
    ]
    if flavor.ephemeral:
        kind = hashlib.md5(EPHEMERAL_FILE_SYSTEM.encode(), usedforsecurity=False).hexdigest()[:7]
        base = f"{paths.base_directory}/ephemeral_{flavor.ephemeral}_{kind}"
        path, size = paths.disk(instance.uuid, "disk.local"), flavor.ephemeral * GIB
        found.append(WantedDisk("ephemeral", path, size, base, "raw", _make_file_system))
    if flavor.swap:
        base = f"{paths.base_directory}/swap_{flavor.swap}"
        path, size = paths.disk(instance.uuid, "disk.swap"), flavor.swap * MIB
        found.append(WantedDisk("swap", path, size, base, "raw", _make_swap))
    return tuple(found)


def _make_file_system(path: str) -> None:
    # The file is sparse and reads as zeros: a journal written out would be a gigabyte of zeros in the cache.
    run(f"mkfs.{EPHEMERAL_FILE_SYSTEM}", "-q", "-F", "-L", "ephemeral0", "-E", "lazy_journal_init=1", path)


def _make_swap(path: str) -> None:
    run("mkswap", path)


class Disks:
    """The disks of this host's instances. Safe to share between threads."""

    def __init__(self, paths: Paths, backend: Backend, effects: Effects) -> None:
        self._paths = paths
        self._backend = backend
        self._effects = effects

    def ensure(self, instance: Instance) -> Instance:
        """The instance with its disks, made where they are missing.

        Raises InvalidRequest where the image does not fit the flavor's disk, Conflict where an existing disk is
        not what it should be, HostError where the image is not in the cache, the disk cannot be written, or the disk
        of a server that has been running is gone.
        """
        directory = self._paths.instance_directory(require_uuid("instance", instance.uuid))
        if instance.vm_state == VmState.ACTIVE:
            for wanted in wanted_disks(instance, self._paths):
                require_kept(f"{wanted.role} disk {wanted.path} of server {instance.name}", wanted.path)
        if not _passable(directory):
            self._effects.apply("disk.directory", directory, lambda: self._make_directory(directory), after="directory")
        for wanted in wanted_disks(instance, self._paths):
            self._ensure_disk(wanted, instance)
            boot_index = 0 if wanted.role == "root" else -1
            instance = instance.with_disk(Disk(wanted.role, wanted.path, self._backend.format, boot_index=boot_index))
        return instance

    def _make_directory(self, directory: str) -> None:
        ensure_directory(directory)
        os.chmod(directory, DIRECTORY_MODE)

    def _ensure_disk(self, wanted: WantedDisk, instance: Instance) -> None:
        size = wanted.size if wanted.format_base else self._root_size(wanted, instance)
        if os.path.lexists(wanted.path):
            fault = self._backend.fault(wanted, size)
            if fault:
                raise Conflict(
                    f"{wanted.role} disk {wanted.path} exists, but {fault}, where a {self._backend.format} disk of "
                    f"{human(size)} over {wanted.base} ({wanted.base_format}) was expected: it is left alone; "
                    f"delete the instance, or put back what it was made from"
                )
            return
        self._effects.apply(
            f"disk.{wanted.role}",
            wanted.path,
            lambda: self._make(wanted, size),
            after=f"{self._backend.format}, {human(size) if size else 'as large as its image'}, from {wanted.base}",
        )

    def _make(self, wanted: WantedDisk, size: int) -> None:
        if wanted.format_base and not os.path.lexists(wanted.base):
            ensure_directory(self._paths.base_directory)
            build_once(wanted.base, lambda part: _make_base(wanted, part), BASE_MODE)
        build_once(wanted.path, lambda part: self._backend.build(wanted, part, size))

    def _root_size(self, wanted: WantedDisk, instance: Instance) -> int:
        """Bytes of the root disk; 0 in check mode where the image, whose size it takes, is not here yet."""
        image, flavor = instance.image, instance.flavor
        try:
            base_size = image_format.virtual_size(wanted.base, wanted.base_format)
        except FileNotFoundError:
            if self._effects.check_mode:
                return wanted.size
            raise HostError(f"image {image.name} ({image.id}) is not in the cache: run the image phase first") from None
        except InvalidRequest as error:
            raise HostError(f"image {image.name} ({image.id}) in the cache, {wanted.base}, is bad: {error}") from None
        if wanted.size and base_size > wanted.size:
            raise InvalidRequest(
                f"image {image.name} ({image.id}) has a virtual size of {human(base_size)}, which does not fit the "
                f"disk of flavor {flavor.name}, {flavor.disk} GiB: choose a flavor with a disk of at least "
                f"{-(-base_size // GIB)} GiB"
            )
        return wanted.size or base_size

    def remove(self, instance: Instance) -> None:
        """Remove the instance's directory with all that is in it: renamed first, as Nova does, so that a disk is
        either whole or gone. Finishes what a killed removal left. Follows no symbolic link.

        What a build that was cut off left beside a base in the cache goes, too: no run need come back to it.
        """
        self.remove_directory(instance.uuid)
        for wanted in wanted_disks(instance, self._paths):
            discard(part_of(wanted.base), self._effects)

    def remove_directory(self, identifier: str) -> None:
        """:meth:`remove`, of an instance of which no more than the uuid is known."""
        directory = self._paths.instance_directory(require_uuid("instance", identifier))
        doomed = f"{directory}_del"
        if os.path.lexists(directory) or os.path.lexists(doomed):
            self._effects.apply("disk.directory", directory, lambda: _remove(directory, doomed), before="directory")

    def remove_doomed(self, identifier: str) -> None:
        """Finish what a killed removal left, beside a directory that was made anew since."""
        doomed = f"{self._paths.instance_directory(require_uuid('instance', identifier))}_del"
        if os.path.lexists(doomed):
            self._effects.apply("disk.directory", doomed, lambda: _remove_tree(doomed), before="directory")


def require_kept(what: str, path: str) -> None:
    """HostError where a disk that a guest has written to is gone: an empty one in its place would hide the loss."""
    if not os.path.lexists(path):
        raise HostError(
            f"{what} is gone, with all that a guest wrote on it: mount its file system or restore it, or delete the "
            "server and boot it anew"
        )


def _make_base(wanted: WantedDisk, part: str) -> None:
    os.truncate(part, wanted.size)
    if wanted.format_base:
        wanted.format_base(part)


def _passable(directory: str) -> bool:
    try:
        status = os.stat(directory)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode) and bool(status.st_mode & stat.S_IXOTH)


def _remove(directory: str, doomed: str) -> None:
    _remove_tree(doomed)
    with contextlib.suppress(FileNotFoundError):
        os.rename(directory, doomed)
    _remove_tree(doomed)


def _remove_tree(path: str) -> None:
    """Remove it, also where another run removes it at the same time."""
    while os.path.lexists(path):
        with contextlib.suppress(FileNotFoundError):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
