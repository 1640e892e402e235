# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What a SIGKILL leaves, and two removals of the same thing at once."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host import system
from ansible_collections.barestack.kvm.plugins.module_utils.host.disk import BACKENDS, Disks, build_once
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image, Instance


def test_what_a_killed_write_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "host")
    system.replace_file(path, "old")
    child = os.fork()
    if not child:
        os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        system.replace_file(path, "longer than what follows")
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2
    assert Path(path).read_text() == "old"
    system.replace_file(path, "new", mode=0o600)
    assert os.listdir(tmp_path) == ["host"]
    assert Path(path).read_text() == "new"
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_writers_of_one_file_at_once_leave_one_whole_text(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    texts = [str(number) * 50_000 for number in range(8)]
    threads = [threading.Thread(target=system.replace_file, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Path(path).read_text() in texts
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        system.replace_file(str(tmp_path / "file"), "\ud800")
    assert os.listdir(tmp_path) == []


def test_two_runs_that_remove_the_same_disks_at_once_both_succeed(tmp_path: Path) -> None:
    paths = Paths(instances_path=str(tmp_path))
    instance = Instance(
        id=1,
        uuid="11111111-1111-4111-8111-111111111111",
        name="web",
        hostname="web",
        project_id="p",
        user_id="u",
        created_at="",
        flavor=Flavor("f", "tiny", 1, 64, 1),
        image=Image("i", "img", "/img", "sha256:" + "0" * 64, "qcow2"),
    )
    errors: list[OSError] = []
    start = threading.Barrier(2)

    def remove() -> None:
        start.wait()
        try:
            Disks(paths, BACKENDS["qcow2"](), Effects(False)).remove(instance)
        except OSError as error:
            errors.append(error)

    for _ in range(10):
        directory = Path(paths.instance_directory(instance.uuid))
        directory.mkdir()
        for number in range(200):
            (directory / f"disk.{number}").touch()
        threads = [threading.Thread(target=remove) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert os.listdir(tmp_path) == []


def test_a_worker_ends_with_the_process_that_started_it() -> None:
    from ansible_collections.barestack.kvm.plugins.module_utils.control import process

    reader, writer = os.pipe()
    parent = os.fork()
    if not parent:
        parent = os.getpid()
        if not os.fork():
            os.setsid()  # as Ansible's workers do
            process.end_with(parent)
            os.write(writer, b"%d\n" % os.getpid())
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        worker = os.pidfd_open(int(stream.readline()))
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        ended = bool(select.select([worker], [], [], 5)[0])
        if not ended:
            signal.pidfd_send_signal(worker, signal.SIGKILL)
    os.close(worker)
    assert ended


def test_the_cause_is_told_where_the_builder_removed_what_it_could_not_finish(tmp_path: Path) -> None:
    def build(part: str) -> None:
        os.unlink(part)
        raise HostError("no space left")

    with pytest.raises(HostError, match="no space left"):
        build_once(str(tmp_path / "disk"), build)
    assert os.listdir(tmp_path) == []
