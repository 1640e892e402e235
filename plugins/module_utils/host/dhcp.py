# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""One dnsmasq for each network with DHCP, in its namespace: neutron.agent.dhcp and agent.linux.dhcp on one host.

The order in which things go, in both directions, is such that a call killed anywhere is finished by the next one.
"""

from __future__ import annotations

import ipaddress
import os
import select
import signal
from functools import partial
from typing import Dict, List, Optional, Sequence, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host import dnsmasq, netlink, system
from ansible_collections.barestack.kvm.plugins.module_utils.host.netlink import Link, Netlink
from ansible_collections.barestack.kvm.plugins.module_utils.host.network import host_lock
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError, InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import DhcpPort, Network, Port

START_TIMEOUT = 30.0
"""Seconds in which dnsmasq must have gone to the background: it does once its sockets are open."""
STOP_TIMEOUT = 5.0
"""Seconds between SIGTERM and SIGKILL."""

_FILES = ("host", "addn_hosts", "opts", "interface")


class Servers:
    """The DHCP servers of this host. A network is worked on once a call, with all its ports."""

    def __init__(self, paths: Paths, effects: Effects) -> None:
        self._paths = paths
        self._effects = effects

    def ensure(self, network: Network, entries: Sequence[Tuple[Port, str]]) -> None:
        """Serve these (port, hostname). A network without a DHCP subnet gets no server."""
        if not dnsmasq.served_subnets(network):
            return
        if network.dhcp_port is None:
            raise InvalidRequest(
                f"network {network.name} ({network.id}) has DHCP subnets but no dhcp_port: run the port phase first"
            )
        with host_lock(self._paths, self._effects.check_mode):
            server = _Server(self._paths, self._effects, network)
            server.namespace()
            with Netlink() as socket:
                server.interface(socket, network.dhcp_port)
            server.write(dnsmasq.files(network, server.read(), entries))
            server.serve()

    def release(self, network: Network, ports: Sequence[Port]) -> None:
        """Take these ports' entries out and give their leases back; the server goes with the last entry."""
        with host_lock(self._paths, self._effects.check_mode):
            server = _Server(self._paths, self._effects, network)
            current = server.read()
            left = dnsmasq.without(current, ports)
            if left["host"]:
                server.give_back(ports)
                server.write({**current, **left})
                server.reload_if_running()
            else:
                server.remove(current["interface"])


