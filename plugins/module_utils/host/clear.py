# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Removes named leftovers from this host, by the same code as the undos of a boot, and looks again before each.

Nothing here decides whose a thing is: the audit has, from the records. What is checked here is what only the host can
say: that a domain is ours, that no guest uses the directory or the tap, that nobody writes the file, that the network
is idle. It never removes a volume.
"""

from __future__ import annotations

import contextlib
import glob
import os
from functools import partial
from typing import Callable, Dict, List, Sequence, Set, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host.contents import (
    dnsmasq_processes,
    interfaces,
    is_abandoned,
    processes_in,
)
from ansible_collections.barestack.kvm.plugins.module_utils.host.dhcp import Servers
from ansible_collections.barestack.kvm.plugins.module_utils.host.disk import Disks, Qcow2, discard
from ansible_collections.barestack.kvm.plugins.module_utils.host.firewall import Firewall
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import driver
from ansible_collections.barestack.kvm.plugins.module_utils.host.netlink import Netlink
from ansible_collections.barestack.kvm.plugins.module_utils.host.network import Bridges
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.host.system import remove_file
from ansible_collections.barestack.kvm.plugins.module_utils.model.contents import LeftoverGuest, Leftovers
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError, Conflict, NotFound
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Network, Port


class Clearing:
    """One host's leftovers. What fails is told and does not stop the rest."""

    def __init__(self, paths: Paths, hypervisor: driver.Hypervisor, effects: Effects) -> None:
        self._paths = paths
        self._hypervisor = hypervisor
        self._effects = effects
        self.problems: List[str] = []

    def clear(self, leftovers: Leftovers) -> None:
        """Remove them, in the order of the undos: a disk goes only after its domain, rules only after their tap."""
        for guest in leftovers.guests:
            self._attempt(partial(self._guest, guest))
        for uuid in leftovers.doomed:
            self._attempt(partial(Disks(self._paths, Qcow2(), self._effects).remove_doomed, uuid))
        for path in leftovers.parts:
            self._attempt(partial(self._part, path))
        wired = self._wired(leftovers)
        self._attempt(partial(self._taps, [name for name in leftovers.taps if name not in wired]))
        ports = [port for port in leftovers.ports if port.tap_device not in wired]
        if ports:
            self._attempt(partial(Firewall(self._paths, self._effects).release, ports))
        for network, idle in _by_network(leftovers.networks, ports):
            self._attempt(partial(self._network, network, idle))

    def _attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        except (BarestackError, OSError) as error:
            self.problems.append(str(error))

    def _guest(self, guest: LeftoverGuest) -> None:
        with contextlib.suppress(NotFound):  # gone since we looked
            if self._hypervisor.digest(guest.uuid) is not None:  # Conflict where it is not ours
                self._domain(guest)
        for path in sorted(glob.glob(f"{glob.escape(self._paths.console_log(guest.uuid))}*")):
            self._effects.apply("domain.console_log", path, partial(remove_file, path), before="console log")
        if guest.disks:
            Disks(self._paths, Qcow2(), self._effects).remove_directory(guest.uuid)

    def _domain(self, guest: LeftoverGuest) -> None:
        uuid, before = guest.uuid, self._hypervisor.domain_xml(guest.uuid)
        if self._hypervisor.is_active(uuid):
            state, stop = self._hypervisor.power_state(uuid), partial(self._hypervisor.destroy, uuid)
            self._effects.apply("domain.running", guest.name, stop, before=state)
        gone = partial(self._hypervisor.undefine, uuid)
        self._effects.apply("domain.definition", guest.name, gone, before=before)

    def _part(self, path: str) -> None:
        roots = (self._paths.instances_path, f"{self._paths.state_path}/dhcp")
        if not any(os.path.realpath(path) == path and path.startswith(f"{root}/") for root in roots):
            raise Conflict(f"{path} is not in a directory of ours: it is left alone")
        if is_abandoned(path):  # which only a temporary file is
            discard(path, self._effects)

    def _wired(self, leftovers: Leftovers) -> Set[str]:
        """The taps of the guests that stay: what a guest still uses is never taken from under it."""
        gone = {guest.uuid for guest in leftovers.guests} if self._effects.check_mode else set()
        stay = [found for found in self._hypervisor.survey() if found.guest.uuid not in gone]
        return {tap for found in stay for tap, _ in interfaces(found.xml)}

    def _taps(self, names: List[str]) -> None:
        """A tap goes with its guest: one that is left was put there by hand, or was a DHCP server's end."""
        with Netlink() as socket:
            links = socket.links()
            for link in (links[name] for name in names if name in links):
                gone = partial(socket.delete_link, link.name, link.index)
                self._effects.apply("leftover.tap", link.name, gone, before=link.name)

    def _network(self, network: Network, ports: List[Port]) -> None:
        """Take the ports off; where none is left, the DHCP server and the bridge go as in the undo of the last port."""
        if not self._is_others(network):
            Servers(self._paths, self._effects).release(network, ports)
        Bridges(self._paths, self._effects).release(network, [port.id for port in ports])

    def _is_others(self, network: Network) -> bool:
        """Whether somebody else's process lives in the network's namespace: another site with other directories."""
        present: Set[int] = processes_in([network.namespace])[network.namespace]
        return bool(present - dnsmasq_processes(self._paths).get(network.id, set()))


def _by_network(networks: Sequence[Network], ports: Sequence[Port]) -> List[Tuple[Network, List[Port]]]:
    """Each network with its ports; one of which no more is known than its tap is on none."""
    found: Dict[str, Network] = {network.id: network for network in networks}
    for port in ports:
        if port.network.id:
            found.setdefault(port.network.id, port.network)
    return [(network, [port for port in ports if port.network.id == network.id]) for network in found.values()]
