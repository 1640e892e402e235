#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: network
short_description: Bridges of the instances' networks, and their ways out
version_added: 0.1.0
description:
  - Makes the bridge C(brq<id>) of each network that the instances' ports are on, with the network's MTU, as
    Neutron's Linux bridge agent did.
  - A network of type C(local) gets its subnets' gateways on the bridge, and each of its IPv4 subnets is
    masqueraded by a rule in the nftables table C(inet barestack).
  - The bridge of a network of type C(flat) gets the interface of its physical network as a port. There is neither
    a gateway nor masquerade on this host, and a chain of the table C(netdev barestack) drops what is meant for the
    host itself.
  - Each port is registered on the host. O(state=absent) takes it off; the bridge and all that came with it go
    with the last one.
  - A subnet that another link of the host already has is a conflict. So is an interface that has addresses, that
    is in another bridge, or whose MTU is smaller than the network's.
options:
  physical_interface_mappings:
    description:
      - The interface of this host for each physical network, for networks of type C(flat).
      - The interface must have no addresses. It is let go with its network's last port, and stays up.
    type: dict
    default: {}
extends_documentation_fragment:
  - barestack.kvm.host_phase
  - barestack.kvm.paths
requirements:
  - python3-pyroute2
  - nft (nftables)
  - The sysctl C(net.ipv4.ip_forward), which C(playbooks/prepare_hosts.yml) sets.
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Network
  barestack.kvm.network:
    instances: "{{ port.instances }}"
    physical_interface_mappings:
      physnet1: eth1
  register: network

- name: Take the ports off their networks
  barestack.kvm.network:
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
  sample: ["network.port 6f3c2a6e-52a6-4c3e-8a0e-0d4d2f0c9a11", "network.bridge brq2d1c4f6a-9b", "network.gateway brq2d1c4f6a-9b"]
"""

from typing import Any, ClassVar, Dict, List

from ansible_collections.barestack.kvm.plugins.module_utils.host.network import Bridges
from ansible_collections.barestack.kvm.plugins.module_utils.host.once import Once
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance, Network
from ansible_collections.barestack.kvm.plugins.module_utils.phase import HostPhase, run_module


class NetworkPhase(HostPhase):
    """Each network once, with all its ports in this call; an error is every instance's that is on it."""

    name = "network"
    argument_spec: ClassVar[Dict[str, Any]] = {
        **Paths.argument_spec,
        "physical_interface_mappings": {"type": "dict", "default": {}},
    }

    def before(self, instances: List[Instance]) -> None:
        networks: Dict[str, Network] = {}
        ports: Dict[str, List[str]] = {}
        owners: Dict[str, str] = {}
        for instance in instances:
            for port in instance.ports:
                networks[port.network.id] = port.network
                ports.setdefault(port.network.id, []).append(port.id)
                owners[port.id] = f"{instance.uuid} {port.mac_address}"
        bridges = Bridges(Paths.of(self.params), self.effects, self.params["physical_interface_mappings"], owners)
        act = bridges.ensure if self.params["state"] == "present" else bridges.release
        self._once: Once[str, None] = Once(lambda network_id: act(networks[network_id], ports[network_id]))

    def present(self, instance: Instance) -> Instance:
        for network_id in dict.fromkeys(port.network.id for port in instance.ports):
            self._once(network_id)
        return instance

    def absent(self, instance: Instance) -> Instance:
        return self.present(instance)


PHASE = NetworkPhase


def main() -> None:
    """Run the module."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
