# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The host's image cache: each image fetched once, verified, then never written again.

Mirrors nova.virt.images (``fetch_to_raw``, with ``force_raw_images`` off) and the naming of
nova.virt.libvirt.imagecache. Beside each base file lies ``<base>.json``, which says what it was fetched from: it is
how a later run knows whose ``.part`` it finds, and that a cached image is still the one the catalogue means.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.client
import json
import os
import stat
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import IO, Any, Dict, Optional, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host import image_format
from ansible_collections.barestack.kvm.plugins.module_utils.host.disk import (
    BASE_MODE,
    build_once,
    ensure_directory,
    require_space,
)
from ansible_collections.barestack.kvm.plugins.module_utils.host.once import Once
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.host.system import read_file, replace_file, run
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import (
    Conflict,
    HostError,
    InvalidRequest,
    NotFound,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Image

CHECKSUM_ALGORITHMS = ("sha256", "sha384", "sha512", "sha3_256", "sha3_384", "sha3_512", "blake2b")

_CHUNK = 1 << 20
_ZEROS = bytes(_CHUNK)
_BREAKS = 5
"""So many connections in a row may break off, or not come about, without a single byte gained."""
_HTTP_TIMEOUT = 30.0
_RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)

_INFO_CPU_SECONDS = 30
_INFO_ADDRESS_SPACE = 2 << 30
"""The limits that Nova sets on qemu-img when it reads a stranger's image."""


@dataclass(frozen=True)
class Checksum:
    """``<algorithm>:<hex digest>``, as the catalogue gives it."""

    algorithm: str
    digest: str

    @classmethod
    def of(cls, image: Image) -> Checksum:
        """InvalidRequest where the image's checksum is missing, weak or malformed."""
        algorithm, _, digest = image.checksum.strip().partition(":")
        algorithm, digest = algorithm.lower(), digest.lower()
        if algorithm not in CHECKSUM_ALGORITHMS:
            raise InvalidRequest(
                f"{_title(image)}: checksum {image.checksum!r}: algorithm {algorithm!r} is not one of "
                f"{', '.join(CHECKSUM_ALGORITHMS)}; write <algorithm>:<hex digest>"
            )
        length = hashlib.new(algorithm).digest_size * 2
        if len(digest) != length or digest.strip("0123456789abcdef"):
            raise InvalidRequest(f"{_title(image)}: checksum {image.checksum!r} is not {length} hexadecimal digits")
        return cls(algorithm, digest)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"


def _title(image: Image) -> str:
    return f"image {image.name} ({image.id})"


def local_path(image: Image) -> Optional[str]:
    """The image's path on this host, or None for an http(s) address; InvalidRequest for anything else."""
    url = urllib.parse.urlsplit(image.url)
    if image.url.startswith("/"):
        return image.url
    if url.scheme == "file" and url.netloc in ("", "localhost") and url.path.startswith("/"):
        return urllib.parse.unquote(url.path)
    if url.scheme in ("http", "https") and url.hostname:
        return None
    raise InvalidRequest(
        f"{_title(image)}: url {image.url!r} is neither an absolute path nor a file://, http:// or https:// address"
    )


class ImageCache:
    """The cache of one host, during one phase. Safe to share between threads: each image is dealt with once."""

    def __init__(self, paths: Paths, effects: Effects) -> None:
        self._paths = paths
        self._effects = effects
        self._images: Dict[Tuple[str, ...], Image] = {}
        self._once: Once[Tuple[str, ...], str] = Once(lambda key: self._ensure(self._images[key]))

    def ensure(self, image: Image) -> str:
        """The path of the cached image, fetched where it is missing.

        Raises InvalidRequest where url, checksum, format or content are not acceptable, NotFound where a local file is
        missing, Conflict where the cache holds another content under this id, HostError where it cannot be fetched.
        """
        key = (image.id, image.url, image.checksum, image.disk_format)
        self._images[key] = image
        return self._once(key)

    def _ensure(self, image: Image) -> str:
        if image.disk_format not in image_format.DISK_FORMATS:
            raise InvalidRequest(
                f"{_title(image)}: disk_format {image.disk_format!r} is not one of "
                f"{', '.join(image_format.DISK_FORMATS)}"
            )
        checksum = Checksum.of(image)
        base = self._paths.base(image.id)
        if not os.path.lexists(base):
            path = local_path(image)
            if path is not None:
                _require_file(image, path)
            self._effects.apply(
                "image.base",
                base,
                lambda: self._fetch(image, checksum, base),
                after=f"{image.name}, {image.disk_format}, {checksum}, from {image.url}",
            )
            if self._effects.check_mode:
                return base
        _require_origin(image, checksum, base)
        if not self._effects.check_mode:
            os.utime(base)  # in use: what a cleaner of the cache goes by, as in Nova
        return base

    def _fetch(self, image: Image, checksum: Checksum, base: str) -> None:
        ensure_directory(self._paths.base_directory)
        build_once(base, lambda part: _fill(image, checksum, base, part), BASE_MODE, keep_partial=True)


