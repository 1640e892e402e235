# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The handle: what flows from phase to phase, one ``Instance`` for each server.

Names and meanings are Nova's, Neutron's and Cinder's. Sizes carry their unit in the name or in the comment.
The classes run on the compute host's own Python too (3.9 and up), hence ``Optional`` instead of ``|``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Dict, Optional, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import InstanceNUMATopology
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import PciDevice


class VmState:
    """nova.compute.vm_states, the ones a boot can reach, spelt as users see them."""

    BUILDING = "BUILDING"
    ACTIVE = "ACTIVE"
    ERROR = "ERROR"
    DELETED = "DELETED"


class TaskState:
    """nova.compute.task_states, the ones a boot or a delete can reach."""

    SCHEDULING = "scheduling"
    NETWORKING = "networking"
    BLOCK_DEVICE_MAPPING = "block_device_mapping"
    SPAWNING = "spawning"
    DELETING = "deleting"


class PowerState:
    """nova.compute.power_state."""

    NOSTATE = "NOSTATE"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    SHUTDOWN = "SHUTDOWN"
    CRASHED = "CRASHED"


class PortStatus:
    """Neutron's port status."""

    DOWN = "DOWN"
    BUILD = "BUILD"
    ACTIVE = "ACTIVE"


@dataclass(frozen=True)
class Flavor:
    """Nova's flavor. ``ram`` and ``swap`` in MiB, ``disk`` and ``ephemeral`` in GiB."""

    id: str
    name: str
    vcpus: int
    ram: int
    disk: int
    ephemeral: int = 0
    swap: int = 0
    extra_specs: Dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Image:
    """Glance's image. ``url`` is a path or an http(s) address; ``checksum`` is ``<algorithm>:<hex digest>``.

    ``min_disk`` in GiB, ``min_ram`` in MiB; ``properties`` are Glance's image properties (``hw_*``, ``os_*``).
    """

    id: str
    name: str
    url: str
    checksum: str
    disk_format: str
    min_disk: int = 0
    min_ram: int = 0
    properties: Dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Subnet:
    """Neutron's subnet. ``host_routes`` are (destination, nexthop) pairs."""

    id: str
    name: str
    cidr: str
    gateway_ip: Optional[str]
    enable_dhcp: bool = True
    dns_nameservers: Tuple[str, ...] = ()
    host_routes: Tuple[Tuple[str, str], ...] = ()
    allocation_pools: Tuple[Tuple[str, str], ...] = ()
    """(first, last) addresses that may be given out."""

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.cidr else 4


@dataclass(frozen=True)
class DhcpPort:
    """Where the network's DHCP server sits on one host: Neutron's port with owner ``network:dhcp``."""

    id: str
    mac_address: str
    fixed_ips: Tuple[FixedIP, ...]

    @property
    def tap_device(self) -> str:
        """The bridge's end of the veth pair."""
        return f"tap{self.id[:11]}"

    @property
    def namespace_device(self) -> str:
        """The end that dnsmasq listens on."""
        return f"ns-{self.id[:11]}"


@dataclass(frozen=True)
class Network:
    """Neutron's network with its subnets.

    ``network_type`` ``local``: a bridge of the host with a gateway on it; ``flat``: the wire ``physical_network``.
    """

    id: str
    name: str
    network_type: str
    mtu: int
    dns_domain: str
    subnets: Tuple[Subnet, ...]
    dhcp_port: Optional[DhcpPort] = None
    """Filled by the port phase for the host that the instance is placed on."""
    physical_network: str = ""
    """Of a flat network: the wire, which each host's ``physical_interface_mappings`` leads to an interface."""

    @property
    def bridge(self) -> str:
        """``brq<first 11 characters of the id>``, as the Linux bridge agent named it."""
        return f"brq{self.id[:11]}"

    @property
    def namespace(self) -> str:
        """``qdhcp-<id>``, as the DHCP agent named it."""
        return f"qdhcp-{self.id}"

    def subnet(self, subnet_id: str) -> Subnet:
        """The subnet with this id; KeyError where there is none."""
        for subnet in self.subnets:
            if subnet.id == subnet_id:
                return subnet
        raise KeyError(subnet_id)


@dataclass(frozen=True)
class FixedIP:
    """One address of a port."""

    subnet_id: str
    ip_address: str


@dataclass(frozen=True)
class SecurityGroupRule:
    """Neutron's rule. ``protocol`` None is any; ports are inclusive, for ICMP they are type and code."""

    direction: str
    """``ingress`` or ``egress``."""
    ethertype: str
    """``IPv4`` or ``IPv6``."""
    protocol: Optional[str] = None
    port_range_min: Optional[int] = None
    port_range_max: Optional[int] = None
    remote_ip_prefix: Optional[str] = None
    remote_group_id: Optional[str] = None


@dataclass(frozen=True)
class SecurityGroup:
    """Neutron's security group: what it lets through; everything else is dropped."""

    id: str
    name: str
    rules: Tuple[SecurityGroupRule, ...]


@dataclass(frozen=True)
class Port:
    """Neutron's port with its network embedded, as Nova's network info model has it."""

    id: str
    network: Network
    mac_address: str
    fixed_ips: Tuple[FixedIP, ...]
    security_groups: Tuple[SecurityGroup, ...] = ()
    port_security_enabled: bool = True
    status: str = PortStatus.DOWN
    name: str = ""
    tag: Optional[str] = None

    @property
    def tap_device(self) -> str:
        """``tap<first 11 characters of the id>``: 14 characters, as Nova names it."""
        return f"tap{self.id[:11]}"


