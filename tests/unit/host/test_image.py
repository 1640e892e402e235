# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The image phase against a real HTTP server on the loopback, real qemu-img, real kills and a real full disk."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import multiprocessing
import os
import pathlib
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host.image import Checksum, local_path
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image, Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import execute
from ansible_collections.barestack.kvm.plugins.modules.image import PHASE

MIB = 1 << 20
FORK = multiprocessing.get_context("fork")


class Server(http.server.ThreadingHTTPServer):
    """One file, and how to misbehave while sending it."""

    content = b""
    etag: str | None = '"v1"'
    ranges = True
    break_after: list[int] = []
    """For each request in turn, after how many bytes of its body the connection ends."""
    wrong: list[bytes] = []
    """For each request in turn, a body to send instead."""
    chunk_delay = 0.0
    redirect: str | None = None
    status: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, str]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/image"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        server = self.server
        with server.lock:
            number = len(server.requests)
            server.requests.append(dict(self.headers))
        if server.redirect or server.status:
            self.send_response(server.status or 302)
            self.send_header("Location", server.redirect or "")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = server.wrong[number] if number < len(server.wrong) else server.content
        start = self._start(content)
        if start is None:
            return
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        stop = server.break_after[number] if number < len(server.break_after) else len(body)
        for offset in range(0, stop, 65536):
            self.wfile.write(body[offset : min(offset + 65536, stop)])
            time.sleep(server.chunk_delay)

    def _start(self, content: bytes) -> int | None:
        """Send the status line; the first byte of the body, or None where there is none."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", self.server.etag) == self.server.etag
        if not match or not self.server.ranges or not same:
            self.send_response(200)
            return 0
        start = int(match[1])
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        return start


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        yield served
        served.shutdown()
        thread.join()


@pytest.fixture
def qcow2(tmp_path: pathlib.Path) -> pathlib.Path:
    """A qcow2 image of some 3 MiB of data."""
    raw, path = tmp_path / "raw", tmp_path / "cirros.qcow2"
    raw.write_bytes(os.urandom(3 * MIB) + bytes(5 * MIB))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)], check=True)
    raw.unlink()
    return path


def image_of(content: bytes, url: str, disk_format: str = "qcow2", **changes: str) -> Image:
    checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
    return dataclasses.replace(Image("5c0e6f3a", "cirros", url, checksum, disk_format), **changes)


def instance_of(image: Image) -> Instance:
    return Instance(
        id=1,
        uuid=str(uuid.uuid4()),
        name="web",
        hostname="web",
        project_id="p",
        user_id="u",
        flavor=Flavor("f", "m1.tiny", 1, 64, 1),
        image=image,
        created_at="",
    )


def run(root: pathlib.Path, *images: Image, check: bool = False, count: int = 1) -> dict[str, Any]:
    params = {
        "instances": [to_wire(instance_of(image)) for image in images for _ in range(count)],
        "state": "present",
        "max_concurrent_builds": 10,
        "instances_path": str(root),
        "state_path": "/nonexistent",
        "log_path": "/nonexistent",
    }
    return execute(PHASE, params, check)


def fault(result: dict[str, Any]) -> str:
    message: str = result["instances"][0]["fault"]["message"]
    return message


def base_of(root: pathlib.Path, image: Image) -> pathlib.Path:
    return root / "_base" / hashlib.sha1(image.id.encode(), usedforsecurity=False).hexdigest()


def cached(root: pathlib.Path) -> list[str]:
    """What is in the cache, without the notes on where it came from."""
    directory = root / "_base"
    return sorted(p.name for p in directory.iterdir() if p.suffix != ".json") if directory.exists() else []


def test_twenty_servers_fetch_their_image_once_and_a_rerun_changes_nothing(
    tmp_path: pathlib.Path, qcow2: pathlib.Path, server: Server
) -> None:
    server.content = qcow2.read_bytes()
    image = image_of(server.content, server.url)
    base = base_of(tmp_path, image)

    first = run(tmp_path, image, count=20)

    assert first["effects"] == [f"image.base {base}"]
    assert not any(item["fault"] for item in first["instances"])
    assert base.read_bytes() == server.content
    assert (base.stat().st_mode & 0o777, base.stat().st_uid) == (0o644, 0)
    assert len(server.requests) == 1
    assert server.requests[0]["Accept-Encoding"] == "identity"
    os.utime(base, (0, 0))
    assert run(tmp_path, image, count=20)["changed"] is False
    assert len(server.requests) == 1
    assert base.stat().st_mtime > time.time() - 60, "the cleaner of the cache goes by the time of the last use"


@pytest.mark.parametrize("scheme", ["", "file://", "file://localhost"])
def test_a_local_file_is_fetched(tmp_path: pathlib.Path, qcow2: pathlib.Path, scheme: str) -> None:
    image = image_of(qcow2.read_bytes(), f"{scheme}{qcow2}")

    assert run(tmp_path, image)["changed"] is True

    assert base_of(tmp_path, image).read_bytes() == qcow2.read_bytes()
    assert cached(tmp_path) == [base_of(tmp_path, image).name]


def test_a_sparse_raw_image_stays_sparse(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "disk.raw"
    with source.open("wb") as stream:
        stream.write(os.urandom(MIB))
        stream.truncate(64 * MIB)
    image = image_of(source.read_bytes(), str(source), "raw")

    assert not run(tmp_path, image)["instances"][0]["fault"]

    base = base_of(tmp_path, image)
    assert base.read_bytes() == source.read_bytes()
    assert base.stat().st_blocks * 512 < 3 * MIB


def test_check_mode_says_what_it_would_fetch_and_fetches_nothing(
    tmp_path: pathlib.Path, qcow2: pathlib.Path, server: Server
) -> None:
    image = image_of(qcow2.read_bytes(), server.url)

    planned = run(tmp_path, image, check=True)

    assert planned["effects"] == [f"image.base {base_of(tmp_path, image)}"]
    assert image.checksum in planned["diff"][0]["after"]
    assert not (tmp_path / "_base").exists()
    assert server.requests == []


@pytest.mark.parametrize("check", [True, False])
def test_a_local_file_that_is_missing_or_a_device_is_named(tmp_path: pathlib.Path, check: bool) -> None:
    missing = run(tmp_path, image_of(b"", "/no/such/image"), check=check)
    device = run(tmp_path, image_of(b"", "/dev/zero"), check=check)

    assert (
        fault(missing)
        == "image cirros (5c0e6f3a): /no/such/image cannot be read on this host: No such file or directory"
    )
    assert "/dev/zero is not a regular file" in fault(device)
    assert missing["changed"] is False
    assert cached(tmp_path) == []


def test_a_download_that_breaks_off_is_resumed(tmp_path: pathlib.Path, qcow2: pathlib.Path, server: Server) -> None:
    server.content = qcow2.read_bytes()
    server.break_after = [MIB, 100_000]
    image = image_of(server.content, server.url)

    assert not run(tmp_path, image)["instances"][0]["fault"]

    assert [request.get("Range") for request in server.requests] == [
        None,
        f"bytes={MIB}-",
        f"bytes={MIB + 100_000}-",
    ]
    assert server.requests[2]["If-Range"] == '"v1"'
    assert base_of(tmp_path, image).read_bytes() == server.content


def test_a_server_without_ranges_makes_it_start_over(
    tmp_path: pathlib.Path, qcow2: pathlib.Path, server: Server
) -> None:
    server.content, server.ranges, server.break_after = qcow2.read_bytes(), False, [MIB]
    image = image_of(server.content, server.url)

    assert not run(tmp_path, image)["instances"][0]["fault"]

    assert len(server.requests) == 2
    assert base_of(tmp_path, image).read_bytes() == server.content


def test_an_image_replaced_on_the_server_in_the_middle_is_fetched_anew(
    tmp_path: pathlib.Path, qcow2: pathlib.Path, server: Server
) -> None:
    server.content = qcow2.read_bytes()
    server.wrong = [b"\x55" * len(server.content)]
    server.break_after = [MIB]
    image = image_of(server.content, server.url)
    server.etag = '"old"'
    base = base_of(tmp_path, image)
    base.parent.mkdir()
    note = {"url": image.url, "checksum": image.checksum, "disk_format": "qcow2", "etag": '"older"'}
    base.with_suffix(".json").write_text(json.dumps(note))
    base.with_suffix(".part").write_bytes(b"\x66" * 1000)

    assert not run(tmp_path, image)["instances"][0]["fault"]

    assert server.requests[0]["If-Range"] == '"older"', "answered with the whole image"
    assert server.requests[1]["Range"] == f"bytes={MIB}-"
    assert base.read_bytes() == server.content, "the mixture had the wrong checksum, the clean retry the right one"


def test_a_source_that_never_gets_anywhere_is_given_up_and_resumed_by_the_next_run(
    tmp_path: pathlib.Path, qcow2: pathlib.Path, server: Server
) -> None:
    server.content = qcow2.read_bytes()
    server.break_after = [MIB, 0, 0, 0, 0, 0]
    image = image_of(server.content, server.url)

    message = fault(run(tmp_path, image))

    assert f"{server.url} broke off 5 times in a row at byte {MIB}" in message
    assert cached(tmp_path) == [f"{base_of(tmp_path, image).name}.part"]
    assert not run(tmp_path, image)["instances"][0]["fault"]
    assert server.requests[-1]["Range"] == f"bytes={MIB}-"


def test_wrong_bytes_once_are_fetched_again(tmp_path: pathlib.Path, qcow2: pathlib.Path, server: Server) -> None:
    server.content, server.wrong = qcow2.read_bytes(), [b"\x00wrong" * 1000]
    image = image_of(server.content, server.url)

    assert not run(tmp_path, image)["instances"][0]["fault"]

    assert "Range" not in server.requests[1]
    assert base_of(tmp_path, image).read_bytes() == server.content


def test_wrong_bytes_never_enter_the_cache(tmp_path: pathlib.Path, qcow2: pathlib.Path, server: Server) -> None:
    image = image_of(qcow2.read_bytes(), server.url)
    server.content = b"something else"
    found = hashlib.sha256(server.content).hexdigest()

    result = run(tmp_path, image, count=3)

    message = fault(result)
    assert all(item["fault"]["message"] == message for item in result["instances"])
    for part in ("cirros (5c0e6f3a)", server.url, f"expected {image.checksum}", f"found sha256:{found}"):
        assert part in message
    assert cached(tmp_path) == []
    assert len(server.requests) == 2, "one clean retry, for all three servers"


def test_a_missing_image_on_the_server_is_named_at_once(tmp_path: pathlib.Path, server: Server) -> None:
    server.status = 404

    assert f"{server.url} answered HTTP 404 Not Found" in fault(run(tmp_path, image_of(b"", server.url)))
    assert len(server.requests) == 1
    assert cached(tmp_path) == []


def test_a_redirect_cannot_reach_the_hosts_own_files(tmp_path: pathlib.Path, server: Server) -> None:
    server.redirect = "file:///etc/passwd"
    content = pathlib.Path("/etc/passwd").read_bytes()

    assert "answered HTTP 302" in fault(run(tmp_path, image_of(content, server.url, "raw")))


def fetch_in_child(root: pathlib.Path, image: Image) -> None:
    run(root, image)


def wait_until(condition: Any, deadline: float = 20.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def test_a_kill_in_the_middle_leaves_a_part_that_the_next_run_resumes(
    tmp_path: pathlib.Path, qcow2: pathlib.Path, server: Server
) -> None:
    server.content, server.chunk_delay = qcow2.read_bytes(), 0.05
    image = image_of(server.content, server.url)
    part = base_of(tmp_path, image).with_suffix(".part")
    child = FORK.Process(target=fetch_in_child, args=(tmp_path, image))
    child.start()
    wait_until(lambda: part.exists() and part.stat().st_size >= MIB)
    assert child.pid
    os.kill(child.pid, 9)
    child.join()
    assert cached(tmp_path) == [part.name]
    there = part.stat().st_size
    server.chunk_delay = 0.0

    assert not run(tmp_path, image)["instances"][0]["fault"]

    assert server.requests[-1]["Range"] == f"bytes={there}-"
    assert server.requests[-1]["If-Range"] == '"v1"'
    assert base_of(tmp_path, image).read_bytes() == server.content
    assert cached(tmp_path) == [base_of(tmp_path, image).name]


def test_a_kill_after_the_last_byte_costs_no_second_download(
    tmp_path: pathlib.Path, qcow2: pathlib.Path, server: Server
) -> None:
    server.content = qcow2.read_bytes()
    image = image_of(server.content, server.url)
    base = base_of(tmp_path, image)
    run(tmp_path, image)
    base.rename(base.with_suffix(".part"))

    assert not run(tmp_path, image)["instances"][0]["fault"]

    assert server.requests[-1]["Range"] == f"bytes={len(server.content)}-", "answered 416: nothing left to send"
    assert base.read_bytes() == server.content


@pytest.mark.parametrize("size", [1000, 50 * MIB])
def test_a_part_with_wrong_bytes_is_discarded(
    tmp_path: pathlib.Path, qcow2: pathlib.Path, server: Server, size: int
) -> None:
    server.content = qcow2.read_bytes()
    image = image_of(server.content, server.url)
    base = base_of(tmp_path, image)
    run(tmp_path, image)
    base.unlink()
    base.with_suffix(".part").write_bytes(b"\xaa" * size)

    assert not run(tmp_path, image)["instances"][0]["fault"]

    assert base.read_bytes() == server.content


def test_a_part_of_another_image_is_not_resumed(tmp_path: pathlib.Path, qcow2: pathlib.Path, server: Server) -> None:
    server.content = qcow2.read_bytes()
    image = image_of(server.content, server.url)
    base = base_of(tmp_path, image)
    base.parent.mkdir()
    base.with_suffix(".part").write_bytes(b"\xaa" * 1000)
    base.with_suffix(".json").write_text(json.dumps({"url": "http://elsewhere/", "checksum": "sha256:00"}))

    assert not run(tmp_path, image)["instances"][0]["fault"]

    assert [request.get("Range") for request in server.requests] == [None]


def test_two_processes_at_once_fetch_it_once(tmp_path: pathlib.Path, qcow2: pathlib.Path, server: Server) -> None:
    server.content, server.chunk_delay = qcow2.read_bytes(), 0.005
    image = image_of(server.content, server.url)
    children = [FORK.Process(target=fetch_in_child, args=(tmp_path, image)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)

    assert [child.exitcode for child in children] == [0, 0, 0, 0]
    assert len(server.requests) == 1
    assert base_of(tmp_path, image).read_bytes() == server.content
    assert cached(tmp_path) == [base_of(tmp_path, image).name]


@pytest.mark.parametrize(
    ("options", "declared", "reason"),
    [
        (("-u", "-b", "/etc/shadow", "-F", "raw"), "qcow2", "backing file ('/etc/shadow')"),
        (("-o", "data_file={0}/data,data_file_raw=on"), "qcow2", "external data file"),
        ((), "raw", "carries the signature of qcow2"),
        (None, "qcow2", "its content is raw"),
    ],
)
def test_a_malicious_image_is_refused_and_does_not_stay(
    tmp_path: pathlib.Path, options: tuple[str, ...] | None, declared: str, reason: str
) -> None:
    path = tmp_path / "image"
    if options is None:
        path.write_bytes(os.urandom(4096))
    else:
        filled = [option.format(tmp_path) for option in options]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *filled, str(path), "1M"], check=True)
    image = image_of(path.read_bytes(), str(path), declared)

    message = fault(run(tmp_path, image))

    assert message.startswith(f"image cirros (5c0e6f3a) from {path} is refused: ")
    assert reason in message
    assert cached(tmp_path) == []


def test_what_qemu_img_itself_cannot_open_is_refused(tmp_path: pathlib.Path, qcow2: pathlib.Path) -> None:
    content = bytearray(qcow2.read_bytes())
    content[96:100] = (7).to_bytes(4, "big")  # reference counts of 128 bits
    qcow2.write_bytes(content)

    message = fault(run(tmp_path, image_of(bytes(content), str(qcow2))))

    assert "qemu-img info" in message
    assert cached(tmp_path) == []


def test_another_content_under_a_known_id_is_a_conflict(tmp_path: pathlib.Path, qcow2: pathlib.Path) -> None:
    image = image_of(qcow2.read_bytes(), str(qcow2))
    run(tmp_path, image)
    base = base_of(tmp_path, image)
    before = base.read_bytes()

    changed = run(tmp_path, dataclasses.replace(image, checksum="sha256:" + "0" * 64))
    downgraded = run(tmp_path, dataclasses.replace(image, disk_format="raw"))

    assert "give the new content a new id" in fault(changed)
    assert changed["instances"][0]["fault"]["code"] == 409
    assert "and raw, but the cached" in fault(downgraded)
    assert base.read_bytes() == before


def test_a_full_file_system_is_told_with_need_and_free(
    tmp_path: pathlib.Path, qcow2: pathlib.Path, server: Server
) -> None:
    server.content = qcow2.read_bytes()
    root = tmp_path / "small"
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", str(root)], check=True)
    try:
        message = fault(run(root, image_of(server.content, server.url)))
        assert cached(root) == []
    finally:
        subprocess.run(["umount", str(root)], check=True)

    assert f"needs 3.3 MiB ({len(server.content)} bytes), but 1" in message
    assert "are free on the file system of" in message


def test_one_bad_image_does_not_stop_the_others(tmp_path: pathlib.Path, qcow2: pathlib.Path) -> None:
    good = image_of(qcow2.read_bytes(), str(qcow2))
    bad = dataclasses.replace(good, id="other", disk_format="vmdk")

    result = run(tmp_path, bad, good)

    assert fault(result) == "image cirros (other): disk_format 'vmdk' is not one of raw, qcow2"
    assert result["instances"][1]["fault"] is None


@pytest.mark.parametrize(
    ("checksum", "reason"),
    [
        ("md5:" + "0" * 32, "algorithm 'md5' is not one of sha256"),
        ("sha1:" + "0" * 40, "algorithm 'sha1' is not one of"),
        ("0" * 64, "is not one of"),
        ("", "is not one of"),
        ("sha256:" + "0" * 63, "is not 64 hexadecimal digits"),
        ("sha512:" + "g" * 128, "is not 128 hexadecimal digits"),
    ],
)
def test_a_checksum_that_says_little_is_refused(checksum: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        Checksum.of(image_of(b"", "/image", checksum=checksum))


def test_strong_checksums_in_any_spelling_are_taken() -> None:
    digest = hashlib.sha512(b"x").hexdigest()
    assert str(Checksum.of(image_of(b"", "/", checksum=f"SHA512:{digest.upper()}"))) == f"sha512:{digest}"


@pytest.mark.parametrize(
    "url", ["image.qcow2", "ftp://host/image", "file://host/image", "http:///image", "", "rbd://p/i"]
)
def test_urls_that_nobody_can_fetch_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="neither an absolute path nor"):
        local_path(image_of(b"", url))


def test_absent_leaves_the_cache(tmp_path: pathlib.Path, qcow2: pathlib.Path) -> None:
    image = image_of(qcow2.read_bytes(), str(qcow2))
    run(tmp_path, image)
    params = {
        "instances": [to_wire(instance_of(image))],
        "state": "absent",
        "max_concurrent_builds": 1,
        "instances_path": str(tmp_path),
        "state_path": "/nonexistent",
        "log_path": "/nonexistent",
    }

    assert execute(PHASE, params, False)["changed"] is False
    assert base_of(tmp_path, image).exists()
