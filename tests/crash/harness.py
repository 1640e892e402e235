# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Kills a boot, one that fails, and a delete at every point, runs the same again, and looks whether anything is wrong.

    bin/test crash                       the whole matrix, hours
    bin/test crash --part 3/40           every fortieth cycle from the third on; turn/40: the commit's hash says which
    bin/test crash --kind module domain  the cycles with a point whose name begins so, killed in this way

Runs that are not killed tell which points there are (``inject/sitecustomize.py`` names them): a new effect is in the
matrix as soon as there is one, and an effect that none reaches must be among UNREACHED, with the reason. What the clean
boot left is what each later one has to leave, no more and no less, and after a delete there is nothing.

The hosts are the lab's when it is up, else this machine. The product is not changed, and nothing of it is used to look.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STATE = Path("/var/lib/barestack-crash")
IMAGE = Path("/var/lib/barestack/images/crash.raw")
"""The lab's hosts see it too. Without it a boot fails on every host."""
RECORDS = STATE / "records.db"
ORDERS = "/run/barestack-crash"
"""Where a host, and this machine, looks for what ``inject`` is to do."""
PATHS = (
    "/var/lib/libvirt/images/barestack-crash",
    "/var/lib/barestack-crash/state",
    "/var/log/libvirt/barestack-crash",
)
CIDR = "10.175.0."
SERVERS = ("crash-1", "crash-2")
BOOT, DELETE, AUDIT = "playbooks/boot_instance.yml", "playbooks/delete_instance.yml", "playbooks/audit.yml"
ENDED_WITHIN = 2.0
"""Seconds until what a kill leaves of a run must have ended on every host."""
RUN_TIMEOUT = 240.0

UNREACHED = {
    "host.settings": "prepare_hosts, whose roles are run twice by molecule",
    "host.sysctl": "prepare_hosts",
    "host.daemon": "prepare_hosts",
    "host.demo_image": "the demo image is built under a temporary name: tests/unit/host/test_demo_image.py",
    "dhcp.lease": "only a guest with an operating system takes one: molecule/default deletes such guests",
    "vif.plug": "only where a tap was taken out of its bridge: tests/unit/host/test_vif_phase.py",
    "network.uplink": "a flat network: tests/unit/host/test_network_phase.py",
    "leftover.part": "the audit's repair, and the undo of a build on a host that was lost: tests/lab/test_faults.py",
    "leftover.tap": "the audit's repair: tests/integration/test_audit.py",
}
"""Effects that no scenario has, and where they are tried."""

KINDS = {
    "group": "the process group of ansible-playbook",
    "main": "ansible-playbook's main process",
    "module": "the process that carries out the phase",
    "connection": "the SSH connections",
    "libvirtd": "the host's libvirtd, which systemd starts again",
    "dnsmasq": "the host's dnsmasq",
}
NEW = {
    "identity.keys": f"rm -f {STATE}/keys/*",
    "compute_node": f"rm -f {STATE}/records.db*",
    "hypervisor_info": f"rm -f {STATE}/records.db*",
    "image.base": f"rm -f {PATHS[0]}/_base/*",
    "domain.console_log": f"rmdir {PATHS[2]}",
    "firewall.table": "nft list ruleset | grep -q tap || "
    "nft 'delete table inet barestack; delete table bridge barestack'",
}
"""How points begin that only a first boot passes, and what makes a host, or this machine, new again for them."""


def sh(*command: str, text: str | None = None, check: bool = True, timeout: float = 60) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}: {done.stderr.strip()}")
    return done.stdout


