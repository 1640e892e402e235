# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Nova's side of NUMA and PCI: nova.virt.hardware and nova.pci, told in JSON. Runs in the environment of Nova.

One question a line on standard input, one answer a line on standard output. Topologies are told as our own types are
on the wire (model/numa.py), PCI devices as model/pci.py has them.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import sys
from typing import Any

logging.disable(logging.CRITICAL)

import nova.conf  # noqa: E402
import os_traits  # noqa: E402
from nova import exception, objects  # noqa: E402
from nova.pci import request as pci_request  # noqa: E402
from nova.pci import stats, utils, whitelist  # noqa: E402
from nova.virt import hardware  # noqa: E402
from nova.virt.libvirt import driver  # noqa: E402
from nova.virt.libvirt import utils as libvirt_utils  # noqa: E402

CONF = nova.conf.CONF
Json = dict[str, Any]


def flavor_of(told: Json) -> objects.Flavor:
    return objects.Flavor(
        flavorid="1", name="flavor", vcpus=told["vcpus"], memory_mb=told["ram"], extra_specs=told["extra_specs"]
    )


def image_of(properties: dict[str, str]) -> objects.ImageMeta:
    return objects.ImageMeta.from_dict({"name": "image", "properties": dict(properties)})


def host_of(told: Json) -> objects.NUMATopology:
    cells = []
    for cell in told["cells"]:
        pages = [objects.NUMAPagesTopology(**page) for page in cell["pages"]]
        sets = {key: set(cell[key]) for key in ("cpuset", "pcpuset", "pinned_cpus")}
        plain = {key: cell[key] for key in ("id", "memory", "socket", "cpu_usage", "memory_usage")}
        cells.append(
            objects.NUMACell(siblings=[set(core) for core in cell["siblings"]], mempages=pages, **sets, **plain)
        )
    return objects.NUMATopology(cells=cells)


def guest_of(told: Json | None) -> objects.InstanceNUMATopology | None:
    if told is None:
        return None
    cells = []
    for cell in told["cells"]:
        plain = {key: cell[key] for key in ("id", "memory", "pagesize", "cpu_policy", "cpu_thread_policy")}
        cells.append(
            objects.InstanceNUMACell(
                cpuset=set(cell["cpuset"]),
                pcpuset=set(cell["pcpuset"]),
                cpuset_reserved=set(cell["cpuset_reserved"]) or None,
                cpu_pinning_raw={str(guest): host for guest, host in cell["cpu_pinning"]} or None,
                **plain,
            )
        )
    return objects.InstanceNUMATopology(cells=cells, emulator_threads_policy=told["emulator_threads_policy"])


def tell_guest(topology: objects.InstanceNUMATopology | None) -> Json | None:
    if topology is None:
        return None
    cells = [
        {
            "id": cell.id,
            "cpuset": sorted(cell.cpuset),
            "pcpuset": sorted(cell.pcpuset),
            "memory": cell.memory,
            "pagesize": cell.pagesize,
            "cpu_policy": cell.cpu_policy,
            "cpu_thread_policy": cell.cpu_thread_policy,
            "cpu_pinning": sorted((cell.cpu_pinning or {}).items()),
            "cpuset_reserved": sorted(cell.cpuset_reserved or ()),
        }
        for cell in topology.cells
    ]
    return {"cells": cells, "emulator_threads_policy": topology.emulator_threads_policy}


def tell_host(topology: objects.NUMATopology) -> Json:
    return {
        "cells": [
            {
                "id": cell.id,
                "cpuset": sorted(cell.cpuset),
                "pcpuset": sorted(cell.pcpuset),
                "memory": cell.memory,
                "siblings": [sorted(core) for core in cell.siblings],
                "pages": [
                    {"size_kb": page.size_kb, "total": page.total, "used": page.used, "reserved": page.reserved}
                    for page in cell.mempages
                ],
                "socket": cell.socket,
                "cpu_usage": cell.cpu_usage,
                "memory_usage": cell.memory_usage,
                "pinned_cpus": sorted(cell.pinned_cpus),
            }
            for cell in topology.cells
        ]
    }


