# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Asks Nova: a process of nova_oracle.py in Nova's environment."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import environment
from sites import Question


class NovaFailed(Exception):
    """Nova raised; the message begins with its exception's name."""


class Nova:
    """A process of one of the oracles, which answers questions; ``with`` ends it."""

    def __init__(self, oracle: str = "nova_oracle.py") -> None:
        command = [environment.python(), "-W", "ignore", str(Path(__file__).with_name(oracle))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ""}
        )

    def __enter__(self) -> Nova:
        return self

    def __exit__(self, *fault: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(60)

    def answer(self, question: Question, **more: Any) -> Any:
        """Nova's answer; NovaFailed where its code raises."""
        return self.put(
            {**dataclasses.asdict(question), "parsed": True, "asks_again": True, "alternates": True, **more}
        )

    def put(self, question: dict[str, Any]) -> Any:
        """The same, of a question as JSON."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"Nova's process ended: {self._process.wait(60)}"
        found = json.loads(line)
        if "error" in found:
            raise NovaFailed(f"{found['error']}: {found['message']}")
        return found["answer"]
