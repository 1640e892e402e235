# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A thousand servers over a hundred hosts, with libvirt's test driver in place of QEMU. ``./bin/bench thousand``.

Each host is a libvirtd of its own, with its own paths on this machine; its connection is local. The records, the
scheduler, the image cache, the overlays and the config drives are real; the servers have no NICs, because the test
driver makes no taps. Every size is a new site, with ten servers a host: what grows is hosts and servers alike.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import yaml
from argon2 import PasswordHasher
from common import ROOT, Run, machine, play

STAND_IN = Path(__file__).with_name("stand_in")
PER_HOST = 10
BLANK = "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58"
"""One MiB of zeros."""
DAEMON = """
unix_sock_dir = "{directory}"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "3:file:{directory}/log"
min_workers = 2
max_workers = 20
prio_workers = 1
host_uuid = "{identity}"
"""


class Host:
    """A libvirtd without any driver but the test driver, which is part of its library."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self.uri = f"test+unix:///default?socket={directory}/libvirt-sock"
        pid = directory / "pid"
        (directory / "drivers").mkdir(parents=True)
        config = directory / "libvirtd.conf"
        config.write_text(DAEMON.format(directory=directory, identity=uuid.uuid4()))
        subprocess.run(
            ["libvirtd", "--daemon", "--config", config, "--pid-file", pid],
            env={**os.environ, "LIBVIRT_DRIVER_DIR": str(directory / "drivers")},
            check=True,
        )
        stack.callback(lambda: os.kill(int(pid.read_text()), signal.SIGTERM))
        self._holder = libvirt.open(self.uri)  # the test driver forgets its domains with its last client
        stack.enter_context(contextlib.closing(self._holder))

    def running(self) -> int:
        """Without the domain that the test driver comes with."""
        return int(self._holder.numOfDomains()) - 1


class Site:
    """An inventory with so many hosts, which end with the stack, and records of its own."""

    def __init__(self, directory: Path, hosts: int, records_url: str, stack: contextlib.ExitStack) -> None:
        self.inventory = directory / "inventory"
        self.hosts: dict[str, Host] = {}
        (self.inventory / "group_vars" / "all").mkdir(parents=True)
        (directory / "control").mkdir()
        (directory / "blank.raw").write_bytes(bytes(1 << 20))
        declared = {}
        for number in range(1, hosts + 1):
            name = f"host{number:03}"
            self.hosts[name] = Host(directory / name, stack)
            declared[name] = {"libvirt_uri": self.hosts[name].uri, **_paths(directory / name)}
        local = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
        groups = {
            "all": {"hosts": {"localhost": local}},
            "compute": {"hosts": declared, "vars": {**local, "virt_type": "qemu", "cpu_allocation_ratio": 16.0}},
        }
        (self.inventory / "hosts.yml").write_text(yaml.safe_dump(groups))
        (self.inventory / "group_vars" / "all" / "site.yml").write_text(yaml.safe_dump(_site(directory, records_url)))

    def play(self, playbook: str, variables: dict[str, Any], *arguments: str) -> Run:
        return play(self.inventory, playbook, variables, *arguments, environment={"PYTHONPATH": str(STAND_IN)})


def _paths(directory: Path) -> dict[str, str]:
    return {name: str(directory / name) for name in ("instances_path", "state_path", "log_path")}


def _site(directory: Path, records_url: str) -> dict[str, Any]:
    password = secrets.token_urlsafe(18)
    hasher = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)
    return {
        "records_url": records_url,
        "keys_directory": str(directory / "keys"),
        "notification_file": str(directory / "notifications.jsonl"),
        "auth": {"username": "bench", "password": password, "project_name": "bench"},
        "users": [{"name": "bench", "password_hash": hasher.hash(password), "roles": {"bench": "member"}}],
        "projects": [{"name": "bench", "quota": {"instances": -1, "cores": -1, "ram": -1}}],
        "flavors": [{"name": "m1.nano", "vcpus": 1, "ram": 128, "disk": 1}],
        "images": [
            {"name": "blank", "url": str(directory / "blank.raw"), "checksum": f"sha256:{BLANK}", "disk_format": "raw"}
        ],
    }


@contextlib.contextmanager
def postgresql(directory: Path) -> Iterator[str]:
    """records_url of a server that listens in its own directory only, and syncs as any."""
    programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
    data = directory / "postgresql"
    data.mkdir()
    shutil.chown(data, "postgres")

    def run(program: str, *arguments: str) -> None:
        command = ["runuser", "-u", "postgres", "--", f"{programs}/{program}", "-D", f"{data}/data", *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd="/")

    run("initdb", "-A", "trust", "-U", "postgres")
    run("pg_ctl", "-w", "-l", f"{data}/log", "-o", f"-k {data} -c listen_addresses=''", "start")
    try:
        yield f"postgresql+psycopg://postgres@/postgres?host={data}"
    finally:
        run("pg_ctl", "-m", "fast", "stop")


@contextlib.contextmanager
def records(kind: str, directory: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{directory}/control/records.db"
        return
    with postgresql(directory) as url:
        yield url


def measure(servers: int, kind: str, arguments: list[str]) -> dict[str, Run]:
    """Boot, rerun and delete on a new site."""
    count = max(1, servers // PER_HOST)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="barestack-bench-", dir="/var/tmp")))
        directory.chmod(0o755)
        site = Site(directory, count, stack.enter_context(records(kind, directory)), stack)
        request = {
            "instances": [{"name": "bench", "flavor": "m1.nano", "image": "blank", "nics": "none", "count": servers}]
        }
        boot = site.play("boot_instance.yml", request, *arguments)
        running = sorted(host.running() for host in site.hosts.values())
        if sum(running) != servers:
            sys.exit(f"{sum(running)} of {servers} guests run")
        rerun = site.play("boot_instance.yml", request, *arguments)
        if "changed=0" not in rerun.output:
            sys.exit(f"a rerun changed something:\n{rerun.output}")
        names = [f"bench-{number}" for number in range(1, servers + 1)]
        delete = site.play("playbooks/delete_instance.yml", {"names": names}, *arguments)
        left = sum(host.running() for host in site.hosts.values())
        if left:
            sys.exit(f"{left} guests are left")
        return {"boot": boot, "rerun": rerun, "delete": delete}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--records", choices=["sqlite", "postgresql"], nargs="+", default=["sqlite", "postgresql"])
    parser.add_argument("--forks", type=int, help="default: ansible.cfg's")
    parser.add_argument("--tasks", type=int, default=0, help="show so many of the slowest tasks")
    options = parser.parse_args()
    os.chdir(ROOT)
    arguments = ["--forks", str(options.forks)] if options.forks else []
    print(f"{machine()}\n")
    print("| records | servers | hosts | boot | a server | module calls | rerun | delete | peak: main | peak: all |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for kind in options.records:
        for servers in options.servers:
            runs = measure(servers, kind, arguments)
            boot = runs["boot"]
            print(
                f"| {kind} | {servers} | {max(1, servers // PER_HOST)} | {boot.seconds:.1f} s "
                f"| {boot.seconds / servers:.3f} s | {boot.calls} | {runs['rerun'].seconds:.1f} s "
                f"| {runs['delete'].seconds:.1f} s | {max(run.peak_main for run in runs.values()):.0f} MiB "
                f"| {max(run.peak_tree for run in runs.values()):.0f} MiB |",
                flush=True,
            )
            for name, run in runs.items() if options.tasks else ():
                print(f"  {name}: {run.slowest(options.tasks)}", flush=True)
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
