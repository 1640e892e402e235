# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The scheduler beside Nova's, on the same hosts and requests, with the same rules. ``./bin/bench scheduler``.

Nova's side is its own code in an environment of its own (tests/differential/environment.py): get_filtered_hosts,
get_weighed_hosts and consume_from_request on host states in memory, for one server after the other. Neither side
loads anything from a database here. The seconds are the processor's, so that what else the machine does matters little.
Nova gets ``--patience`` seconds for each request; where that is not enough for all its servers, the time of those that
it did is scaled up, and marked ``~``. Both must have chosen the same hosts.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "collections"), str(ROOT / "tests" / "differential")]

import ours  # noqa: E402
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decide import decide  # noqa: E402
from common import machine  # noqa: E402
from nova_client import Nova  # noqa: E402
from sites import HOST, REQUEST, Json, Question, inventory, server  # noqa: E402

HOSTS = (100, 1_000, 10_000, 50_000)
SERVERS = (1, 100, 1_000)
OPTIONS: Json = {
    "filter_scheduler": {
        "enabled_filters": [
            "ComputeFilter",
            "ComputeCapabilitiesFilter",
            "ImagePropertiesFilter",
            "ServerGroupAntiAffinityFilter",
            "ServerGroupAffinityFilter",
            "AggregateInstanceExtraSpecsFilter",
            "NumInstancesFilter",
        ]
    }
}
"""Nova's default filters and two more that sites enable; all weighers, as by default."""


@dataclass(frozen=True)
class Measured:
    """CPU seconds for one request."""

    hosts: int
    servers: int
    nova: float
    scaled: bool
    """Nova's is of fewer servers, scaled up."""
    ours: float


