# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What the tests ask with: the shell, SQL, and our playbooks. Nothing here imports the code under test."""

from __future__ import annotations

import json
import os
import re
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
INVENTORY = ROOT / "molecule" / "default" / "inventory"
RECORDS = "/var/lib/barestack/molecule/records.db"
SERVERS = ("web-1", "web-2", "probe")
NOVA = "{http://openstack.org/xmlns/libvirt/nova/1.1}"


OWN_ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("ANSIBLE_", "MOLECULE_"))}
"""Molecule's settings are not a user's."""


def sh(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass
class Run:
    rc: int
    output: str

    @property
    def changed(self) -> int:
        return sum(int(number) for number in re.findall(r"changed=(\d+)", self.output))

    @property
    def calls(self) -> int:
        """Module calls: every task of a phase that was carried out on a host."""
        return len(re.findall(r"^(?:ok|changed): \[", self.output, re.MULTILINE))


def play(playbook: str, *arguments: str, **variables: Any) -> Run:
    ansible_playbook = str(Path(sys.executable).parent / "ansible-playbook")
    extra = ["-e", json.dumps(variables)] if variables else []
    done = subprocess.run(
        [ansible_playbook, "-i", str(INVENTORY), str(ROOT / playbook), *arguments, *extra],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**OWN_ENVIRONMENT, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
    )
    return Run(done.returncode, done.stdout + done.stderr)


def sql(query: str, *parameters: Any) -> list[dict[str, Any]]:
    connection = sqlite3.connect(f"file:{RECORDS}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    try:
        return [dict(row) for row in connection.execute(query, parameters)]
    finally:
        connection.close()


@dataclass
class Guest:
    """A server as libvirt and the records know it."""

    name: str
    uuid: str
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
    def console(self) -> str:
        path = self.domain.find(".//serial/log").get("file")
        return Path(str(path)).read_text(errors="replace").replace("\r", "")

    def said(self, pattern: str) -> str | None:
        found = re.findall(rf"^barestack-demo: {pattern}", self.console, re.MULTILINE)
        return found[-1] if found else None

    def disks(self) -> dict[str, str]:
        return {
            str(disk.find("target").get("dev")): str(disk.find("source").get("file"))
            for disk in self.domain.findall(".//devices/disk")
        }


@pytest.fixture
def host() -> Any:
    """This machine: molecule's own host is only a name."""
    return testinfra.get_host("local://")


@pytest.fixture(scope="session")
def guests() -> dict[str, Guest]:
    found = {}
    for uuid in sh("virsh", "-q", "list", "--all", "--uuid").split():
        xml = subprocess.run(["virsh", "dumpxml", uuid], capture_output=True, text=True).stdout
        if xml.strip():  # or it went since: other tests run domains too
            domain = ElementTree.fromstring(xml)
            name = domain.findtext(f".//{NOVA}name")
            if name in SERVERS:
                assert name not in found, f"two domains are named {name}"
                found[name] = Guest(name, uuid, domain)
    return found
