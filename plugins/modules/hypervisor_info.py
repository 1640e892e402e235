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
      description: The NUMA cells, each with id, cpus, memory_mb and siblings, the groups of CPUs that share a core.
      type: list
      elements: dict
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
from typing import Any, ClassVar, Dict, Optional, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import driver
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest.hypervisor import facts, resolve_virt_type
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.phase import Phase, run_module


class HypervisorInfo(Phase):
    """Reads; changes nothing."""

    name = "hypervisor_info"
    argument_spec: ClassVar[Dict[str, Any]] = {
        "libvirt_uri": {"type": "str", "default": "qemu:///system"},
        "virt_type": {"type": "str", "choices": ["auto", "kvm", "qemu"], "default": "auto"},
        **Paths.argument_spec,
    }

    def run(self) -> Dict[str, Any]:
        """One look at libvirt, the file system and the routes."""
        wanted = self.params["virt_type"]
        virt_type = resolve_virt_type(wanted, wanted == "auto" and driver.kvm_usable())
        with driver.connect(self.params["libvirt_uri"]) as hypervisor:
            hostname, version, libvirt_version, vcpus, memory = hypervisor.node()
            arch = os.uname().machine
            found = facts(hypervisor.capabilities(), hypervisor.domain_capabilities(arch, virt_type), virt_type)
            running = hypervisor.running()
        if len(found["numa_cells"]) == 1:
            found["numa_cells"][0]["memory_mb"] = (
                memory  # the capabilities' figure moves with a balloon of this machine
            )
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
        }
        return {"hypervisor": {**node, **found}}


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
