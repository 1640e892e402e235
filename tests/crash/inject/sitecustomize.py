# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Stops, or kills, a process of ours at a named point. The harness puts this on the Python path.

Points: ``<effect>:before`` and ``<effect>:after`` around every ``Effects.apply``, ``<phase>=<state>:before`` and
``:after`` around every phase. The directory in BARESTACK_CRASH has the orders:

* ``armed``: ``{"point": ..., "mode": ...}``. The first process that gets there writes ``reached``, and then blocks
  until it is killed or ``release`` appears (mode ``block``), or kills itself (mode ``module``).
* ``trace``: where this file exists, every point that is passed becomes a line in it.

It runs on the compute hosts too, on Python 3.9.
"""

from __future__ import annotations

import builtins
import json
import os
import signal
import sys
import time

_UTILS = "ansible_collections.barestack.kvm.plugins.module_utils"
_DIRECTORY = os.environ.get("BARESTACK_CRASH", "")


def _pass(point):
    trace = os.path.join(_DIRECTORY, "trace")
    if os.path.exists(trace):
        descriptor = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.write(descriptor, f"{point}\n".encode())  # short: whole, whoever else writes
        os.close(descriptor)
    try:
        with open(os.path.join(_DIRECTORY, "armed")) as stream:
            order = json.load(stream)
    except FileNotFoundError:
        return
    if order["point"] == point:
        _stop(order["mode"])


def _stop(mode):
    reached = os.path.join(_DIRECTORY, "reached")
    try:
        descriptor = os.open(reached, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
    except FileExistsError:
        return
    os.write(descriptor, f"{os.getpid()}\n".encode())
    os.close(descriptor)
    if mode == "module":
        os.kill(os.getpid(), signal.SIGKILL)
    while not os.path.exists(os.path.join(_DIRECTORY, "release")):
        time.sleep(0.02)


def _wrap_effects(module):
    apply = module.Effects.apply

    def stopping(self, effect, target, act, **described):
        if self.check_mode:
            return apply(self, effect, target, act, **described)
        _pass(f"{effect}:before")
        result = apply(self, effect, target, act, **described)
        _pass(f"{effect}:after")
        return result

    module.Effects.apply = stopping


def _wrap_phase(module):
    execute = module.execute

    def stopping(phase, params, check_mode):
        if check_mode:
            return execute(phase, params, check_mode)
        name = f"{module.phase_name(phase)}={params.get('state') or 'present'}"
        _pass(f"{name}:before")
        result = execute(phase, params, check_mode)
        _pass(f"{name}:after")
        return result

    module.execute = stopping


_WAITING = {f"{_UTILS}.model.effects": _wrap_effects, f"{_UTILS}.phase": _wrap_phase}


def _watch_imports():
    real = builtins.__import__

    def watching(name, *arguments, **options):
        module = real(name, *arguments, **options)
        for wanted in list(_WAITING):
            found = sys.modules.get(wanted)
            # A module is ready for its importer once its import has ended: before that its names may be missing.
            if found is not None and not getattr(found.__spec__, "_initializing", False):
                wrap = _WAITING.pop(wanted, None)
                if wrap:
                    wrap(found)
        if not _WAITING:
            builtins.__import__ = real
        return module

    builtins.__import__ = watching


if os.path.isdir(_DIRECTORY):
    _watch_imports()
