# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""libvirt's own bindings, with what its test driver lacks. ``thousand.py`` puts this directory on PYTHONPATH.

The test driver starts no guest with its CPUs stopped, and knows neither the node's memory statistics nor the domain
capabilities. Everything else is the driver's own answer, through a real libvirtd.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any


def _bindings() -> Any:
    elsewhere = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]
    spec = PathFinder.find_spec("libvirt", elsewhere)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["libvirt"] = module
    spec.loader.exec_module(module)
    return module


def _adapt(libvirt: Any) -> None:
    domain, connection = libvirt.virDomain, libvirt.virConnect

    def start(self: Any, flags: int = 0) -> int:
        self.create()
        if flags & libvirt.VIR_DOMAIN_START_PAUSED:
            self.suspend()
        return 0

    def memory(self: Any, _cell: int, _flags: int = 0) -> dict[str, int]:
        return {"total": self.getInfo()[1] * 1024}

    def capabilities(*_arguments: Any) -> str:
        return "<domainCapabilities/>"

    domain.createWithFlags = start
    connection.getMemoryStats = memory
    connection.getDomainCapabilities = capabilities


_adapt(_bindings())
