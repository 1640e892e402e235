# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""One server and twenty, against the same work by raw libvirt calls, in one run. ``./bin/bench`` calls it.

Each round boots with barestack.kvm, reruns, deletes, and lets raw.py make the very same disks and domains. The figures
are the medians of the rounds; only ratios mean anything on a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PLAYBOOK = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(ROOT / "inventories" / "local")]


def play(playbook: str, variables: dict[str, Any]) -> tuple[float, str]:
    """(wall seconds, what it printed)."""
    started = time.monotonic()
    done = subprocess.run(
        [*PLAYBOOK, str(ROOT / playbook), "-e", json.dumps(variables)], capture_output=True, text=True, cwd=ROOT
    )
    seconds = time.monotonic() - started
    if done.returncode:
        sys.exit(f"{playbook} failed:\n{done.stdout}\n{done.stderr}")
    return seconds, done.stdout


SUBNET = {"name": "bench-v4", "cidr": "10.134.0.0/24", "gateway_ip": "10.134.0.1"}
SITE = {"networks": [{"name": "bench", "network_type": "local", "subnets": [SUBNET]}]}
"""A network of its own: raw.py's bridge must not be one that other servers use."""


def request(count: int) -> dict[str, Any]:
    server = {"name": "bench", "flavor": "m1.nano", "image": "demo", "network": "bench", "count": count}
    return {"instances": [server], **SITE}


def module_calls(output: str) -> int:
    return len(re.findall(r"^(?:ok|changed): \[", output, re.MULTILINE))


def names(count: int) -> list[str]:
    return ["bench"] if count == 1 else [f"bench-{number}" for number in range(1, count + 1)]


def virsh(*arguments: str) -> str:
    """What it printed; nothing where it failed: a domain of somebody else's may be gone by now."""
    return subprocess.run(["virsh", "-q", *arguments], capture_output=True, text=True).stdout


def servers() -> dict[str, str]:
    """uuid -> domain XML of our servers."""
    found = {uuid: virsh("dumpxml", "--inactive", uuid) for uuid in virsh("list", "--uuid").split()}
    return {uuid: xml for uuid, xml in found.items() if "<nova:name>bench" in xml}


def save(directory: Path) -> None:
    """What raw.py needs to make the same servers."""
    overlays: dict[str, list[dict[str, Any]]] = {}
    for uuid, xml in servers().items():
        (directory / f"{uuid}.xml").write_text(xml)
        overlays[uuid] = []
        for disk in ElementTree.fromstring(xml).iter("disk"):
            path = disk.find("source").get("file")  # type: ignore[union-attr]
            if disk.get("device") == "cdrom":
                shutil.copyfile(path, directory / f"{uuid}.iso")
                overlays[uuid].append({"path": path, "iso": True})
                continue
            info = json.loads(subprocess.check_output(["qemu-img", "info", "-U", "--output=json", path]))
            overlays[uuid].append(
                {
                    "path": path,
                    "iso": False,
                    "size": info["virtual-size"],
                    "backing": info.get("backing-filename"),
                    "format": info.get("backing-filename-format"),
                }
            )
    (directory / "overlays.json").write_text(json.dumps(overlays))


def raw(directory: Path) -> float:
    """Wall seconds of the raw boot. The bridges that the domains name are made before and removed after."""
    bridges = {
        str(item.get("bridge"))
        for path in directory.glob("*.xml")
        for item in ElementTree.parse(path).iter("source")
        if item.get("bridge")
    }
    for bridge in bridges:
        subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
        subprocess.run(["ip", "link", "set", bridge, "up"], check=True)
    script = [sys.executable, str(Path(__file__).with_name("raw.py"))]
    started = time.monotonic()
    subprocess.run([*script, "up", str(directory)], check=True)
    seconds = time.monotonic() - started
    subprocess.run([*script, "down", str(directory)], check=True)
    for bridge in bridges:
        subprocess.run(["ip", "link", "del", bridge], check=True)
    return seconds


def settle() -> None:
    """Wait until the guests have booted: under TCG they take every CPU until then."""
    deadline = time.monotonic() + 600
    consoles = [Path(f"/var/log/libvirt/barestack/{uuid}.console.log") for uuid in servers()]
    while not all("login:" in path.read_text(errors="replace") for path in consoles):
        if time.monotonic() > deadline:
            sys.exit("the guests did not boot within 600 s")
        time.sleep(1)


def round_of(count: int) -> dict[str, float]:
    boot, output = play("boot_instance.yml", request(count))
    settle()
    rerun, _ = play("boot_instance.yml", request(count))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        save(directory)
        delete, _ = play("playbooks/delete_instance.yml", {"names": names(count), **SITE})
        return {
            "boot": boot,
            "rerun": rerun,
            "delete": delete,
            "raw": raw(directory),
            "calls": float(module_calls(output)),
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
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, "
        f"{options.rounds} rounds, medians\n"
    )
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
    print(f"| controller's peak memory | {peak:.0f} MiB | | | |")


if __name__ == "__main__":
    main()
