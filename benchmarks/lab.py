# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Thirty servers over the lab's three hosts, against the same work by raw libvirt calls there. ``./bin/bench lab``.

Each round boots with barestack.kvm, reruns, deletes, and lets raw.py, over SSH and on all hosts side by side, make the
very same disks and domains, once as one would, once in our order (see there). Records, paths and network are this
benchmark's own. The guests' disk holds no system.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import ROOT, Run, machine, play

INVENTORY = ROOT / "inventories" / "lab"
LAB = Path("/var/lib/barestack/lab")
STATE = Path("/var/lib/barestack-bench")
PATHS = {
    "instances_path": "/var/lib/libvirt/images/barestack-bench",
    "state_path": str(STATE),
    "log_path": "/var/log/libvirt/barestack-bench",
}
SAVED = "/run/barestack-bench"
HOSTS = {"kvm01": "10.135.0.11", "kvm02": "10.135.0.12", "kvm03": "10.135.0.13"}
SITE: dict[str, Any] = {
    **PATHS,
    "records_url": f"sqlite:///{STATE}/control/records.db",
    "keys_directory": f"{STATE}/control/keys",
    "notification_file": "",
    "networks": [
        {
            "name": "bench",
            "network_type": "local",
            "subnets": [{"name": "bench-v4", "cidr": "10.177.0.0/24"}],
        }
    ],
}


def ssh(host: str, *command: str) -> list[str]:
    """The command, as Ansible has it: over one connection that stays open for a minute."""
    options = (
        f"UserKnownHostsFile={LAB}/known_hosts",
        "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes",
        "BindInterface=barestack-lab",
        "BatchMode=yes",
        "ConnectTimeout=10",
        "ControlMaster=auto",
        "ControlPersist=60s",
        f"ControlPath={STATE}/control/%h",
    )
    given = [part for option in options for part in ("-o", option)]
    return ["ssh", "-i", f"{LAB}/id_ed25519", *given, f"root@{HOSTS[host]}", shlex.join(command)]


def on_all(*command: str) -> float:
    """Run it on all hosts side by side. Wall seconds."""
    started = time.monotonic()
    running = [subprocess.Popen(ssh(host, *command), stderr=subprocess.PIPE, text=True) for host in HOSTS]
    for host, process in zip(HOSTS, running):
        _, errors = process.communicate()
        if process.returncode:
            sys.exit(f"{host}: {shlex.join(command)}: {errors}")
    return time.monotonic() - started


def raw(act: str) -> float:
    return on_all("/usr/bin/python3", "/run/barestack-bench.py", act, SAVED)


def settle() -> None:
    """Wait until the guests' firmware has found nothing to boot and sleeps: under TCG it takes every CPU until then."""
    for _ in range(120):
        before = _worked()
        time.sleep(1)
        if _worked() - before < os.sysconf("SC_CLK_TCK") // 4:
            return


def _worked() -> int:
    """The guests' CPU time in clock ticks; the hosts' processes are this machine's too."""
    total = 0
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            command = (path / "cmdline").read_bytes()
            if b"qemu-system" in command and PATHS["instances_path"].encode() in command:
                total += sum(map(int, (path / "stat").read_text().rpartition(")")[2].split()[11:13]))
    return total


def delete(count: int, arguments: list[str]) -> Run:
    names = ["bench"] if count == 1 else [f"bench-{number}" for number in range(1, count + 1)]
    return play(INVENTORY, "playbooks/delete_instance.yml", {"names": names, **SITE}, *arguments)


def clear(count: int) -> None:
    """A round's servers, whoever made them."""
    for act in (lambda: raw("down"), lambda: delete(count, [])):
        with contextlib.suppress(SystemExit):  # there are none
            act()


