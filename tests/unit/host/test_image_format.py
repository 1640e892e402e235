# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The inspector against files that the real qemu-img made, and against bytes that nobody should open."""

from __future__ import annotations

import json
import os
import pathlib
import struct
import subprocess

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host import image_format
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from hypothesis import given
from hypothesis import strategies as st

MIB = 1 << 20


def create(path: pathlib.Path, disk_format: str, *options: str, size: str = "16M") -> str:
    subprocess.run(["qemu-img", "create", "-q", "-f", disk_format, *options, str(path), size], check=True)
    return str(path)


def qcow2_bytes(incompatible: int = 0, version: int = 3, **fields: int) -> bytearray:
    """The first cluster of a qcow2 image, as the specification lays it out."""
    head = bytearray(65536)
    values = {"backing_offset": 0, "backing_size": 0, "cluster_bits": 16, "size": 16 * MIB, "crypt": 0, **fields}
    struct.pack_into(">4sIQIIQI", head, 0, b"QFI\xfb", version, *values.values())
    struct.pack_into(">QQQII", head, 72, incompatible, 0, 0, 4, 104)
    return head


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-o", "compat=0.10"),
        ("-o", "compression_type=zstd"),
        ("-o", "extended_l2=on,cluster_size=128k"),
        ("-o", "lazy_refcounts=on"),
        ("-o", "cluster_size=512"),
        ("-o", "cluster_size=2M"),
    ],
)
def test_it_agrees_with_qemu_img_on_every_kind_of_qcow2(tmp_path: pathlib.Path, options: tuple[str, ...]) -> None:
    path = create(tmp_path / "image", "qcow2", *options, size="33554944")
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", path]))

    assert image_format.check_image(path, "qcow2") == info["virtual-size"] == 33554944


