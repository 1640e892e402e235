# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What a disk image really is, from its own bytes, before QEMU or qemu-img opens it.

Mirrors oslo.utils' ``imageutils.format_inspector``, which Nova asks first since CVE-2024-32498: an image that names
another file of the host (a backing file, an external data file) would hand that file's content to the guest.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest

DISK_FORMATS = ("raw", "qcow2")
"""The image formats that a host takes."""

SECTOR = 512
_HEAD = 65536
_QCOW2_MAGIC = b"QFI\xfb"
_ISO_IDENTIFIERS = (b"CD001", b"NSR02", b"NSR03")
_VDI_SIGNATURE = struct.pack("<I", 0xBEDA107F)

_EXTENSION_END = 0x00000000
_EXTENSION_BACKING_FORMAT = 0xE2792ACA
_EXTENSION_DATA_FILE = 0x44415441

_INCOMPATIBLE_CORRUPT = 1 << 1
_INCOMPATIBLE_DATA_FILE = 1 << 2
_INCOMPATIBLE_KNOWN = 0b11111
"""Dirty, corrupt, external data file, compression type, extended L2 entries."""


@dataclass(frozen=True)
class Qcow2Header:
    """What a qcow2 file says of itself. ``virtual_size`` in bytes."""

    version: int
    virtual_size: int
    backing_file: Optional[str]
    backing_format: Optional[str]
    external_data: bool
    encrypted: bool
    incompatible_features: int

    def danger(self) -> Optional[str]:
        """Why it must not be used as an image, or None."""
        unknown = self.incompatible_features & ~_INCOMPATIBLE_KNOWN
        if self.backing_file is not None:
            return f"it names a backing file ({self.backing_file!r})"
        if self.external_data:
            return "it keeps its data in an external data file"
        if unknown:
            return f"it needs features that are not known here (incompatible feature bits {unknown:#x})"
        if self.incompatible_features & _INCOMPATIBLE_CORRUPT:
            return "it is marked as corrupt"
        if self.encrypted:
            return "it is encrypted"
        return None


def _starts(*magics: bytes) -> Callable[[bytes, bytes], bool]:
    return lambda head, _tail: head.startswith(magics)


def _ends(magic: bytes) -> Callable[[bytes, bytes], bool]:
    return lambda _head, tail: tail.startswith(magic)


def _is_vmdk_descriptor(head: bytes, _tail: bytes) -> bool:
    """QEMU's own test: after comments and blank lines, a text file that goes on with ``version=``."""
    if not head.startswith(b"#"):
        return False
    lines = (line.strip(b" \r") for line in head.split(b"\n"))
    return next((line for line in lines if line and not line.startswith(b"#")), b"").startswith(b"version=")


