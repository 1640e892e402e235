#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: domain
short_description: Defines the guests and starts them paused
version_added: 0.1.0
description:
  - Builds each instance's domain XML as Nova's libvirt driver does, defines it, and starts it with its CPUs stopped.
    The M(barestack.kvm.vif) phase lets it run once its ports are wired.
  - The domain carries a digest of the XML it was made from, so that libvirt's own normalisation never looks like a
    change. A domain that is shut off and differs is defined anew; one that is active and differs is a conflict.
  - O(state=absent) stops the guest, then removes the domain with its UEFI variables, TPM state, managed save and
    snapshot metadata, and its console log. It never removes a disk, and never touches a domain that does not carry our
    metadata.
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
      - Nova's C([libvirt]cpu_mode). V(auto) is V(host-model) under KVM and V(maximum) under emulation.
    type: str
    choices: [auto, none, host-model, host-passthrough, maximum, custom]
    default: auto
  cpu_model:
    description:
      - The model's name in libvirt. Needed with O(cpu_mode=custom), ignored otherwise.
    type: str
  hw_machine_type:
    description:
      - The machine type where the image's property of this name does not say.
    type: str
    default: pc
extends_documentation_fragment:
  - barestack.kvm.host_phase
  - barestack.kvm.paths
  - barestack.kvm.cpu_sets
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Domain
  barestack.kvm.domain:
    instances: "{{ config_drive.instances }}"
  register: domain

- name: Emulate, whatever the CPU can do
  barestack.kvm.domain:
    instances: "{{ config_drive.instances }}"
    virt_type: qemu

- name: Remove the domains
  barestack.kvm.domain:
    instances: "{{ doomed.instances }}"
    state: absent
"""

RETURN = r"""
instances:
  description: The handle, with C(power_state) as libvirt says; V(PAUSED) for those that were just started.
  returned: success
  type: str
effects:
  description: What was, or in check mode would be, carried out, each as C(effect target).
  returned: success
  type: list
  elements: str
  sample: ["domain.definition instance-00000001", "domain.running instance-00000001"]
