# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""When a guest is ready for use: it has its lease, it has written on its console, it answers SSH.

Nova stops at ACTIVE; this is what its users poll for afterwards. Files are watched with inotify, so that a wait costs
nothing until something is written; only SSH, which announces nothing, is tried again and again.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import datetime
import glob
import os
import re
import select
import socket
import struct
import time
from collections import deque
from types import TracebackType
from typing import Callable, Dict, List, Optional, Pattern, Set, Tuple, Type

from ansible_collections.barestack.kvm.plugins.module_utils.host import dnsmasq
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.host.system import read_file
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError, InvalidRequest, Timeout
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance, Port, WaitFor

# Escape sequences (CSI, OSC, two characters), then what other control characters remain, tab excepted.
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_LONGEST_LINE = 65536
_CLOCK_SKEW = 60.0
"""Seconds by which the control host's clock, which says when a server was created, may be ahead of dnsmasq's."""
_SSH_BACKOFF = (0.1, 2.0)
"""Seconds before the second try, and at most between two."""
_SSH_TRY = 5.0


class _State:
    """The last thing a wait saw, for its Timeout."""

    def __init__(self, text: str) -> None:
        self.text = text


class Watch:
    """One file watched with inotify, through its being made, renamed into place and written."""

    _MODIFY = 0x2
    _NEW_NAME = 0x100 | 0x80  # IN_CREATE, IN_MOVED_TO
    _OVERFLOW = 0x4000

    def __init__(self, path: str) -> None:
        """HostError where the file's directory cannot be watched; the file itself need not exist yet."""
        self._path = path
        self._libc = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6", use_errno=True)
        self._descriptor: int = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        directory = os.path.dirname(path)
        if self._descriptor < 0 or self._add(directory, self._NEW_NAME) < 0:
            cause = os.strerror(ctypes.get_errno())
            self.close()
            raise HostError(f"cannot watch {directory}: {cause}")
        self._file = self._add(path, self._MODIFY)

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def wait(self, deadline: float) -> bool:
        """Whether the file was touched since the last call, or is before ``deadline`` (of the monotonic clock)."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not poll.poll(remaining * 1000):
                return False
            if self._drain():
                return True

    def _add(self, path: str, mask: int) -> int:
        """inotify's number for the file that has this name now; negative where there is none."""
        return int(self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), mask))

    def _drain(self) -> bool:
        """Whether any waiting event is about our file, or says that events were lost."""
        ours = os.fsencode(os.path.basename(self._path))
        data = os.read(self._descriptor, 65536)
        touched = False
        offset = 0
        while offset < len(data):
            number, mask, _cookie, length = struct.unpack_from("iIII", data, offset)
            offset += 16
            name = data[offset : offset + length].rstrip(b"\0")
            offset += length
            if name == ours:  # another file has the name now
                self._file = self._add(self._path, self._MODIFY)
            touched = touched or name == ours or number == self._file or bool(mask & self._OVERFLOW)
        return touched


def wait(instance: Instance, wait_for: WaitFor, paths: Paths) -> None:
    """Return once the condition holds.

    Timeout at the deadline, with the last state seen; InvalidRequest for a condition that this instance cannot meet.
    """
    if wait_for.condition not in _CONDITIONS:
        allowed = ", ".join(_CONDITIONS)
        raise InvalidRequest(f"server {instance.name}: wait_for {wait_for.condition!r} is not one of {allowed}")
    state = _State("nothing")
    deadline = time.monotonic() + wait_for.timeout
    if not _CONDITIONS[wait_for.condition](instance, wait_for, paths, deadline, state):
        raise Timeout(
            f"server {instance.name} ({instance.uuid}): no {wait_for.condition} within {wait_for.timeout:g} s; "
            f"last seen: {state.text}"
        )


def _lease(instance: Instance, wait_for: WaitFor, paths: Paths, deadline: float, state: _State) -> bool:
    """dnsmasq's lease for the first port that has an address to lease."""
    port, addresses = _leased_port(instance)
    created = datetime.datetime.fromisoformat(instance.created_at.replace("Z", "+00:00")).timestamp()
    path = f"{paths.dhcp_directory(port.network.id)}/leases"
    with Watch(path) as watch:
        while True:
            state.text = _lease_state(read_file(path), port.mac_address, addresses, created, time.time())
            if not state.text:
                return True
            if not watch.wait(deadline):
                return False


def _leased_port(instance: Instance) -> Tuple[Port, Set[str]]:
    for port in instance.ports:
        leased = {
            ip.ip_address
            for ip in port.fixed_ips
            if port.network.subnet(ip.subnet_id).enable_dhcp and port.network.subnet(ip.subnet_id).version == 4
        }
        if leased:
            return port, leased
    raise InvalidRequest(f"server {instance.name}: wait_for lease, but none of its ports has an IPv4 address from DHCP")


def _lease_state(text: str, mac: str, addresses: Set[str], created: float, now: float) -> str:
    """Empty where the guest with this MAC holds a lease of one of its addresses, else what there is instead.

    Neutron's first lines of the file, written before anyone asked, expire at 0. A lease that has run out, that another
    MAC holds on the same address, or that was taken before the server was ``created``, belongs to an earlier guest.
    """
    seen = "no entry in the leases file"
    for lease in dnsmasq.leases(text)[0]:
        taken = lease.expiry - dnsmasq.LEASE_DURATION
        if lease.address not in addresses:
            continue
        if lease.hardware != mac.lower():
            seen = f"{lease.address} leased to {lease.hardware}, not to {mac}"
        elif not lease.expiry:
            seen = f"{lease.address} reserved, not yet asked for"
        elif lease.expiry <= now:
            seen = f"a lease of {lease.address} that ran out {now - lease.expiry:.0f} s ago"
        elif taken < created - _CLOCK_SKEW:
            seen = f"a lease of {lease.address} taken {created - taken:.0f} s before this server was created"
        else:
            return ""
    return seen


