# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A playbook's run, measured: how long each task took, what it printed, and how much memory it had at most."""

from __future__ import annotations

import collections
import json
import os
import platform
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass
class Run:
    """``calls`` are modules that ran, ``tasks`` the seconds of each task; memory in MiB."""

    seconds: float
    output: str
    tasks: dict[str, float] = field(default_factory=dict)
    peak_main: float = 0
    """ansible-playbook's own process."""
    peak_tree: float = 0
    """It and its workers; pages that they share count once."""

    @property
    def calls(self) -> int:
        return len(re.findall(r"^(?:ok|changed): \[", self.output, re.MULTILINE))

    def slowest(self, number: int) -> str:
        """The tasks that took longest."""
        found = sorted(self.tasks.items(), key=lambda item: -item[1])[:number]
        return ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found)


class _Memory(threading.Thread):
    """Looks at a process and all below it once a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._ended = threading.Event()
        self.main = self.tree = 0.0
        self.start()

    def run(self) -> None:
        while not self._ended.wait(1):
            self.tree = max(self.tree, sum(_kib(f"/proc/{pid}/smaps_rollup", "Pss") for pid in self._family()) / 1024)
            self.main = max(self.main, _kib(f"/proc/{self._pid}/status", "VmHWM") / 1024)

    def end(self) -> None:
        self._ended.set()
        self.join()

    def _family(self) -> list[int]:
        below = collections.defaultdict(list)
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                below[int(path.read_text().rpartition(")")[2].split()[1])].append(int(path.parent.name))
            except OSError:
                continue  # it has ended
        found = [self._pid]
        for pid in found:
            found.extend(below[pid])
        return found


def _kib(path: str, name: str) -> int:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(path).read_text(), re.MULTILINE)
    except OSError:
        return 0  # it has ended
    return int(found[1]) if found else 0


def play(
    inventory: Path,
    playbook: str,
    variables: dict[str, Any],
    *arguments: str,
    environment: dict[str, str] | None = None,
) -> Run:
    """Run a playbook to its end; exits where it fails."""
    program = str(Path(sys.executable).parent / "ansible-playbook")
    command = [program, "-i", str(inventory), str(ROOT / playbook), "-e", json.dumps(variables), *arguments]
    surroundings = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "PYTHONUNBUFFERED": "1",
        **(environment or {}),
    }
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=surroundings
    )
    memory = _Memory(process.pid)
    lines: list[str] = []
    tasks: collections.Counter[str] = collections.Counter()
    task, since = "(start)", started
    assert process.stdout
    for line in process.stdout:
        lines.append(line)
        begun = re.match(r"(?:TASK \[(.*?)\]|(PLAY RECAP))", line)
        if begun:
            at = time.monotonic()
            tasks[task] += at - since
            task, since = begun[1] or "(end)", at
    process.wait()
    seconds = time.monotonic() - started
    tasks[task] += time.monotonic() - since
    memory.end()
    if process.returncode:
        sys.exit(f"{playbook} failed:\n{''.join(lines)[-20000:]}")
    return Run(seconds, "".join(lines), dict(tasks), memory.main, memory.tree)


def machine() -> str:
    """What the figures were measured on, and how much it had to do besides."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    model = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    return f"{model}, {time.strftime('%H:%M')}, load averages {load}"