SIGNATURES: Dict[str, Tuple[Callable[[bytes, bytes], bool], ...]] = {
    "qcow": (_starts(_QCOW2_MAGIC + b"\x00\x00\x00\x01"),),
    "qcow2": (lambda head, _tail: head.startswith(_QCOW2_MAGIC) and head[4:8] != b"\x00\x00\x00\x01",),
    "qed": (_starts(b"QED\x00"),),
    "vmdk": (_starts(b"KDMV", b"COWD", b"# Disk DescriptorFile"), _is_vmdk_descriptor),
    "vdi": (lambda head, _tail: head[64:68] == _VDI_SIGNATURE,),
    "vhd": (_starts(b"conectix"), _ends(b"conectix")),
    "vhdx": (_starts(b"vhdxfile"),),
    "iso": (lambda head, _tail: head[32769:32774] in _ISO_IDENTIFIERS,),
    "luks": (_starts(b"LUKS\xba\xbe"),),
    "parallels": (_starts(b"WithoutFreeSpace", b"WithouFreSpacExt"),),
    "bochs": (_starts(b"Bochs Virtual HD Image"),),
    "cloop": (_starts(b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"),),
    "dmg": (_ends(b"koly"),),
}
"""Each format with the tests that recognise it, given the file's first 64 KiB and its last 512 bytes.

A partition table (MBR, GPT) is not listed: a whole disk is what a raw image is.
"""


def detect(head: bytes, tail: bytes) -> List[str]:
    """The formats whose signature these bytes carry; empty for what can only be raw."""
    return [name for name, tests in SIGNATURES.items() if any(test(head, tail) for test in tests)]


def parse_qcow2(head: bytes) -> Qcow2Header:
    """The header at the start of a qcow2 file (versions 2 and 3), as QEMU's docs/interop/qcow2.txt describes it.

    ``head`` holds the file's first 64 KiB, or all of it. Raises InvalidRequest for what is no qcow2 header.
    """
    try:
        return _parse_qcow2(head)
    except struct.error:
        raise InvalidRequest("its qcow2 header is cut off") from None


def _parse_qcow2(head: bytes) -> Qcow2Header:
    magic, version, backing_offset, backing_size, cluster_bits, size, crypt = struct.unpack_from(">4sIQIIQI", head)
    if magic != _QCOW2_MAGIC:
        raise InvalidRequest("it does not start with qcow2's magic")
    if version not in (2, 3):
        raise InvalidRequest(f"its qcow2 version {version} is not 2 or 3")
    if not 9 <= cluster_bits <= 21:
        raise InvalidRequest(f"its qcow2 cluster_bits {cluster_bits} is not within 9 and 21")
    incompatible, header_length = 0, 72
    if version == 3:
        (incompatible,) = struct.unpack_from(">Q", head, 72)
        (header_length,) = struct.unpack_from(">I", head, 100)
        if header_length < 104 or header_length > 1 << cluster_bits:
            raise InvalidRequest(f"its qcow2 header length {header_length} cannot be")
    extensions = _extensions(head, header_length, backing_offset or 1 << cluster_bits)
    backing_format = extensions.get(_EXTENSION_BACKING_FORMAT)
    return Qcow2Header(
        version=version,
        virtual_size=size,
        backing_file=_backing_file(head, backing_offset, backing_size) if backing_offset else None,
        backing_format=None if backing_format is None else backing_format.decode("utf-8", "replace"),
        external_data=bool(incompatible & _INCOMPATIBLE_DATA_FILE) or _EXTENSION_DATA_FILE in extensions,
        encrypted=crypt != 0,
        incompatible_features=incompatible,
    )


def _backing_file(head: bytes, offset: int, size: int) -> str:
    if size > 1023 or offset + size > len(head):
        raise InvalidRequest(f"its backing file's name ({size} bytes at {offset}) lies outside of its header")
    return head[offset : offset + size].decode("utf-8", "surrogateescape")


def _extensions(head: bytes, offset: int, end: int) -> Dict[int, bytes]:
    found: Dict[int, bytes] = {}
    while offset + 8 <= end:
        kind, length = struct.unpack_from(">II", head, offset)
        if kind == _EXTENSION_END:
            break
        if length > end - offset - 8 or offset + 8 + length > len(head):
            raise InvalidRequest(f"its qcow2 header extension {kind:#x} runs over its end")
        found[kind] = head[offset + 8 : offset + 8 + length]
        offset += 8 + (length + 7) // 8 * 8
    return found


def read_ends(path: str) -> Tuple[bytes, bytes, int]:
    """(the first 64 KiB, the last 512 bytes, the size in bytes) of a file."""
    with open(path, "rb") as stream:
        head = stream.read(_HEAD)
        size = os.fstat(stream.fileno()).st_size
        stream.seek(max(0, size - SECTOR))
        return head, stream.read(SECTOR), size


def read_qcow2(path: str) -> Qcow2Header:
    """The header of a qcow2 file on this host; InvalidRequest where it is none."""
    with open(path, "rb") as stream:
        return parse_qcow2(stream.read(_HEAD))


def virtual_size(path: str, disk_format: str) -> int:
    """The bytes of disk that the guest sees in a file of the known format ``raw`` or ``qcow2``."""
    if disk_format == "qcow2":
        return read_qcow2(path).virtual_size
    return (os.stat(path).st_size + SECTOR - 1) // SECTOR * SECTOR


def check_image(path: str, disk_format: str) -> int:
    """The virtual size in bytes of an image that is what it claims to be and refers to no other file.

    Raises InvalidRequest with the reason where its content is of another format, of several at once (something is
    hiding in there), or dangerous to open.
    """
    head, tail, size = read_ends(path)
    if not size:
        raise InvalidRequest("it is empty")
    found = detect(head, tail)
    if disk_format == "raw" and found:
        raise InvalidRequest(f"its disk_format is raw, but its content carries the signature of {' and '.join(found)}")
    if disk_format == "qcow2":
        if found != ["qcow2"]:
            raise InvalidRequest(f"its disk_format is qcow2, but its content is {' and '.join(found) or 'raw'}")
        danger = parse_qcow2(head).danger()
        if danger:
            raise InvalidRequest(danger)
    return virtual_size(path, disk_format)
