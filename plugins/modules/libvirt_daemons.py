#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: libvirt_daemons
short_description: Start libvirt's daemons where no init system does
version_added: 0.1.0
description:
  - For hosts on which systemd is not the first process, containers for example. Elsewhere use M(ansible.builtin.systemd_service).
  - A daemon that answers on its socket is left alone.
options:
  daemons:
    description: The daemons, in the order in which to start them.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The daemon's command; C(-d) puts it into the background.
        type: str
        required: true
      socket:
        description: The Unix socket on which it answers once it runs.
        type: path
        required: true
attributes:
  check_mode:
    description: Says which daemons would be started.
    support: full
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Start libvirt
  barestack.kvm.libvirt_daemons:
    daemons:
      - name: virtlogd
        socket: /run/libvirt/virtlogd-sock
      - name: libvirtd
        socket: /run/libvirt/libvirt-sock
"""

RETURN = r"""
effects:
  description: What was changed, one entry each.
  returned: success
  type: list
  elements: str
  sample: ["host.daemon libvirtd"]
"""

from typing import Any, ClassVar, Dict

from ansible_collections.barestack.kvm.plugins.module_utils.host.preparation import start_daemon
from ansible_collections.barestack.kvm.plugins.module_utils.phase import Phase, run_module


class LibvirtDaemons(Phase):
    """One call for all daemons."""

    name = "libvirt_daemons"
    argument_spec: ClassVar[Dict[str, Any]] = {
        "daemons": {
            "type": "list",
            "elements": "dict",
            "required": True,
            "options": {
                "name": {"type": "str", "required": True},
                "socket": {"type": "path", "required": True},
            },
        },
    }

    def run(self) -> Dict[str, Any]:
        """Nothing to report but the effects."""
        for daemon in self.params["daemons"]:
            start_daemon(self.effects, daemon["name"], daemon["socket"])
        return {}


PHASE = LibvirtDaemons


def main() -> None:
    run_module(PHASE)


if __name__ == "__main__":
    main()
