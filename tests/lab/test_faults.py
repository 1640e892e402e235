# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What goes wrong in racks, each with its expected end, and the audit clean at the end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab_site import HOSTS, PATHS, Site, on, sh, until
from postgresql_server import Server

IMAGES = Path("/var/lib/barestack/images")


@contextlib.contextmanager
def paused(host: str) -> Iterator[None]:
    """A host that is silent: its connections stay, and nobody answers."""
    sh("podman", "pause", host)
    try:
        yield
    finally:
        sh("podman", "unpause", host)


@contextlib.contextmanager
def in_background(host: str, script: str) -> Iterator[None]:
    """A script that goes on on a host."""
    pid = on(host, f"nohup sh -c '{script}' >/dev/null 2>&1 & echo $!").strip()
    try:
        yield
    finally:
        on(host, f"kill -9 {pid}; true")


@contextlib.contextmanager
def in_the_meantime(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    timer = threading.Timer(seconds, act)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def known(site: Site) -> None:
    """All three hosts are in the records."""
    assert site.boot(site.server("first", availability_zone="az2")).rc == 0
    assert len(site.sql("SELECT host FROM compute_nodes")) == 3


def test_a_disk_that_fills_moves_its_servers_elsewhere(site: Site) -> None:
    known(site)
    content = os.urandom(1 << 20) * 24
    image = IMAGES / "barestack-labtest.raw"
    image.write_bytes(content)
    catalog = {
        "name": "bulky",
        "url": str(image),
        "checksum": f"sha256:{hashlib.sha256(content).hexdigest()}",
        "disk_format": "raw",
    }
    full = PATHS["instances_path"]
    on("kvm01", f"mkdir -p {full} && mount -t tmpfs -o size=40m,mode=0711 none {full}")
    try:
        run = site.boot(site.server("bulky", image="bulky", count=6), images=[catalog], images_type="flat")
        assert run.rc == 0, run.output
        assert "is tried on another host" in run.output
        bulky = [row for row in site.servers() if row["name"].startswith("bulky")]
        assert len(bulky) == 6
        assert {row["vm_state"] for row in bulky} == {"ACTIVE"}
        assert on("kvm01", f"find {full} -name 'disk*' -newer /etc/hostname | wc -l").strip() in ("0", "1")
        site.placed_as_recorded()
    finally:
        image.unlink()
        site.delete_all()
        on("kvm01", f"umount {full}")
    site.nothing_is_left()


def test_a_corrupted_image_ends_in_error_and_leaves_nothing(site: Site) -> None:
    image = IMAGES / "barestack-labtest.qcow2"
    sh("qemu-img", "create", "-q", "-f", "qcow2", str(image), "10M")
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    with image.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"garbage")
    catalog = {"name": "bad", "url": str(image), "checksum": f"sha256:{digest}", "disk_format": "qcow2"}
    blank = {
        "name": "blank",
        "url": str(IMAGES / "blank.raw"),
        "checksum": f"sha256:{hashlib.sha256((IMAGES / 'blank.raw').read_bytes()).hexdigest()}",
        "disk_format": "raw",
    }
    try:
        run = site.boot(site.server("bad", image="bad"), site.server("good"), images=[catalog, blank])
    finally:
        image.unlink()
    assert run.rc == 2
    assert {row["name"]: row["vm_state"] for row in site.servers()} == {"bad": "ERROR", "good": "ACTIVE"}
    assert "does not match its checksum" in json.dumps([row["fault"] for row in site.servers()])
    site.placed_as_recorded()
    site.audit_is_clean()


def test_a_tap_that_never_comes_moves_its_server_elsewhere(site: Site) -> None:
    known(site)
    [network] = site.sql("SELECT DISTINCT network_id FROM ports")
    bridge = f"/sys/class/net/brq{network['network_id'][:11]}/brif"
    taken = f"while :; do for tap in {bridge}/tap*; do ip link set ${{tap##*/}} nomaster; done; sleep 0.02; done"
    with in_background("kvm01", taken):
        run = site.boot(site.server("tapped", availability_zone="az1", count=2), vif_plugging_timeout=3)
    assert run.rc == 0, run.output
    tapped = [row for row in site.servers() if row["name"].startswith("tapped")]
    assert {row["vm_state"] for row in tapped} == {"ACTIVE"}
    assert {row["host"] for row in tapped} == {"kvm02"}
    site.placed_as_recorded()
    site.audit_is_clean()


def test_libvirtd_killed_in_spawning(site: Site) -> None:
    run = site.starting(site.server(count=6))
    run.until("TASK [Domain]")
    for host in HOSTS:
        on(host, "pkill -9 -x libvirtd; true")
    done = run.end()
    if done.rc:
        done = site.boot(site.server(count=6))
    assert done.rc == 0, done.output
    assert site.states() == {"ACTIVE"}
    assert len(site.servers()) == 6
    site.placed_as_recorded()
    site.audit_is_clean()


