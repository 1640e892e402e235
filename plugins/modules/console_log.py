#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: console_log
short_description: Reads the last lines of the guests' consoles
version_added: 0.1.0
description:
  - Nova's C(openstack console log show), for many servers at once. Escape sequences and other control characters are
    taken out.
options:
  uuids:
    description:
      - The servers' ids.
    type: list
    elements: str
    required: true
  lines:
    description:
      - How many lines of each, at most.
    type: int
    default: 20
extends_documentation_fragment:
  - barestack.kvm.paths
attributes:
  check_mode:
    description: Only reads.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: What the guests said last
  barestack.kvm.console_log:
    uuids: "{{ booted.instances | map(attribute='uuid') }}"
    lines: 15
  register: console
"""

RETURN = r"""
consoles:
  description: The last lines by server, none where it has not written anything yet.
  returned: success
  type: dict
  sample:
    32dfcb37-5af1-552b-357c-be8c3aa38310: ["Welcome", "vm1 login:"]
"""

import uuid
from typing import Any, ClassVar, Dict, List

from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.host.readiness import console_tail
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.phase import Phase, run_module


class ConsoleLog(Phase):
    """Reads; changes nothing."""

    name = "console_log"
    argument_spec: ClassVar[Dict[str, Any]] = {
        "uuids": {"type": "list", "elements": "str", "required": True},
        "lines": {"type": "int", "default": 20},
        **Paths.argument_spec,
    }

    def run(self) -> Dict[str, Any]:
        """The tails, by uuid."""
        if self.params["lines"] < 1:
            raise InvalidRequest(f"lines is {self.params['lines']}, but must be at least 1")
        paths = Paths.of(self.params)
        uuids = [_uuid(text) for text in self.params["uuids"]]
        return {"consoles": {item: _tail(paths.console_log(item), self.params["lines"]) for item in uuids}}


def _tail(path: str, lines: int) -> List[str]:
    try:
        return console_tail(path, lines)
    except OSError as error:  # the other servers' consoles are wanted all the same
        return [f"{path} cannot be read: {error.strerror}"]


def _uuid(text: str) -> str:
    """As it stands in file names. Anything else could name another file."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise InvalidRequest(f"uuids: {text!r} is not a server's id") from None


PHASE = ConsoleLog


def main() -> None:
    run_module(PHASE)


if __name__ == "__main__":
    main()
