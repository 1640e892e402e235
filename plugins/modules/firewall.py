#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: firewall
short_description: Security groups and anti-spoofing of the instances' ports
version_added: 0.1.0
description:
  - Loads the rules of each port into tables of our own, C(bridge barestack) and C(inet barestack), before its
    tap exists. Only the port's MAC and addresses, no DHCP or router advertisement from the guest, and what
    its security groups allow gets through.
  - All ports of a call are one nftables transaction. What is loaded is compared rule by rule, so that a rule
    that was removed is put back.
  - A rule's remote group is a set of the addresses of that group's members on this host.
  - A port with C(port_security_enabled) false is not filtered.
  - O(state=absent) removes what there is of the ports, and our tables with the last one.
extends_documentation_fragment:
  - barestack.kvm.host_phase
  - barestack.kvm.paths
requirements:
  - nft (nftables)
  - br_netfilter with C(net.bridge.bridge-nf-call-iptables) and C(net.bridge.bridge-nf-call-ip6tables), which
    C(playbooks/prepare_hosts.yml) sets.
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Firewall
  barestack.kvm.firewall:
    instances: "{{ dhcp.instances }}"
  register: firewall

- name: Remove the ports' rules
  barestack.kvm.firewall:
    instances: "{{ doomed.instances }}"
    state: absent
"""

RETURN = r"""
instances:
  description:
    - The handle, as it came. An instance that failed has a C(fault), or with O(state=absent) is C(stuck).
  returned: success
  type: str
effects:
  description: What was, or in check mode would be, carried out, each as C(effect target).
  returned: success
  type: list
  elements: str
  sample: ["firewall.table barestack", "firewall.port 6f3c2a6e-52a6-4c3e-8a0e-0d4d2f0c9a11"]
"""

from typing import Any, ClassVar, Dict, List

from ansible_collections.barestack.kvm.plugins.module_utils.host.firewall import Firewall
from ansible_collections.barestack.kvm.plugins.module_utils.host.once import Once
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance
from ansible_collections.barestack.kvm.plugins.module_utils.phase import HostPhase, run_module


class FirewallPhase(HostPhase):
    """All ports of the call in one transaction; a port with a wrong rule fails its own instance only."""

    name = "firewall"
    argument_spec: ClassVar[Dict[str, Any]] = {**Paths.argument_spec}

    def before(self, instances: List[Instance]) -> None:
        self._ports = [port for instance in instances for port in instance.ports]
        self._firewall = Firewall(Paths.of(self.params), self.effects)
        self._once = Once(self._all)

    def present(self, instance: Instance) -> Instance:
        errors = self._once("all") if instance.ports else {}
        for port in instance.ports:
            if port.id in errors:
                raise errors[port.id]
        return instance

    def absent(self, instance: Instance) -> Instance:
        return self.present(instance)

    def _all(self, _key: str) -> Dict[str, BarestackError]:
        if self.params["state"] == "present":
            return self._firewall.ensure(self._ports)
        self._firewall.release(self._ports)
        return {}


PHASE = FirewallPhase


def main() -> None:
    """Run the module."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