class _Server:
    """One network's namespace, interface, files and process."""

    def __init__(self, paths: Paths, effects: Effects, network: Network) -> None:
        self._effects = effects
        self._network = network
        self._directory = paths.dhcp_directory(network.id)
        self._pending = f"{self._directory}/.reload"
        self._entries_before = system.read_file(f"{self._directory}/host")
        self._dirty = os.path.exists(self._pending)

    def namespace(self) -> None:
        name = self._network.namespace
        if not netlink.namespace_exists(name):
            self._effects.apply("dhcp.namespace", name, partial(netlink.create_namespace, name), after=name)

    def interface(self, socket: Netlink, port: DhcpPort) -> None:
        """The veth pair, its one end in the bridge and the other with the DHCP port's addresses."""
        network, links = self._network, socket.links()
        tap, bridge = links.get(port.tap_device), links.get(network.bridge)
        inside = _inside(network.namespace, port) if netlink.namespace_exists(network.namespace) else ""
        wanted = f"{port.tap_device} in {network.bridge} mtu {network.mtu} up\n{_wanted_inside(network, port)}"
        before = f"{_outside(tap, bridge)}\n{inside}" if tap else ""
        if before == wanted:
            return

        def wire() -> None:
            if bridge is None:
                raise HostError(f"bridge {network.bridge} of network {network.name} is missing: run the network phase")
            previous = links.get(system.read_file(f"{self._directory}/interface").strip())
            for link in {item for item in (previous, tap) if item and (item != tap or not inside)}:
                socket.delete_link(link.name, link.index)
            if tap and inside:
                socket.set_link(tap.index, tap.name, master=bridge.index, mtu=network.mtu, state="up")
            else:
                peer = {"ifname": port.namespace_device, "address": port.mac_address, "net_ns_fd": network.namespace}
                socket.create_veth(port.tap_device, bridge.index, network.mtu, peer)
            netlink.in_namespace(network.namespace, partial(_set_up_inside, network, port))

        self._effects.apply("dhcp.interface", port.tap_device, wire, before=before, after=wanted)

    def read(self) -> Dict[str, str]:
        """The files' texts; empty where there are none."""
        return {name: system.read_file(f"{self._directory}/{name}") for name in _FILES}

    def write(self, wanted: Dict[str, str]) -> None:
        """Replace the files that differ. A mark stays until dnsmasq was told, whatever happens in between."""
        current = self.read()
        stale = [name for name in _FILES if wanted[name] != current[name]]
        if not stale:
            return

        def replace() -> None:
            os.makedirs(self._directory, mode=0o755, exist_ok=True)
            system.replace_file(self._pending, "")
            for name in stale:
                system.replace_file(f"{self._directory}/{name}", wanted[name])

        before, after = ("".join(f"{name}:\n{text[name]}\n" for name in stale) for text in (current, wanted))
        self._effects.apply("dhcp.files", self._directory, replace, before=before, after=after)
        self._dirty = True

    def serve(self) -> None:
        """Start dnsmasq where it does not run or runs for other subnets, else have it read its files again."""
        command = dnsmasq.command(self._network, self._directory)
        pid, running = self._process()
        # One whose files were lost goes on writing its leases where nobody reads them.
        kept = os.path.exists(f"{self._directory}/pid")
        if running == command and kept and netlink.is_in_namespace(pid, self._network.namespace):
            self.reload_if_running()
            return

        def start() -> None:
            if pid:
                stop(pid)
            if not os.path.exists(f"{self._directory}/leases"):
                system.replace_file(f"{self._directory}/leases", dnsmasq.first_leases(self._entries_before))
            netlink.in_namespace(self._network.namespace, partial(system.run, *command, timeout=START_TIMEOUT))
            self._done()

        self._effects.apply(
            "dhcp.server", self._network.id, start, before=" ".join(running), after=f"start {' '.join(command)}"
        )

    def reload_if_running(self) -> None:
        """SIGHUP, when files changed: dnsmasq reads host, addn_hosts and opts again and keeps its leases."""
        pid, _ = self._process()
        if not self._dirty or not pid:
            return

        def reload() -> None:
            os.kill(pid, signal.SIGHUP)
            self._done()

        self._effects.apply("dhcp.server", self._network.id, reload, before="", after=f"reload {pid}")

    def give_back(self, ports: Sequence[Port]) -> None:
        """Release the ports' leases, else the next port with the address gets none until they run out."""
        found, server = dnsmasq.leases(system.read_file(f"{self._directory}/leases"))
        macs = {port.mac_address.lower() for port in ports}
        addresses = {str(ipaddress.ip_address(fixed.ip_address)) for port in ports for fixed in port.fixed_ips}
        held = [lease for lease in found if lease.hardware in macs or lease.address in addresses]
        pid, _ = self._process()
        tap = system.read_file(f"{self._directory}/interface").strip()
        with Netlink() as socket:
            reachable = tap in socket.links() and netlink.namespace_exists(self._network.namespace)
        if not held or not pid or not reachable:
            return
        for lease in held:
            command = dnsmasq.release_command(tap.replace("tap", "ns-", 1), lease, server)
            act = partial(netlink.in_namespace, self._network.namespace, partial(system.run, *command))
            self._effects.apply("dhcp.lease", lease.address, act, before=f"{lease.hardware} {lease.address}")

    def remove(self, interface: str) -> None:
        """The process, the veth pair, the namespace, the files: whatever there is, in this order."""
        network, (pid, running) = self._network, self._process()
        if pid:
            self._effects.apply("dhcp.server", network.id, partial(stop, pid), before=" ".join(running))
        with Netlink() as socket:
            names = {interface.strip(), network.dhcp_port.tap_device if network.dhcp_port else ""}
            links = socket.links()
            for link in (links[name] for name in sorted(names & set(links))):
                gone = partial(socket.delete_link, link.name, link.index)
                self._effects.apply("dhcp.interface", link.name, gone, before=link.name)
        if os.path.exists(f"{netlink.NAMESPACES}/{network.namespace}"):
            gone = partial(netlink.delete_namespace, network.namespace)
            self._effects.apply("dhcp.namespace", network.namespace, gone, before=network.namespace)
        if os.path.isdir(self._directory):
            text = "".join(f"{name}:\n{text}\n" for name, text in self.read().items())
            self._effects.apply("dhcp.files", self._directory, partial(_remove_files, self._directory), before=text)

    def _done(self) -> None:
        if os.path.exists(self._pending):
            os.unlink(self._pending)

    def _process(self) -> Tuple[int, List[str]]:
        """(pid, command line) of the network's dnsmasq; (0, []) where none runs."""
        text = system.read_file(f"{self._directory}/pid").strip()
        # The pid may be another process's by now, and the file may be lost while its process lives.
        for pid in [text] if text.isdigit() else filter(str.isdigit, os.listdir("/proc")):
            command = _command_line(pid)
            if f"--pid-file={self._directory}/pid" in command:
                return int(pid), command
        return 0, []


