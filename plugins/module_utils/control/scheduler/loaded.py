# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""From what the records hold of the hosts, as plain lists, to columns. Pure, and without a loop over hosts' values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import (
    Aggregate,
    Distinct,
    Facts,
    Floats,
    Hosts,
    Ints,
    Resource,
    Rows,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.pci import PciPool, pools_of
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import NUMATopology
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import PciDevice
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire

T = TypeVar("T")


@dataclass(frozen=True)
class Stock:
    """Inventories of one class that are alike but for their numbers; item ``i`` is the host ``ids[i]``'s."""

    resource_class: str
    reserved: int
    min_unit: int
    step_size: int
    allocation_ratio: float
    ids: Sequence[int]
    total: Sequence[int]
    max_unit: Sequence[int]
    used: Sequence[int]


@dataclass(frozen=True)
class Exceptional:
    """What few hosts have: they are disabled, or builds failed there, or they report metrics."""

    enabled: bool
    disabled_reason: str
    failed_builds: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Loaded:
    """Every recorded host; item ``i`` of each list is the host ``names[i]``."""

    ids: Sequence[int]
    names: Sequence[str]
    up: Sequence[bool]
    last_seen: Sequence[str]
    generations: Sequence[int]
    servers: Sequence[int]
    """How many have a claim there."""
    kinds: Sequence[int | None]
    host_ip: Sequence[str | None]
    disk_available_gb: Sequence[int | None]
    stocks: Sequence[Stock] = ()
    exceptional: Mapping[int, Exceptional] = field(default_factory=dict)
    """By the host's id."""
    reports: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Kind -> what hosts of it report."""
    building: Mapping[str, int] = field(default_factory=dict)
    """Host -> servers being built there, where there are any."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Uuid -> host, of the servers that requests speak of."""
    numa: Sequence[str | None] = ()
    """The hosts' NUMA cells as JSON; empty where no request asks for any."""
    devices: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    """By the host's id: its PCI devices, and the addresses of those that are taken, both as JSON lists."""
    properties: Sequence[tuple[str, str, int]] = ()
    """(host, image properties as JSON, how many servers there have them); empty where no rule looks at them."""


def columns(loaded: Loaded, aggregates: Sequence[tuple[Aggregate, Sequence[str]]], facts: Facts_) -> Hosts:
    """The columns of these hosts. ``aggregates`` are with their hosts; ``facts`` of what hosts of a kind report."""
    length = len(loaded.names)
    row_of = {name: row for row, name in enumerate(loaded.names)}
    place = np.full(max(loaded.ids, default=0) + 1, -1, dtype=np.intp)
    place[np.array(loaded.ids, dtype=np.intp)] = np.arange(length)
    others = [(int(place[number]), item) for number, item in loaded.exceptional.items()]
    enabled = np.ones(length, dtype=np.bool_)
    enabled[[row for row, item in others if not item.enabled]] = False
    hosts = Hosts(
        names=loaded.names,
        enabled=enabled,
        disabled_reason=_sparse({row: item.disabled_reason for row, item in others}, "", length),
        up=np.array(loaded.up, dtype=np.bool_),
        last_seen=loaded.last_seen,
        resources=_resources(loaded.stocks, place, length),
        disk_available_gb=_numbers(loaded.disk_available_gb, math.inf),
        num_instances=np.array(loaded.servers, dtype=np.int64),
        num_io_ops=_counts({row_of[host]: count for host, count in loaded.building.items() if host in row_of}, length),
        failed_builds=_counts({row: item.failed_builds for row, item in others}, length),
        facts=_facts(loaded, facts),
        aggregates=_aggregates(loaded.names, aggregates),
        host_ip=[address or "" for address in loaded.host_ip],
        metrics=_metrics({row: item.metrics for row, item in others}, length),
        servers={uuid: row_of[host] for uuid, host in loaded.places.items() if host in row_of},
        image_properties=_properties(loaded.properties, row_of, length),
        numa=_parsed(loaded.numa, lambda text: from_wire(NUMATopology, json.loads(text))) or [None] * length,
        pci=[()] * length,
    )
    pools: dict[tuple[str, str], tuple[PciPool, ...]] = {}
    for number, told in loaded.devices.items():
        if told not in pools:
            pools[told] = pools_of([from_wire(PciDevice, item) for item in json.loads(told[0])], json.loads(told[1]))
        hosts.pci[int(place[number])] = pools[told]
    return hosts