def _console(instance: Instance, wait_for: WaitFor, paths: Paths, deadline: float, state: _State) -> bool:
    """The pattern, in one line of the console's log, finished or not."""
    try:
        pattern = re.compile(wait_for.pattern)
    except re.error as error:
        raise InvalidRequest(f"server {instance.name}: wait_for pattern {wait_for.pattern!r}: {error}") from None
    path = paths.console_log(instance.uuid)
    state.text = "an empty console"
    with Watch(path) as watch, _Follower(path, pattern, state) as follower:
        if follower.search_rotated():
            return True
        while not follower.search_new():
            if not watch.wait(deadline):
                return False
    return True


class _Follower:
    """Searches a growing log, each byte once. virtlogd rotates it at 2 MiB: the name then belongs to a new file."""

    def __init__(self, path: str, pattern: Pattern[str], state: _State) -> None:
        self._path = path
        self._pattern = pattern
        self._state = state
        self._descriptor: Optional[int] = None
        self._carry = b""

    def __enter__(self) -> _Follower:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def search_rotated(self) -> bool:
        """Whether what was rotated away before holds the pattern."""
        for path in _rotated(self._path):
            with open(path, "rb") as stream:
                if any(self._feed(line) for line in stream):
                    return True
        return False

    def search_new(self) -> bool:
        """Whether what was written since the last call holds the pattern."""
        while True:
            if self._descriptor is None and not self._open():
                return False
            if self._read():
                return True
            if not self._replaced():
                return False
            self._close()

    def _open(self) -> bool:
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        return True

    def _close(self) -> None:
        assert self._descriptor is not None  # noqa: S101 - opened by search_new
        os.close(self._descriptor)
        self._descriptor = None

    def _read(self) -> bool:
        assert self._descriptor is not None  # noqa: S101 - opened by search_new
        if os.fstat(self._descriptor).st_size < os.lseek(self._descriptor, 0, os.SEEK_CUR):
            os.lseek(self._descriptor, 0, os.SEEK_SET)  # truncated: the guest was started anew
            self._carry = b""
        while True:
            data = os.read(self._descriptor, 65536)
            if not data:
                return False
            if self._feed(data):
                return True

    def _replaced(self) -> bool:
        """Whether the name now stands for another file than the one that is open."""
        assert self._descriptor is not None  # noqa: S101 - opened by search_new
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        return not os.path.samestat(there, os.fstat(self._descriptor))

    def _feed(self, data: bytes) -> bool:
        *lines, self._carry = (self._carry + data).split(b"\n")
        self._carry = self._carry[-_LONGEST_LINE:]
        for line in (*lines, self._carry):
            text = clean(line.decode(errors="replace"))
            if text.strip():
                self._state.text = f"console line {text.strip()[-200:]!r}"
            if self._pattern.search(text):
                return True
        return False


def _ssh(instance: Instance, wait_for: WaitFor, paths: Paths, deadline: float, state: _State) -> bool:
    """The banner of an SSH server on the first fixed address."""
    addresses = [ip.ip_address for port in instance.ports for ip in port.fixed_ips]
    if not addresses:
        raise InvalidRequest(f"server {instance.name}: wait_for ssh, but it has no address")
    pause, longest = _SSH_BACKOFF
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        state.text = _ssh_state(addresses[0], min(remaining, _SSH_TRY))
        if not state.text:
            return True
        time.sleep(max(0.0, min(pause, deadline - time.monotonic())))
        pause = min(pause * 2, longest)


def _ssh_state(address: str, timeout: float, port: int = 22) -> str:
    """Empty where an SSH server greets, else what happened instead. RFC 4253 lets it say other lines first."""
    deadline = time.monotonic() + timeout
    said = b""
    try:
        with socket.create_connection((address, port), timeout) as connection:
            while not re.search(rb"^SSH-", said, re.M) and len(said) < 4096:
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                data = connection.recv(256)
                if not data:
                    return f"port {port} of {address} closed without an SSH banner"
                said += data
    except OSError as error:
        return f"port {port} of {address}: {error.strerror or error}"
    return "" if len(said) < 4096 else f"port {port} of {address} speaks something else than SSH"


_Condition = Callable[[Instance, WaitFor, Paths, float, _State], bool]
_CONDITIONS: Dict[str, _Condition] = {"lease": _lease, "console": _console, "ssh": _ssh}


def clean(text: str) -> str:
    """Without escape sequences, carriage returns and other control characters; tabs and newlines stay."""
    return _CONTROL.sub("", text)


def console_tail(path: str, lines: int) -> List[str]:
    """The last ``lines`` lines of a console, cleaned, oldest first; none where there is no log yet."""
    last: deque[str] = deque(maxlen=lines)
    for file in [*_rotated(path), path]:
        try:
            with open(file, "rb") as stream:
                last.extend(clean(line.decode(errors="replace")).rstrip() for line in stream)
        except FileNotFoundError:
            continue
    return list(last)


def _rotated(path: str) -> List[str]:
    """What virtlogd rotated away, the oldest first: ``.2``, ``.1``, ``.0``."""
    found = [name for name in glob.glob(f"{glob.escape(path)}.*") if name.rpartition(".")[2].isdigit()]
    return sorted(found, key=lambda name: -int(name.rpartition(".")[2]))
