# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""PCI devices for guests: what a flavor asks for by alias, the pools of a host, and which devices a guest gets.

Mirrors nova.pci.request and nova.pci.stats: devices that are alike are a pool, a request is served from the pools that
match, by NUMA affinity. Unlike Nova's scheduler, which only counts, the devices themselves are chosen here: so a card
and its own virtual functions are never promised together. Pure: nothing given is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.numa_request import pci_affinity_of
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import InstanceNUMACell, NUMATopology
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import DeviceType, PciAffinity, PciDevice

ALIAS_SPEC = "pci_passthrough:alias"
_HEX = re.compile(r"[\da-fA-F]{4}")
_ALIAS_KEYS = ("name", "vendor_id", "product_id", "device_type", "numa_policy", "live_migratable")


@dataclass(frozen=True)
class PciAlias:
    """What ``pci_alias`` calls by one name: devices that match any of the ``specs``, (name, value) pairs each.

    Values are in lower case, but ``dev_type`` is one of DeviceType.
    """

    name: str
    numa_policy: str
    specs: tuple[tuple[tuple[str, str], ...], ...]


@dataclass(frozen=True)
class PciRequest:
    """So many devices of one alias."""

    alias_name: str
    count: int
    specs: tuple[tuple[tuple[str, str], ...], ...]
    numa_policy: str = PciAffinity.LEGACY


@dataclass(frozen=True)
class PciPool:
    """The free devices of a host that are alike. Never empty.

    ``properties`` are (name, value) pairs, as those of a request's specs: values in lower case but ``dev_type``.
    """

    properties: tuple[tuple[str, str], ...]
    numa_node: int | None
    dev_type: str
    devices: tuple[PciDevice, ...]

    @property
    def count(self) -> int:
        """How many devices are free."""
        return len(self.devices)

    def matches(self, specs: Iterable[Iterable[tuple[str, str]]]) -> bool:
        """Whether one of the specs is fulfilled."""
        return any(all(pair in self.properties for pair in spec) for spec in specs)

    @property
    def remote_managed(self) -> bool:
        """Whether a SmartNIC manages the devices."""
        return ("remote_managed", "true") in self.properties


def aliases_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, PciAlias]:
    """The variable ``pci_alias``: entries of one name are alternatives, of one type and one policy.

    InvalidRequest names the entry, the key and what is allowed.
    """
    aliases: dict[str, PciAlias] = {}
    for entry in entries:
        alias = _alias(entry)
        known = aliases.get(alias.name)
        if known is None:
            aliases[alias.name] = alias
            continue
        if known.numa_policy != alias.numa_policy:
            raise InvalidRequest(f"pci_alias {alias.name}: numa_policy is {known.numa_policy} and {alias.numa_policy}")
        types = [dict(spec).get("dev_type", "not given") for spec in (*known.specs, *alias.specs)]
        if len(set(types)) > 1:
            raise InvalidRequest(f"pci_alias {alias.name}: device_type is {' and '.join(sorted(set(types)))}")
        aliases[alias.name] = replace(known, specs=(*known.specs, *alias.specs))
    return aliases


def request_of(flavor: Flavor, aliases: Mapping[str, PciAlias], image: Image | None = None) -> tuple[PciRequest, ...]:
    """What ``pci_passthrough:alias`` asks for, as ``gpu:1,nic:2``; empty where the flavor does not.

    The affinity is the alias's, or where given ``hw:pci_numa_affinity_policy`` of the flavor or the image.
    InvalidRequest where an alias is unknown or a count is none.
    """
    affinity = pci_affinity_of(flavor, image) if image else None
    text = str(flavor.extra_specs.get(ALIAS_SPEC, ""))
    if not text:
        return ()
    requests = []
    for part in text.split(","):
        name, colon, count = (item.strip() for item in part.partition(":"))
        where = f"flavor {flavor.name}: {ALIAS_SPEC}={text}"
        if not colon or not count.isdecimal() or int(count) < 1:
            raise InvalidRequest(f"{where}: {part.strip()!r} must be an alias and a number, as gpu:1")
        if name not in aliases:
            known = ", ".join(sorted(aliases)) or "none"
            raise InvalidRequest(f"{where}: there is no alias {name} in pci_alias: there are {known}")
        alias = aliases[name]
        requests.append(PciRequest(name, int(count), alias.specs, affinity or alias.numa_policy))
    return tuple(requests)


