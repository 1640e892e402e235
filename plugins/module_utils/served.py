# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The compute host's end of a session: one Python that carries out phase after phase of a run.

``plugins/plugin_utils/session.py`` is the other end, and says what crosses the connection. Each phase has a process of
its own, a fork of this one: what it leaves open is gone with it, and what was imported before is there.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
from typing import Any, Dict, Optional

from ansible_collections.barestack.kvm.plugins.module_utils.phase import attempt, ends_with_reader

GREETING = b"barestack.kvm is ready\n"
_MODULES = "ansible_collections.barestack.kvm.plugins.modules"


def serve() -> None:
    """Answer requests from standard input until it ends. It ends with the connection, and the phase at work with it."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    os.write(answers, GREETING)
    pending = b""
    while True:
        received = os.read(0, 1 << 20)
        if not received:
            return
        pending += received
        if pending.endswith(b"\n"):
            request, pending = json.loads(pending), b""
            answer = _in_a_fork(request)
            if answer is None:
                return
            _write(answers, answer + b"\n")


def _in_a_fork(request: Dict[str, Any]) -> Optional[bytes]:
    """The phase's answer; None where the connection ended meanwhile."""
    gc.disable()
    importlib.import_module(f"{_MODULES}.{request['phase']}")  # for this fork and for those to come
    gc.freeze()  # or each fork would look through it, and so copy it
    gc.enable()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reader)
            with ends_with_reader(writer):
                answer = json.dumps(_carry_out(request)).encode()
            _write(writer, answer)
        finally:
            os._exit(0)
    os.close(writer)
    answer = b""
    poll = select.poll()
    poll.register(0, select.POLLIN)  # nothing is sent before the answer: it can only be the end
    poll.register(reader, select.POLLIN)
    while True:
        events = dict(poll.poll())
        if 0 in events:
            return None  # closes the pipe, which ends the phase
        received = os.read(reader, 1 << 20)
        if not received:
            break
        answer += received
    os.close(reader)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    killed = {"failed": True, "msg": f"{request['phase']}: its process on the host was killed ({status})"}
    return answer.strip() or json.dumps(killed).encode()


def _carry_out(request: Dict[str, Any]) -> Dict[str, Any]:
    os.environ.update(request["environment"])
    phase = importlib.import_module(f"{_MODULES}.{request['phase']}").PHASE
    return attempt(phase, request["params"], request["check_mode"])


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
