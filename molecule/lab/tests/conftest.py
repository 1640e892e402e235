# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What the tests ask with: each host's own commands, SQL, our playbooks. Nothing here imports the code under test."""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import testinfra

ROOT = Path(__file__).parents[3]
SCENARIO = Path(__file__).parents[1]
RECORDS = "/var/lib/barestack/lab/records.db"
HOSTS = ("kvm01", "kvm02", "kvm03")
ZONES = {"kvm01": "az1", "kvm02": "az1", "kvm03": "az2"}
SERVERS = ("lab-near", "lab-far", "lab-pair-1", "lab-pair-2", "lab-data", "lab-any")
NOVA = "{http://openstack.org/xmlns/libvirt/nova/1.1}"

OWN_ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "MOLECULE_"))}
"""Molecule's settings are not a user's."""


@dataclass
class Run:
    rc: int
    output: str

    @property
    def changed(self) -> int:
        return sum(int(number) for number in re.findall(r"changed=(\d+)", self.output))


def play(playbook: str, **variables: Any) -> Run:
    extra = ["-e", f"@{SCENARIO / 'vars' / 'servers.yml'}", *(["-e", json.dumps(variables)] if variables else [])]
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "inventories/lab", playbook, *extra],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**OWN_ENVIRONMENT, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
    )
    return Run(done.returncode, done.stdout + done.stderr)


def on(host: str, *command: str) -> str:
    """What a command says on a host, asked past SSH and Ansible."""
    done = testinfra.get_host(f"podman://{host}").run(shlex.join(command))
    assert done.rc == 0, f"{host}: {command}: {done.stderr}"
    return str(done.stdout)


def sql(query: str, *parameters: Any) -> list[dict[str, Any]]:
    connection = sqlite3.connect(f"file:{RECORDS}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute(query, parameters)]
    finally:
        connection.close()


@dataclass
class Guest:
    """A server as its host's libvirt and the records know it."""

    name: str
    uuid: str
    host: str
    domain: ElementTree.Element

    @property
    def tap(self) -> str:
        return str(self.domain.find(".//interface/target").get("dev"))

    @property
    def bridge(self) -> str:
        return str(self.domain.find(".//interface/source").get("bridge"))

    @property
    def mac(self) -> str:
        return str(self.domain.find(".//interface/mac").get("address"))

    @property
    def address(self) -> str:
        query = "SELECT ip_address FROM ip_allocations JOIN ports ON ports.id = port_id WHERE device_id = ?"
        return str(sql(query, self.uuid)[0]["ip_address"])

    @property
    def network_id(self) -> str:
        return str(sql("SELECT network_id FROM ports WHERE device_id = ?", self.uuid)[0]["network_id"])

    @property
    def files(self) -> list[str]:
        disks = [disk.find("source").get("file") for disk in self.domain.findall(".//devices/disk")]
        return [str(path) for path in (*disks, self.domain.find(".//serial/log").get("file"))]

    @property
    def console(self) -> str:
        return on(self.host, "cat", self.files[-1]).replace("\r", "")


def find_guests() -> list[Guest]:
    """The scenario's domains on every host; the lab may run others too."""
    found = []
    uuids = {row["uuid"] for row in sql("SELECT uuid FROM instances WHERE name LIKE 'lab-%'")}
    for host in HOSTS:
        for uuid in on(host, "virsh", "-q", "list", "--all", "--uuid").split():
            if uuid in uuids:
                domain = ElementTree.fromstring(on(host, "virsh", "dumpxml", uuid))
                found.append(Guest(str(domain.findtext(f".//{NOVA}name")), uuid, host, domain))
    return found


@pytest.fixture(scope="session")
def guests() -> dict[str, Guest]:
    found = find_guests()
    names = [guest.name for guest in found]
    assert sorted(names) == sorted(SERVERS), "a server is missing or twice there"
    return {guest.name: guest for guest in found}
