# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A phase on a remote host ends with its connection, and its commands with it.

The phases are real, over a private sshd on this machine: an image that comes slowly over HTTP, a disk that qemu-img
takes long to convert. Who holds a file open below the phase's directory is the module, or its command.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image, Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import to_wire

ROOT = Path(__file__).parents[2]
BLANK = bytes(1 << 20)
IMAGE = "11111111-0000-4000-8000-000000000001"
ENDED_WITHIN = 1.5
"""Seconds. Who takes over a dead run's servers waits twice as long."""


class SlowImages(http.server.BaseHTTPRequestHandler):
    """/late answers after 1.3 s (two signs of life), /never sends half and then nothing."""

    def do_GET(self) -> None:
        if self.path == "/late":
            time.sleep(1.3)
        self.send_response(200)
        self.send_header("Content-Length", str(len(BLANK)))
        self.end_headers()
        if self.path == "/late":
            self.wfile.write(BLANK)
        else:
            self.wfile.write(BLANK[: len(BLANK) // 2])
            with contextlib.suppress(OSError):
                self.rfile.read(1)  # until the client is gone

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def source() -> Iterator[str]:
    """The URL of the images."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowImages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@dataclass(frozen=True)
class Site:
    """One host over SSH, and a directory on it for the phase under test."""

    path: Path
    images: Path
    style: str

    def start(self, phase: str, options: dict[str, Any], **play: Any) -> subprocess.Popen[str]:
        """ansible-playbook, in a process group of its own, with a play of this one phase."""
        tasks = [{f"barestack.kvm.{phase}": {**options, "instances_path": str(self.images)}}]
        (self.path / "play.yml").write_text(
            json.dumps([{"hosts": "far", "gather_facts": False, "tasks": tasks, **play}])
        )
        return subprocess.Popen(
            [str(Path(sys.executable).parent / "ansible-playbook"), "play.yml"],
            cwd=self.path,
            env={**os.environ, "HOME": str(self.path), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": "ansible.cfg"},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def holders(self) -> dict[int, str]:
        """The processes that have a file below ``images`` open, and what they are."""
        found = {}
        for link in glob.iglob("/proc/[0-9]*/fd/*"):
            pid = link.split("/")[2]
            with contextlib.suppress(OSError):
                if os.readlink(link).startswith(f"{self.images}/"):
                    found[int(pid)] = Path(f"/proc/{pid}/comm").read_text().strip()
        return found

    def await_holder(self, name: str, run: subprocess.Popen[str]) -> None:
        """Until a process of this name is at work on a file that is not empty."""
        deadline = time.monotonic() + 30
        while not any(comm.startswith(name) for comm in self.holders().values()):
            assert run.poll() is None and time.monotonic() < deadline, run.communicate()[0]
            time.sleep(0.05)

    def masters(self) -> list[int]:
        """The SSH clients that hold this site's connections for others to use."""
        found = []
        for path in glob.iglob("/proc/[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                title = Path(path).read_text()
                if title.startswith("ssh: ") and f"{self.path}/cp/" in title:
                    found.append(int(path.split("/")[2]))
        return found


STYLES = {
    "pipelined, by sudo": {"ansible_become": True, "ansible_become_method": "sudo"},
    "a file and a terminal, by su": {
        "ansible_become": True,
        "ansible_become_method": "su",
        "ansible_pipelining": False,
    },
    "without a master": {"ansible_ssh_args": "-o ControlMaster=no"},
}
"""How the host is reached."""


@pytest.fixture(params=STYLES)
def site(request: pytest.FixtureRequest, tmp_path: Path, sshd: tuple[int, Path], directory: Path) -> Iterator[Site]:
    port, key = sshd
    home = directory / f"ends-{abs(hash(request.node.name)) % 10**6}"
    home.mkdir()
    common = f"-F none -o UserKnownHostsFile={key.parent}/known_hosts -o IdentitiesOnly=yes"
    host = {
        "ansible_host": "127.0.0.1",
        "ansible_port": port,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(key),
        "ansible_ssh_common_args": common,
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_remote_tmp": str(home / "tmp"),
        **STYLES[request.param],
    }
    (home / "hosts.yml").write_text(json.dumps({"all": {"hosts": {"far": host}}}))
    (home / "ansible.cfg").write_text(
        f"[defaults]\ncollections_path = {ROOT}/collections\ninventory = hosts.yml\n"
        "[connection]\npipelining = true\n"
        f"[ssh_connection]\ncontrol_path_dir = {home}/cp\n"
    )
    images = tmp_path / "images"
    images.mkdir()
    yield Site(home, images, request.param)
    for master in (home / "cp").glob("*"):
        subprocess.run(["ssh", "-F", "none", "-O", "exit", "-o", f"ControlPath={master}", "127.0.0.1"], check=False)


def server_of(url: str, **changes: Any) -> dict[str, Any]:
    checksum = "sha256:" + hashlib.sha256(BLANK).hexdigest()
    image = Image(IMAGE, "slow", url, checksum, "raw")
    return to_wire(
        Instance(
            id=1,
            uuid="11111111-0000-4000-8000-000000000002",
            name="slow",
            hostname="slow",
            project_id="p",
            user_id="u",
            created_at="2026-01-01T00:00:00.000000Z",
            flavor=Flavor("f", "tiny", 1, 64, 1),
            image=image,
            host="far",
        ).with_(**changes)
    )


def test_signs_of_life_do_not_disturb_the_result(site: Site, source: str) -> None:
    run = site.start("image", {"instances": [server_of(f"{source}/late")]})
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 0, output
    assert "changed=1" in output
    assert "WARNING" not in output
    assert len(list((site.images / "_base").glob("*.json"))) == 1


def test_the_phases_of_a_run_have_one_python_where_a_session_can_be(site: Site) -> None:
    python = site.path / "python"
    python.write_text(f'#!/bin/sh\necho >> {site.path}/starts\nexec /usr/bin/python3 "$@"\n')
    python.chmod(0o755)
    uuid = "11111111-0000-4000-8000-000000000002"
    ask = {"barestack.kvm.console_log": {"uuids": [uuid], "log_path": str(site.images)}}
    play = {"vars": {"ansible_python_interpreter": str(python)}, "tasks": [ask, ask, ask]}
    run = site.start("disk", {}, **play)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 0, output
    assert "ok=3" in output
    starts = (site.path / "starts").read_text().count("\n")
    assert starts == (3 if "terminal" in site.style else 1)


def kill_playbook(run: subprocess.Popen[str], site: Site) -> None:
    os.kill(run.pid, signal.SIGKILL)


def kill_group(run: subprocess.Popen[str], site: Site) -> None:
    os.killpg(run.pid, signal.SIGKILL)


def kill_master(run: subprocess.Popen[str], site: Site) -> None:
    for pid in site.masters():
        os.kill(pid, signal.SIGKILL)


KILLS: dict[str, Callable[[subprocess.Popen[str], Site], None]] = {
    "ansible-playbook": kill_playbook,
    "its process group": kill_group,
    "the connection": kill_master,
}


def ended(run: subprocess.Popen[str], site: Site, kill: str) -> float:
    """Seconds from the kill until no one is at work on the host any more."""
    started = time.monotonic()
    KILLS[kill](run, site)
    while site.holders():
        took = time.monotonic() - started
        if took > 10:
            for pid in site.holders():
                os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"still there {took:.1f} s after the kill of {kill}")
        time.sleep(0.02)
    took = time.monotonic() - started
    run.wait(timeout=30)
    return took


@pytest.mark.parametrize("kill", KILLS)
def test_a_download_ends(site: Site, source: str, kill: str) -> None:
    run = site.start("image", {"instances": [server_of(f"{source}/never")]})
    site.await_holder("python3", run)
    if kill == "the connection" and not site.masters():
        run.kill()
        pytest.skip("the connection is ansible-playbook's own")
    assert ended(run, site, kill) < ENDED_WITHIN


@pytest.mark.parametrize("site", ["pipelined, by sudo"], indirect=True)
@pytest.mark.parametrize("kill", KILLS)
def test_a_command_of_the_module_ends(site: Site, tmp_path: Path, kill: str) -> None:
    """qemu-img, held to one MiB a second by its own option."""
    base = Path(Paths(instances_path=str(site.images)).base(IMAGE))
    base.parent.mkdir()
    base.write_bytes(b"x" * (64 << 20))
    slow = tmp_path / "bin" / "qemu-img"
    slow.parent.mkdir()
    slow.write_text('#!/bin/sh\nwhat=$1\nshift\nexec /usr/bin/qemu-img "$what" -r 1M "$@"\n')
    slow.chmod(0o755)
    path = {"environment": {"PATH": f"{slow.parent}:/usr/sbin:/usr/bin:/sbin:/bin"}}
    run = site.start("disk", {"instances": [server_of("unused")], "images_type": "flat"}, **path)
    site.await_holder("qemu-img", run)
    assert ended(run, site, kill) < ENDED_WITHIN
