#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: clear
short_description: Removes named leftovers from a compute host
version_added: 0.1.0
description:
  - Removes what M(barestack.kvm.audit) found on this host of servers that the records know as deleted, or as living elsewhere.
    It does so by the code of the boot's undos, one call for all of them.
  - Looks before it removes. A domain that does not carry our metadata, a directory whose domain would not go, a tap or a port
    that a guest still uses, a network with ports, and a temporary file that is being written all stay.
  - Never removes a volume.
options:
  leftovers:
    description:
      - What is to go, as M(barestack.kvm.audit) returned it for this host.
    type: dict
    required: true
  libvirt_uri:
    description:
      - Where libvirt is.
    type: str
    default: qemu:///system
extends_documentation_fragment:
  - barestack.kvm.paths
requirements:
  - python3-libvirt
  - python3-pyroute2
  - nft (nftables)
attributes:
  check_mode:
    description: Computes everything, changes nothing.
    support: full
  diff_mode:
    description: Says what is, or would be, removed.
    support: full
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Leftovers
  barestack.kvm.clear:
    leftovers: "{{ hostvars['localhost'].audit.leftovers[inventory_hostname] }}"
"""

RETURN = r"""
problems:
  description: Why something could not be removed, a line each.
  returned: success
  type: list
  elements: str
effects:
  description: What was, or in check mode would be, carried out, each as C(effect target).
  returned: success
  type: list
  elements: str
  sample: ["domain.running instance-00000001", "domain.definition instance-00000001"]
"""

from typing import Any, ClassVar, Dict

from ansible_collections.barestack.kvm.plugins.module_utils.host.clear import Clearing
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import driver
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.contents import Leftovers
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import Phase, run_module


class Clear(Phase):
    """The leftovers of one host."""

    name = "clear"
    argument_spec: ClassVar[Dict[str, Any]] = {
        "leftovers": {"type": "dict", "required": True},
        "libvirt_uri": {"type": "str", "default": "qemu:///system"},
        **Paths.argument_spec,
    }

    def run(self) -> Dict[str, Any]:
        """Remove them; what would not go is told."""
        try:
            leftovers = from_wire(Leftovers, self.params["leftovers"])
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidRequest(f"leftovers: this is nothing that the audit returned: {error}") from None
        with driver.connect(self.params["libvirt_uri"]) as hypervisor:
            clearing = Clearing(Paths.of(self.params), hypervisor, self.effects)
            clearing.clear(leftovers)
        return {"problems": clearing.problems}


PHASE = Clear


def main() -> None:
    """Run the module."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
