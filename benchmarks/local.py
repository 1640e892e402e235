# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""One server and twenty, against the same work by raw libvirt calls, in one run. ``./bin/bench`` calls it.

Each round boots with barestack.kvm, reruns, deletes, and lets raw.py make the very same disks and domains. The figures
are the medians of the rounds; only ratios mean anything on a machine that others use too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import ROOT, machine, play

INVENTORY = ROOT / "inventories" / "local"


SUBNET = {"name": "bench-v4", "cidr": "10.134.0.0/24", "gateway_ip": "10.134.0.1"}
SITE = {"networks": [{"name": "bench", "network_type": "local", "subnets": [SUBNET]}]}
"""A network of its own: raw.py's bridge must not be one that other servers use."""


def request(count: int) -> dict[str, Any]:
    server = {"name": "bench", "flavor": "m1.nano", "image": "demo", "network": "bench", "count": count}
    return {"instances": [server], **SITE}


def names(count: int) -> list[str]:
    return ["bench"] if count == 1 else [f"bench-{number}" for number in range(1, count + 1)]


def virsh(*arguments: str) -> str:
    """What it printed; nothing where it failed: a domain of somebody else's may be gone by now."""
    return subprocess.run(["virsh", "-q", *arguments], capture_output=True, text=True).stdout


def servers() -> list[str]:
    """The uuids of our servers."""
    return [uuid for uuid in virsh("list", "--uuid").split() if "<nova:name>bench" in virsh("dumpxml", uuid)]


def raw(act: str, directory: Path) -> float:
    """Wall seconds of one of raw.py's acts."""
    started = time.monotonic()
    subprocess.run([sys.executable, str(Path(__file__).with_name("raw.py")), act, str(directory)], check=True)
    return time.monotonic() - started


def settle() -> None:
    """Wait until the guests have booted: under TCG they take every CPU until then."""
    deadline = time.monotonic() + 600
    consoles = [Path(f"/var/log/libvirt/barestack/{uuid}.console.log") for uuid in servers()]
    while not all("login:" in path.read_text(errors="replace") for path in consoles):
        if time.monotonic() > deadline:
            sys.exit("the guests did not boot within 600 s")
        time.sleep(1)


def round_of(count: int) -> dict[str, float]:
    boot = play(INVENTORY, "boot_instance.yml", request(count))
    settle()
    rerun = play(INVENTORY, "boot_instance.yml", request(count))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        raw("save", directory)
        delete = play(INVENTORY, "playbooks/delete_instance.yml", {"names": names(count), **SITE})
        raw("bridges", directory)
        yardstick = raw("ordered", directory)  # twenty systems that boot at once would take thrice as long
        raw("down", directory)
    return {
        "boot": boot.seconds,
        "rerun": rerun.seconds,
        "delete": delete.seconds,
        "raw": yardstick,
        "calls": boot.calls,
        "peak": boot.peak_tree,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", type=int, default=20)
    options = parser.parse_args()
    os.chdir(ROOT)
    round_of(1)  # warms the image cache, libvirt's capabilities, the bytecode
    sizes = (1, options.servers)
    rounds = {count: [round_of(count) for _ in range(options.rounds)] for count in sizes}
    middle = {
        count: {key: statistics.median(item[key] for item in items) for key in items[0]}
        for count, items in rounds.items()
    }
    one, many = middle[1], middle[options.servers]
    further = options.servers - 1
    ours = (many["boot"] - one["boot"]) / further
    theirs = (many["raw"] - one["raw"]) / further
    print(f"{machine()}, {options.rounds} rounds, medians\n")
    print("| | barestack.kvm | raw libvirt | ratio | goal |")
    print("|---|---|---|---|---|")
    print(f"| one server | {one['boot']:.2f} s | {one['raw']:.2f} s | {one['boot'] / one['raw']:.2f} | 5 |")
    print(
        f"| {options.servers} servers | {many['boot']:.2f} s | {many['raw']:.2f} s "
        f"| {many['boot'] / many['raw']:.2f} | |"
    )
    print(f"| each further server | {ours:.3f} s | {theirs:.3f} s | {ours / theirs:.2f} | 1.25 |")
    print(f"| rerun of {options.servers} unchanged | {many['rerun']:.2f} s | | | 4 s |")
    print(f"| rerun of one unchanged | {one['rerun']:.2f} s | | | |")
    print(f"| delete of {options.servers} | {many['delete']:.2f} s | | | |")
    print(f"| module calls, 1 / {options.servers} | {one['calls']:.0f} / {many['calls']:.0f} | | | equal |")
    print(f"| controller's peak memory | {many['peak']:.0f} MiB | | | |")


if __name__ == "__main__":
    main()
