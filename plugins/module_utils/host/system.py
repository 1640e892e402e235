# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Commands, files and locks: the only place where the host side starts a process or writes a file whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import subprocess
from typing import Iterator, Optional

from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError

_ENDS_WITH_US = ("setpriv", "--pdeathsig", "KILL", "sh", "-c", 'test "$PPID" = "$0" && exec "$@"')


def run(*command: str, stdin: Optional[str] = None, timeout: Optional[float] = None) -> str:
    """Run a command in the C locale and return what it printed; HostError with its stderr where it fails.

    The kernel ends the command with this process, however that ends: a qemu-img of a killed phase never writes on
    beside the next run's. A daemon that the command leaves behind lives on.
    """
    environment = {**os.environ, "LC_ALL": "C", "LANG": "C"}
    if not shutil.which(command[0]):
        raise HostError(f"{command[0]} is not installed here: run playbooks/prepare_hosts.yml")
    # In this process between fork and exec no Python may run (there are threads), hence setpriv; and the shell, because
    # a parent that was killed before setpriv asked for its signal sends none: then the command does not start.
    bound = (*_ENDS_WITH_US, str(os.getpid()), *command)
    try:
        done = subprocess.run(
            bound, input=stdin, capture_output=True, text=True, check=False, timeout=timeout, env=environment
        )
    except subprocess.TimeoutExpired:
        raise HostError(f"{' '.join(command)} did not end within {timeout} s") from None
    if done.returncode:
        raise HostError(f"{' '.join(command)} failed with {done.returncode}: {done.stderr.strip()[-800:]}")
    return done.stdout


def replace_file(path: str, text: str, mode: int = 0o644) -> None:
    """Write a whole file under a temporary name, then rename it: a reader sees the old text or the new one.

    The temporary name is always the same, and locked, so that what a killed write left is used by the next one.
    """
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.part")
    while True:
        with locked(temporary) as descriptor:
            if not names(temporary, descriptor):
                continue  # renamed or removed by the writer that we waited for
            try:
                os.ftruncate(descriptor, 0)
                with open(descriptor, "w", closefd=False) as stream:
                    stream.write(text)
                os.fsync(descriptor)
                os.fchmod(descriptor, mode)
                os.rename(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
            return


def remove_file(path: str) -> None:
    """Remove a file that may be gone since the caller looked."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


@contextlib.contextmanager
def unwritten(path: str) -> Iterator[bool]:
    """Whether ``path`` is a file whose lock (see :func:`locked`) nobody has: nor can anybody take it meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # gone since it was listed, or nothing that we made
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            idle = stat.S_ISREG(os.fstat(descriptor).st_mode) and names(path, descriptor)
        except BlockingIOError:
            idle = False
        yield idle
    finally:
        os.close(descriptor)


def names(path: str, descriptor: int) -> bool:
    """Whether ``path`` still is the open file: what someone who waited for its lock has to ask."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def read_file(path: str) -> str:
    """The file's text; empty where there is no such file."""
    try:
        with open(path) as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


@contextlib.contextmanager
def locked(path: str) -> Iterator[int]:
    """Hold an exclusive lock on ``path`` (a file, made if missing); the kernel drops it when the holder dies.

    Yields the descriptor that holds the lock, for a caller that has to know whether ``path`` still names that file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)
