# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A host in a network namespace of the test's own, with guests behind veth pairs whose one end is named as a tap.

The phases run in it unchanged: bridges, nftables and sysctls belong to a namespace, and a thread's children are in
their parent's. No packet leaves it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host import netlink
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    DhcpPort,
    FixedIP,
    Flavor,
    Image,
    Instance,
    Network,
    Port,
    SecurityGroup,
    Subnet,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import execute

_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def shell(command: str) -> str:
    """A command's output; the test fails where the command does."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)  # noqa: S602
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class Guest:
    """A network namespace on the other end of a port's tap."""

    def __init__(self, port: Port, *, mac: Optional[str] = None, addresses: bool = True) -> None:
        self.port = port
        self.name = f"bsguest-{port.id[:8]}"
        shell(f"ip netns add {self.name}")
        link = (
            f"name {port.tap_device} mtu {port.network.mtu} type veth peer name eth0 address {mac or port.mac_address}"
        )
        shell(f"ip link add {link} netns {self.name}")
        shell(f"ip link set {port.tap_device} master {port.network.bridge} up")
        self.shell("ip link set lo up; ip link set eth0 up")
        for fixed in port.fixed_ips if addresses else ():
            subnet = port.network.subnet(fixed.subnet_id)
            self.shell(f"ip addr add {fixed.ip_address}/{subnet.cidr.split('/')[1]} dev eth0 nodad")
            if subnet.gateway_ip:
                self.shell(f"ip route add default via {subnet.gateway_ip}")

    @property
    def address(self) -> str:
        return self.port.fixed_ips[0].ip_address

    def shell(self, commands: str) -> str:
        return "".join(shell(f"ip netns exec {self.name} {command}") for command in commands.split("; "))

    def inside(self, work: Callable[[], Any]) -> Any:
        return netlink.in_namespace(self.name, work)

    def udp(self, port: int = 0, address: str = "0.0.0.0") -> socket.socket:
        return self.inside(lambda: _bound(socket.SOCK_DGRAM, address, port))

    def tcp(self, port: int = 0) -> socket.socket:
        return self.inside(lambda: _bound(socket.SOCK_STREAM, "0.0.0.0", port))

    def packet(self) -> socket.socket:
        """A raw socket on eth0: frames in, frames out."""

        def opened() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            made.bind(("eth0", 0))
            made.settimeout(10)
            return made

        return self.inside(opened)


def _bound(kind: int, address: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    made.settimeout(10)
    return made


class Lab:
    """A host and what a test put on it."""

    def __init__(self, state_path: str) -> None:
        self.paths = Paths(state_path=state_path)
        self.guests: List[Guest] = []
        self.networks: Dict[str, Network] = {}
        self._ports = 0

    def network(self, number: int = 0, **changes: Any) -> Network:
        """Network 10.9.<number>.0/24 with gateway .1, DHCP server .2 and MTU 1400."""
        subnet = Subnet(f"s4-{number}", "v4", f"10.9.{number}.0/24", f"10.9.{number}.1")
        server = DhcpPort(str(uuid.uuid4()), f"fa:16:3e:ff:00:{number:02x}", (FixedIP(subnet.id, f"10.9.{number}.2"),))
        values = {
            "id": str(uuid.uuid4()),
            "name": f"net{number}",
            "network_type": "local",
            "mtu": 1400,
            "dns_domain": "example.org",
            "subnets": (subnet,),
            "dhcp_port": server,
        }
        made = Network(**{**values, **changes})
        self.networks[made.id] = made
        return made

    def port(self, network: Network, groups: Tuple[SecurityGroup, ...] = (), **changes: Any) -> Port:
        """The network's next port: 10.9.<number>.11, .12, ..."""
        self._ports += 1
        subnet = network.subnets[0]
        address = f"{subnet.cidr.rsplit('.', 1)[0]}.{10 + self._ports}"
        values: Dict[str, Any] = {
            "id": str(uuid.uuid4()),
            "network": network,
            "mac_address": f"fa:16:3e:00:{network.subnets[0].cidr.split('.')[2]:0>2}:{self._ports:02x}",
            "fixed_ips": (FixedIP(subnet.id, address),),
            "security_groups": groups,
        }
        return Port(**{**values, **changes})

    def instance(self, *ports: Port, hostname: str = "vm", **changes: Any) -> Instance:
        flavor, image = Flavor("1", "tiny", 1, 64, 0), Image("i", "image", "/x", "sha256:0", "qcow2")
        made = Instance(
            1, str(uuid.uuid4()), hostname, hostname, "p", "u", flavor, image, "2025-11-23T07:36:00Z",
            host="here", ports=ports,
        )  # fmt: skip
        return made.with_(**changes)

    def run(self, name: str, *instances: Instance, state: str = "present", check: bool = False, **options: Any) -> Any:
        """Run a phase as its module does. Returns the result, its instances as objects."""
        phase = importlib.import_module(f"ansible_collections.barestack.kvm.plugins.modules.{name}").PHASE
        spec = {key: value.get("default") for key, value in phase.argument_spec.items()}
        own = {"instances": to_wire(list(instances)), "state": state, "state_path": self.paths.state_path}
        params = {**spec, **{key: value for key, value in {**own, **options}.items() if key in spec}}
        result = execute(phase, params, check)
        result["instances"] = [from_wire(Instance, item) for item in result["instances"]]
        return result

    def must(self, name: str, *instances: Instance, **options: Any) -> List[str]:
        """Run a phase in which nothing may fail; returns its effects."""
        result = self.run(name, *instances, **options)
        faults = [str(fault) for item in result["instances"] for fault in (item.fault, item.stuck) if fault]
        assert not faults, faults
        return list(result["effects"])

    def plug(self, port: Port, **options: Any) -> Guest:
        self.guests.append(Guest(port, **options))
        return self.guests[-1]

    def links(self) -> Dict[str, Dict[str, Any]]:
        return {link["ifname"]: link for link in json.loads(shell("ip -j -d link"))}

    def state_files(self) -> List[str]:
        """Every path below the state directory but the lock and the two directories that prepare_hosts makes."""
        root = Path(self.paths.state_path)
        paths = {str(path.relative_to(root)) for path in root.rglob("*")}
        return sorted(paths - {"network.lock", "dhcp", "networks"})

    def close(self) -> None:
        for pid_file in Path(self.paths.state_path).glob("dhcp/*/pid"):
            command = Path(f"/proc/{pid_file.read_text().strip()}/cmdline")
            if command.exists() and self.paths.state_path in command.read_text():
                os.kill(int(command.parent.name), signal.SIGKILL)
        mine = [guest.name for guest in self.guests] + [network.namespace for network in self.networks.values()]
        for name in set(mine) & set(os.listdir("/run/netns") if os.path.isdir("/run/netns") else ()):
            shell(f"ip netns delete {name}")
        shutil.rmtree(self.paths.state_path)


@pytest.fixture
def lab() -> Iterator[Lab]:
    if os.geteuid():
        pytest.skip("needs root: network namespaces")
    before = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
    state_path = tempfile.mkdtemp(prefix="barestack-test-")
    # dnsmasq gives up root and reads its files again later.
    os.chmod(state_path, 0o755)  # noqa: S103
    assert _LIBC.unshare(_CLONE_NEWNET) == 0
    made = Lab(state_path)
    try:
        shell("ip link set lo up; sysctl -qw net.ipv4.ip_forward=1")
        yield made
    finally:
        try:
            made.close()
        finally:
            assert _LIBC.setns(before, _CLONE_NEWNET) == 0
            os.close(before)
