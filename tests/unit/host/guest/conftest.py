# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Instances as they reach the domain phase."""

from __future__ import annotations

import os
import uuid

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    Disk,
    FixedIP,
    Flavor,
    Image,
    Instance,
    Network,
    Port,
    Subnet,
)

UUID = "32dfcb37-5af1-452b-857c-be8c3aa38310"
VOLUME = "0a1b2c3d-1111-4222-8333-444455556666"


def _port(number: int, *addresses: str) -> Port:
    subnets = (Subnet("s4", "v4", "10.0.0.0/24", "10.0.0.1"), Subnet("s6", "v6", "fd00::/64", None))
    network = Network(f"{number}e0a7c1d-3b1f-4a0e-9a53-6f1a52a8d001", f"net{number}", "local", 1450, "", subnets)
    ips = tuple(FixedIP("s6" if ":" in address else "s4", address) for address in addresses)
    return Port(f"{number}51ee5d4-0000-4000-8000-000000000001", network, f"fa:16:3e:00:00:0{number}", ips)


def _disks() -> tuple[Disk, ...]:
    paths = Paths()
    return (
        Disk("root", paths.disk(UUID, "disk"), "qcow2"),
        Disk("ephemeral", paths.disk(UUID, "disk.local"), "qcow2"),
        Disk("swap", paths.disk(UUID, "disk.swap"), "raw"),
        Disk("volume", paths.volume(VOLUME), "qcow2", serial=VOLUME),
        Disk("config_drive", paths.disk(UUID, "disk.config"), "raw"),
    )


@pytest.fixture
def server() -> Instance:
    """Everything that an ordinary server has."""
    return Instance(
        id=0x1,
        uuid=UUID,
        name="vm1",
        hostname="vm1",
        project_id="6d1f0000000000000000000000000001",
        project_name="demo",
        user_id="838a72b00d5448278fd6fb1227633ceb",
        user_name="alice",
        flavor=Flavor("2", "m1.small", 2, 2048, 20, 1, 512, {"hw:something": "unknown"}),
        image=Image("155d900f-4e14-4e4c-a73d-069cbf4541e6", "debian", "/x", "sha256:0", "qcow2", min_disk=2),
        created_at="2025-11-23T07:36:00.123456Z",
        ports=(_port(1, "10.0.0.5", "fd00::5"), _port(2, "10.0.0.6")),
        disks=_disks(),
    )


@pytest.fixture
def tiny() -> Instance:
    """A guest without disk or port, with a name and an id that nothing else on this host has."""
    identity = uuid.uuid4()
    return Instance(
        id=identity.int & 0x7FFFFFFF | 0x70000000,
        uuid=str(identity),
        name="tiny",
        hostname="tiny",
        project_id="p",
        user_id="u",
        flavor=Flavor("0", "tiny", 1, 64, 0),
        image=Image("i", "none", "/x", "sha256:0", "raw"),
        created_at="2025-11-23T07:36:00Z",
    )


@pytest.fixture
def need_system_libvirt() -> None:
    if os.geteuid() or not os.path.exists("/run/libvirt/libvirt-sock"):
        pytest.skip("needs root and libvirtd")