def site(number: int) -> Json:
    """Hosts of three makes in aggregates of 40, some down, some disabled, each with something on it already."""
    chance = random.Random(number)  # noqa: S311  no secret
    aggregates = [
        {"name": f"rack{rack}", "metadata": {"disk": chance.choice(("ssd", "hdd")), "rack": f"r{rack}"}}
        for rack in range(max(1, number // 40))
    ]
    hosts = []
    for n in range(number):
        cpus, ram, disk = chance.choice(((32, 131072, 1000), (64, 262144, 2000), (128, 524288, 4000)))
        hosts.append(
            {
                **HOST,
                "name": f"kvm{n:05}",
                "disabled": chance.random() < 0.01,
                "up": chance.random() > 0.01,
                "resources": {
                    "VCPU": inventory(cpus, used=chance.randrange(cpus), allocation_ratio=4.0),
                    "MEMORY_MB": inventory(ram, used=1024 * chance.randrange(ram // 2048), reserved=512),
                    "DISK_GB": inventory(disk, used=chance.randrange(disk // 2)),
                },
                "num_instances": chance.randrange(30),
                "num_io_ops": chance.choice((0, 0, 0, 1, 2, 9)),
                "hypervisor_version": chance.choice((7002000, 8000000)),
                "aggregates": [aggregates[n % len(aggregates)]["name"]],
            }
        )
    return {"hosts": hosts, "aggregates": aggregates}


def request(number: int) -> Json:
    """So many equal servers."""
    flavor = {**REQUEST["flavor"], "vcpus": 2, "ram": 2048, "disk": 20}
    flavor["extra_specs"] = {"capabilities:hypervisor_type": "QEMU", "aggregate_instance_extra_specs:disk": "ssd"}
    image = {**REQUEST["image"], "properties": {"hw_architecture": "x86_64"}}
    return {**REQUEST, "servers": [server(n) for n in range(number)], "flavor": flavor, "image": image}


def measure(nova: Nova, hosts: Sequence[int], servers: Sequence[int], patience: float) -> Iterator[Measured]:
    """Every number of hosts with every number of servers."""
    for many in hosts:
        told = site(many)
        columns, options = ours.hosts(told), ours.options(OPTIONS)
        for some in servers:
            question = Question("benchmark", told, request(some), OPTIONS)
            theirs: Any = nova.answer(question, within=patience)
            spec, best, decisions = ours.request(question.request), math.inf, []
            for _again in range(3):
                started = time.process_time()
                decisions = decide(columns, [spec], options)
                best = min(best, time.process_time() - started)
            done = len(theirs["chosen"])
            if [decision.host for decision in decisions][:done] != theirs["chosen"]:
                sys.exit(f"{many} hosts, {some} servers: Nova and ours chose differently")
            yield Measured(many, some, _whole(theirs["seconds"], some), done < some, best)


def _whole(seconds: Sequence[float], servers: int) -> float:
    """Of all servers, where only the first ones were measured; the very first one is dearer than those after it."""
    first, rest = seconds[0], seconds[1:]
    return first + sum(rest) / len(rest) * (servers - 1) if rest else first


def row(item: Measured) -> str:
    """One line of the table."""
    nova = f"{'~' if item.scaled else ''}{item.nova:,.3f} s"
    each = item.ours / item.servers * 1000
    times = item.nova / item.ours
    size = f"| {item.hosts:>7,} | {item.servers:>7,}"
    return f"{size} | {nova:>12} | {item.ours:>9.4f} s | {each:>10.3f} ms | {times:>8,.0f} |"


# The figure

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 800, 460, 70, 30, 60
_COLOURS = {"Nova": ("#f4a582", "#d6604d", "#b2182b"), "barestack.kvm": ("#92c5de", "#4393c3", "#2166ac")}


def figure(found: Sequence[Measured]) -> str:
    """Seconds against hosts, both logarithmic, a line for each number of servers and each side; SVG."""
    hosts, servers = sorted({item.hosts for item in found}), sorted({item.servers for item in found})
    values = [value for item in found for value in (item.nova, item.ours)]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    right, floor = _WIDTH - 230, _HEIGHT - _BOTTOM
    span = max(math.log10(hosts[-1] / hosts[0]), 1e-9)

    def across(number: int) -> float:
        return _LEFT + (right - _LEFT) * math.log10(number / hosts[0]) / span

    def down(seconds: float) -> float:
        return floor - (floor - _TOP) * (math.log10(seconds) - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
        ' font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for power in range(low, high + 1):
        y = down(10.0**power)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g} s</text>')
    for number in hosts:
        parts.append(f'<text x="{across(number):.1f}" y="{floor + 20}" text-anchor="middle">{number:,}</text>')
    parts.append(f'<text x="{(_LEFT + right) / 2}" y="{floor + 44}" text-anchor="middle">hosts</text>')
    legend = _TOP + 10
    for side, colours in _COLOURS.items():
        for number, colour in zip(servers, colours[-len(servers) :], strict=False):
            points = [
                (across(item.hosts), down(item.nova if side == "Nova" else item.ours))
                for item in sorted(found, key=lambda item: item.hosts)
                if item.servers == number
            ]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
            parts.append(f'<rect x="{right + 20}" y="{legend - 9}" width="14" height="4" fill="{colour}"/>')
            plural = "" if number == 1 else "s"
            parts.append(f'<text x="{right + 40}" y="{legend}">{side}, {number:,} server{plural}</text>')
            legend += 20
    return "\n".join([*parts, "</svg>", ""])


def main() -> None:
    """The table, and the figure where it is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("``")[0])
    parser.add_argument("--hosts", type=int, nargs="+", default=HOSTS)
    parser.add_argument("--servers", type=int, nargs="+", default=SERVERS)
    parser.add_argument("--patience", type=float, default=20.0, help="seconds that Nova gets for a request")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw an SVG")
    arguments = parser.parse_args()
    print(machine())
    print(f"| {'hosts':>7} | {'servers':>7} | {'Nova':>12} | {'ours':>11} | {'ours each':>13} | {'times':>8} |")
    print(f"|{'-' * 8}:|{'-' * 8}:|{'-' * 13}:|{'-' * 12}:|{'-' * 14}:|{'-' * 9}:|")
    found = []
    with Nova() as nova:
        for item in measure(nova, arguments.hosts, arguments.servers, arguments.patience):
            print(row(item), flush=True)
            found.append(item)
    if arguments.plot:
        arguments.plot.write_text(figure(found))


if __name__ == "__main__":
    main()