def pools_of(devices: Sequence[PciDevice], held: Iterable[str] = ()) -> tuple[PciPool, ...]:
    """The free devices of a host in pools: without those whose addresses are ``held``, and theirs.

    A card is not free while a guest has one of its virtual functions, nor these while one has the card.
    """
    taken = set(held)
    parents = {device.address: device.parent_address for device in devices}
    cards = {parents.get(address) for address in taken}
    pools: dict[tuple[Any, ...], list[PciDevice]] = {}
    for device in devices:
        if device.address not in taken and device.address not in cards and device.parent_address not in taken:
            pools.setdefault(_likeness(device), []).append(device)
    # Nova's order: those with the fewest properties first, so that special devices are kept for who asks for them.
    ordered = sorted(pools.items(), key=lambda item: len(item[0][0]))
    return tuple(PciPool(key[0], key[1], key[2], tuple(members)) for key, members in ordered)


def supports(
    pools: tuple[PciPool, ...],
    requests: Sequence[PciRequest],
    host: NUMATopology | None = None,
    cells: Sequence[InstanceNUMACell] = (),
) -> bool:
    """Whether :func:`consume` has an answer."""
    return consume(pools, requests, host, cells) is not None


def consume(
    pools: tuple[PciPool, ...],
    requests: Sequence[PciRequest],
    host: NUMATopology | None = None,
    cells: Sequence[InstanceNUMACell] = (),
) -> tuple[tuple[PciPool, ...], tuple[PciDevice, ...]] | None:
    """(what is left, the guest's devices); None where a request finds too few.

    ``cells`` are the guest's, placed on the ``host``'s: without them a device of any NUMA cell will do.
    """
    taken: list[PciDevice] = []
    for request in requests:
        missing = request.count
        for pool in _serving(pools, request, host, cells):
            chosen = pool.devices[::-1][:missing]  # the last first, as Nova
            missing -= len(chosen)
            taken += chosen
            pools = _without(pools, chosen)
            if not missing:
                break
        if missing:
            return None
    return pools, tuple(taken)


def why_not(
    pools: tuple[PciPool, ...],
    requests: Sequence[PciRequest],
    host: NUMATopology | None = None,
    cells: Sequence[InstanceNUMACell] = (),
) -> str:
    """The values by which the host has too few devices."""
    left = pools
    for request in requests:
        answer = consume(left, (request,), host, cells)
        if answer is None:
            matching = sum(pool.count for pool in _matching(left, request))
            near = sum(pool.count for pool in _near(_matching(left, request), request, host, cells))
            where = f", {near} of them near enough (numa_policy {request.numa_policy})" if near != matching else ""
            return f"{request.count} {request.alias_name} wanted, {matching} free{where}"
        left = answer[0]
    return ""


def _alias(entry: Mapping[str, Any]) -> PciAlias:
    values = {key: str(value).strip() for key, value in entry.items() if value is not None}
    name = values.get("name", "")
    where = f"pci_alias {name or dict(entry)}"
    unknown = [key for key in values if key not in _ALIAS_KEYS]
    if unknown:
        raise InvalidRequest(f"{where}: there is no key {', '.join(unknown)}; there are {', '.join(_ALIAS_KEYS)}")
    if not name or "," in name or ":" in name:
        raise InvalidRequest(f"{where}: name must be given, without comma and colon")
    for key in ("vendor_id", "product_id"):
        if not _HEX.fullmatch(values.get(key, "")):
            raise InvalidRequest(f"{where}: {key}={values.get(key)} must be four hexadecimal digits, in quotes")
    policy = values.get("numa_policy") or PciAffinity.LEGACY
    if policy not in PciAffinity.ALL:
        raise InvalidRequest(f"{where}: numa_policy={policy} is not one of {', '.join(PciAffinity.ALL)}")
    dev_type = values.get("device_type")
    if dev_type and dev_type not in DeviceType.ALL:
        raise InvalidRequest(f"{where}: device_type={dev_type} is not one of {', '.join(DeviceType.ALL)}")
    spec = {"vendor_id": values["vendor_id"].lower(), "product_id": values["product_id"].lower()}
    if dev_type:
        spec["dev_type"] = dev_type
    migratable = values.get("live_migratable")
    if migratable:
        if migratable.lower() not in ("true", "false", "yes", "no"):
            raise InvalidRequest(f"{where}: live_migratable={migratable} must be true or false")
        spec["live_migratable"] = "true" if migratable.lower() in ("true", "yes") else "false"
    return PciAlias(name, policy, (tuple(sorted(spec.items())),))


