#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: contents
short_description: What of ours there is on a compute host
version_added: 0.1.0
description:
  - Lists, in one look, the domains, instance directories, volumes, consoles, temporary files, ports' marks, taps, bridges,
    DHCP servers with their entries and leases, nftables rules and masquerade rules that are ours by their place, mark or name.
  - Reads only. M(barestack.kvm.audit) compares it with the records.
  - Temporary files that are being written are not listed. Of a domain without our metadata only its name and uuid are told.
options:
  libvirt_uri:
    description:
      - Where libvirt is.
    type: str
    default: qemu:///system
  shared_host:
    description:
      - Whether other records than these have servers on this host too. What M(barestack.kvm.audit) finds there and these
        records never knew is listed then, but is no difference.
    type: bool
    default: false
extends_documentation_fragment:
  - barestack.kvm.paths
requirements:
  - python3-libvirt
  - python3-pyroute2
  - nft (nftables)
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
- name: What is there
  barestack.kvm.contents:
  register: contents
"""

RETURN = r"""
contents:
  description:
    - What was found, in one string for M(barestack.kvm.audit).
  returned: success
  type: str
"""

from typing import Any, ClassVar, Dict, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host.contents import look
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import driver
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import Phase, run_module


class ContentsPhase(Phase):
    """Reads; changes nothing."""

    name = "contents"
    handles: ClassVar[Tuple[str, ...]] = ("contents",)
    argument_spec: ClassVar[Dict[str, Any]] = {
        "libvirt_uri": {"type": "str", "default": "qemu:///system"},
        "shared_host": {"type": "bool", "default": False},
        **Paths.argument_spec,
    }

    def run(self) -> Dict[str, Any]:
        """One look."""
        with driver.connect(self.params["libvirt_uri"]) as hypervisor:
            return {"contents": to_wire(look(Paths.of(self.params), hypervisor, self.params["shared_host"]))}


PHASE = ContentsPhase


def main() -> None:
    """Run the module."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