Facts_ = Callable[[Mapping[str, Any]], Facts]


def _resources(stocks: Sequence[Stock], place: Rows, length: int) -> dict[str, Resource]:
    found: dict[str, dict[str, Any]] = {}
    for stock in stocks:
        columns = found.setdefault(stock.resource_class, _nothing(length))
        rows = place[np.array(stock.ids, dtype=np.intp)]
        for name in ("reserved", "min_unit", "step_size", "allocation_ratio"):
            columns[name][rows] = getattr(stock, name)
        for name in ("total", "max_unit", "used"):
            columns[name][rows] = np.array(getattr(stock, name), dtype=np.int64)
    return {name: Resource(**columns) for name, columns in found.items()}


def _nothing(length: int) -> dict[str, Any]:
    zeros = {name: np.zeros(length, dtype=np.int64) for name in ("total", "reserved", "max_unit", "used")}
    ones = {name: np.ones(length, dtype=np.int64) for name in ("min_unit", "step_size")}
    return {**zeros, **ones, "allocation_ratio": np.ones(length)}


def _numbers(values: Sequence[float | None], unknown: float) -> Floats:
    found = np.array(values, dtype=np.float64)  # None becomes nan
    found[np.isnan(found)] = unknown
    return found


def _counts(found: Mapping[int, int], length: int) -> Ints:
    counts = np.zeros(length, dtype=np.int64)
    counts[list(found)] = list(found.values())
    return counts


def _sparse(found: Mapping[int, str], usual: str, length: int) -> Distinct[str]:
    """A column that has one value nearly everywhere."""
    column = Distinct.of([usual, *found.values()])
    codes = np.zeros(length, dtype=np.intp)
    codes[list(found)] = column.codes[1:]
    return Distinct(column.values, codes)


def _facts(loaded: Loaded, facts: Facts_) -> Distinct[Facts]:
    kinds = sorted(loaded.reports)
    known = {kind: code for code, kind in enumerate(kinds)}
    values = [facts(loaded.reports[kind]) for kind in kinds]
    return Distinct([*values, Facts()], [known.get(kind, len(kinds)) for kind in loaded.kinds])  # type: ignore[arg-type]


def _aggregates(
    names: Sequence[str], aggregates: Sequence[tuple[Aggregate, Sequence[str]]]
) -> Distinct[tuple[Aggregate, ...]]:
    of_host: dict[str, tuple[int, ...]] = {}
    for number, (_aggregate, hosts) in enumerate(aggregates):
        for host in hosts:
            of_host[host] = (*of_host.get(host, ()), number)
    column = Distinct.of([of_host.get(name, ()) for name in names])
    return Distinct([tuple(aggregates[number][0] for number in value) for value in column.values], column.codes)


def _metrics(found: Mapping[int, Mapping[str, float]], length: int) -> dict[str, Floats]:
    columns: dict[str, Floats] = {}
    for row, metrics in found.items():
        for name, value in metrics.items():
            columns.setdefault(name, np.full(length, math.nan))[row] = value
    return columns


def _properties(
    found: Sequence[tuple[str, str, int]], row_of: Mapping[str, int], length: int
) -> dict[tuple[str, str], Ints]:
    known: dict[str, list[tuple[str, str]]] = {}
    columns: dict[tuple[str, str], Ints] = {}
    for host, text, count in found:
        if text not in known:
            known[text] = [(name, str(value)) for name, value in json.loads(text).items()]
        for pair in known[text] if host in row_of else ():
            columns.setdefault(pair, np.zeros(length, dtype=np.int64))[row_of[host]] += count
    return columns


def _parsed(texts: Sequence[str | None], parse: Callable[[str], T]) -> list[T | None]:
    """What the texts say; those that are the same are read once, and shared."""
    known: dict[str, T] = {}
    for text in texts:
        if text and text not in known:
            known[text] = parse(text)
    return [known[text] if text else None for text in texts]