class Host:
    """A compute host, where orders are left and looks taken."""

    def __init__(self, name: str, prefix: Sequence[str] = ()) -> None:
        self.name = name
        self._prefix = tuple(prefix)

    def sh(self, script: str, *, text: str | None = None, check: bool = True) -> str:
        """A shell script there."""
        command = (*self._prefix, script) if self._prefix else ("sh", "-c", script)
        return sh(*command, text=text, check=check)

    @property
    def remote(self) -> bool:
        return bool(self._prefix)

    def install(self) -> None:
        """The interpreter that stops where it is told; the product's own Python is behind it."""
        if not self.remote:
            return
        self.sh("mkdir -p /opt/barestack-crash")
        self.sh("cat >/opt/barestack-crash/sitecustomize.py", text=(HERE / "inject/sitecustomize.py").read_text())
        self.sh(
            "cat >/opt/barestack-crash/python3 && chmod 755 /opt/barestack-crash/python3",
            text=f'#!/bin/sh\nBARESTACK_CRASH={ORDERS} PYTHONPATH=/opt/barestack-crash exec /usr/bin/python3 "$@"\n',
        )

    def look(self, wanted: dict[str, Any]) -> list[str]:
        """What is there, see look.py."""
        code = (HERE / "look.py").read_text()
        script = f"f=$(mktemp) && cat >$f <<'END_OF_LOOK'\n{code}\nEND_OF_LOOK\n/usr/bin/python3 $f; rm -f $f"
        return list(json.loads(self.sh(script, text=json.dumps(wanted))))

    def order(self, point: str, mode: str) -> None:
        """Stop there."""
        self.sh(f"mkdir -p {ORDERS} && cat >{ORDERS}/armed", text=json.dumps({"point": point, "mode": mode}))

    def disarm(self, release: bool) -> None:
        """Stop no one any more, and let those who stopped go on or not."""
        self.sh(f"rm -f {ORDERS}/armed" + (f"; touch {ORDERS}/release" if release else ""), check=False)

    def clear(self) -> None:
        """No orders any more."""
        self.sh(f"rm -rf {ORDERS}")

    def alive(self, pid: int) -> bool:
        """Whether that process is there and no zombie."""
        return "State" in self.sh(f"grep -s State: /proc/{pid}/status | grep -v Z", check=False)


class Waiter:
    """Waits on every host, without a poll over the network, until one has reached the point."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        script = (
            f"while [ -e {ORDERS}/armed ]; do [ -s {ORDERS}/reached ] && exec cat {ORDERS}/reached; sleep 0.03; done"
        )
        self._waiting = {
            host.name: subprocess.Popen(
                [*host._prefix, script] if host.remote else ["sh", "-c", script], stdout=subprocess.PIPE, text=True
            )
            for host in hosts
        }

    def reached(self) -> tuple[str, int] | None:
        """(host, process), once one has."""
        for name, process in self._waiting.items():
            if process.poll() is not None and process.stdout:
                line = process.stdout.read().strip()
                if line:
                    process.stdout.close()
                    process.stdout = None
                    return name, int(line)
        return None

    def close(self) -> None:
        for process in self._waiting.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


@dataclass
class Run:
    """An ansible-playbook, under way or ended."""

    process: subprocess.Popen[str]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def rc(self) -> int | None:
        return self.process.poll()

    def wait(self) -> int:
        try:
            return self.process.wait(RUN_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.close()
            return -99

    def close(self) -> None:
        """Not beyond the harness."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass
