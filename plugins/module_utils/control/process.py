# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Which process a run is, so that another run on the same machine can tell whether it still lives."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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
