# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Sessions: a compute host's phases run in one Python there, which stays for the run.

An ordinary module is a new Python, an archive that it unpacks and compiles, and its imports, for each phase on each
host: 0.3 s of CPU, where most phases have 10 ms of work. Here the code is sent once. The first phase on a host starts a
process beside ansible-playbook, the holder, with an SSH client; the workers that come after find it by a socket in the
run's directory for temporary files, and get the client's pipes from it::

    ansible-playbook -- worker -- socket -- holder -- ssh ......... sshd -- python: served.serve() -- fork: the phase
                          \\_______ pipes, one worker at a time ______/

Over the pipes go the code (a zip archive, kept in the host's memory), then requests and answers, a line of JSON each.
Who ends, ends all to its right: the holder sees the end of ansible-playbook, and of a worker in the middle of a phase.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import select
import shlex
import socket
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ansible_collections.barestack.kvm.plugins.module_utils.control import process
from ansible_collections.barestack.kvm.plugins.module_utils.served import GREETING

_PLUGINS = Path(__file__).parents[1]
_PACKAGE = "ansible_collections/barestack/kvm/plugins"
_CONTROL_SIDE = "module_utils.control"

# Standard input has the archive's length (a line), the archive, and after it what serve() reads.
_BOOTSTRAP = """\
import os, sys
def take(length):
    part = os.read(0, length)
    if not part: sys.exit("the connection ended")
    return part
number = b""
while not number.endswith(b"\\n"): number += take(1)
left = int(number)
archive = os.memfd_create("barestack.kvm")
while left:
    part = take(min(left, 65536))
    left -= len(part)
    while part: part = part[os.write(archive, part):]
sys.path.insert(0, "/proc/self/fd/%d" % archive)
from ansible_collections.barestack.kvm.plugins.module_utils.served import serve
serve()
"""


class NoSession(Exception):
    """The host's Python could not be started. An ordinary module meets the same trouble, and Ansible explains it."""


class Lost(Exception):
    """The session ended before it answered. ``returncode`` is the SSH client's: 255 where the connection is lost."""

    def __init__(self, returncode: int, stderr: str) -> None:
        super().__init__(stderr)
        self.returncode = returncode
        self.stderr = stderr


def remote_command(python: str) -> str:
    """What starts the host's end, for a shell there."""
    return f"{python} -c {shlex.quote(_BOOTSTRAP)}"


class Start(NamedTuple):
    """How to start a session: the SSH client's command. Starts with the same key are for the same session."""

    command: Sequence[bytes | str]
    key: str


def ask(start: Start, directory: str, run: int, request: dict[str, Any]) -> dict[str, Any]:
    """Have a request carried out by the session of ``start``, which is started where there is none.

    ``directory`` is the run's, only its user's; ``run`` is the process id of ansible-playbook. NoSession or Lost.
    """
    name = hashlib.sha256(start.key.encode()).hexdigest()[:16]
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        place = _Place(descriptor, f"session-{name}")
        holder = _connect(place) or _start(place, start.command, run)
    finally:
        os.close(descriptor)
    with contextlib.closing(holder):
        descriptors: list[int] = []
        with contextlib.suppress(ConnectionResetError):
            _, descriptors, _, _ = socket.recv_fds(holder, 1, 2)
        if not descriptors:
            raise NoSession
        answer = _exchange(descriptors[0], descriptors[1], json.dumps(request).encode() + b"\n")
        if answer.endswith(b"\n"):
            with contextlib.suppress(BrokenPipeError):
                holder.send(b"1")  # the session is whole
            return dict(json.loads(answer))
        ending = ""
        with contextlib.suppress(ConnectionError):
            holder.send(b"?")  # what became of it
            ending = holder.makefile().read()
        raise Lost(*json.loads(ending or '[-1, "the holder of the session was killed"]'))


def _exchange(requests: int, answers: int, request: bytes) -> bytes:
    """The answer's line; less where the session ended."""
    with open(answers, "rb") as stream:
        with contextlib.suppress(BrokenPipeError), open(requests, "wb") as writer:
            writer.write(request)
        return stream.readline()


class _Place(NamedTuple):
    """Where a socket is: a descriptor of its directory, and its name there. Its path may have 107 bytes, no more."""

    directory: int
    name: str

    @property
    def path(self) -> str:
        return f"/proc/self/fd/{self.directory}/{self.name}"

    def clear(self) -> None:
        """Remove the socket of a session that has ended."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name, dir_fd=self.directory)


def _connect(place: _Place) -> socket.socket | None:
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(place.path)
    except (FileNotFoundError, ConnectionRefusedError):
        client.close()
        return None
    return client


def _start(place: _Place, command: Sequence[bytes | str], run: int) -> socket.socket:
    """Start a holder and connect to it."""
    place.clear()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place.path)
        listener.listen()
        kept = (listener.fileno(), place.directory)
        process.detached(lambda: _Holder(listener, place, run).hold(command), kept)
    client = _connect(place)
    if client is None:
        raise NoSession
    return client


class _Holder:
    """The process that has the SSH client. One worker at a time is lent the client's pipes."""

    def __init__(self, listener: socket.socket, place: _Place, run: int) -> None:
        self._listener = listener
        self._place = place
        self._run = os.pidfd_open(run)

    def hold(self, command: Sequence[bytes | str]) -> None:
        """Until ansible-playbook, the SSH client or a worker in the middle of a phase has ended."""
        with tempfile.TemporaryFile() as errors, _Client(command, errors) as client:
            ready = self._greeted(client)
            while self._wait_for(self._listener.fileno(), client.ended if ready else None):
                worker, _ = self._listener.accept()
                with worker:
                    done = self._lend(worker, client) if ready else b""
                    if done == b"1":
                        continue
                    self._place.clear()  # before the worker hears of the end: what is asked next begins another session
                    if done == b"?":
                        self._explain(worker, client, errors)
                    return
            self._place.clear()

    def _greeted(self, client: _Client) -> bool:
        """Send the code and wait for the greeting; what a login prints before it is passed over."""
        with contextlib.suppress(BrokenPipeError):
            code = _archive()
            left = b"%d\n" % len(code) + code
            while left:
                left = left[os.write(client.requests, left) :]
        line = b""
        while line != GREETING:
            if not self._wait_for(client.answers):
                return False
            character = os.read(client.answers, 1)
            if not character:
                return False
            line = character if line.endswith(b"\n") else line + character
        return True

    def _lend(self, worker: socket.socket, client: _Client) -> bytes:
        """What the worker says when it is done with the pipes; nothing where it, or the run, has ended."""
        socket.send_fds(worker, [b"1"], [client.requests, client.answers])
        return worker.recv(1) if self._wait_for(worker.fileno()) else b""

    def _explain(self, worker: socket.socket, client: _Client, errors: BinaryIO) -> None:
        """How the client ended, for a worker that asks: ``[returncode, stderr]``."""
        returncode = client.end(patience=1)  # its output has ended: it is about to
        errors.seek(0)
        text = errors.read()[-4000:].decode(errors="replace").strip()
        with contextlib.suppress(OSError):
            worker.send(json.dumps([returncode, text]).encode())

    def _wait_for(self, descriptor: int, ended: int | None = None) -> bool:
        """False where ansible-playbook, or the process behind ``ended``, has ended first."""
        poll = select.poll()
        for each in (descriptor, self._run, ended):
            if each is not None:
                poll.register(each, select.POLLIN)
        return dict(poll.poll()).keys() == {descriptor}


class _Client:
    """The SSH client. It ends with the holder, however that ends, and the host's end with it."""

    def __init__(self, command: Sequence[bytes | str], errors: BinaryIO) -> None:
        holder = os.getpid()
        theirs, self.requests = os.pipe()
        self.answers, theirs_too = os.pipe()
        self._process = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs_too,
            stderr=errors,
            preexec_fn=lambda: process.end_with(holder),
        )
        os.close(theirs)
        os.close(theirs_too)
        self.ended = os.pidfd_open(self._process.pid)

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self, patience: float = 0) -> int:
        """End it if it does not end on its own within so many seconds; its return code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        self._process.kill()
        return self._process.wait()


def _archive() -> bytes:
    """The code that compute hosts need, as a zip archive."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for source in sorted(_sources()):
            archive.write(source, f"{_PACKAGE}/{source.relative_to(_PLUGINS)}")
        for parent in _packages():
            archive.writestr(f"{parent}/__init__.py", "")
    return packed.getvalue()


def _sources() -> Iterator[Path]:
    utils = _PLUGINS / "module_utils"
    yield from (utils / "phase.py", utils / "served.py")
    for room in ("model", "host"):
        yield from (utils / room).rglob("*.py")
    for module in (_PLUGINS / "modules").glob("*.py"):
        if _CONTROL_SIDE not in module.read_text():
            yield module


def _packages() -> Iterator[str]:
    """The directories above ours: they are no packages in a checkout, where Ansible's own finder makes them so."""
    parts = f"{_PACKAGE}/modules".split("/")
    for number in range(1, len(parts) + 1):
        yield "/".join(parts[:number])
    yield f"{_PACKAGE}/module_utils"