def limits_of(told: list[float] | None) -> objects.NUMATopologyLimits | None:
    if told is None:
        return None
    return objects.NUMATopologyLimits(cpu_allocation_ratio=told[0], ram_allocation_ratio=told[1])


def stats_of(host: objects.NUMATopology | None, devices: list[Json]) -> stats.PciDeviceStats:
    """The devices in pools, as Nova's compute host has them. Their tags come from device_spec, one entry for each."""
    made: dict[str, objects.PciDevice] = {}
    specs = []
    for told in devices:
        address = told["address"]
        specs.append(json.dumps({"address": address, **dict(told["tags"])}))
        made[address] = objects.PciDevice(
            compute_node_id=1,
            address=address,
            vendor_id=told["vendor_id"],
            product_id=told["product_id"],
            dev_type=told["dev_type"],
            numa_node=told["numa_node"],
            parent_addr=told["parent_address"],
            status="available",
            extra_info={},
        )
    for device in made.values():
        device.child_devices = [child for child in made.values() if child.parent_addr == device.address]
        device.parent_device = made.get(device.parent_addr)
    found = stats.PciDeviceStats(host, dev_filter=whitelist.Whitelist(specs) if specs else None)
    for device in made.values():
        found.add_device(device)
    return found


def requests_of(told: list[Json]) -> list[objects.InstancePCIRequest]:
    return [
        objects.InstancePCIRequest(
            count=item["count"],
            spec=[dict(spec) for spec in item["specs"]],
            alias_name=item["alias_name"],
            numa_policy=item["numa_policy"],
            request_id=None,
        )
        for item in told
    ]


def ask_request(told: Json) -> Any:
    return tell_guest(hardware.numa_get_constraints(flavor_of(told["flavor"]), image_of(told["image"])))


def ask_fit(told: Json) -> Any:
    """Nova's own answer, and whether sets of siblings come in ascending order, as ours always do."""
    CONF.set_override("packing_host_numa_cells_allocation_strategy", told["packing"], "compute")
    host, guest = host_of(told["host"]), guest_of(told["guest"])
    pools = stats_of(host, told["devices"]) if told["devices"] is not None else None
    ascending = all(list(core) == sorted(core) for cell in host.cells for core in cell.free_siblings)
    if told["each"]:
        placed = _each(host, guest, limits_of(told["limits"]), requests_of(told["requests"]), pools)
    else:
        placed = hardware.numa_fit_instance_to_host(
            host, guest, None, limits_of(told["limits"]), requests_of(told["requests"]), pools
        )
    return {"guest": tell_guest(placed), "ascending": ascending}


class _Whole:
    """Stands for itertools in nova.virt.hardware: says which order Nova asks for the host's cells in."""

    chain = itertools.chain

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def permutations(self, cells: Any, length: int) -> Any:
        self.asked = list(itertools.permutations(cells, length))
        return []


def _each(host: Any, guest: Any, limits: Any, requests: Any, pools: Any) -> Any:
    """Nova's search without what it remembers of one try in the next: every try on cells as they were asked for."""
    order = _Whole()
    hardware.itertools, before = order, hardware.itertools
    try:
        hardware.numa_fit_instance_to_host(host, copy.deepcopy(guest), None, limits, requests, pools)
    finally:
        hardware.itertools = before
    for cells in order.asked:
        placed = []
        for host_cell, cell in zip(cells, copy.deepcopy(guest).cells):
            reserved = int(guest.emulator_threads_isolated and not placed)
            try:
                found = hardware._numa_fit_instance_cell(host_cell, cell, limits, reserved)
            except exception.MemoryPageSizeNotSupported:
                found = None
            if found is None:
                break
            placed.append(found)
        if len(placed) < len(guest.cells):
            continue
        if requests and pools and not pools.support_requests(requests, None, placed):
            continue
        return objects.InstanceNUMATopology(cells=placed, emulator_threads_policy=guest.emulator_threads_policy)
    return None


def ask_usage(told: Json) -> Any:
    host = hardware.numa_usage_from_instance_numa(host_of(told["host"]), guest_of(told["guest"]), told["free"])
    return tell_host(host)


