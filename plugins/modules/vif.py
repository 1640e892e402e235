#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: vif
short_description: Waits for the instances' taps and lets the guests run
version_added: 0.1.0
description:
  - Waits, by the kernel's link events, until the tap of each port exists, is in its network's bridge and is
    up; checks that its rules are loaded; sets the port ACTIVE; then resumes the guest, which was started
    paused. This is Nova's wait for C(network-vif-plugged).
  - A port with port security whose rules are not loaded is an error whatever O(vif_plugging_is_fatal) says, and
    its guest does not run.
  - O(state=absent) changes nothing on the host; the ports are DOWN in the handle.
options:
  vif_plugging_timeout:
    description:
      - How many seconds the ports of one instance may take, as Nova's option of the same name.
    type: float
    default: 300
  vif_plugging_is_fatal:
    description:
      - Whether an instance fails when the time is over. V(false) leaves the port DOWN and resumes the guest,
        as Nova's option of the same name.
    type: bool
    default: true
  libvirt_uri:
    description:
      - Where libvirt is.
    type: str
    default: qemu:///system
extends_documentation_fragment:
  - barestack.kvm.host_phase
requirements:
  - python3-pyroute2
  - python3-libvirt
  - nft (nftables)
author:
  - barestack.kvm contributors (@barestack)
"""

EXAMPLES = r"""
- name: Vif
  barestack.kvm.vif:
    instances: "{{ domain.instances }}"
    vif_plugging_timeout: 60
  register: vif

- name: Report the ports as down
  barestack.kvm.vif:
    instances: "{{ doomed.instances }}"
    state: absent
"""

RETURN = r"""
instances:
  description:
    - The handle, with the ports' C(status) and, for the guests that run, C(power_state) V(RUNNING).
  returned: success
  type: str
effects:
  description: What was, or in check mode would be, carried out, each as C(effect target).
  returned: success
  type: list
  elements: str
  sample: ["vif.resume instance-00000001"]
"""

import contextlib
import dataclasses
import math
from functools import partial
from typing import Any, ClassVar, Dict, List, Mapping, Set

from ansible_collections.barestack.kvm.plugins.module_utils.host.firewall import protected
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import driver
from ansible_collections.barestack.kvm.plugins.module_utils.host.netlink import LinkWatcher
from ansible_collections.barestack.kvm.plugins.module_utils.host.once import Once
from ansible_collections.barestack.kvm.plugins.module_utils.host.vif import (
    loose,
    missing,
    plug,
    timed_out,
    wait_plugged,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError, NotFound
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance, PortStatus, PowerState
from ansible_collections.barestack.kvm.plugins.module_utils.phase import HostPhase, run_module

_RESUME_TIMEOUT = 60.0
_REPLUG_TIMEOUT = 2.0


class Vif(HostPhase):
    """One subscription to link events and one connection to libvirt, for all instances of the call."""

    name = "vif"
    argument_spec: ClassVar[Dict[str, Any]] = {
        "vif_plugging_timeout": {"type": "float", "default": 300},
        "vif_plugging_is_fatal": {"type": "bool", "default": True},
        "libvirt_uri": {"type": "str", "default": "qemu:///system"},
    }

    def before(self, instances: List[Instance]) -> None:
        self._open = contextlib.ExitStack()
        self._ports = [port for instance in instances for port in instance.ports]
        self._watcher: Once[str, LinkWatcher] = Once(lambda _: self._open.enter_context(LinkWatcher()))
        self._protected: Once[str, Set[str]] = Once(lambda _: protected(self._ports))
        self._hypervisor: Once[str, driver.Hypervisor] = Once(lambda uri: self._open.enter_context(driver.connect(uri)))

    def after(self, instances: List[Instance]) -> None:
        self._open.close()

    def present(self, instance: Instance) -> Instance:
        runs = self._runs(instance)
        if runs:
            self._plug(instance)
        unplugged = {} if self.check_mode else self._unplugged(instance, runs)
        ports = tuple(
            dataclasses.replace(port, status=PortStatus.DOWN if port.id in unplugged else PortStatus.ACTIVE)
            for port in instance.ports
        )
        if not runs:
            self.effects.apply(
                "vif.resume",
                instance.domain_name,
                lambda: self._hypervisor(self.params["libvirt_uri"]).resume(instance.uuid, _RESUME_TIMEOUT),
                before=PowerState.PAUSED,
                after=PowerState.RUNNING,
            )
        return instance.with_(ports=ports, power_state=PowerState.RUNNING)

    def absent(self, instance: Instance) -> Instance:
        return instance.with_(ports=tuple(dataclasses.replace(port, status=PortStatus.DOWN) for port in instance.ports))

    def _plug(self, instance: Instance) -> None:
        """Put back what fell out of its bridge; only a guest that is being started is wired by libvirt."""
        links = self._watcher("all").wait(lambda _: True, 0) if instance.ports else {}
        for port in instance.ports:
            found = loose(port, links)
            if found:
                before, after = f"{missing(port, links)}\n", f"{port.tap_device} is up in {port.network.bridge}\n"
                self.effects.apply("vif.plug", port.tap_device, partial(plug, *found), before=before, after=after)

    def _unplugged(self, instance: Instance, runs: bool) -> Mapping[str, str]:
        """What is missing of each port when the time is over; an error where that is fatal.

        A guest that runs already gets no other tap: there only what :meth:`_plug` has done is waited for.
        """
        if not instance.ports:
            return {}
        timeout = min(self.params["vif_plugging_timeout"], _REPLUG_TIMEOUT if runs else math.inf)
        hypervisor = self._hypervisor(self.params["libvirt_uri"])
        alive = partial(hypervisor.is_active, instance.uuid)
        states = wait_plugged(self._watcher("all"), instance.ports, timeout, alive)
        if states and not alive():
            raise HostError(f"domain {instance.domain_name} ({instance.uuid}) has ended before its ports were plugged")
        if states and self.params["vif_plugging_is_fatal"]:
            raise timed_out(states, timeout)
        # The firewall phase has loaded them before the tap could exist, so there is nothing to wait for.
        wanted = {port.id for port in instance.ports if port.port_security_enabled}
        bare = sorted(wanted - self._protected("all"))
        if bare:
            raise HostError(f"the rules of port {', '.join(bare)} are not loaded: run the firewall phase")
        return states

    def _runs(self, instance: Instance) -> bool:
        try:
            return self._hypervisor(self.params["libvirt_uri"]).power_state(instance.uuid) == PowerState.RUNNING
        except NotFound:
            if self.check_mode:
                return False
            raise


PHASE = Vif


def main() -> None:
    """Run the module."""
    run_module(PHASE)


if __name__ == "__main__":
    main()