def test_a_raw_disk_is_as_large_as_qemu_img_says(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\x01" * 1000)
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", "-f", "raw", str(path)]))

    assert image_format.check_image(str(path), "raw") == info["virtual-size"] == 1024


def test_a_partitioned_disk_is_raw(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "image"
    protective_mbr = (
        bytes(446) + b"\x00\x00\x02\x00\xee\xff\xff\xff\x01\x00\x00\x00\xff\x7f\x00\x00" + bytes(48) + b"\x55\xaa"
    )
    path.write_bytes((protective_mbr + b"EFI PART").ljust(MIB, b"\x00"))

    assert image_format.check_image(str(path), "raw") == MIB


@pytest.mark.parametrize(
    ("disk_format", "options", "name"),
    [
        ("qcow2", (), "qcow2"),
        ("qcow", (), "qcow"),
        ("qed", (), "qed"),
        ("vmdk", (), "vmdk"),
        ("vmdk", ("-o", "subformat=monolithicFlat"), "vmdk"),
        ("vmdk", ("-o", "subformat=streamOptimized"), "vmdk"),
        ("vdi", (), "vdi"),
        ("vpc", (), "vhd"),
        ("vpc", ("-o", "subformat=fixed"), "vhd"),
        ("vhdx", (), "vhdx"),
        ("parallels", (), "parallels"),
    ],
)
def test_other_formats_are_recognised_and_refused(
    tmp_path: pathlib.Path, disk_format: str, options: tuple[str, ...], name: str
) -> None:
    path = create(tmp_path / "image", disk_format, *options)
    head, tail, _size = image_format.read_ends(path)

    assert image_format.detect(head, tail) == [name]
    with pytest.raises(InvalidRequest, match=f"disk_format is raw, but its content carries the signature of {name}$"):
        image_format.check_image(path, "raw")
    if name != "qcow2":
        with pytest.raises(InvalidRequest, match=f"disk_format is qcow2, but its content is {name}$"):
            image_format.check_image(path, "qcow2")


def test_formats_that_are_not_made_here_are_recognised() -> None:
    iso = bytes(32769) + b"CD001"
    assert image_format.detect(iso, b"") == ["iso"]
    assert image_format.detect(b"LUKS\xba\xbe\x00\x01aes", b"") == ["luks"]
    assert image_format.detect(b"Bochs Virtual HD Image\x00", b"") == ["bochs"]
    assert image_format.detect(b"\x00" * 512, b"koly" + bytes(508)) == ["dmg"]
    assert image_format.detect(b"# made by hand\n\n  \nversion=1\nCID=1", b"") == ["vmdk"]
    assert image_format.detect(b"#!/bin/sh\necho version=1", b"") == []


def test_two_formats_in_one_file_are_refused(tmp_path: pathlib.Path) -> None:
    head = qcow2_bytes()
    head[32769:32774] = b"CD001"
    path = tmp_path / "image"
    path.write_bytes(head)

    with pytest.raises(InvalidRequest, match="content is qcow2 and iso"):
        image_format.check_image(str(path), "qcow2")


def test_a_backing_file_is_refused(tmp_path: pathlib.Path) -> None:
    path = create(tmp_path / "image", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw")

    header = image_format.read_qcow2(path)
    assert (header.backing_file, header.backing_format) == ("/etc/shadow", "raw")
    with pytest.raises(InvalidRequest, match="backing file \\('/etc/shadow'\\)"):
        image_format.check_image(path, "qcow2")


def test_an_external_data_file_is_refused(tmp_path: pathlib.Path) -> None:
    path = create(tmp_path / "image", "qcow2", "-o", f"data_file={tmp_path}/data,data_file_raw=on")

    with pytest.raises(InvalidRequest, match="external data file"):
        image_format.check_image(path, "qcow2")


def test_a_data_file_extension_without_its_feature_bit_is_refused(tmp_path: pathlib.Path) -> None:
    head = qcow2_bytes()
    struct.pack_into(">II12s", head, 104, 0x44415441, 11, b"/etc/shadow")
    path = tmp_path / "image"
    path.write_bytes(head)

    with pytest.raises(InvalidRequest, match="external data file"):
        image_format.check_image(str(path), "qcow2")


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (qcow2_bytes(incompatible=1 << 5), "features that are not known here .*0x20"),
        (qcow2_bytes(incompatible=1 << 63), "features that are not known here .*0x8000000000000000"),
        (qcow2_bytes(incompatible=1 << 1), "marked as corrupt"),
        (qcow2_bytes(crypt=2), "encrypted"),
        (qcow2_bytes(backing_offset=60000, backing_size=1024), "lies outside"),
        (qcow2_bytes(backing_offset=1 << 40, backing_size=8), "lies outside"),
        (qcow2_bytes(version=4), "version 4 is not 2 or 3"),
        (qcow2_bytes(cluster_bits=40), "cluster_bits 40"),
        (qcow2_bytes()[:90], "cut off"),
        (bytearray(), "is empty"),
    ],
)
def test_a_dangerous_or_broken_header_is_refused(tmp_path: pathlib.Path, head: bytearray, reason: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(head)

    with pytest.raises(InvalidRequest, match=reason):
        image_format.check_image(str(path), "qcow2")


def test_a_backing_file_of_a_version_2_image_is_found(tmp_path: pathlib.Path) -> None:
    path = create(tmp_path / "image", "qcow2", "-o", "compat=0.10", "-u", "-b", "/etc/shadow", "-F", "raw")

    assert image_format.read_qcow2(path).danger() == "it names a backing file ('/etc/shadow')"


@given(tail=st.binary(max_size=400), cut=st.integers(0, 520))
def test_no_bytes_make_the_parser_fail_in_another_way(tail: bytes, cut: int) -> None:
    head = (bytes(qcow2_bytes()[:104]) + tail)[:cut]
    try:
        header = image_format.parse_qcow2(head)
    except InvalidRequest:
        return
    assert header.virtual_size == 16 * MIB


@given(noise=st.binary(min_size=104, max_size=600))
def test_noise_after_the_magic_is_parsed_or_refused(noise: bytes) -> None:
    try:
        image_format.parse_qcow2(b"QFI\xfb\x00\x00\x00\x03" + noise)
    except InvalidRequest as error:
        assert os.linesep not in str(error)  # noqa: PT017