def _likeness(device: PciDevice) -> tuple[tuple[tuple[str, str], ...], int | None, str]:
    """What devices of one pool have in common. Nova's: virtual functions of one card are alike, other devices never."""
    properties = {
        "vendor_id": device.vendor_id,
        "product_id": device.product_id,
        "address": device.parent_address or device.address,
        **dict(device.tags),
    }
    if device.dev_type != DeviceType.STANDARD:
        properties.setdefault("remote_managed", "false")
    pairs = (("dev_type", device.dev_type), *sorted((name, value.lower()) for name, value in properties.items()))
    return pairs, device.numa_node, device.dev_type


def _serving(
    pools: Sequence[PciPool], request: PciRequest, host: NUMATopology | None, cells: Sequence[InstanceNUMACell]
) -> Sequence[PciPool]:
    return _near(_matching(pools, request), request, host, cells)


def _matching(pools: Sequence[PciPool], request: PciRequest) -> list[PciPool]:
    """Those whose devices are what is asked for.

    Whole cards go only to who asks for one. Devices that a SmartNIC manages are for ports, and no alias asks for them.
    """
    cards = any(("dev_type", DeviceType.PF) in spec for spec in request.specs)
    return [
        pool
        for pool in pools
        if pool.matches(request.specs) and (cards or pool.dev_type != DeviceType.PF) and not pool.remote_managed
    ]


def _near(
    pools: Sequence[PciPool], request: PciRequest, host: NUMATopology | None, cells: Sequence[InstanceNUMACell]
) -> Sequence[PciPool]:
    """The pools that the request's affinity allows, the strictest sense of it that has enough devices."""
    if not cells:
        return pools
    nodes: set[int | None] = {cell.id for cell in cells}
    inside = [pool for pool in pools if pool.numa_node in nodes]
    if request.numa_policy == PciAffinity.REQUIRED or _count(inside) >= request.count:
        return inside
    if request.numa_policy == PciAffinity.SOCKET:
        nodes = _nodes_of_sockets(host, nodes)
        return [pool for pool in pools if pool.numa_node in nodes]
    nodes.add(None)
    inside = [pool for pool in pools if pool.numa_node in nodes]
    if request.numa_policy == PciAffinity.LEGACY or _count(inside) >= request.count:
        return inside
    return sorted(pools, key=lambda pool: pool.numa_node not in nodes)


def _nodes_of_sockets(host: NUMATopology | None, nodes: set[int | None]) -> set[int | None]:
    """The host's cells in the sockets of these; none where the host does not tell its sockets."""
    cells = host.cells if host else ()
    if any(cell.socket is None for cell in cells):
        return set()
    sockets = {cell.socket for cell in cells if cell.id in nodes}
    return {cell.id for cell in cells if cell.socket in sockets}


def _count(pools: Iterable[PciPool]) -> int:
    return sum(pool.count for pool in pools)


def _without(pools: Sequence[PciPool], taken: Sequence[PciDevice]) -> tuple[PciPool, ...]:
    """Without these devices, the virtual functions of those that are cards, and the cards of those that are such."""
    gone = {device.address for device in taken}
    cards = {device.parent_address for device in taken if device.parent_address}
    left = []
    for pool in pools:
        devices = tuple(
            device
            for device in pool.devices
            if device.address not in gone and device.address not in cards and device.parent_address not in gone
        )
        if devices:
            left.append(pool if len(devices) == pool.count else replace(pool, devices=devices))
    return tuple(left)
