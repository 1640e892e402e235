#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: hypervisor_info
short_description: Asks libvirt what this compute host is and can run
version_added: 0.1.0
description:
  - The facts that Nova's resource tracker reports for a compute host, from libvirt itself.
    M(barestack.kvm.compute_node) records them.
options:
  libvirt_uri:
    description:
      - Where libvirt is.
    type: str
    default: qemu:///system
  virt_type:
    description:
      - V(auto) is V(kvm) where the CPU can virtualise and C(/dev/kvm) opens, else V(qemu), which emulates.
    type: str
    choices: [auto, kvm, qemu]
    default: auto
  cpu_mode:
    description:
      - As for M(barestack.kvm.domain). RV(hypervisor.traits) tell the features of the CPU that guests get.
    type: str
    choices: [auto, none, host-model, host-passthrough, maximum, custom]
    default: auto
  cpu_model:
    description:
      - As for M(barestack.kvm.domain).
    type: str
  reserved_huge_pages:
    description:
      - Nova's option of this name, pages that the host keeps. Each entry has C(node), the NUMA cell, C(size), in KiB or
        with its unit, as V(2MB), and C(count).
    type: list
    elements: dict
    default: []
  pci_device_spec:
    description:
      - Nova's C([pci]device_spec), the PCI devices that guests may have. Each entry has C(vendor_id) and C(product_id) in
        hexadecimal, C(address) as V(0000:81:00.0) with V(*) for any part or as a mapping of regular expressions
        C(domain), C(bus), C(slot), C(function), or C(devname), a network interface. The address of an SR-IOV card
        stands for its virtual functions, too.
      - Whatever else an entry has is a tag of its devices. V(managed=false) says that their driver on the host is taken
        off by the site and not by libvirt.
    type: list
    elements: dict
    default: []
extends_documentation_fragment:
  - barestack.kvm.paths
  - barestack.kvm.cpu_sets
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
- name: Hypervisor facts
  barestack.kvm.hypervisor_info:
  register: facts

- name: Machine types
  ansible.builtin.debug:
    msg: "{{ facts.hypervisor.machine_types.x86_64 }}"
"""

RETURN = r"""
hypervisor:
  description: The host's facts.
  returned: success
  type: dict
  contains:
    hostname:
      description: The host's name as libvirt knows it.
      type: str
    host_ip:
      description: The address that the default route uses, else the one that Ansible connected to, else null.
      type: str
    hypervisor_type:
      description: Always V(QEMU), with or without KVM, as Nova reports it.
      type: str
    hypervisor_version:
      description: QEMU's version, 7.2.22 being 7002022.
      type: int
    libvirt_version:
      description: libvirt's version, 9.0.0 being 9000000.
      type: int
    virt_type:
      description: V(kvm) or V(qemu), O(virt_type) resolved.
      type: str
    vcpus:
      description: CPUs online.
      type: int
    memory_mb:
      description: Memory in MiB.
      type: int
    disk_gb:
      description: Size in GiB of the file system that holds, or will hold, O(instances_path).
      type: int
    disk_available_gb:
      description: What of it is free, in GiB.
      type: int
    numa_cells:
      description:
        - The NUMA cells, each with id, socket, cpus, memory_mb, siblings, the groups of CPUs that share a core, and pages,
          size_kb and total of each size.
      type: list
      elements: dict
    numa_topology:
      description: The NUMA cells as guests may have them, after O(cpu_shared_set) and the like; null without any.
      type: dict
    pci_devices:
      description: The PCI devices that O(pci_device_spec) names, with their tags.
      type: list
      elements: dict
    traits:
      description: What the host can do, in the names of os_traits.
      type: list
      elements: str
    cpu_info:
      description: The CPU's arch, model, vendor, features, and topology (sockets, cores, threads).
      type: dict
    supported_instances:
      description: What can run here, each as arch, hypervisor type and OS type.
      type: list
      elements: list
    machine_types:
      description: The names of the machine types, by arch.
      type: dict
    firmware:
      description: V(bios), and V(efi) where a UEFI firmware is installed.
      type: list
      elements: str
    running_domains:
      description: How many domains are active, ours or not.
      type: int
