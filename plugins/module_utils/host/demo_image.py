# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The demo image: Debian's cloud kernel and a busybox userland on a disk that boots by itself, BIOS or UEFI.

Everything comes from the distribution's packages, which are fetched and unpacked, never installed, and from the role's
files for the guest. The same inputs give the same bytes: times, owners, order and serial numbers are fixed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import stat
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, Sequence, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host.system import read_file, replace_file, run
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError

KERNEL = "linux-image-cloud-amd64"
PACKAGES = ("busybox-static", "mtools", "syslinux", "syslinux-common", "syslinux-efi")

# What a libvirt guest may have: virtio disks, NICs and serial ports, a CD-ROM on virtio-scsi or i440fx's IDE, the power
# button. The cloud kernel has no driver for q35's SATA.
MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio-rng",
    "virtio_balloon",
    "virtio_console",
    "virtio_scsi",
    "sd_mod",
    "ata_piix",
    "sr_mod",
    "isofs",
    "button",
    "evdev",
)
RECIPE = 1
"""Raise it with a change of this file after which the same packages and files give another image."""
COMMAND_LINE = "console=ttyS0,115200 quiet panic=-1 no_timer_check random.trust_cpu=on"

_MIB = 1024 * 1024
_SECTOR = 512
_PARTITION_START = _MIB
_EPOCH = 1577836800
"""2020-01-01: the time of every file, which FAT can hold."""
_SERIAL = "62617265"


@dataclass(frozen=True)
class Package:
    """A package at the version that apt would fetch now."""

    name: str
    version: str
    sha256: str


def inputs() -> List[Package]:
    """The image's packages as apt's lists have them, the kernel's metapackage first; HostError where one is unknown."""
    return _candidates((KERNEL, *PACKAGES))


def _candidates(names: Sequence[str]) -> List[Package]:
    found = {}
    for stanza in _show(names).split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|SHA256): (.*)$", stanza, re.MULTILINE))
        if len(fields) == 3:
            found[fields["Package"]] = Package(fields["Package"], fields["Version"], fields["SHA256"])
    missing = [name for name in names if name not in found]
    if missing:
        raise HostError(
            f"apt's lists have no package {', '.join(missing)}: the demo image is made of Debian's, on amd64"
        )
    return [found[name] for name in names]


def _kernel() -> Package:
    match = re.search(r"^Depends:.*?\b(linux-image-\S+)", _show([KERNEL]), re.MULTILINE)
    if not match:
        raise HostError(f"{KERNEL} names no kernel package in its dependencies")
    return _candidates([match.group(1)])[0]


def _show(names: Sequence[str]) -> str:
    return run("apt-cache", "show", "--no-all-versions", *names)


def fingerprint(files: Mapping[str, str]) -> str:
    """What the image is, as one hash: this recipe and the guest's own files.

    Not the packages' versions: an image that changes with every apt-get update would be another one for the catalogue.
    """
    recipe = [RECIPE, COMMAND_LINE, *MODULES, *PACKAGES]
    return hashlib.sha256(json.dumps([recipe, files], sort_keys=True).encode()).hexdigest()


def is_built(path: Path, wanted: str) -> bool:
    """Whether ``path`` is the whole image of this fingerprint."""
    known: Dict[str, str] = json.loads(read_file(f"{path}.json") or "{}")
    return known.get("fingerprint") == wanted and path.exists() and known.get("sha256") == sha256(path)


