# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A host for the audit's tests: its networks are real, in the lab's namespace, its guests libvirt's test driver's."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, List, Tuple

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import driver
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest.config import NOVA_NAMESPACE, OUR_NAMESPACE
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.contents import Contents, Leftovers
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    Instance,
    SecurityGroup,
    SecurityGroupRule,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import execute
from ansible_collections.barestack.kvm.plugins.modules import clear, contents

from .conftest import Guest, Lab

libvirt = pytest.importorskip("libvirt")

URI = "test:///default"
GROUP = SecurityGroup("5e01", "default", (SecurityGroupRule("egress", "IPv4"),))


class AuditedHost:
    """The lab with guests, disks and consoles."""

    def __init__(self, lab: Lab, root: Path, hypervisor: driver.Hypervisor) -> None:
        self.lab = lab
        self.hypervisor = hypervisor
        self.paths = Paths(f"{root}/instances", lab.paths.state_path, f"{root}/log")
        self.network = lab.network()
        self.mine: List[str] = []
        """The ids of networks that a test makes by hand."""

    def server(self, hostname: str, **changes: Any) -> Instance:
        """A server with all that its host has of it: networking, a tap, a domain, a directory, a console."""
        port = self.lab.port(self.network, (GROUP,))
        made = self.lab.instance(port, hostname=hostname, **changes)
        made = made.with_(id=uuid.UUID(made.uuid).int & 0x7FFFFFFF)
        for phase in ("network", "dhcp", "firewall"):
            self.lab.must(phase, made)
        self.lab.guests.append(Guest(port))
        self.define(made)
        self.write(f"{self.paths.instance_directory(made.uuid)}/disk")
        self.write(self.paths.console_log(made.uuid))
        return made

    def define(self, instance: Instance, ours: bool = True) -> None:
        """Its domain, defined."""
        mark = f'<b:domain xmlns:b="{OUR_NAMESPACE}" digest="d"/>' if ours else ""
        ports = "".join(f'<n:port uuid="{port.id}"/>' for port in instance.ports)
        nova = f'<n:instance xmlns:n="{NOVA_NAMESPACE}"><n:ports>{ports}</n:ports></n:instance>'
        wires = "".join(
            f"<interface type='bridge'><mac address='{port.mac_address}'/><source bridge='{port.network.bridge}'/>"
            f"<target dev='{port.tap_device}'/></interface>"
            for port in instance.ports
        )
        disk = self.paths.disk(instance.uuid, "disk")
        self.hypervisor.define(
            f"<domain type='test'><uuid>{instance.uuid}</uuid><name>{instance.domain_name}</name>"
            f"<memory unit='MiB'>64</memory><vcpu>1</vcpu><metadata>{nova}{mark}</metadata><os><type>hvm</type></os>"
            f"<devices><disk type='file' device='disk'><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>"
            f"{wires}</devices></domain>"
        )

    def start(self, instance: Instance) -> None:
        """Run the guest, as far as the test driver does."""
        self.hypervisor._domain(instance.uuid).create()

    @staticmethod
    def write(path: str, text: str = "x") -> str:
        """A file, with the directories above it."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
        return path

    def look(self, **options: Any) -> Contents:
        """What the module finds."""
        result = execute(contents.PHASE, self._options(contents.PHASE, options), True)
        assert not result["changed"]
        found = from_wire(Contents, result["contents"])
        # The namespaces' names are the whole machine's.
        own = {network.id for network in self.lab.networks.values()} | set(self.mine)
        return dataclasses.replace(found, servers=tuple(item for item in found.servers if item.network_id in own))

    def clear(self, check: bool = False, **leftovers: Any) -> Tuple[List[str], List[str]]:
        """(effects, problems) of the module."""
        options = {"leftovers": to_wire(Leftovers(**leftovers))}
        result = execute(clear.PHASE, self._options(clear.PHASE, options), check)
        return result["effects"], result["problems"]

    def _options(self, phase: Any, options: Any) -> Any:
        paths = {name: getattr(self.paths, name) for name in ("instances_path", "state_path", "log_path")}
        defaults = {name: option.get("default") for name, option in phase.argument_spec.items()}
        return {**defaults, **paths, "libvirt_uri": URI, **options}


@pytest.fixture
def host(lab: Lab, tmp_path: Path) -> Iterator[AuditedHost]:
    with driver.connect(URI) as hypervisor:
        yield AuditedHost(lab, tmp_path, hypervisor)