def _command_line(pid: str) -> List[str]:
    try:
        return system.read_file(f"/proc/{pid}/cmdline").rstrip("\0").split("\0")
    except (ProcessLookupError, UnicodeDecodeError):  # it ended while it was read, or is none of ours
        return []


def stop(pid: int, timeout: float = STOP_TIMEOUT) -> None:
    """SIGTERM, SIGKILL after ``timeout`` seconds, and wait until the process has gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(descriptor, number)
            if select.select([descriptor], [], [], timeout)[0]:
                return
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)
    raise HostError(f"dnsmasq, process {pid}, did not end within {timeout} s of SIGKILL")


def _addresses(network: Network, port: DhcpPort) -> List[str]:
    return sorted(
        f"{ipaddress.ip_address(fixed.ip_address)}/{network.subnet(fixed.subnet_id).cidr.split('/')[1]}"
        for fixed in port.fixed_ips
    )


def _outside(tap: Link, bridge: Optional[Link]) -> str:
    place = f" in {bridge.name}" if bridge and tap.master == bridge.index else ""
    return f"{tap.name}{place} mtu {tap.mtu} {'up' if tap.up else 'down'}"


def _wanted_inside(network: Network, port: DhcpPort) -> str:
    mac = port.mac_address.lower()
    return f"lo up\n{port.namespace_device} {mac} mtu {network.mtu} up {' '.join(_addresses(network, port))}"


def _inside(namespace: str, port: DhcpPort) -> str:
    """The namespace's end, told as :func:`_wanted_inside` tells it; empty where it is missing."""

    def look() -> str:
        with Netlink() as socket:
            links = socket.links()
            link = links.get(port.namespace_device)
            if link is None:
                return ""
            state, loopback = ("up" if item.up else "down" for item in (link, links["lo"]))
            addresses = " ".join(sorted(socket.addresses().get(link.index, ())))
            return f"lo {loopback}\n{link.name} {link.mac} mtu {link.mtu} {state} {addresses}"

    return netlink.in_namespace(namespace, look)


def _set_up_inside(network: Network, port: DhcpPort) -> None:
    """Addresses and state of the namespace's end; runs inside."""
    name, wanted = port.namespace_device, _addresses(network, port)
    netlink.write_sysctl(f"net/ipv6/conf/{name}/accept_ra", "0")
    with Netlink() as socket:
        links = socket.links()
        link = links[name]
        socket.set_link(links["lo"].index, "lo", state="up")
        if link.mac != port.mac_address.lower():
            socket.set_link(link.index, name, address=port.mac_address)
        socket.set_link(link.index, name, mtu=network.mtu, state="up")
        socket.set_addresses(link.index, name, wanted)


def _remove_files(directory: str) -> None:
    """The directory with its files; the one above it belongs to prepare_hosts."""
    for name in os.listdir(directory):
        os.unlink(f"{directory}/{name}")
    os.rmdir(directory)