def ask_pci(told: Json) -> Any:
    host = host_of(told["host"])
    guest = guest_of(told["guest"])
    cells = guest.cells if guest else None
    requests = requests_of(told["requests"])
    found = stats_of(host, told["devices"])
    supported = found.support_requests(requests, None, cells)
    try:
        taken = [device.address for device in found.consume_requests(requests, cells)]
    except exception.PciDeviceRequestFailed:
        return {"supported": supported, "devices": None, "left": None}
    left = sorted(device.address for device in found.get_free_devs())
    return {"supported": supported, "devices": taken, "left": left}


def ask_pci_request(told: Json) -> Any:
    CONF.set_override("alias", [json.dumps(alias) for alias in told["aliases"]], "pci")
    pci_request.get_alias_from_config.cache_clear()
    flavor, image = flavor_of(told["flavor"]), image_of(told["image"])
    affinity = hardware.get_pci_numa_policy_constraint(flavor, image)
    return [
        {
            "alias_name": item.alias_name,
            "count": item.count,
            "specs": [sorted(spec.items()) for spec in item.spec],
            "numa_policy": item.numa_policy,
        }
        for item in pci_request.get_pci_requests_from_flavor(flavor, affinity).requests
    ]


class _Driver(driver.LibvirtDriver):
    """Nova's libvirt driver without a libvirt: the host is the one that is told."""

    def __init__(self, host: objects.NUMATopology) -> None:
        self._topology = host
        self._host = self

    def _has_numa_support(self) -> bool:
        return True

    def _get_host_numa_topology(self) -> objects.NUMATopology:
        return self._topology

    def get_online_cpus(self) -> set[int]:
        return {cpu for cell in self._topology.cells for core in cell.siblings for cpu in core}


def ask_domain(told: Json) -> Any:
    """What Nova's driver writes into a domain for these cells."""
    CONF.set_override("cpu_shared_set", told["cpu_shared_set"] or None, "compute")
    host, guest = host_of(told["host"]), guest_of(told["guest"])
    flavor, image = flavor_of(told["flavor"]), image_of({})
    nova_driver = _Driver(host)
    found = nova_driver._get_guest_numa_config(guest, flavor, image)
    backing = nova_driver._get_guest_memory_backing_config(guest, found.numatune, flavor, image)
    parts = (found.cputune, found.numaconfig, found.numatune, backing)
    return {"cpuset": sorted(found.cpuset or ()), "parts": [part.to_xml() if part else None for part in parts]}


def ask_device_spec(told: Json) -> Any:
    """Address -> tags, for the devices that a guest may have."""
    devices = told["devices"]
    cards = {device["address"] for device in devices if device["dev_type"] == "type-PF"}
    utils.is_physical_function = lambda *parts: "{}:{}:{}.{}".format(*parts) in cards
    allowed = whitelist.Whitelist([json.dumps(entry) for entry in told["entries"]])
    found = {}
    for device in devices:
        spec = allowed.device_assignable({**device, "parent_addr": device["parent_address"]})
        if spec:
            found[device["address"]] = spec.get_tags()
    return found


def ask_traits(told: Json) -> Any:
    """The traits of these CPU features, and which of these names are no traits."""
    of_features = libvirt_utils.cpu_features_to_traits(set(told["features"]))
    _known, unknown = os_traits.check_traits(told["names"])
    return {"traits": sorted(name for name, there in of_features.items() if there), "unknown": sorted(unknown)}


ASK = {
    "domain": ask_domain,
    "device_spec": ask_device_spec,
    "traits": ask_traits,
    "request": ask_request,
    "fit": ask_fit,
    "usage": ask_usage,
    "pci": ask_pci,
    "pci_request": ask_pci_request,
}


def main() -> None:
    objects.register_all()
    CONF([], project="nova", default_config_files=[])
    for line in sys.stdin:
        question = json.loads(line)
        try:
            found = {"answer": ASK[question["ask"]](question)}
        except Exception as error:  # noqa: BLE001 - whatever Nova raises is an answer
            found = {"error": type(error).__name__, "message": str(error)[:400]}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
