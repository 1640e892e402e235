# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The rules on NUMA cells and PCI devices: which hosts are left, what the others are told, what is taken."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import numa, pci
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import HostRow, Hosts, Inventory
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decide import decide
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.numa_topology import (
    NUMATopologyFilter,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.pci_passthrough import (
    PciPassthroughFilter,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.pci import PCIWeigher
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import NUMACell, NUMATopology
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import PciDevice

ALIASES = pci.aliases_of([{"name": "gpu", "vendor_id": "10de", "product_id": "20b5"}])
ROOM = {"VCPU": Inventory(64), "PCPU": Inventory(64), "MEMORY_MB": Inventory(65536, allocation_ratio=1.5)}


def cell(number: int = 0, cores: int = 4, threads: int = 1) -> NUMACell:
    first = number * 64
    siblings = tuple(frozenset(range(first + n * threads, first + (n + 1) * threads)) for n in range(cores))
    cpus = frozenset[int]().union(*siblings)
    return NUMACell(number, cpus, cpus, 8192, siblings)


def host(name: str, *cells: NUMACell, devices: int = 0) -> HostRow:
    found = [PciDevice(f"0000:{number + 1:02x}:00.0", "10de", "20b5", numa_node=0) for number in range(devices)]
    topology = NUMATopology(cells) if cells else None
    return HostRow(name=name, inventories=ROOM, numa=topology, pci=pci.pools_of(found))


def spec(servers: int = 1, vcpus: int = 2, **specs: str) -> RequestSpec:
    extra = {key.replace("_", ":", 1): value for key, value in specs.items()}
    flavor, image = Flavor("1", "m1", vcpus, 1024, 1, extra_specs=extra), Image("1", "i", "", "", "raw")
    uuids = tuple(f"00000000-0000-4000-8000-{number:012}" for number in range(servers))
    return RequestSpec(
        instance_uuids=uuids,
        flavor=flavor,
        image=image,
        numa=numa.request_of(flavor, image),
        pci_requests=pci.request_of(flavor, ALIASES, image),
    )


def answers(rule: Any, hosts: Hosts, asked: RequestSpec) -> list[str]:
    """For each host nothing, or why not."""
    mask = rule.mask(hosts, asked)
    return ["" if passes else rule.reason(hosts, row, asked) for row, passes in enumerate(mask)]


HOSTS = [
    host("kvm1"),
    host("kvm2", cell(0, cores=1)),
    host("kvm3", cell(0), cell(1)),
    host("kvm4", cell(0, cores=2, threads=2)),
]


def test_numa_cells() -> None:
    rule, hosts = NUMATopologyFilter(Options()), Hosts.of(HOSTS)
    assert rule.mask(hosts, spec()) is hosts.everywhere
    assert answers(rule, hosts, spec(hw_cpu_policy="dedicated")) == [
        "the server asks for NUMA cells, the host tells none",
        "cell 0: 2 CPUs of its own wanted, 1 free of 1",
        "",
        "",
    ]
    assert answers(rule, hosts, spec(hw_numa_nodes="2")) == [
        "the server asks for NUMA cells, the host tells none",
        "2 NUMA cells wanted, the host has 1",
        "",
        "2 NUMA cells wanted, the host has 1",
    ]
    require = spec(hw_cpu_policy="dedicated", hw_cpu_thread_policy="require")
    no_threads = "cpu_thread_policy=require wanted, the host's cores have one CPU each"
    assert answers(rule, hosts, require)[1:] == [no_threads, no_threads, ""]


def test_numa_cells_of_hosts_that_are_alike_are_looked_at_once() -> None:
    topology = NUMATopology((cell(0), cell(1)))
    hosts = Hosts.of([dataclasses.replace(host(f"kvm{number}"), numa=topology) for number in range(50)])
    rule = NUMATopologyFilter(Options())
    assert rule.mask(hosts, spec(hw_cpu_policy="dedicated")).all()
    assert len(rule._known) == 1
    hosts.consume(7, spec(hw_cpu_policy="dedicated", vcpus=4), "a")
    hosts.consume(7, spec(hw_cpu_policy="dedicated", vcpus=4), "b")
    asked = spec(hw_cpu_policy="dedicated")
    assert np.flatnonzero(~rule.mask(hosts, asked)).tolist() == [7]


def test_the_limits_are_the_hosts_ratios() -> None:
    busy = NUMATopology((dataclasses.replace(cell(0), cpu_usage=4, memory_usage=8192),))
    hosts = Hosts.of([dataclasses.replace(host("kvm1"), numa=busy)])
    rule = NUMATopologyFilter(Options())
    assert answers(rule, hosts, spec(hw_numa_nodes="1")) == ["cell 0: 2 CPUs wanted, 0 free of 4 x 1"]
    hosts.resources["VCPU"].allocation_ratio[0] = 2.0
    assert answers(rule, hosts, spec(hw_numa_nodes="1")) == [""]


def test_pci_devices() -> None:
    rule = PciPassthroughFilter(Options())
    hosts = Hosts.of([host("kvm1"), host("kvm2", devices=1), host("kvm3", devices=2)])
    assert rule.mask(hosts, spec()) is hosts.everywhere
    assert answers(rule, hosts, devices_of(2)) == ["2 gpu wanted, 0 free", "2 gpu wanted, 1 free", ""]


def devices_of(count: int, servers: int = 1, **specs: str) -> RequestSpec:
    asked = spec(servers, **specs)
    flavor = Flavor(
        "1", "m1", 2, 1024, 1, extra_specs={**asked.flavor.extra_specs, "pci_passthrough:alias": f"gpu:{count}"}
    )
    return dataclasses.replace(asked, flavor=flavor, pci_requests=pci.request_of(flavor, ALIASES, asked.image))


def test_hosts_with_devices_are_spared() -> None:
    hosts = Hosts.of([host("kvm1", devices=2), host("kvm2"), host("kvm3", devices=1)])
    rows = np.arange(3)
    assert PCIWeigher(Options()).raw(hosts, rows, spec()).tolist() == [98.0, 100.0, 99.0]
    assert PCIWeigher(Options()).weights(hosts, rows, spec()).tolist() == [0.0, 1.0, 0.5]
    many = Hosts.of([host("kvm1", devices=120), host("kvm2", devices=99)])
    assert PCIWeigher(Options()).raw(many, np.arange(2), spec()).tolist() == [1.0, 1.0]


def test_servers_of_one_request_never_share() -> None:
    hosts = Hosts.of([host("kvm1", cell(0), devices=2), host("kvm2", cell(0), devices=1)])
    decisions = decide(hosts, [devices_of(1, servers=5, hw_cpu_policy="dedicated")])
    taken = [(decision.host, decision.taken) for decision in decisions if decision.taken]
    devices = [(name, device.address) for name, found in taken for device in found.devices]
    cpus = [(name, cpu) for name, found in taken if found.numa for cpu in found.numa.pinned]
    assert len(devices) == len(set(devices)) == 3
    assert len(cpus) == len(set(cpus)) == 6
    assert [bool(decision.host) for decision in decisions] == [True, True, True, False, False]