"""

import contextlib
import dataclasses
import functools
import glob
import os
import threading
from typing import Any, ClassVar, Dict, List, Mapping, Optional

from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import cells, driver
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest.designer import HostOptions, design
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest.hypervisor import facts, resolve_virt_type
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.host.system import remove_file
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import (
    BarestackError,
    Conflict,
    HostError,
    InvalidRequest,
    NotFound,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance, PowerState
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import parse_cpus
from ansible_collections.barestack.kvm.plugins.module_utils.phase import HostPhase, run_module

_DESTROYS = 20
"""Side by side: a destroy only waits, and libvirtd has 20 workers."""


class Domain(HostPhase):
    """Define, then start paused; the undo stops, then undefines."""

    name = "domain"
    argument_spec: ClassVar[Dict[str, Any]] = {
        "libvirt_uri": {"type": "str", "default": "qemu:///system"},
        "virt_type": {"type": "str", "choices": ["auto", "kvm", "qemu"], "default": "auto"},
        "cpu_mode": {
            "type": "str",
            "choices": ["auto", "none", "host-model", "host-passthrough", "maximum", "custom"],
            "default": "auto",
        },
        "cpu_model": {"type": "str"},
        "hw_machine_type": {"type": "str", "default": "pc"},
        **cells.ARGUMENT_SPEC,
        **Paths.argument_spec,
    }

    def __init__(self, params: Mapping[str, Any], effects: Effects) -> None:
        if params["state"] == "absent":
            params = {**params, "max_concurrent_builds": max(params["max_concurrent_builds"], _DESTROYS)}
        elif params["cpu_mode"] == "custom" and not params["cpu_model"]:
            raise InvalidRequest(
                "cpu_mode is custom, but cpu_model names no model: set it, as in 'virsh cpu-models x86_64'"
            )
        super().__init__(params, effects)
        self._paths = Paths.of(params)
        # Starting QEMU is work for the CPU: more than two a core only take turns.
        self._starts = threading.BoundedSemaphore(2 * (os.cpu_count() or 1))
        self._connection: Optional[driver.Hypervisor] = None
        self._unreachable: Optional[HostError] = None
        self._misplaced: Optional[BarestackError] = None

    def before(self, instances: List[Instance]) -> None:
        """Connect; make the console logs' directory."""
        try:
            self._connection = driver.connect(self.params["libvirt_uri"])
        except HostError as error:  # each instance says so: the handle must reach the next phase
            self._unreachable = error
        if self.params["state"] == "absent":
            return
        usable = self.params["virt_type"] == "auto" and driver.kvm_usable()
        self._host = HostOptions(
            virt_type=resolve_virt_type(self.params["virt_type"], usable),
            paths=self._paths,
            direct_io=driver.takes_direct_io(self._paths.instances_path),
            cpu_mode=self.params["cpu_mode"],
            cpu_model=self.params["cpu_model"],
            machine_type=self.params["hw_machine_type"],
        )
        try:
            self._host = dataclasses.replace(self._host, **self._cells(instances))
        except BarestackError as error:  # as above
            self._misplaced = error
        directory = self._paths.log_path
        if not os.path.isdir(directory):
            self.effects.apply("domain.console_log", directory, lambda: _make_directory(directory), after="mode 0711")

    def _cells(self, instances: List[Instance]) -> Dict[str, Any]:
        """What the designer has to know of the host's CPUs; libvirt is asked only where a server claimed NUMA cells."""
        found: Dict[str, Any] = {"cpu_shared_set": parse_cpus(self.params["cpu_shared_set"], "cpu_shared_set")}
        if self._connection and any(instance.numa_topology for instance in instances):
            offers = "<domainCapabilities/>"  # nothing of them matters here
            there = facts(self._connection.capabilities(), offers, self._host.virt_type)["numa_cells"]
            found["topology"] = cells.numa_topology(there, self.params)
        return found

    def after(self, instances: List[Instance]) -> None:
        """Close the connection."""
        if self._connection:
            self._connection.close()

    def _hypervisor(self) -> Optional[driver.Hypervisor]:
        """None only in check mode, on a host that has no libvirt yet: then it has no domain either."""
        if self._unreachable and not self.check_mode:
            raise self._unreachable
        return self._connection

    def present(self, instance: Instance) -> Instance:
        """Define where absent or different, start paused where not active."""
        hypervisor = self._hypervisor()
        if self._misplaced:
            raise self._misplaced
        wanted = design(instance, self._host)
        uuid, name = instance.uuid, instance.domain_name
        found = hypervisor.digest(uuid) if hypervisor else None
        active = hypervisor is not None and found is not None and hypervisor.is_active(uuid)
        if found != wanted.digest:
            before = self._before(hypervisor, instance, found, active) if hypervisor else ""
            xml = wanted.render()
            self.effects.apply("domain.definition", name, lambda: self._define(xml), before=before, after=xml)
        if not active:
            self.effects.apply("domain.running", name, lambda: self._start(uuid), after=PowerState.PAUSED)
        if hypervisor is None or (self.check_mode and not active):
            return instance.with_(power_state=PowerState.PAUSED)
        return instance.with_(power_state=hypervisor.power_state(uuid))

    def _before(self, hypervisor: driver.Hypervisor, instance: Instance, found: Optional[str], active: bool) -> str:
        """The XML that is to be replaced, empty where there is none; Conflict where it must not be replaced."""
        name = instance.domain_name
        if active:
            raise Conflict(
                f"domain {name} ({instance.uuid}) is active and differs from what is asked for: shut it off to have it "
                "defined anew, or delete the server"
            )
        if found is not None:
            return hypervisor.domain_xml(instance.uuid)
        other = hypervisor.uuid_of(name)
        if other not in (None, instance.uuid):  # its own is one that another run has defined since we looked
            raise Conflict(
                f"the name {name} is taken by domain {other}, which is not server {instance.uuid}: do other records "
                "use this host too? It is left alone"
            )
        return ""

    def _define(self, xml: str) -> None:
        if self._connection:
            self._connection.define(xml)

    def _start(self, uuid: str) -> None:
        if self._connection:
            with self._starts:
                self._connection.start_paused(uuid)

    def absent(self, instance: Instance) -> Instance:
        """Stop, undefine, remove what libvirt and virtlogd leave."""
        hypervisor = self._hypervisor()
        uuid, name = instance.uuid, instance.domain_name
        if hypervisor:
            with contextlib.suppress(NotFound):  # gone since we looked: another run removes it too
                if hypervisor.digest(uuid) is not None:
                    self._remove_domain(hypervisor, instance)
        nvram = f"{driver.NVRAM_DIRECTORY}/{name}_VARS.fd"
        if hypervisor and os.path.exists(nvram) and not hypervisor.uuid_of(name):
            self.effects.apply("domain.definition", nvram, lambda: remove_file(nvram), before="UEFI variables")
        log = self._paths.console_log(uuid)
        for path in sorted(glob.glob(f"{glob.escape(log)}*")):  # and what virtlogd rotated away
            self.effects.apply("domain.console_log", path, functools.partial(remove_file, path), before="console log")
        return instance.with_(power_state=PowerState.NOSTATE)

    def _remove_domain(self, hypervisor: driver.Hypervisor, instance: Instance) -> None:
        uuid, name = instance.uuid, instance.domain_name
        before = hypervisor.domain_xml(uuid)
        if hypervisor.is_active(uuid):
            state = hypervisor.power_state(uuid)
            self.effects.apply("domain.running", name, lambda: hypervisor.destroy(uuid), before=state)
        self.effects.apply("domain.definition", name, lambda: hypervisor.undefine(uuid), before=before)


def _make_directory(directory: str) -> None:
    os.makedirs(directory, exist_ok=True)
    os.chmod(directory, 0o711)  # noqa: S103 - QEMU's user must get through, nobody needs to list


PHASE = Domain


def main() -> None:
    run_module(PHASE)


if __name__ == "__main__":
    main()
