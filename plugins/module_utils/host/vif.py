# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Waits until the guest's taps are wired: Nova's wait_for_instance_event(network-vif-plugged), by link events."""

from __future__ import annotations

import time
from typing import Callable, Mapping, Optional, Sequence, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host.netlink import Link, LinkWatcher, Netlink
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Timeout
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Port

_LOOK = 1.0
"""Seconds between two looks at a guest whose taps do not come."""


def missing(port: Port, links: Mapping[str, Link]) -> Optional[str]:
    """What the port's tap lacks, in words; None where it is there, in its network's bridge, and up. Pure."""
    tap, bridge = links.get(port.tap_device), links.get(port.network.bridge)
    if tap is None:
        return f"{port.tap_device} does not exist"
    if bridge is None:
        return f"{port.tap_device} exists, bridge {port.network.bridge} does not"
    if tap.master != bridge.index:
        master = next((link.name for link in links.values() if link.index == tap.master), "no bridge")
        return f"{port.tap_device} is in {master}, not in {port.network.bridge}"
    return None if tap.up else f"{port.tap_device} is in {port.network.bridge}, but down"


def loose(port: Port, links: Mapping[str, Link]) -> Optional[Tuple[Link, Link]]:
    """(tap, bridge) where both are there and the tap is in no bridge, or is down; else None. Pure."""
    tap, bridge = links.get(port.tap_device), links.get(port.network.bridge)
    if tap is None or bridge is None or tap.master not in (None, bridge.index):
        return None
    return None if tap.master and tap.up else (tap, bridge)


def plug(tap: Link, bridge: Link) -> None:
    """What Neutron's agent did with a tap that it found outside its bridge: the bridge was made anew under a guest."""
    with Netlink() as socket:
        socket.set_link(tap.index, tap.name, master=bridge.index, state="up")


def wait_plugged(
    watcher: LinkWatcher, ports: Sequence[Port], timeout: float, alive: Callable[[], bool]
) -> Mapping[str, str]:
    """Wait up to ``timeout`` seconds for all the ports; returns what is still missing, by port id. Empty is well.

    No event of a link says that it never comes because the guest has ended: hence ``alive``, asked once a second.
    """
    deadline = time.monotonic() + timeout
    while True:
        turn = min(deadline, time.monotonic() + _LOOK)
        links = watcher.wait(lambda found: not any(missing(port, found) for port in ports), turn)
        states = {port.id: missing(port, links) for port in ports}
        found = {port_id: state for port_id, state in states.items() if state}
        if not found or turn >= deadline or not alive():
            return found


def timed_out(states: Mapping[str, str], timeout: float) -> Timeout:
    """The error for ports that were not wired in time, with the last state seen of each."""
    seen = "; ".join(f"port {port_id}: {state}" for port_id, state in states.items())
    return Timeout(f"not plugged within {timeout:g} s: {seen}. Is the domain started?")
