# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Nova in a virtual environment of its own, .cache/nova: what the differential tests and the benchmark compare with.

Made once, on Debian's own Python; the second time it only looks. The product never imports any of it.
``python tests/differential/environment.py`` makes it and prints its Python.
"""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".cache" / "nova"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
BASE = "/usr/bin/python3"


def python() -> str:
    """The environment's Python; the environment is made if it is not there, or not by these requirements."""
    HOME.parent.mkdir(exist_ok=True)
    with (HOME.parent / "nova.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        version = subprocess.run([BASE, "--version"], check=True, capture_output=True).stdout
        wanted = hashlib.sha256(version + REQUIREMENTS.read_bytes()).hexdigest()
        stamp = HOME / ".made"
        if not stamp.exists() or stamp.read_text() != wanted:
            _run(BASE, "-m", "venv", "--clear", str(HOME))
            _run(
                str(HOME / "bin" / "pip"),
                "install",
                "--disable-pip-version-check",
                "--no-input",
                "--requirement",
                REQUIREMENTS,
            )
            stamp.write_text(wanted)
    return str(HOME / "bin" / "python")


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-4000:]}")


if __name__ == "__main__":
    print(python())