def build(path: Path, packages: Sequence[Package], files: Mapping[str, str], wanted: str) -> None:
    """Make the image beside ``path``, then put it in place: ``.json``, which comes last, says that it is whole."""
    with tempfile.TemporaryDirectory(prefix=".demo-image-", dir=path.parent) as name:
        work = Path(name)
        system = work / "system"
        _unpack([_kernel(), *packages[1:]], work / "packages", system)
        kernel = next((system / "boot").glob("vmlinuz-*"))
        initrd = work / "initrd.gz"
        initrd.write_bytes(initramfs(system, files))
        disk = work / "disk.raw"
        _make_disk(disk, system, kernel, initrd)
        image = work / "disk.qcow2"
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-m", "1", str(disk), str(image))
        checksum = sha256(image)
        image.chmod(0o600)
        os.rename(image, path)
    replace_file(f"{path}.sha256", f"{checksum}  {path.name}\n")
    manifest = {
        "fingerprint": wanted,
        "sha256": checksum,
        "packages": {package.name: package.version for package in packages},
    }
    replace_file(f"{path}.json", json.dumps(manifest, indent=2) + "\n")


def initramfs(system: Path, files: Mapping[str, str]) -> bytes:
    """The gzipped cpio archive: busybox under all its names, the drivers, and the guest's own files."""
    busybox = system / "bin/busybox"
    archive = Archive()
    archive.add("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes())
    for applet in run(str(busybox), "--list-full").split():
        if applet not in ("bin/busybox", "init"):
            archive.add(applet, stat.S_IFLNK | 0o777, b"/bin/busybox")
    archive.add("sbin/init", stat.S_IFLNK | 0o777, b"/bin/busybox")
    order = []
    for module in load_order(system / "lib/modules", MODULES):
        name = f"lib/modules/{module.name}"
        order.append(f"/{name}\n")
        archive.add(name, stat.S_IFREG | 0o644, module.read_bytes())
    archive.add("usr/lib/demo/modules", stat.S_IFREG | 0o644, "".join(order).encode())
    for name, text in files.items():
        mode = 0o755 if text.startswith("#!") else 0o644
        archive.add(name, stat.S_IFREG | mode, text.encode())
    for directory in ("dev", "mnt", "proc", "root", "run", "sys", "tmp"):
        archive.add(directory, stat.S_IFDIR | 0o755, b"")
    archive.add("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1))
    return gzip.compress(archive.pack(), compresslevel=9, mtime=0)


class Archive:
    """A cpio archive in the newc format that the kernel unpacks; root owns all, every time is the same."""

    def __init__(self) -> None:
        self._entries: Dict[str, Tuple[int, bytes, Tuple[int, int]]] = {}

    def add(self, name: str, mode: int, data: bytes, device: Tuple[int, int] = (0, 0)) -> None:
        """An entry with its parent directories. A name that is there already is replaced."""
        for parent in reversed(Path(name).parents[:-1]):
            self._entries.setdefault(str(parent), (stat.S_IFDIR | 0o755, b"", (0, 0)))
        self._entries[name] = (mode, data, device)

    def pack(self) -> bytes:
        """The archive, its entries in the order of their names."""
        records = [
            _record(number, name, *self._entries[name]) for number, name in enumerate(sorted(self._entries), start=1)
        ]
        return b"".join([*records, _record(0, "TRAILER!!!", 0, b"", (0, 0))])


def _record(number: int, name: str, mode: int, data: bytes, device: Tuple[int, int]) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, _EPOCH, len(data), 0, 0, *device, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return _padded(header) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def load_order(modules: Path, wanted: Sequence[str]) -> List[Path]:
    """The files of these modules and of all they depend on, each after those it needs. Built-in ones are left out."""
    files = {_module_name(path.stem): path for path in sorted(modules.rglob("*.ko"))}
    ordered: Dict[str, Path] = {}

    def visit(name: str) -> None:
        if name in ordered or name not in files:
            return
        for dependency in _dependencies(files[name]):
            visit(dependency)
        ordered[name] = files[name]

    for name in wanted:
        visit(_module_name(name))
    return list(ordered.values())


def _module_name(name: str) -> str:
    return name.replace("-", "_")


def _dependencies(module: Path) -> Iterator[str]:
    match = re.search(rb"\0depends=([^\0]*)\0", module.read_bytes())
    names = match.group(1).decode() if match else ""
    return (_module_name(name) for name in names.split(",") if name)


def _unpack(packages: Sequence[Package], directory: Path, system: Path) -> None:
    directory.mkdir()
    names = [f"{package.name}={package.version}" for package in packages]
    # apt's own user may not write here; the packages' hashes are checked either way.
    command = ("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *names)
    run("env", "-C", str(directory), *command, timeout=900)
    expected = {package.sha256: package for package in packages}
    for archive in sorted(directory.glob("*.deb")):
        package = expected.pop(sha256(archive), None)
        if package is None:
            raise HostError(
                f"{archive.name} is not the package that apt's lists describe: run apt-get update, then again"
            )
        run("dpkg-deb", "--extract", str(archive), str(system))
    if expected:
        raise HostError(f"apt did not fetch {', '.join(package.name for package in expected.values())}")


def _make_disk(disk: Path, system: Path, kernel: Path, initrd: Path) -> None:
    """One FAT partition with kernel, initramfs and syslinux, for BIOS and for UEFI."""
    content = kernel.stat().st_size + initrd.stat().st_size
    sectors = (content // _MIB + 6) * _MIB // _SECTOR
    with disk.open("wb") as stream:
        stream.truncate(_PARTITION_START + sectors * _SECTOR)
        stream.write(master_boot_record((system / "usr/lib/syslinux/mbr/mbr.bin").read_bytes(), sectors))
    partition = f"{disk}@@{_PARTITION_START}"
    tools = _Tools(system)
    geometry = ("-h", "255", "-s", "63", "-H", str(_PARTITION_START // _SECTOR), "-T", str(sectors))
    tools.run("mformat", "-i", partition, *geometry, "-N", _SERIAL, "-v", "BARESTACK", "::")
    tools.run("syslinux", "--offset", str(_PARTITION_START), "--install", str(disk))
    files = system.parent / "files"
    configuration = f"PROMPT 0\nDEFAULT demo\nLABEL demo\n LINUX /vmlinuz\n INITRD /initrd.gz\n APPEND {COMMAND_LINE}\n"
    (files / "EFI/BOOT").mkdir(parents=True)
    shutil.copy(kernel, files / "vmlinuz")
    shutil.copy(initrd, files / "initrd.gz")
    (files / "syslinux.cfg").write_text(configuration)
    shutil.copy(system / "usr/lib/SYSLINUX.EFI/efi64/syslinux.efi", files / "EFI/BOOT/BOOTX64.EFI")
    shutil.copy(system / "usr/lib/syslinux/modules/efi64/ldlinux.e64", files / "EFI/BOOT/ldlinux.e64")
    for name in ("vmlinuz", "initrd.gz", "syslinux.cfg", "EFI"):
        tools.run("mcopy", "-s", "-i", partition, str(files / name), "::")


class _Tools:
    """mtools and syslinux, from where they were unpacked, with the time standing still."""

    def __init__(self, system: Path) -> None:
        self._environment = (
            f"PATH={system}/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            f"SOURCE_DATE_EPOCH={_EPOCH}",
            "TZ=UTC",
            "MTOOLSRC=/dev/null",
            "MTOOLS_SKIP_CHECK=1",
        )

    def run(self, *command: str) -> None:
        run("env", *self._environment, *command)


def master_boot_record(code: bytes, sectors: int) -> bytes:
    """The first sector: syslinux's boot code and one active EFI system partition of this many sectors from 1 MiB on."""
    if len(code) > 440:
        raise HostError(f"the boot code has {len(code)} bytes and a boot record holds 440")
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0xEF, b"\xfe\xff\xff", _PARTITION_START // _SECTOR, sectors)
    signature = struct.pack("<IH", int(_SERIAL, 16), 0)
    return code.ljust(440, b"\0") + signature + entry.ljust(64, b"\0") + b"\x55\xaa"


def sha256(path: Path) -> str:
    """The file's SHA-256, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(_MIB), b""):
            digest.update(block)
    return digest.hexdigest()
