# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Whatever a phase changes outside its own process, named once.

``EFFECTS`` is the one list: each entry can be repeated without harm and has its undo. A phase makes a change
only through :meth:`Effects.apply`, so that ``changed``, ``--diff``, ``--check`` and a crash harness all speak of
the same things.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, TypeVar

T = TypeVar("T")

EFFECTS: Dict[str, str] = {
    # control
    "identity.keys": "the keys that sign tokens: created, rotated",
    "instance.record": "the instance's row, its block device mappings, its membership in a server group",
    "instance.state": "vm_state, task_state, power_state, fault, actions and events",
    "compute_node.record": "a host's inventories, capabilities and heartbeat",
    "allocation.claim": "the claim on a host's inventories, CPUs and PCI devices",
    "port.record": "the port, its MAC and its addresses",
    "dhcp_port.record": "the DHCP server's port and address on one host",
    "volume.record": "the volume and its attachment",
    "notification.send": "a CloudEvents notification",
    # a compute host itself
    "host.settings": "the files that keep kernel modules and settings over a reboot",
    "host.sysctl": "a setting of the running kernel",
    "host.daemon": "a libvirt daemon, where no init system starts it",
    "host.demo_image": "the demo image",
    # network
    "network.port": "the port's mark on this host: its network's bridge goes with the last",
    "network.bridge": "the bridge brq<id> with its MTU and forwarding",
    "network.gateway": "the gateway's addresses on the bridge",
    "network.masquerade": "the masquerade rule of a local network",
    "network.uplink": "the physical interface in a flat network's bridge, with the host itself closed to it",
    # dhcp
    "dhcp.namespace": "the namespace qdhcp-<id>",
    "dhcp.interface": "the veth pair between bridge and namespace, with the DHCP port's addresses",
    "dhcp.files": "dnsmasq's host, addn_hosts, opts files",
    "dhcp.server": "the dnsmasq process: started, reloaded or stopped",
    "dhcp.lease": "a lease given back",
    # firewall
    "firewall.table": "the nftables tables, sets and base chains",
    "firewall.port": "the chains and set elements of one port",
    # storage
    "image.base": "the image in the host's cache",
    "volume.disk": "the volume's file in the pool",
    "disk.directory": "the instance's directory",
    "disk.root": "the root disk",
    "disk.ephemeral": "the ephemeral disk",
    "disk.swap": "the swap disk",
    "config_drive.iso": "the config drive",
    # guest
    "domain.definition": "the persistent domain",
    "domain.running": "the guest's process",
    "domain.console_log": "the console's log file",
    "vif.plug": "the tap of a guest that runs, put back into its bridge",
    "vif.resume": "the guest resumed once its ports are wired",
    # the audit's repair, beside the undos of all these
    "leftover.part": "a temporary file that a killed run left",
    "leftover.tap": "a tap that no guest has",
}


@dataclass(frozen=True)
class Change:
    """One effect that was, or in check mode would be, carried out."""

    effect: str
    target: str
    before: str
    after: str


class Effects:
    """Carries effects out, or in check mode only writes them down. Safe to share between threads."""

    def __init__(self, check_mode: bool) -> None:
        self.check_mode = check_mode
        self._changes: List[Change] = []
        self._lock = threading.Lock()

    def apply(self, effect: str, target: str, act: Callable[[], T], *, before: str = "", after: str = "") -> T | None:
        """Carry out ``act`` as ``effect`` on ``target`` and return its result; in check mode return None.

        Call it only when there is something to change: deciding that is the phase's part. ``before`` and
        ``after`` are what ``--diff`` shows. An unknown effect raises KeyError.
        """
        if effect not in EFFECTS:
            raise KeyError(f"{effect} is not in EFFECTS: name it there, with what it is")
        result = None if self.check_mode else act()
        with self._lock:
            self._changes.append(Change(effect, target, before, after))
        return result

    def note(self, effect: str, target: str, *, before: str = "", after: str = "") -> None:
        """Write down an effect that was carried out in a transaction which check mode rolls back."""
        self.apply(effect, target, lambda: None, before=before, after=after)

    def forget(self) -> None:
        """Start over: the transaction that the effects were made in is tried again."""
        with self._lock:
            self._changes.clear()

    @property
    def changed(self) -> bool:
        """Whether anything was, or would be, changed."""
        return bool(self._changes)

    @property
    def names(self) -> List[str]:
        """The effects carried out, in order, each as ``effect target``."""
        return [f"{change.effect} {change.target}" for change in self._changes]

    def diff(self) -> List[Dict[str, Any]]:
        """Ansible's ``diff``: one entry a change, in the order they were made."""
        return [
            {
                "before_header": f"{change.effect} {change.target}",
                "after_header": f"{change.effect} {change.target}",
                "before": change.before,
                "after": change.after,
            }
            for change in self._changes
        ]
