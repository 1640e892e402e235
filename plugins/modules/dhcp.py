#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: dhcp
short_description: DHCP and DNS for the instances' ports
version_added: 0.1.0
description:
  - Runs one dnsmasq for each network that has a subnet with DHCP, in the namespace C(qdhcp-<id>), with the
    command line and the files that Neutron's DHCP agent gives it, C(host), C(addn_hosts), C(opts), C(leases),
    C(interface).
  - An instance's name is its hostname in the network's C(dns_domain). A change is taken up by SIGHUP; dnsmasq
    is started anew only where it is dead or the network's subnets changed.
  - O(state=absent) gives the ports' leases back and removes their entries; process, interface, namespace and
    files go with the last entry.
extends_documentation_fragment:
  - barestack.kvm.host_phase
  - barestack.kvm.paths
requirements:
  - python3-pyroute2
  - dnsmasq (dnsmasq-base)
  - dhcp_release, dhcp_release6 (dnsmasq-utils)
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: DHCP
  barestack.kvm.dhcp:
    instances: "{{ network.instances }}"
  register: dhcp

- name: Remove the ports' entries
  barestack.kvm.dhcp:
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
  sample: ["dhcp.files /var/lib/barestack/dhcp/2d1c4f6a-9b0e-4c55-8a53-0b1d3f5e7a90", "dhcp.server 2d1c4f6a-9b0e-4c55-8a53-0b1d3f5e7a90"]
"""

from typing import Any, ClassVar, Dict, List, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host.dhcp import Servers
from ansible_collections.barestack.kvm.plugins.module_utils.host.once import Once
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance, Port
from ansible_collections.barestack.kvm.plugins.module_utils.phase import HostPhase, run_module


class DhcpPhase(HostPhase):
    """Each network once, with all its ports in this call: one reload, and an error is every instance's on it."""

    name = "dhcp"
    argument_spec: ClassVar[Dict[str, Any]] = {**Paths.argument_spec}

    def before(self, instances: List[Instance]) -> None:
        self._servers = Servers(Paths.of(self.params), self.effects)
        self._entries: Dict[str, List[Tuple[Port, str]]] = {}
        for instance in instances:
            for port in instance.ports:
                self._entries.setdefault(port.network.id, []).append((port, instance.hostname))
        self._once = Once(self._network)

    def present(self, instance: Instance) -> Instance:
        for network_id in dict.fromkeys(port.network.id for port in instance.ports):
            self._once(network_id)
        return instance

    def absent(self, instance: Instance) -> Instance:
        return self.present(instance)

    def _network(self, network_id: str) -> None:
        entries = self._entries[network_id]
        network = entries[0][0].network
        if self.params["state"] == "present":
            self._servers.ensure(network, entries)
        else:
            self._servers.release(network, [port for port, _ in entries])


PHASE = DhcpPhase


def main() -> None:
    """Run the module."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