"""

import os
import socket
from typing import Any, ClassVar, Dict, FrozenSet, Optional, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import cells, driver, passthrough, traits
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest.designer import OFFERED
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest.hypervisor import (
    facts,
    resolve_virt_type,
    with_memory,
)
from ansible_collections.barestack.kvm.plugins.module_utils.host.image_format import DISK_FORMATS
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import Phase, run_module


class HypervisorInfo(Phase):
    """Reads; changes nothing."""

    name = "hypervisor_info"
    argument_spec: ClassVar[Dict[str, Any]] = {
        "libvirt_uri": {"type": "str", "default": "qemu:///system"},
        "virt_type": {"type": "str", "choices": ["auto", "kvm", "qemu"], "default": "auto"},
        "cpu_mode": {
            "type": "str",
            "choices": ["auto", "none", "host-model", "host-passthrough", "maximum", "custom"],
            "default": "auto",
        },
        "cpu_model": {"type": "str"},
        "pci_device_spec": {"type": "list", "elements": "dict", "default": []},
        **cells.ARGUMENT_SPEC,
        **cells.RESERVED_SPEC,
        **Paths.argument_spec,
    }

    def run(self) -> Dict[str, Any]:
        """One look at libvirt, the file system and the routes."""
        wanted = self.params["virt_type"]
        virt_type = resolve_virt_type(wanted, wanted == "auto" and driver.kvm_usable())
        with driver.connect(self.params["libvirt_uri"]) as hypervisor:
            hostname, version, libvirt_version, vcpus, memory = hypervisor.node()
            arch = os.uname().machine
            offers = hypervisor.domain_capabilities(arch, virt_type)
            found = facts(hypervisor.capabilities(), offers, virt_type)
            running = hypervisor.running()
            features = self._features(hypervisor, offers, arch, virt_type)
            # Only where it is asked for: a host has many devices.
            entries = self.params["pci_device_spec"]
            devices = passthrough.assignable(hypervisor.node_devices(), entries) if entries else ()
        if len(found["numa_cells"]) == 1:  # the capabilities' figure moves with a balloon of this machine
            found["numa_cells"] = [with_memory(found["numa_cells"][0], memory)]
        topology = cells.numa_topology(found["numa_cells"], self.params)
        offered = {**OFFERED, "disk_format": DISK_FORMATS}
        threads = any(len(core) > 1 for cell in found["numa_cells"] for core in cell["siblings"])
        disk, available = _disk(Paths.of(self.params).instances_path)
        node = {
            "hostname": hostname,
            "host_ip": _host_ip(),
            "hypervisor_type": "QEMU",
            "hypervisor_version": version,
            "libvirt_version": libvirt_version,
            "virt_type": virt_type,
            "vcpus": vcpus,
            "memory_mb": memory,
            "disk_gb": disk,
            "disk_available_gb": available,
            "running_domains": running,
            "numa_topology": to_wire(topology),
            "pci_devices": to_wire(devices),
            "traits": traits.traits(offers, features, arch, threads, offered),
        }
        return {"hypervisor": {**node, **found}}

    def _features(self, hypervisor: driver.Hypervisor, offers: str, arch: str, virt_type: str) -> FrozenSet[str]:
        """Of the CPU that guests get."""
        cpu = traits.guest_cpu(offers, self.params["cpu_mode"], self.params["cpu_model"] or "")
        return traits.features(hypervisor.baseline(cpu, arch, virt_type) if cpu else "")


def _disk(path: str) -> Tuple[int, int]:
    """(size, available) in GiB of the file system below ``path`` or its nearest existing parent."""
    while not os.path.isdir(path):
        path = os.path.dirname(path) or "/"
    system = os.statvfs(path)
    return system.f_blocks * system.f_frsize // 1024**3, system.f_bavail * system.f_frsize // 1024**3


def _host_ip() -> Optional[str]:
    """The source address of the default route; connecting UDP only asks the routes and sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            pass
    connection = os.environ.get("SSH_CONNECTION", "").split()
    return connection[2] if len(connection) == 4 else None


PHASE = HypervisorInfo


def main() -> None:
    run_module(PHASE)


if __name__ == "__main__":
    main()
