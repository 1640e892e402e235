# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A site of the tests' own on the lab's three hosts, and what they ask with: virsh, ip, nft, find, SQL.

Nothing here imports the code under test. ``tests/crash/look.py`` says what of the site is on a host.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import NullPool, create_engine, inspect, text

ROOT = Path(__file__).parents[2]
STATE = Path("/var/lib/barestack-labtest")
HOSTS = ("kvm01", "kvm02", "kvm03")
PATHS = {
    "instances_path": "/var/lib/libvirt/images/barestack-labtest",
    "state_path": "/var/lib/barestack-labtest",
    "log_path": "/var/log/libvirt/barestack-labtest",
}
CIDR = "10.176"


def sh(*command: str, text: str | None = None, check: bool = True) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def on(host: str, script: str, *, text: str | None = None, check: bool = True) -> str:
    """What a shell script says on a host, past SSH and Ansible."""
    return sh("podman", "exec", "-i", host, "sh", "-c", script, text=text, check=check)


@dataclass
class Run:
    """A playbook's end."""

    rc: int
    output: str

    @property
    def changed(self) -> int:
        return sum(int(number) for number in re.findall(r"changed=(\d+)", self.output))

    def hosts_of(self, task: str) -> list[str]:
        """The hosts that a task ran on, once for each time."""
        found: list[str] = []
        for block in re.split(r"^TASK \[", self.output, flags=re.MULTILINE)[1:]:
            if block.startswith(f"{task}]"):
                found += re.findall(r"^(?:ok|changed|fatal|failed): \[(kvm\d+)\]", block, flags=re.MULTILINE)
        return found


class Playing:
    """A playbook that runs; its output is read as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._output = ""

    def until(self, text: str) -> None:
        """Read on until the text was printed."""
        assert self.process.stdout
        for line in self.process.stdout:
            self._output += line
            if text in line:
                return
        raise AssertionError(f"{text} was never printed:\n{self._output}")

    def end(self) -> Run:
        assert self.process.stdout
        self._output += self.process.stdout.read()
        return Run(self.process.wait(), self._output)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """It lives, and holds its leases, but does nothing meanwhile."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Site:
    """Our playbooks with the site's variables."""

    def __init__(self, records_url: str) -> None:
        self.variables: dict[str, Any] = {
            **PATHS,
            "records_url": records_url,
            "keys_directory": str(STATE / "control" / "keys"),
            "notification_file": "",
            "shared_host": True,  # the lab may have servers of its own
            "networks": [
                {
                    "name": "lab-test",
                    "network_type": "local",
                    "subnets": [{"name": "lab-test-v4", "cidr": f"{CIDR}.0.0/24"}],
                }
            ],
        }

    def start(self, playbook: str, **variables: Any) -> Playing:
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "inventories/lab", playbook]
        process = subprocess.Popen(
            [*command, "-e", json.dumps({**self.variables, **variables})],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        return Playing(process)

    def play(self, playbook: str, **variables: Any) -> Run:
        return self.start(playbook, **variables).end()

    def boot(self, *servers: dict[str, Any], **variables: Any) -> Run:
        return self.play("boot_instance.yml", instances=list(servers), **variables)

    def starting(self, *servers: dict[str, Any], **variables: Any) -> Playing:
        return self.start("boot_instance.yml", instances=list(servers), **variables)

    def audit(self, **variables: Any) -> Run:
        return self.play("playbooks/audit.yml", auth="{{ admin_auth }}", **variables)

    def delete_all(self) -> Run:
        return self.play("playbooks/delete_instance.yml", names=[row["name"] for row in self.servers()])

    @staticmethod
    def server(name: str = "t", **changes: Any) -> dict[str, Any]:
        """A server that costs nothing: its disk holds no system."""
        return {"name": name, "flavor": "m1.nano", "image": "blank", "network": "lab-test", **changes}

    def sql(self, query: str) -> list[dict[str, Any]]:
        engine = create_engine(self.variables["records_url"], poolclass=NullPool)
        with engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(text(query))]

    def has_records(self) -> bool:
        """Whether any phase came as far as the records."""
        return inspect(create_engine(self.variables["records_url"], poolclass=NullPool)).has_table("instances")

    def servers(self) -> list[dict[str, Any]]:
        """The servers that the records have."""
        return self.sql("SELECT uuid, name, vm_state, host, fault FROM instances WHERE deleted = 0 ORDER BY name")

    def states(self) -> set[str]:
        return {row["vm_state"] for row in self.servers()}

    def domains(self) -> dict[str, list[str]]:
        """Host to the uuids of its running domains that the site's records ever knew."""
        known = {row["uuid"] for row in self.sql("SELECT uuid FROM instances")}
        return {host: [uuid for uuid in on(host, "virsh -q list --uuid").split() if uuid in known] for host in HOSTS}

    def look(self, host: str) -> list[str]:
        """A line for everything of the site that is on a host."""
        tables = ("instances WHERE 1", "ports", "volumes")
        ids = [row["id"] for table in tables[1:] for row in self.sql(f"SELECT id FROM {table}")]  # noqa: S608
        ids += [row["uuid"] for row in self.sql("SELECT uuid FROM instances")]
        ids += [row["network_id"] for row in self.sql("SELECT DISTINCT network_id FROM ports")]
        wanted = {"paths": list(PATHS.values()), "names": "\0", "cidr": f"{CIDR}.", "ids": ids}
        script = (ROOT / "tests" / "crash" / "look.py").read_text()
        on(host, "cat > /run/look.py", text=script)
        return list(json.loads(on(host, "python3 /run/look.py", text=json.dumps(wanted))))

    def placed_as_recorded(self) -> None:
        """Each server runs once, on the host that the records name, and nothing else of the site runs anywhere."""
        wanted = sorted((row["host"], row["uuid"]) for row in self.servers() if row["host"])
        assert sorted((host, uuid) for host, uuids in self.domains().items() for uuid in uuids) == wanted

    def audit_is_clean(self) -> None:
        run = self.audit()
        assert run.rc == 0, run.output

    def nothing_is_left(self) -> None:
        """After a delete of everything: only the image cache, and directories that prepare_hosts makes."""
        kept = {f"directory {PATHS['state_path']}/{name}" for name in ("dhcp", "networks")}
        for host in HOSTS:
            lines = [line for line in self.look(host) if "_base" not in line and line not in kept]
            assert lines == [], f"{host}: {lines}"
        for table in ("ports", "ip_allocations", "allocations", "volumes", "leases", "residues"):
            assert self.sql(f"SELECT * FROM {table}") == [], table  # noqa: S608


def until(condition: Any, seconds: float = 30) -> None:
    """Wait for something that no event of ours tells."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.2)
