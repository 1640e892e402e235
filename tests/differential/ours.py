# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Our side: the neutral words of sites.py as the scheduler's own types."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import pci
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import (
    Aggregate,
    Facts,
    HostRow,
    Hosts,
    Inventory,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decide import decide
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import (
    RequestSpec,
    ServerGroup,
    merged,
    request_spec,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.site_rules import Rules
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image, Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import NUMACell, NUMAPages, NUMATopology
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import PciDevice
from sites import Question

RULES = Rules()
Json = dict[str, Any]


def hosts(site: Json) -> Hosts:
    aggregates = {item["name"]: _aggregate(item) for item in site["aggregates"]}
    return Hosts.of([_row(host, aggregates) for host in site["hosts"]])


def _aggregate(told: Json) -> Aggregate:
    metadata = dict(told["metadata"])
    zone = metadata.pop("availability_zone", None)
    return Aggregate(name=told["name"], metadata=metadata, availability_zone=zone)


def _row(host: Json, aggregates: dict[str, Aggregate]) -> HostRow:
    measured = host["disk_available_gb"]
    return HostRow(
        name=host["name"],
        enabled=not host["disabled"],
        up=host["up"],
        inventories={name: Inventory(**item) for name, item in host["resources"].items()},
        disk_available_gb=math.inf if measured is None else measured,
        num_instances=host["num_instances"],
        num_io_ops=host["num_io_ops"],
        failed_builds=host["failed_builds"],
        facts=Facts(
            supported_instances=tuple(tuple(item) for item in host["supported_instances"]),
            hypervisor_type=host["hypervisor_type"],
            hypervisor_version=host["hypervisor_version"],
            cpu_info=host["cpu_info"],
            traits=frozenset(host["traits"]),
            stats=host["stats"],
        ),
        aggregates=tuple(aggregates[name] for name in host["aggregates"]),
        host_ip=host["host_ip"],
        metrics=host["metrics"],
        servers=tuple(host["servers"]),
        image_properties=Counter(pair for image in host["servers"].values() for pair in image.items()),
        numa=_numa(host["numa"]),
        pci=_pools(host["pci"]),
    )


def _numa(cells: list[Json] | None) -> NUMATopology | None:
    if cells is None:
        return None
    return NUMATopology(
        tuple(
            NUMACell(
                id=cell["id"],
                cpuset=frozenset(cell["cpuset"]),
                pcpuset=frozenset(cell["pcpuset"]),
                memory=cell["memory"],
                siblings=tuple(frozenset(core) for core in cell["siblings"]),
                pages=tuple(NUMAPages(**page) for page in cell["mempages"]),
                cpu_usage=cell["cpu_usage"],
                memory_usage=cell["memory_usage"],
                pinned_cpus=frozenset(cell["pinned_cpus"]),
            )
            for cell in cells
        )
    )


def _pools(pools: list[Json]) -> tuple[pci.PciPool, ...]:
    devices = []
    for bus, pool in enumerate(pools):
        alike = {name: pool[name] for name in ("vendor_id", "product_id", "dev_type", "numa_node")}
        devices += [PciDevice(address=f"0000:{bus:02x}:{n // 8:02x}.{n % 8}", **alike) for n in range(pool["count"])]
    return pci.pools_of(devices)


def _devices(told: list[Json]) -> tuple[pci.PciRequest, ...]:
    """By way of ``pci_alias``, an alias for each."""
    entries = [
        {
            "name": f"alias{number}",
            "vendor_id": item["spec"][0]["vendor_id"],
            "product_id": item["spec"][0]["product_id"],
            "device_type": item["spec"][0].get("dev_type"),
            "numa_policy": item["numa_policy"],
        }
        for number, item in enumerate(told)
    ]
    return tuple(
        pci.PciRequest(alias.name, item["count"], alias.specs, alias.numa_policy)
        for alias, item in zip(pci.aliases_of(entries).values(), told, strict=True)
    )


def request(told: Json) -> RequestSpec:
    """By way of the handle, as the schedule phase has it."""
    flavor = Flavor(id=told["flavor"]["name"], **told["flavor"])
    image = Image(name="image", url="", checksum="", **told["image"])
    group = _group(told["group"], told["servers"])
    zone = told["availability_zone"] or ""
    instances = [
        Instance(
            id=number,
            uuid=uuid,
            name=f"server{number}",
            hostname=f"server{number}",
            project_id=told["project_id"],
            user_id="user",
            flavor=flavor,
            image=image,
            created_at="",
            availability_zone=f"{zone}:{told['forced_host']}" if told["forced_host"] else zone or None,
            scheduler_hints=told["hints"],
        )
        for number, uuid in enumerate(told["servers"], 1)
    ]
    (spec,) = merged(request_spec(instance, group) for instance in instances)
    return dataclasses.replace(
        spec,
        ignore_hosts=tuple(told["ignore_hosts"]),
        requested_host=told["requested_host"],
        pci_requests=_devices(told["pci"]),
    )


def _group(told: Json | None, servers: list[str]) -> ServerGroup | None:
    if told is None:
        return None
    return ServerGroup(
        uuid=told["uuid"],
        name=told["name"],
        policy=told["policy"],
        max_server_per_host=told["max_server_per_host"] or 1,
        members=frozenset((*told["members"], *servers)),
    )


def options(told: Json) -> Options:
    """Nova's sections are one with us; [metrics]' options have its name in front."""
    flat = {}
    for section, values in told.items():
        for name, value in values.items():
            flat[f"metrics_{name}" if section == "metrics" else name] = value
    return Options.of(flat)


def answer(question: Question) -> Any:
    """What Nova's side answers to the same question. InvalidRequest where the request or an option cannot be read."""
    return _ANSWERS[question.ask](question)


def _filter(question: Question) -> list[str]:
    site = hosts(question.site)
    rule = next(item for item in RULES.filters if item.name == question.name)(options(question.options))
    mask = rule.mask(site, request(question.request))
    for row in np.flatnonzero(~mask).tolist():
        assert rule.reason(site, row, request(question.request)), f"{question.name} removes without a reason"
    return [name for name, passes in zip(site.names, mask) if passes]


def _weigher(question: Question) -> list[list[Any]]:
    """One host is not weighed at all, which is the pipeline's matter."""
    site = hosts(question.site)
    rule = next(item for item in RULES.weighers if item.name == question.name)(options(question.options))
    weights = rule.weights(site, np.arange(len(site)), request(question.request)) if len(site) > 1 else np.zeros(1)
    return [[site.names[row], float(weights[row])] for row in np.argsort(-weights, kind="stable")]


def _resources(question: Question) -> Json:
    spec = request(question.request)
    return {
        "resources": dict(spec.resources),
        "required": sorted(spec.required_traits),
        "forbidden": sorted(spec.forbidden_traits),
    }


def _decide(question: Question) -> Json:
    """``chosen`` for each server: the host and the alternates, or None; ``weighed``: what was left, best first."""
    decisions = decide(hosts(question.site), [request(question.request)], options(question.options), complete=True)
    return {
        "chosen": [[item.host, *item.alternates] if item.host else None for item in decisions],
        "weighed": [[[weight.host, weight.total] for weight in item.weights] for item in decisions if item.host],
    }


_ANSWERS: dict[str, Callable[[Question], Any]] = {
    "filter": _filter,
    "weigher": _weigher,
    "resources": _resources,
    "decide": _decide,
}