class Site:
    """The hosts, the inventories, and all ids that the records ever had."""

    hosts: list[Host]
    inventories: list[str]
    control: Host = field(default_factory=lambda: Host("control"))
    known: dict[str, str] = field(default_factory=dict)
    standing: set[str] = field(default_factory=set)
    """Lines about no server in particular that clean runs left: directories, the cached image."""
    is_lab: bool = False

    @property
    def places(self) -> list[Host]:
        """Where a phase may be stopped: this machine once, then the hosts that are others."""
        return [self.control, *(host for host in self.hosts if host.remote)]

    def start(self, playbook: str, *arguments: str, **variables: Any) -> Run:
        log = STATE / "last.log"
        command = [str(Path(sys.executable).parent / "ansible-playbook")]
        for inventory in self.inventories:
            command += ["-i", inventory]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "OS_"))}
        environment.update(
            ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"),
            ANSIBLE_NOCOLOR="1",
            BARESTACK_CRASH=ORDERS,
            PYTHONPATH=str(HERE / "inject"),
        )
        with log.open("w") as stream:
            process = subprocess.Popen(
                [*command, str(ROOT / playbook), "-e", json.dumps(variables), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                text=True,
                cwd=ROOT,
                env=environment,
                start_new_session=True,
            )
        return Run(process, log)

    def play(self, playbook: str, *arguments: str, **variables: Any) -> Run:
        run = self.start(playbook, *arguments, **variables)
        try:
            run.wait()
        finally:
            run.close()
        self.learn()
        return run

    def scenario(self, name: str) -> tuple[str, dict[str, Any]]:
        """(playbook, variables) of ``boot``, of ``fail``, which is the same, and of ``delete``."""
        if name == "delete":
            return DELETE, {"names": list(SERVERS)}
        servers = []
        for server, zone in zip(SERVERS, ("az1", "az2"), strict=True):
            wanted: dict[str, Any] = {"name": server, "flavor": "atom", "image": "blank", "network": "crash-net"}
            wanted["volumes"] = [{"size": 1, "delete_on_termination": True}]
            if self.is_lab:
                wanted["availability_zone"] = zone
            servers.append(wanted)
        return BOOT, {"instances": servers, "max_concurrent_builds": 2}

    def learn(self) -> None:
        """Remember every id that the records have now, and what it is."""
        names = {row["uuid"]: row["name"] for row in self.sql("SELECT uuid, name FROM instances")}
        for uuid, name in names.items():
            self.known.setdefault(uuid, f"<{name}>")
        for row in self.sql("SELECT id, network_id, device_id FROM ports"):
            self.known.setdefault(row["id"], f"<port of {names.get(row['device_id'], 'dhcp')}>")
            self.known.setdefault(row["network_id"], "<network>")
        for row in self.sql("SELECT volume_id, instance_uuid FROM block_device_mappings"):
            self.known.setdefault(row["volume_id"], f"<volume of {names.get(row['instance_uuid'])}>")
        for row in self.sql("SELECT id FROM volumes"):
            self.known.setdefault(row["id"], "<volume>")

    def sql(self, query: str) -> list[dict[str, Any]]:
        if not RECORDS.exists():
            return []
        connection = sqlite3.connect(f"file:{RECORDS}?mode=ro", uri=True, timeout=30)
        connection.row_factory = sqlite3.Row
        try:
            return [dict(row) for row in connection.execute(query)]
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return []
            raise
        finally:
            connection.close()

    def rows(self) -> list[str]:
        """What the records hold of servers that are there, and of whatever else should be gone with them."""
        live = "SELECT name, vm_state, task_state, power_state, host IS NOT NULL FROM instances WHERE deleted = 0"
        queries = {
            "server": live,
            "allocation": "SELECT consumer_id, resource_class, used FROM allocations",
            "port": "SELECT device_owner, device_id, status, binding_host IS NOT NULL AS bound FROM ports",
            "address": "SELECT port_id FROM ip_allocations",
            "volume": "SELECT id, status, host IS NOT NULL AS placed FROM volumes",
            "mapping": "SELECT instance_uuid, volume_id, boot_index FROM block_device_mappings",
            "lease": "SELECT * FROM leases",
            "residue": "SELECT instance_uuid, host FROM residues",
            "open action": "SELECT instance_uuid, action FROM instance_actions WHERE finish_time IS NULL",
        }
        return [
            f"row {what} {' '.join(str(value) for value in row.values())}"
            for what, query in queries.items()
            for row in self.sql(query)
        ]

    def look(self) -> Counter[str]:
        """Everything of ours on all hosts and in the records, in words that are the same at every run."""
        self.learn()
        wanted = {"paths": PATHS, "names": "crash-", "cidr": CIDR, "ids": list(self.known)}
        lines = self.rows()
        for host in self.hosts:
            lines += host.look(wanted)
        return Counter(self._plain(line) for line in lines)

    def _plain(self, line: str) -> str:
        for identity, name in self.known.items():
            line = line.replace(identity, name).replace(identity[:11], f"{name}…")
        for host in self.hosts:
            line = line.replace(f"dhcp-{host.name}-", "dhcp-")  # a server that failed on one host is built on another
        line = re.sub(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b", "<mac>", line)
        line = re.sub(re.escape(CIDR) + r"(?!0/24)\d+", "<address>", line)
        return re.sub(r"counter packets \d+ bytes \d+", "counter", line)

    def beyond(self, found: Counter[str], wanted: Counter[str]) -> list[str]:
        """What is there too much, and too little."""
        extra = [f"+ {line}" for line in (found - wanted).elements() if line not in self.standing]
        return extra + [f"- {line}" for line in (wanted - found).elements() if line not in self.standing]


def stands(line: str) -> bool:
    """Whether a line is about no server, port, volume or network of this run."""
    return line.startswith(("file ", "directory ")) and "<" not in line and not line.endswith(".part")


@dataclass(frozen=True)
class Cycle:
    """A boot, or one that fails, and a delete, each killed at a point or not, in one way."""

    kind: str
    first: str
    boot: str | None
    delete: str | None

    def __str__(self) -> str:
        return f"{self.kind:10} {self.first} {self.boot or '-':32} delete {self.delete or '-'}"


class Harness:
    """The clean runs, then cycle after cycle."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.points: dict[str, list[str]] = {}
        self.places: dict[str, set[str]] = {}
        self.present: Counter[str] = Counter()
        self.absent: Counter[str] = Counter()
        self.has_audit = (ROOT / AUDIT).exists()

    # The clean runs

    def prepare(self) -> list[str]:
        """A new site, its first clean boot and delete; what they pass and leave. What is wrong with them."""
        wrong: list[str] = []
        self.reset()
        if RECORDS.exists():
            self.site.play(DELETE, names=list(SERVERS))
        for place in self.site.places:
            place.install()
            for script in NEW.values():
                place.sh(script, check=False)
        for name in ("boot", "delete", "fail", "boot", "delete"):
            self._image(name)
            first = name not in self.points
            if first:
                self._trace(True)
            playbook, variables = self.site.scenario(name)
            run = self.site.play(playbook, **variables)
            if bool(run.rc) != (name == "fail"):
                raise SystemExit(f"the clean {name} ended with {run.rc}:\n{run.output[-4000:]}")
            if first:
                self.points[name] = self._trace(False)
            if name == "fail":
                continue
            found = self.site.look()
            self.site.standing |= {line for line in found if stands(line)}
            if name == "boot":
                wrong += self.site.beyond(found, self.present or found)
                self.present = found
            else:
                self.absent = found
                wrong += [f"after a clean delete: + {line}" for line in found if line not in self.site.standing]
        self.points["fail"] = [point for point in self.points["fail"] if point not in self.points["boot"]]
        return wrong + self._unreached()

    def _image(self, scenario: str) -> None:
        """Take the image away before a boot that is to fail, with what the hosts have of it; else put it there."""
        if scenario != "fail":
            IMAGE.parent.mkdir(parents=True, exist_ok=True)
            IMAGE.write_bytes(bytes(1 << 20))
            return
        IMAGE.unlink(missing_ok=True)
        for host in self.site.hosts:
            host.sh(NEW["image.base"])

    def _trace(self, start: bool) -> list[str]:
        points: list[str] = []
        for place in self.site.places:
            if start:
                place.sh(f"mkdir -p {ORDERS} && touch {ORDERS}/trace")
                continue
            here = place.sh(f"cat {ORDERS}/trace").split()
            place.clear()
            for point in here:
                self.places.setdefault(point, set()).add("control" if place is self.site.control else "host")
            points += here
        return list(dict.fromkeys(points))

    def _unreached(self) -> list[str]:
        code = f"import sys; sys.path.insert(0, {str(ROOT / 'collections')!r})\n" + (
            "from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import EFFECTS; print(*EFFECTS)"
        )
        effects = set(sh(sys.executable, "-c", code).split())
        reached = {point.rsplit(":", 1)[0] for points in self.points.values() for point in points}
        wrong = [
            f"no scenario reaches the effect {name}: extend the request, or add it to UNREACHED with the reason"
            for name in sorted(effects - reached - set(UNREACHED))
        ]
        return wrong + [
            f"UNREACHED has {name}, which is {'reached' if name in reached else 'no effect any more'}"
            for name in UNREACHED
            if name in reached or name not in effects
        ]

    def reset(self) -> None:
        """No orders anywhere."""
        for place in self.site.places:
            place.clear()

    # The matrix

    def matrix(self) -> list[Cycle]:
        """Every point of all scenarios in every way that makes sense there, a boot's and a delete's in one cycle."""
        cycles: list[Cycle] = []
        for kind in KINDS:
            boots = [(name, p) for name in ("boot", "fail") for p in self.points[name] if self._fits(kind, p)]
            deletes = [p for p in self.points["delete"] if self._fits(kind, p)]
            for first, delete in zip_longest(boots, deletes):
                cycles.append(Cycle(kind, *(first or ("boot", None)), delete))
        return cycles

    def _fits(self, kind: str, point: str) -> bool:
        name = point.rsplit(":", 1)[0]
        where = self.places.get(point, set())
        if kind == "connection":
            return self.site.is_lab and "host" in where
        if kind == "libvirtd":
            return self.site.is_lab and name.startswith(("domain", "vif"))
        if kind == "dnsmasq":
            return (
                self.site.is_lab and "host" in where and name.startswith(("dhcp", "firewall=", "domain=", "network="))
            )
        return True

    def cycle(self, cycle: Cycle) -> list[str]:
        """Carry one out; what is wrong, or nothing."""
        wrong: list[str] = []
        for name, point, wanted in ((cycle.first, cycle.boot, self.present), ("delete", cycle.delete, self.absent)):
            playbook, variables = self.site.scenario(name)
            what = f"{name} {cycle.kind} {point}"
            if point:
                if name == "boot":
                    self._as_new(point)
                self._image(name)
                wrong += [f"{what}: {line}" for line in self._killed(playbook, variables, point, cycle.kind)]
            self._image("boot")
            run = self.site.play(playbook, **variables)
            if run.rc:
                wrong.append(f"{what}: the same command again ended with {run.rc}:\n{excerpt(run.output)}")
            wrong += [f"{what}: {line}" for line in self._check(wanted)]
        return wrong

    def _as_new(self, point: str) -> None:
        """Every host, and this machine, as it was when the clean run passed this point."""
        for start, script in NEW.items():
            if point.startswith(start):
                for host in self.site.places:
                    host.sh(script, check=False)

    def _check(self, wanted: Counter[str]) -> list[str]:
        wrong = self.site.beyond(self.site.look(), wanted)
        if self.has_audit:
            audit = self.site.play(AUDIT)
            if audit.rc:
                table = audit.output.partition("TASK [Differences]")[2].partition("TASK [")[0].splitlines()[2:-1]
                wrong.append(
                    f"the audit ended with {audit.rc}:\n" + "\n".join(f"        {line[:300]}" for line in table)
                )
        return wrong

    def _killed(self, playbook: str, variables: dict[str, Any], point: str, kind: str) -> list[str]:
        mode = "module" if kind == "module" else "block"
        for place in self.site.places:
            place.order(point, mode)
        waiter = Waiter(self.site.places)
        run = self.site.start(playbook, **variables)
        try:
            reached = None
            while not reached and run.rc is None:
                time.sleep(0.02)
                reached = waiter.reached()
            reached = reached or waiter.reached()
            if not reached:
                run.wait()
                return [f"NOT REACHED (the run ended with {run.rc})"]
            return self._strike(run, kind, *reached)
        finally:
            run.close()
            self.reset()
            waiter.close()
            self.site.learn()

    def _strike(self, run: Run, kind: str, where: str, pid: int) -> list[str]:
        place = next(place for place in self.site.places if place.name == where)
        self._kill(run, kind, place)
        started = time.monotonic()
        wrong = []
        while kind not in ("libvirtd", "dnsmasq") and place.alive(pid):
            if time.monotonic() - started > ENDED_WITHIN:
                wrong.append(f"process {pid} on {where} lives on {ENDED_WITHIN} s after the kill")
                place.sh(f"kill -9 {pid}", check=False)
                break
            time.sleep(0.05)
        if run.wait() == -99:
            wrong.append(f"the run hangs:\n{excerpt(run.output)}")
        return wrong

    def _kill(self, run: Run, kind: str, place: Host) -> None:
        if kind == "libvirtd":
            place.sh("systemctl kill --signal=KILL libvirtd; systemctl start libvirtd")
        elif kind == "dnsmasq":
            place.sh(f"for p in $(pgrep -x dnsmasq); do grep -q {PATHS[1]} /proc/$p/cmdline && kill -9 $p; done; true")
        if kind not in ("group", "main"):  # the run goes on, on another host perhaps, and must not be stopped there
            for other in self.site.places:
                other.disarm(release=kind in ("libvirtd", "dnsmasq"))
        if kind == "group":
            os.killpg(run.process.pid, signal.SIGKILL)
        elif kind == "main":
            os.kill(run.process.pid, signal.SIGKILL)
        elif kind == "connection":
            for master in masters():
                os.kill(master, signal.SIGKILL)


def masters() -> Iterator[int]:
    """The SSH clients that hold the connections of the harness's site."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (path / "cmdline").read_text().startswith(f"ssh: {STATE}/cp/"):
                yield int(path.name)


def excerpt(output: str) -> str:
    """The lines of a playbook's output that say what went wrong."""
    telling = [line for line in output.splitlines() if re.search(r"fatal|FAILED|msg:|[Ee]rror|undone|dead state", line)]
    return "\n".join(f"        {line[:400]}" for line in (telling or output.splitlines())[-25:])


def which_part(text: str) -> tuple[int, int]:
    """(K, N) of K/N; ``turn`` is another K at every commit."""
    part, _, parts = text.partition("/")
    if part == "turn":
        part = str(int(sh("git", "-C", str(ROOT), "rev-parse", "HEAD").strip()[:8], 16) % int(parts) + 1)
    return int(part), int(parts)


def find_site(wanted: str | None) -> Site:
    """The lab where it is up, else this machine."""
    if (
        wanted == "local"
        or not wanted
        and subprocess.run([ROOT / "bin" / "lab", "status"], capture_output=True).returncode
    ):
        return Site([Host("crash-local")], [str(HERE / "site" / "local.yml")])
    return lab_site(ROOT / "inventories" / "lab")


def lab_site(lab: Path) -> Site:
    inventory = yaml.safe_load((lab / "hosts.yml").read_text())["compute"]
    options = inventory["vars"]["ansible_ssh_common_args"].split()
    key = inventory["vars"]["ansible_ssh_private_key_file"]
    own = ["-o", "ControlMaster=auto", "-o", "ControlPersist=600", "-o", f"ControlPath={STATE}/own-%h"]
    hosts = [
        Host(name, ["ssh", "-F", "none", "-i", key, *options, *own, f"root@{host['ansible_host']}"])
        for name, host in inventory["hosts"].items()
    ]
    return Site(hosts, [str(lab), str(HERE / "site" / "lab.yml")], is_lab=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="kill a boot and a delete at every point, and look what is left")
    parser.add_argument("point", nargs="*", help="only cycles with a point that begins so")
    parser.add_argument("--part", default="1/1", help="K/N: every Nth cycle, from the Kth on; K may be 'turn'")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only kills of this kind")
    parser.add_argument("--site", choices=("local", "lab"), help="else the lab where it is up")
    parser.add_argument("--list", action="store_true", help="only say which cycles there are")
    chosen = parser.parse_args()
    STATE.mkdir(mode=0o711, exist_ok=True)
    harness = Harness(find_site(chosen.site))
    print(f"hosts: {', '.join(host.name for host in harness.site.hosts)}", flush=True)
    wrong = harness.prepare()
    part, parts = which_part(chosen.part)
    cycles = [
        cycle
        for cycle in harness.matrix()
        if (not chosen.kind or cycle.kind in chosen.kind)
        and (not chosen.point or any(str(p).startswith(tuple(chosen.point)) for p in (cycle.boot, cycle.delete)))
    ][(part - 1) % parts :: parts]
    counts = ", ".join(f"{name} {len(points)}" for name, points in harness.points.items())
    print(f"points: {counts}; cycles: {len(cycles)}", flush=True)
    if chosen.list:
        print("\n".join(str(cycle) for cycle in cycles))
        cycles = []
    table: Counter[tuple[str, str]] = Counter()
    try:
        for cycle in cycles:
            started = time.monotonic()
            found = harness.cycle(cycle)
            table[cycle.kind, "wrong" if found else "right"] += 1
            print(f"{'WRONG' if found else 'right'} {time.monotonic() - started:5.1f} s  {cycle}", flush=True)
            for line in found:
                print(f"    {line}", flush=True)
            wrong += found
    finally:
        harness.reset()
        IMAGE.unlink(missing_ok=True)
    print(f"\n{'killed':44} {'right':>6} {'wrong':>6}")
    for kind in dict.fromkeys(cycle.kind for cycle in cycles):
        print(f"{KINDS[kind]:44} {table[kind, 'right']:6} {table[kind, 'wrong']:6}")
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
