# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The collection as others get it: built, installed elsewhere, and run from a site outside the checkout.

Its one host is this machine, reached over SSH: every phase on it is an ordinary module, on Debian's own Python.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SITE = Path(__file__).with_name("site")
STATE = [
    Path("/var/lib/barestack-elsewhere"),
    Path("/var/lib/libvirt/images/barestack-elsewhere"),
    Path("/var/log/libvirt/barestack-elsewhere"),
]
"""The site's own roots on the compute host, as site/group_vars/all.yml has them."""


CONTENT = (
    *("changelogs/", "docs/", "inventories/production.example/", "meta/", "playbooks/", "plugins/", "roles/"),
    *("CHANGELOG", "LICENSE", "README.md", "requirements/control.txt"),
)
"""How the names begin of what a tarball is made of."""

HOST_PHASES = {
    *("network", "dhcp", "firewall", "volume_attachment", "image", "disk", "config_drive", "domain", "vif", "wait")
}
SECRETS = ("integration-only", "gAAAAA", "$argon2id$")


def sh(*command: str, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def environment(home: Path) -> dict[str, str]:
    """As if the checkout were not there: no setting of its own, no one's ~/.ansible or ~/.ssh."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "OS_", "PYTHON"))}
    return {**kept, "HOME": str(home), "ANSIBLE_NOCOLOR": "1"}


@dataclass(frozen=True)
class Run:
    rc: int
    output: str

    @property
    def modules(self) -> set[str]:
        """The phases that were carried out as modules, in a Python of their own; as -vvv tells them."""
        return set(
            re.findall(r"^Using module file .*/barestack/kvm/plugins/modules/(\w+)\.py", self.output, re.MULTILINE)
        )

    @property
    def changed(self) -> int:
        return sum(int(number) for number in re.findall(r"changed=(\d+)", self.output))


@dataclass(frozen=True)
class Site:
    """A directory with an inventory, which knows the collection only as installed."""

    path: Path
    collection: Path

    def play(self, *arguments: str, **variables: Any) -> Run:
        extra = ["-e", json.dumps(variables)] if variables else []
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible-playbook"), *arguments, *extra],
            capture_output=True,
            text=True,
            cwd=self.path,
            env=environment(self.path),
        )
        return Run(done.returncode, done.stdout + done.stderr)


@pytest.fixture(scope="session")
def tarball(directory: Path) -> Path:
    galaxy = str(Path(sys.executable).parent / "ansible-galaxy")
    sh(galaxy, "collection", "build", "--output-path", str(directory), str(ROOT), env=environment(directory))
    (built,) = directory.glob("barestack-kvm-*.tar.gz")
    return built


@pytest.fixture(scope="session")
def collection(directory: Path, tarball: Path) -> Path:
    """Where the collection is installed."""
    galaxy = str(Path(sys.executable).parent / "ansible-galaxy")
    target = directory / "collections"
    install = [galaxy, "collection", "install", "--offline", "--collections-path", str(target), str(tarball)]
    sh(*install, cwd=directory, env=environment(directory))
    return target / "ansible_collections" / "barestack" / "kvm"


def make_site(directory: Path, collection: Path, **host: Any) -> Site:
    """A site in ``directory`` whose one compute host has these variables."""
    shutil.copytree(SITE, directory)
    inventory = {
        "all": {"vars": {"site": str(directory)}},
        "compute": {"hosts": {"kvm-elsewhere": {"ansible_python_interpreter": "/usr/bin/python3", **host}}},
    }
    (directory / "hosts.yml").write_text(json.dumps(inventory))
    (directory / "ansible.cfg").write_text(
        f"[defaults]\ncollections_path = {collection.parents[2]}\ninventory = hosts.yml\n"
        "[connection]\npipelining = true\n"
        f"[ssh_connection]\ncontrol_path_dir = {directory}/cp\n"
    )
    return Site(directory, collection)


@pytest.fixture(scope="module")
def over_ssh(directory: Path, collection: Path, sshd: tuple[int, Path]) -> Iterator[Site]:
    """This machine as a host that is reached over SSH, by a server of the tests' own."""
    port, key = sshd
    site = make_site(
        directory / "ssh",
        collection,
        ansible_host="127.0.0.1",
        ansible_port=port,
        ansible_user="root",
        ansible_ssh_private_key_file=str(key),
        ansible_ssh_common_args=f"-F none -o UserKnownHostsFile={key.parent}/known_hosts -o IdentitiesOnly=yes",
    )
    try:
        yield site
    finally:
        site.play("barestack.kvm.delete_instance", names=["abroad"])
        for master in (site.path / "cp").glob("*"):
            sh("ssh", "-F", "none", "-O", "exit", "-o", f"ControlPath={master}", "127.0.0.1")
        for path in STATE:
            shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def on_this_machine(directory: Path, collection: Path) -> Site:
    """This machine as it is: what Ansible runs here it runs itself, unless it may not."""
    return make_site(directory / "local", collection, ansible_connection="local")


def test_the_tarball_holds_what_runs_and_nothing_else(tarball: Path) -> None:
    listed = sh("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate", cwd=ROOT)
    known = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    with tarfile.open(tarball) as archive:
        files = {member.name for member in archive if not member.isdir()} - {"MANIFEST.json", "FILES.json"}
    assert files == {name for name in known if name.startswith(CONTENT)}


def test_every_phases_action_is_still_a_link(collection: Path) -> None:
    modules = {path.name for path in (collection / "plugins" / "modules").glob("*.py")}
    actions = {path.name: path for path in (collection / "plugins" / "action").glob("*.py")}
    assert set(actions) == modules | {"phase.py"}
    for name in modules:
        assert str(actions[name].readlink()) == "phase.py"


def test_every_module_is_in_one_action_group(collection: Path) -> None:
    groups = yaml.safe_load((collection / "meta" / "runtime.yml").read_text())["action_groups"]
    grouped = sorted(name for names in groups.values() for name in names)
    modules = sorted(path.stem for path in (collection / "plugins" / "modules").glob("*.py"))
    assert grouped == [name for name in modules if name != "token"]  # which is what the others take


def traces() -> list[str]:
    """What the site's server and network left on the host, by all the names that it could be found."""
    domains = []
    for uuid in sh("virsh", "-q", "list", "--all", "--uuid").split():
        xml = subprocess.run(["virsh", "dumpxml", uuid], capture_output=True, text=True).stdout
        if "<nova:name>abroad</nova:name>" in xml:
            domains.append(f"domain {uuid}")
    rules = [line for line in sh("nft", "list", "ruleset").splitlines() if "10.173.0." in line]
    links = [line for line in sh("ip", "-o", "address").splitlines() if "10.173.0." in line]
    files = [str(path) for root in STATE for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return [*domains, *rules, *links, *(path for path in files if "/_base/" not in path)]


def test_the_roles_prepare_the_host(over_ssh: Site) -> None:
    prepared = over_ssh.play("barestack.kvm.prepare_hosts", "barestack.kvm.demo_image")
    assert prepared.rc == 0, prepared.output


def test_check_mode_touches_nothing(over_ssh: Site) -> None:
    plan = over_ssh.play("barestack.kvm.boot_instance", "--check", "--diff")
    assert plan.rc == 0, plan.output
    assert plan.changed > 0
    for shown in ("kvm-elsewhere", "10.173.0.", "fa:16:3e:", "<nova:name>abroad</nova:name>"):
        assert shown in plan.output
    assert traces() == []
    assert not (over_ssh.path / "records.db").exists()


def test_boot(over_ssh: Site) -> None:
    boot = over_ssh.play("barestack.kvm.boot_instance")
    assert boot.rc == 0, boot.output
    assert boot.changed > 0
    assert "WARNING" not in boot.output
    assert len([trace for trace in traces() if trace.startswith("domain ")]) == 1


@pytest.mark.parametrize("pipelining", [True, False])
def test_a_rerun_changes_nothing(over_ssh: Site, pipelining: bool) -> None:
    """In a session, and where there can be none as a module for every phase."""
    before = traces()
    again = over_ssh.play("barestack.kvm.boot_instance", "-vvv", ansible_pipelining=pipelining)
    assert (again.rc, again.changed) == (0, 0), again.output
    assert traces() == before
    assert again.modules == (set() if pipelining else HOST_PHASES)
    for secret in SECRETS:
        assert secret not in again.output


def test_the_list_shows_the_server_and_its_console(over_ssh: Site) -> None:
    shown = over_ssh.play("barestack.kvm.list_instances", console_lines=3)
    assert shown.rc == 0, shown.output
    for text in ("abroad", "ACTIVE", "RUNNING", "10.173.0.", "abroad login:"):
        assert text in shown.output


def test_delete(over_ssh: Site) -> None:
    gone = over_ssh.play("barestack.kvm.delete_instance", names=["abroad"])
    assert gone.rc == 0, gone.output
    assert gone.changed > 0
    assert traces() == []


def test_delete_again_changes_nothing(over_ssh: Site) -> None:
    again = over_ssh.play("barestack.kvm.delete_instance", names=["abroad"])
    assert (again.rc, again.changed) == (0, 0), again.output


def run_tasks(site: Site, hosts: str, *tasks: dict[str, Any], **play: Any) -> Run:
    """A play of these tasks."""
    playbook = site.path / "tasks.yml"
    playbook.write_text(json.dumps([{"hosts": hosts, "gather_facts": False, "tasks": tasks, **play}]))
    return site.play(str(playbook), "-vvv")


def test_become_is_honoured_on_this_machine_too(on_this_machine: Site) -> None:
    """A log that only root may read: nobody must not get at it through Ansible's own process."""
    server = "00000000-0000-4000-8000-000000000001"
    logs = on_this_machine.path / "logs"
    logs.mkdir(mode=0o700)
    (logs / f"{server}.console.log").write_text("only for root\n")
    read = {"barestack.kvm.console_log": {"uuids": [server], "log_path": str(logs)}}
    as_root = run_tasks(on_this_machine, "compute", read)
    assert (as_root.rc, as_root.modules) == (0, set()), as_root.output
    assert "only for root" in as_root.output
    nobody = {"ansible_become_method": "su", "ansible_become_flags": "-s /bin/sh"}
    as_nobody = run_tasks(on_this_machine, "compute", read, become=True, become_user="nobody", vars=nobody)
    assert as_nobody.modules == {"console_log"}, as_nobody.output
    assert f"{server}.console.log" in as_nobody.output
    assert "Permission denied" in as_nobody.output
    assert "only for root" not in as_nobody.output


def test_the_control_hosts_phases_run_in_ansible_whatever_a_site_sets_for_all_hosts(on_this_machine: Site) -> None:
    settings = {"ansible_become": True, "ansible_become_method": "su", "ansible_python_interpreter": "/bin/false"}
    shown = on_this_machine.play("barestack.kvm.list_instances", "-vvv", **settings)
    assert (shown.rc, shown.modules) == (0, set()), shown.output


@pytest.mark.parametrize(("password", "rc"), [("integration-only", 0), ("no-such-password", 2)])
def test_a_tasks_environment_reaches_the_phase(on_this_machine: Site, password: str, rc: int) -> None:
    catalog = {"users": "{{ users }}", "projects": "{{ projects }}"}
    token = {"barestack.kvm.token": {"catalog": catalog, "keys_directory": "{{ keys_directory }}"}}
    credentials = {"OS_USERNAME": "tester", "OS_PASSWORD": password, "OS_PROJECT_NAME": "elsewhere"}
    asked = run_tasks(on_this_machine, "localhost", token, environment=credentials)
    assert asked.rc == rc, asked.output
    assert ("HTTP 401" in asked.output) == (rc != 0)
    for secret in (password, *SECRETS):
        assert secret not in asked.output