def clean() -> None:
    """What our delete leaves: the image caches, empty directories."""
    on_all("rm", "-rf", *PATHS.values(), SAVED, "/run/barestack-bench.py")
    for host in HOSTS:
        subprocess.run([*ssh(host)[:-2], "-O", "exit", f"root@{HOSTS[host]}"], capture_output=True, check=False)
    shutil.rmtree(STATE)


def round_of(count: int, arguments: list[str]) -> dict[str, float]:
    server = {"name": "bench", "flavor": "m1.nano", "image": "blank", "network": "bench", "count": count}
    request = {"instances": [server], **SITE}
    with contextlib.ExitStack() as unless_ended:
        unless_ended.callback(clear, count)
        boot = play(INVENTORY, "boot_instance.yml", request, *arguments)
        settle()
        rerun = play(INVENTORY, "boot_instance.yml", request, *arguments)
        raw("save")
        deleted = delete(count, arguments)
        raw("bridges")
        yardstick = raw("up")
        settle()
        raw("down")
        raw("bridges")
        in_our_order = raw("start") + raw("resume")  # no guest runs before all hosts have started theirs
        settle()
        raw("down")
        on_all("rm", "-rf", SAVED)
        unless_ended.pop_all()
    return {
        "boot": boot.seconds,
        "rerun": rerun.seconds,
        "delete": deleted.seconds,
        "raw": yardstick,
        "ordered": in_our_order,
        "calls": boot.calls,
        "peak": boot.peak_tree,
    } | {f"task {name}": seconds for name, seconds in boot.tasks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", type=int, default=30)
    parser.add_argument("--forks", type=int, help="default: ansible.cfg's")
    parser.add_argument("--tasks", type=int, default=0, help="show so many of a boot's slowest tasks")
    options = parser.parse_args()
    os.chdir(ROOT)
    (STATE / "control").mkdir(parents=True, exist_ok=True)
    arguments = ["--forks", str(options.forks)] if options.forks else []
    script = Path(__file__).with_name("raw.py").read_text()
    for host in HOSTS:
        copied = subprocess.run(
            ssh(host, "tee", "/run/barestack-bench.py"), input=script, text=True, capture_output=True
        )
        if copied.returncode:
            sys.exit(f"{host} does not answer, see ./bin/lab status: {copied.stderr}")
    print(f"{machine()}, {options.rounds} rounds, medians\n")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    rounds: list[dict[str, float]] = []
    with contextlib.ExitStack() as stack:
        stack.callback(clean)
        round_of(3, arguments)  # warms the image caches, libvirt's capabilities, the bytecode
        for _ in range(options.rounds):
            rounds.append(round_of(options.servers, arguments))
            took = rounds[-1]
            print(
                f"boot {took['boot']:.1f} s, raw {took['raw']:.1f} s, ordered {took['ordered']:.1f} s; {machine()}",
                flush=True,
            )
    middle = {key: statistics.median(item.get(key, 0) for item in rounds) for key in rounds[0]}
    print()
    print("| | barestack.kvm | raw libvirt | ratio | goal |")
    print("|---|---|---|---|---|")
    for key, title, goal in (("raw", "", "1.5"), ("ordered", ", raw in our order", "")):
        ratios = sorted(item["boot"] / item[key] for item in rounds)
        print(
            f"| {options.servers} servers on {len(HOSTS)} hosts{title} | {middle['boot']:.2f} s | {middle[key]:.2f} s "
            f"| {middle['boot'] / middle[key]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {goal} |"
        )
    print(f"| rerun unchanged | {middle['rerun']:.2f} s | | | |")
    print(f"| delete | {middle['delete']:.2f} s | | | |")
    print(f"| module calls | {middle['calls']:.0f} | | | |")
    print(f"| controller's peak memory | {middle['peak']:.0f} MiB | | | |")
    tasks = {key.removeprefix("task "): value for key, value in middle.items() if key.startswith("task ")}
    for name, seconds in sorted(tasks.items(), key=lambda item: -item[1])[: options.tasks]:
        print(f"  {name} {seconds:.2f} s")
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
