# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The key repository, as ``keystone-manage fernet_setup`` and ``fernet_rotate`` keep it.

A directory of mode 0700 with one file of mode 0600 for each key, named by a number: ``0`` is staged (it becomes the
next primary), the highest is primary (it signs), those between are secondary (they still validate). Every change is
one rename, made under a lock, so that a reader at any instant, or after a crash, finds a usable set.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import stat
import time
from typing import Iterator

from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError

DEFAULT_DIRECTORY = "/var/lib/barestack/control/keys"
_STAGED = 0


class KeyRepository:
    """One directory of keys."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def keys(self) -> list[bytes]:
        """Every key, the primary first; empty where there is no repository yet.

        BarestackError where others than the owner may read a key.
        """
        for _ in range(10):
            # A rotation renames a file between the listing and the reading: then list again.
            with contextlib.suppress(FileNotFoundError):
                numbers = sorted(self._numbers(), reverse=True)
                return [self._read(number) for number in numbers]
        raise BarestackError(f"{self.directory}: the keys change faster than they can be read")

    def usable(self) -> bool:
        """Whether there is a primary key; without one, :meth:`create` is due."""
        return any(number != _STAGED for number in self._numbers())

    def age(self, now: float) -> float:
        """Seconds since the primary key was made primary."""
        return now - os.stat(self._path(max(self._numbers()))).st_mtime

    def create(self) -> None:
        """Make a staged and a primary key if they are missing; finish what a crash interrupted."""
        os.makedirs(os.path.dirname(os.path.abspath(self.directory)), mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.directory, 0o700)
        self._check(self.directory)
        with self._locked():
            if not self.usable():
                self._promote()
            self._stage()

    def rotate(self, max_active_keys: int = 3) -> None:
        """The staged key becomes primary, a new one is staged, and the oldest beyond ``max_active_keys`` go.

        Tokens signed by a key that went are no longer valid: keep rotation rarer than the tokens' lifetime.
        """
        self.create()
        with self._locked():
            self._promote()
            self._purge(max_active_keys)

    def rotate_if_older(self, lifetime: float, max_active_keys: int = 3) -> bool:
        """Rotate if the primary key is older than ``lifetime`` seconds, once if several want to. Whether it did."""
        with self._locked():
            if self.age(time.time()) <= lifetime:
                return False
            self._promote()
            self._purge(max_active_keys)
        return True

    def _promote(self) -> None:
        self._stage()
        os.utime(self._path(_STAGED))  # a primary key's time is that of its promotion
        os.rename(self._path(_STAGED), self._path(max(self._numbers()) + 1))
        self._stage()

    def _purge(self, max_active_keys: int) -> None:
        active = sorted(number for number in self._numbers() if number != _STAGED)
        for number in active[: max(0, len(active) - max(1, max_active_keys - 1))]:
            os.unlink(self._path(number))

    def _stage(self) -> None:
        """A new staged key, unless there is one."""
        if os.path.exists(self._path(_STAGED)):
            return
        temporary = f"{self._path(_STAGED)}.tmp"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(base64.urlsafe_b64encode(os.urandom(32)))
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, self._path(_STAGED))

    def _numbers(self) -> list[int]:
        try:
            return [int(name) for name in os.listdir(self.directory) if name.isascii() and name.isdigit()]
        except FileNotFoundError:
            return []

    def _read(self, number: int) -> bytes:
        self._check(self.directory)
        path = self._path(number)
        self._check(path)
        with open(path, "rb") as stream:
            return stream.read().strip()

    def _check(self, path: str) -> None:
        mode = stat.S_IMODE(os.stat(path).st_mode)
        if mode & 0o077:
            raise BarestackError(
                f"{path} has mode {mode:04o}: keys that others may read or write sign nothing. Remove {self.directory} "
                "(every token ends with it; new keys are made by the next token), or chmod it if you trust the keys"
            )

    def _path(self, number: int) -> str:
        return os.path.join(self.directory, str(number))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(os.path.join(self.directory, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
