# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Which process a run is, and which processes end with which."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PR_SET_PDEATHSIG = 1


def run_pid() -> int:
    """ansible-playbook's process, whose worker this is; this process where no worker runs the phase."""
    parent = multiprocessing.parent_process()
    return os.getpid() if parent is None or parent.pid is None else parent.pid


def describe(pid: int) -> str:
    """``<boot>/<pid namespace> <pid> <start>``: what no other process ever is. Empty off Linux."""
    start = _start(pid)
    return f"{_machine()} {pid} {start}" if start else ""


def is_gone(process: str) -> bool:
    """Whether the described process ended: only where this machine's kernel can tell."""
    machine, _, rest = process.partition(" ")
    pid, _, start = rest.partition(" ")
    return bool(process) and machine == _machine() and _start(int(pid)) != start


def end_with(parent: int) -> None:
    """Have the kernel SIGKILL this process when its parent, which is process ``parent``, ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)  # it ended before the kernel knew


def detached(work: Callable[[], None], kept: Iterable[int] = ()) -> None:
    """Do the work in a process of its own, which outlives this one. Returns at once.

    Of what is open here it has the descriptors ``kept``: Ansible waits until the pipes to its worker are closed.
    """
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    try:
        os.setsid()
        if not os.fork():
            _leave_open_behind(kept)
            work()
    finally:
        os._exit(0)  # never back into the caller's code, whose worker is another process


def _leave_open_behind(kept: Iterable[int]) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    start = 3
    for descriptor in sorted(kept):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def _machine() -> str:
    """The kernel's boot and the namespace in which its process numbers count."""
    try:
        return f"{_BOOT_ID.read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _start(pid: int) -> str:
    """When the process began, in the kernel's ticks; empty where there is none, or only its corpse."""
    try:
        # the command's name, which may hold anything, ends with the last parenthesis
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else rest[18]
