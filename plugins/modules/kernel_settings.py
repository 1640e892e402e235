#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: kernel_settings
short_description: Keep kernel settings and the modules that bring them
version_added: 0.1.0
description:
  - Writes C(/etc/sysctl.d/60-<name>.conf) and C(/etc/modules-load.d/<name>.conf), and makes the running kernel agree.
  - A module is loaded only where one of the settings is missing, so that a kernel which has it built in will do.
options:
  name:
    description: The name that the two files share.
    type: str
    required: true
  settings:
    description: Settings and their values, as C(sysctl) names them.
    type: dict
    required: true
  modules:
    description: The kernel modules that bring settings.
    type: list
    elements: str
    default: []
attributes:
  check_mode:
    description: Says what would change.
    support: full
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Forward, and let the bridges' traffic pass the firewall
  barestack.kvm.kernel_settings:
    name: barestack
    modules:
      - br_netfilter
    settings:
      net.ipv4.ip_forward: 1
      net.bridge.bridge-nf-call-iptables: 1
"""

RETURN = r"""
effects:
  description: What was changed, one entry each.
  returned: success
  type: list
  elements: str
  sample: ["host.sysctl net.ipv4.ip_forward"]
"""

from typing import Any, ClassVar, Dict

from ansible_collections.barestack.kvm.plugins.module_utils.host.preparation import KernelSettings
from ansible_collections.barestack.kvm.plugins.module_utils.phase import Phase, run_module


class KernelSettingsPhase(Phase):
    """One call for all settings."""

    name = "kernel_settings"
    argument_spec: ClassVar[Dict[str, Any]] = {
        "name": {"type": "str", "required": True},
        "settings": {"type": "dict", "required": True},
        "modules": {"type": "list", "elements": "str", "default": []},
    }

    def run(self) -> Dict[str, Any]:
        """Nothing to report but the effects."""
        settings = {key: str(value) for key, value in self.params["settings"].items()}
        KernelSettings(self.params["name"], self.params["modules"], settings).apply(self.effects)
        return {}


PHASE = KernelSettingsPhase


def main() -> None:
    run_module(PHASE)


if __name__ == "__main__":
    main()