@dataclass(frozen=True)
class BlockDevice:
    """A block device mapping with its volume. ``size`` in GiB.

    ``source_type``: ``blank`` or ``volume``; ``destination_type``: ``volume``. The root disk of an image is not
    listed here: it follows from image and flavor.
    """

    id: str
    source_type: str
    destination_type: str
    volume_id: str
    size: int
    boot_index: int = -1
    delete_on_termination: bool = False
    volume_name: str = ""
    volume_type: str = "directory"
    connection_info: Dict[str, Any] = field(default_factory=dict)
    """What the host needs to open it: ``{"driver_volume_type": "local", "data": {"device_path":, "format":}}``."""


@dataclass(frozen=True)
class Disk:
    """A disk as the guest will see it, made by the storage phases for the domain phase.

    ``role``: ``root``, ``ephemeral``, ``swap``, ``volume`` or ``config_drive``; ``format``: ``qcow2`` or ``raw``.
    """

    role: str
    path: str
    format: str
    serial: Optional[str] = None
    """The volume's id, for volumes."""
    boot_index: int = -1


@dataclass(frozen=True)
class ServerGroup:
    """Nova's server group that a server is a member of; who the others are, the records know."""

    uuid: str
    name: str
    policy: str
    """``affinity``, ``anti-affinity``, ``soft-affinity`` or ``soft-anti-affinity``."""
    max_server_per_host: Optional[int] = None


@dataclass(frozen=True)
class WaitFor:
    """What the boot waits for once the server is ACTIVE, with its deadline in seconds."""

    condition: str
    """``lease``, ``console`` or ``ssh``."""
    timeout: float = 300.0
    pattern: str = "login:"
    """For ``console``: the text (a regular expression) to appear."""


@dataclass(frozen=True)
class Event:
    """Nova's instance action event: one phase's work on one instance. Times are ISO 8601 in UTC."""

    event: str
    start_time: str
    finish_time: str
    result: str
    """``Success`` or ``Error``."""
    host: Optional[str] = None
    traceback: Optional[str] = None


@dataclass(frozen=True)
class Fault:
    """Nova's instance fault: which phase failed, where, and why."""

    phase: str
    host: Optional[str]
    message: str
    code: int = 500

    def __str__(self) -> str:
        return f"{self.phase} on {self.host or 'the control host'}: {self.message}"


@dataclass(frozen=True)
class Instance:
    """One server on its way. Phases return it richer with :func:`dataclasses.replace`."""

    id: int
    """The records' number; 0 only in check mode before it has one."""
    uuid: str
    name: str
    hostname: str
    project_id: str
    user_id: str
    flavor: Flavor
    image: Image
    created_at: str
    project_name: str = ""
    user_name: str = ""
    description: str = ""
    key_name: Optional[str] = None
    public_key: Optional[str] = None
    metadata: Dict[str, str] = field(default_factory=dict)
    user_data: Optional[str] = None
    """Plain text, not base64."""
    config_drive: bool = True
    availability_zone: Optional[str] = None
    scheduler_hints: Dict[str, Any] = field(default_factory=dict)
    requested_host: Optional[str] = None
    """The only compute host that may do, where one was asked for."""
    ignore_hosts: Tuple[str, ...] = ()
    server_group: Optional[ServerGroup] = None
    """What the hint ``group`` named."""
    launch_index: int = 0
    networks: Tuple[Dict[str, Any], ...] = ()
    """What was asked for, one entry a NIC: ``{"network": Network, "fixed_ip": ..., "port": ..., "tag": ...}``."""
    security_groups: Tuple[SecurityGroup, ...] = ()
    block_devices: Tuple[BlockDevice, ...] = ()
    wait_for: Optional[WaitFor] = None

    vm_state: str = VmState.BUILDING
    task_state: Optional[str] = TaskState.SCHEDULING
    power_state: str = PowerState.NOSTATE
    host: Optional[str] = None
    numa_topology: Optional[InstanceNUMATopology] = None
    """Its cells, each claimed on one of the host's; None where the host's kernel places it."""
    pci_devices: Tuple[PciDevice, ...] = ()
    """Those of the host that are claimed for it."""
    ports: Tuple[Port, ...] = ()
    disks: Tuple[Disk, ...] = ()
    """In the order the guest sees them: root, ephemeral, swap, volumes, config drive (``with_disk`` keeps it)."""
    launched_at: Optional[str] = None
    fault: Optional[Fault] = None
    stuck: Optional[Fault] = None
    """An undo that failed: what is left of this instance on its host. Later undos leave it alone."""
    attempts: Tuple[Fault, ...] = ()
    """Why each host that was tried for this boot was given up."""
    events: Tuple[Event, ...] = ()
    """What phases did in this run and the records do not hold yet."""

    @property
    def may_run(self) -> bool:
        """Whether its host may have a domain of it: then no other host may, until that one undid it.

        A task state never goes back on one host, so that this holds for what earlier, killed runs did there, too.
        """
        return bool(self.host) and self.task_state not in (
            TaskState.SCHEDULING,
            TaskState.NETWORKING,
            TaskState.BLOCK_DEVICE_MAPPING,
        )

    @property
    def domain_name(self) -> str:
        """Nova's ``instance_name_template``: ``instance-%08x`` of the records' number."""
        return f"instance-{self.id:08x}"

    def with_disk(self, disk: Disk) -> Instance:
        """A copy with this disk, in place of the one with the same path."""
        order = ("root", "ephemeral", "swap", "volume", "config_drive")
        disks = [item for item in self.disks if item.path != disk.path] + [disk]
        return self.with_(disks=tuple(sorted(disks, key=lambda item: order.index(item.role))))

    def with_(self, **changes: Any) -> Instance:
        """A copy with these fields changed."""
        return dataclasses.replace(self, **changes)