def _require_file(image: Image, path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise NotFound(f"{_title(image)}: {path} cannot be read on this host: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise InvalidRequest(f"{_title(image)}: {path} is not a regular file")


def _origin(base: str) -> Dict[str, Any]:
    """What ``<base>.json`` says; empty where there is none."""
    text = read_file(f"{base}.json")
    return dict(json.loads(text)) if text else {}


def _require_origin(image: Image, checksum: Checksum, base: str) -> None:
    origin = _origin(base)
    if (origin.get("checksum"), origin.get("disk_format")) != (str(checksum), image.disk_format):
        raise Conflict(
            f"{_title(image)}: the catalogue says {checksum} and {image.disk_format}, but the cached {base} is "
            f"{origin.get('checksum', 'of unknown origin')} and {origin.get('disk_format', 'of unknown format')}: "
            f"images do not change, so give the new content a new id, or remove the cached file when no server uses it"
        )


def _fill(image: Image, checksum: Checksum, base: str, part: str) -> None:
    """Bring ``part`` to be the whole, verified, harmless image; what is there of an earlier run is resumed."""
    download = _Download(image, checksum, base, part)
    try:
        found = download.run()
        if found != checksum.digest:
            download.restart()
            found = download.run()
        if found != checksum.digest:
            raise HostError(
                f"{_title(image)}: the content of {image.url} does not match its checksum: expected {checksum}, found "
                f"{checksum.algorithm}:{found} (twice): correct the catalogue, or distrust the source"
            )
        _require_harmless(image, part)
    except (HostError, InvalidRequest) as error:
        # Kept only where a later run can go on from it.
        if not isinstance(error, Interrupted):
            os.unlink(part)
        raise
    finally:
        download.close()


def _require_harmless(image: Image, path: str) -> None:
    """Our own look at the header, then, only if that is satisfied, qemu-img's, which must agree."""
    try:
        size = image_format.check_image(path, image.disk_format)
    except InvalidRequest as error:
        raise InvalidRequest(f"{_title(image)} from {image.url} is refused: {error}") from None
    info = json.loads(
        run(
            "prlimit",
            f"--cpu={_INFO_CPU_SECONDS}",
            f"--as={_INFO_ADDRESS_SPACE}",
            "qemu-img",
            "info",
            "--output=json",
            "-f",
            image.disk_format,
            path,
            timeout=4 * _INFO_CPU_SECONDS,
        )
    )
    elsewhere = info.get("backing-filename") or info.get("format-specific", {}).get("data", {}).get("data-file")
    if elsewhere or (info.get("format"), info.get("virtual-size")) != (image.disk_format, size):
        raise InvalidRequest(
            f"{_title(image)} from {image.url} is refused: qemu-img sees {info.get('format')} of "
            f"{info.get('virtual-size')} bytes (other file: {elsewhere}), the header {image.disk_format} of {size}"
        )


class Interrupted(HostError):
    """The image could not be fetched to its end; what is there can be resumed."""


class _Broken(Exception):
    """This connection did not bring all; another may."""


@dataclass
class _Stream:
    """Bytes of the image from ``start`` on. ``total`` is the whole image's size where the source tells it."""

    body: IO[bytes]
    start: int
    total: Optional[int]
    etag: Optional[str] = None


class _Download:
    """One image on its way into its ``.part``, hashed as it comes, over as many connections as it takes."""

    def __init__(self, image: Image, checksum: Checksum, base: str, part: str) -> None:
        self._image = image
        self._checksum = checksum
        self._origin_path = f"{base}.json"
        self._origin = {"url": image.url, "checksum": str(checksum), "disk_format": image.disk_format}
        self._etag: Optional[str] = None
        self._file = open(part, "r+b", buffering=0)  # noqa: SIM115 - closed by close()
        self._start_over()
        self._adopt(_origin(base))

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _start_over(self) -> None:
        self._hash = hashlib.new(self._checksum.algorithm)
        self._position = 0

    def restart(self) -> None:
        """From nothing."""
        self._start_over()
        self._etag = None
        os.ftruncate(self._file.fileno(), 0)

    def _adopt(self, origin: Dict[str, Any]) -> None:
        """Go on from what an earlier run left, where it was fetching the same."""
        if {name: origin.get(name) for name in self._origin} != self._origin:
            os.ftruncate(self._file.fileno(), 0)
            replace_file(self._origin_path, json.dumps(self._origin))
            return
        self._etag = origin.get("etag")
        while True:
            chunk = self._file.read(_CHUNK)
            if not chunk:
                return
            self._hash.update(chunk)
            self._position += len(chunk)

    def run(self) -> str:
        """Fetch what is missing and return the digest of the whole. Interrupted where the source gives up."""
        breaks = 0
        while True:
            before = self._position
            try:
                self._receive()
                break
            except _Broken as error:
                breaks = 0 if self._position > before else breaks + 1
                if breaks == _BREAKS:
                    raise Interrupted(
                        f"{_title(self._image)}: {self._image.url} broke off {breaks} times in a row at byte "
                        f"{self._position}: {error}; run again to resume there"
                    ) from None
                time.sleep(min(5.0, 0.1 * 2**breaks))
        os.ftruncate(self._file.fileno(), self._position)
        os.fsync(self._file.fileno())
        return self._hash.hexdigest()

    def _receive(self) -> None:
        stream = self._open()
        with contextlib.closing(stream.body):
            if stream.start != self._position:
                self.restart()
            if stream.etag != self._etag:
                self._etag = stream.etag
                replace_file(self._origin_path, json.dumps({**self._origin, "etag": stream.etag}))
            if stream.total is not None:
                require_space(
                    os.path.dirname(self._origin_path),
                    stream.total - self._position,
                    f"{_title(self._image)} in the cache",
                )
            self._copy(stream)
        if stream.total is not None and self._position < stream.total:
            raise _Broken(f"the connection ended {stream.total - self._position} bytes early")

    def _copy(self, stream: _Stream) -> None:
        while True:
            try:
                chunk = stream.body.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _Broken(f"{type(error).__name__}: {error}") from None
            if not chunk:
                return
            self._write(chunk)
            self._hash.update(chunk)
            self._position += len(chunk)

    def _write(self, chunk: bytes) -> None:
        if chunk == _ZEROS:
            return  # a hole: what is sparse stays sparse
        try:
            done = 0
            while done < len(chunk):
                done += os.pwrite(self._file.fileno(), chunk[done:], self._position + done)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise HostError(
                f"{_title(self._image)}: no space left for it in {os.path.dirname(self._origin_path)} after "
                f"{self._position} bytes: free some space there"
            ) from None

    def _open(self) -> _Stream:
        path = local_path(self._image)
        if path is None:
            return self._request()
        _require_file(self._image, path)
        body = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by _receive
        total = os.fstat(body.fileno()).st_size
        start = body.seek(self._position if self._position <= total else 0)
        return _Stream(body, start, total)

    def _request(self) -> _Stream:
        request = urllib.request.Request(self._image.url, headers={"Accept-Encoding": "identity"})  # noqa: S310
        if self._position:
            request.add_header("Range", f"bytes={self._position}-")
            if self._etag:
                request.add_header("If-Range", self._etag)
        try:
            response = _opener().open(request, timeout=_HTTP_TIMEOUT)
        except urllib.error.HTTPError as error:
            return self._refused(error)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(str(getattr(error, "reason", error)) or type(error).__name__) from None
        return self._answer(response)

    def _answer(self, response: Any) -> _Stream:
        """The stream in a 200 (from the start) or 206 (from where we asked) answer."""
        start = self._position if response.status == 206 else 0
        content_range = response.headers.get("Content-Range") or ""
        if start and not content_range.startswith(f"bytes {start}-"):
            response.close()
            self.restart()
            raise _Broken(f"asked for the bytes from {start} on, it answered with {content_range!r}")
        length = response.headers.get("Content-Length") or ""
        etag = response.headers.get("ETag")
        strong = etag if etag and not etag.startswith("W/") else None
        return _Stream(response, start, start + int(length) if length.isdigit() else None, strong)

    def _refused(self, error: urllib.error.HTTPError) -> _Stream:
        with error:
            if error.code == 416 and self._position:
                # There is nothing from this byte on: the part is whole already, or of something else.
                if error.headers.get("Content-Range") != f"bytes */{self._position}":
                    self.restart()
                    raise _Broken("the source is shorter than what was fetched before")
                return _Stream(open(os.devnull, "rb"), self._position, self._position, self._etag)  # noqa: SIM115
            if error.code in _RETRIED_STATUS:
                raise _Broken(f"HTTP {error.code} {error.reason}")
        raise HostError(
            f"{_title(self._image)}: {self._image.url} answered HTTP {error.code} {error.reason}: correct its url, or "
            f"put the image there"
        )


def _opener() -> urllib.request.OpenerDirector:
    """Only HTTP: a redirect must not lead to ``file:`` or ``ftp:``."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener
