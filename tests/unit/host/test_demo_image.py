# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The demo image's parts: archive, boot record, drivers' order, and the guest's own scripts."""

from __future__ import annotations

import json
import shutil
import stat
import struct
import subprocess
from pathlib import Path
from typing import Any, Iterator

import pytest
import yaml
from ansible_collections.barestack.kvm.plugins.module_utils.host import demo_image
from hypothesis import given, settings
from hypothesis import strategies as st

ROLE = Path(__file__).parents[3] / "roles" / "demo_image"
ROOTFS = ROLE / "files" / "rootfs"
AWK = ["busybox", "awk"] if shutil.which("busybox") else ["awk"]
PACKAGES = [demo_image.Package("busybox-static", "1.35", "ab")]


def awk(program: str, text: str, *options: str) -> list[list[str]]:
    command = [*AWK, *options, "-f", str(ROOTFS / "usr/lib/demo" / program)]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert not done.stderr
    return [line.split("\t") for line in done.stdout.decode().split("\n")[:-1]]


def test_the_role_lists_the_files_it_has() -> None:
    listed = yaml.safe_load((ROLE / "vars/main.yml").read_text())["demo_image_files"]
    assert sorted(listed) == sorted(str(path.relative_to(ROOTFS)) for path in ROOTFS.rglob("*") if path.is_file())


def entries(archive: bytes) -> Iterator[tuple[str, list[int], bytes]]:
    offset = 0
    while True:
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[start : start + 8], 16) for start in range(offset + 6, offset + 110, 8)]
        name = archive[offset + 110 : offset + 110 + fields[11] - 1].decode()
        data = (offset + 110 + fields[11] + 3) // 4 * 4
        if name == "TRAILER!!!":
            return
        yield name, fields, archive[data : data + fields[6]]
        offset = (data + fields[6] + 3) // 4 * 4


def test_archive_holds_entries_after_their_directories_and_root_owns_them() -> None:
    archive = demo_image.Archive()
    archive.add("usr/lib/demo/boot", stat.S_IFREG | 0o755, b"#!/bin/sh\n")
    archive.add("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1))
    archive.add("bin/sh", stat.S_IFLNK | 0o777, b"/bin/busybox")
    found = {name: (fields, data) for name, fields, data in entries(archive.pack())}
    assert list(found) == ["bin", "bin/sh", "dev", "dev/console", "usr", "usr/lib", "usr/lib/demo", "usr/lib/demo/boot"]
    assert found["usr/lib/demo/boot"][1] == b"#!/bin/sh\n"
    assert found["dev/console"][0][9:11] == [5, 1]
    assert {tuple(fields[2:4]) for fields, data in found.values()} == {(0, 0)}


def test_boot_record_has_one_active_efi_partition_from_1_mib() -> None:
    record = demo_image.master_boot_record(b"\xfa" * 440, 43008)
    assert len(record) == 512 and record[510:] == b"\x55\xaa" and record[:440] == b"\xfa" * 440
    status, kind, start, sectors = struct.unpack("<B3xB3xII", record[446:462])
    assert (status, kind, start, sectors) == (0x80, 0xEF, 2048, 43008)
    assert record[462:510] == bytes(48)


def test_boot_code_that_would_overwrite_the_partition_table_is_refused() -> None:
    with pytest.raises(demo_image.HostError, match="441 bytes"):
        demo_image.master_boot_record(bytes(441), 2048)


def test_a_module_is_loaded_after_those_it_depends_on(tmp_path: Path) -> None:
    for name, depends in {
        "virtio_blk": "virtio,virtio_ring",
        "virtio": "virtio_ring",
        "virtio_ring": "",
        "virtio-rng": "virtio",
        "other": "",
    }.items():
        (tmp_path / f"{name}.ko").write_bytes(f"\x7fELF\0license=GPL\0depends={depends}\0name={name}\0".encode())
    order = [path.stem for path in demo_image.load_order(tmp_path, ["virtio_blk", "built_in", "virtio_rng"])]
    assert order == ["virtio_ring", "virtio", "virtio_blk", "virtio-rng"]


def test_fingerprint_follows_the_files() -> None:
    files = {"init": "#!/bin/sh\n"}
    known = demo_image.fingerprint(files)
    assert known == demo_image.fingerprint(dict(files))
    assert known != demo_image.fingerprint({"init": "#!/bin/sh\n\n"})
    assert known != demo_image.fingerprint({**files, "etc/issue": ""})


def test_an_image_is_built_only_where_its_bytes_are_those_written_down(tmp_path: Path) -> None:
    path = tmp_path / "demo.qcow2"
    assert not demo_image.is_built(path, "f")
    path.write_bytes(b"image")
    assert not demo_image.is_built(path, "f")
    manifest = {"fingerprint": "f", "sha256": demo_image.sha256(path)}
    Path(f"{path}.json").write_text(json.dumps(manifest))
    assert demo_image.is_built(path, "f")
    assert not demo_image.is_built(path, "g")
    path.write_bytes(b"imag")
    assert not demo_image.is_built(path, "f")


SCALARS = st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]))
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('ab_.-"\\ é', min_size=1), inner, max_size=3),
    max_leaves=8,
)


def flat(path: list[str], value: Any) -> Iterator[list[str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat([*path, shown(key)], item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from flat([*path, str(number)], item)
    else:
        yield [*path, shown(value) if isinstance(value, str) else json.dumps(value)]


def shown(text: str) -> str:
    """As the guest shows a string: JSON's escapes for what would break a line, everything else as it is."""
    escaped = (json.dumps(char)[1:-1] if char < " " or char == "\\" else char for char in text)
    return "".join(escaped)


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, st.sampled_from([None, 2]), st.booleans())
def test_the_guest_reads_any_json(document: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps({"meta": document}, indent=indent, ensure_ascii=ascii_only)
    assert awk("json.awk", text) == list(flat([], {"meta": document}))


def test_the_guest_finds_the_addresses_that_no_dhcp_server_gives() -> None:
    data = {
        "links": [
            {"id": "tap1", "ethernet_mac_address": "FA:16:3E:00:00:01", "mtu": 1450},
            {"id": "tap2", "ethernet_mac_address": "fa:16:3e:00:00:02", "mtu": None},
        ],
        "networks": [
            {"id": "network0", "type": "ipv4_dhcp", "link": "tap1"},
            {
                "id": "network1",
                "type": "ipv4",
                "link": "tap2",
                "ip_address": "192.0.2.9",
                "netmask": "255.255.255.128",
                "routes": [
                    {"network": "198.51.100.0", "netmask": "255.255.255.0", "gateway": "192.0.2.2"},
                    {"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "192.0.2.1"},
                ],
            },
            {"id": "network2", "type": "ipv4", "link": "tap1", "ip_address": "203.0.113.5", "netmask": "255.255.0.0"},
        ],
        "services": [],
    }
    flattened = "".join("\t".join(line) + "\n" for line in awk("json.awk", json.dumps(data)))
    assert awk("static.awk", flattened, "-F", "\t") == [
        ["fa:16:3e:00:00:02 192.0.2.9/25 192.0.2.1 -"],
        ["fa:16:3e:00:00:01 203.0.113.5/16 - 1450"],
    ]