@pytest.mark.parametrize("task", ["L2 network", "Image"])
def test_a_host_that_falls_silent(site: Site, task: str) -> None:
    """The others' servers come up in the same run, and it gives back what it had once it answers again."""
    servers = site.server(count=4), site.server("far", availability_zone="az2")
    run = site.starting(*servers)
    run.until(f"TASK [{task}]")
    with paused("kvm02"):
        done = run.end()
        states = {row["host"]: row["vm_state"] for row in site.servers()}
        assert states["kvm01"] == states["kvm03"] == "ACTIVE", done.output
    again = site.boot(*servers)
    assert again.rc == 0, again.output
    assert site.states() == {"ACTIVE"}
    site.placed_as_recorded()
    assert site.sql("SELECT * FROM residues") == []
    site.audit_is_clean()


def test_a_host_that_is_gone_from_the_start(site: Site) -> None:
    """Its heartbeat is fresh, so it is chosen; its servers are moved in the same run, and it undoes the rest later."""
    known(site)
    with paused("kvm01"):
        run = site.boot(site.server(count=6))
        assert run.rc == 0, run.output
        moved = [row for row in site.servers() if row["name"].startswith("t-")]
        assert {row["vm_state"] for row in moved} == {"ACTIVE"}
        assert "kvm01" not in {row["host"] for row in moved}
    run = site.boot(site.server(count=6))
    assert run.rc == 0, run.output
    assert site.sql("SELECT * FROM residues") == []
    site.placed_as_recorded()
    site.audit_is_clean()


def test_postgresql_restarted_in_the_middle(postgresql_site: Site, database: Server) -> None:
    site = postgresql_site
    run = site.starting(site.server(count=6))
    run.until("TASK [Vif]")
    database.stop("immediate")
    with in_the_meantime(5, database.start):
        done = run.end()
    assert done.rc == 0, done.output
    assert site.states() == {"ACTIVE"}
    site.placed_as_recorded()
    site.audit_is_clean()


def test_postgresql_lost_in_the_middle(postgresql_site: Site, database: Server) -> None:
    """The run ends, the guests stay, and the next run finishes their records."""
    site = postgresql_site
    run = site.starting(site.server(count=3))
    run.until("TASK [Image]")
    database.stop("immediate")
    done = run.end()
    assert done.rc == 2
    assert "records" in done.output
    database.start()
    again = site.boot(site.server(count=3))
    assert again.rc == 0, again.output
    assert site.states() == {"ACTIVE"}
    site.placed_as_recorded()
    site.audit_is_clean()


def test_a_rebooted_host_gets_back_what_it_had(site: Site) -> None:
    assert site.boot(site.server(count=6, volumes=[{"size": 1, "delete_on_termination": True}])).rc == 0
    before = site.domains()
    sh("podman", "restart", "--time", "20", "kvm02")
    until(
        lambda: (
            on("kvm02", "virsh -q list", check=False) is not None
            and "running" in on("kvm02", "systemctl is-system-running; true")
        ),
        60,
    )
    assert site.domains()["kvm02"] == []
    assert site.audit().rc == 2
    run = site.play("playbooks/recover_hosts.yml", names=["kvm02"], auth="{{ admin_auth }}")
    assert run.rc == 0, run.output
    assert {host: sorted(uuids) for host, uuids in site.domains().items()} == {
        host: sorted(uuids) for host, uuids in before.items()
    }
    again = site.boot(site.server(count=6, volumes=[{"size": 1, "delete_on_termination": True}]))
    assert (again.rc, again.changed) == (0, 0), again.output
    site.audit_is_clean()


def test_hosts_come_and_go(site: Site) -> None:
    known(site)
    [first] = site.servers()
    playbook, admin = "playbooks/hosts.yml", {"auth": "{{ admin_auth }}"}
    others = [host for host in HOSTS if host != first["host"]]
    run = site.play(playbook, names=others, state="disabled", reason="new disks", **admin)
    assert run.rc == 0, run.output
    assert site.play(playbook, names=others, state="disabled", reason="new disks", **admin).changed == 0
    run = site.boot(site.server(count=3))
    assert {row["host"] for row in site.servers()} == {first["host"]}
    drained = site.play(playbook, names=[first["host"]], state="drained", **admin)
    assert drained.rc == 2
    assert "has 4 servers" in drained.output
    none = site.boot(site.server("none"))
    assert none.rc == 2
    assert "new disks" in none.output
    refused = site.play(playbook, names=[first["host"]], state="absent", **admin)
    assert refused.rc == 2
    assert "delete them first" in refused.output
    assert site.delete_all().rc == 0
    assert site.play(playbook, names=[first["host"]], state="drained", **admin).rc == 0
    assert site.play(playbook, names=list(HOSTS), state="absent", **admin).rc == 0
    assert site.sql("SELECT * FROM compute_nodes") == []
    assert site.play(playbook, names=list(HOSTS), state="absent", **admin).changed == 0
    assert site.play(playbook, names=[first["host"]], state="enabled", **admin).rc == 2  # nobody knows it
