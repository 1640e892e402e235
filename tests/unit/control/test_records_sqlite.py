# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""SQLite's file in trouble: locked, on a full or a read-only file system, damaged, not ours to write."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records, trouble
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import volumes
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError
from sqlalchemy import Connection, insert, select

COLLECTIONS = Path(__file__).parents[3] / "collections"


def add(connection: Connection, name: str = "v") -> str:
    values = {"name": name, "project_id": "p", "size": 1, "volume_type": "directory", "status": "available"}
    identifier = f"{name[:1]}-{os.urandom(8).hex()}"
    connection.execute(insert(volumes).values(id=identifier, created_at="2026-01-01T00:00:00.000000Z", **values))
    return identifier


def ids(connection: Connection) -> list[str]:
    return list(connection.scalars(select(volumes.c.id)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Records with one row."""
    path = tmp_path / "records.db"
    Records(f"sqlite:///{path}").run(add)
    return path


@pytest.fixture
def lock(file: Path) -> Iterator[sqlite3.Connection]:
    """Somebody else's transaction."""
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    yield other
    other.close()


def test_a_lock_is_waited_for(file: Path, lock: sqlite3.Connection) -> None:
    timer = threading.Timer(0.5, lock.execute, ("COMMIT",))
    timer.start()
    Records(f"sqlite:///{file}").run(add)
    timer.join()
    assert len(Records(f"sqlite:///{file}").run(ids)) == 2


def test_a_lock_that_nobody_gives_back(file: Path, lock: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble, "LOCK_TIMEOUT", 1)
    before = time.monotonic()
    with pytest.raises(BarestackError) as caught:
        Records(f"sqlite:///{file}").run(add)
    assert 0.9 < time.monotonic() - before < 3
    assert str(caught.value) == (
        f"The records (sqlite:///{file}) are locked: database is locked. Another process has held the lock for 1 s. "
        "This phase wrote nothing. End that process, then run again."
    )


def on_a_small_file_system(script: str) -> str:
    """What a script prints that has a file system of 1 MiB at /mnt, in a mount namespace that ends with it."""
    begin = f"""
        import os, subprocess, sys
        sys.path.insert(0, {str(COLLECTIONS)!r})
        from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records
        from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError
        from sqlalchemy import text

        def write(name, size=1):
            values = f"('{{name}}', '{{'n' * size}}', 'p', 1, 'directory', 'available', '')"
            columns = "(id, name, project_id, size, volume_type, status, created_at)"
            Records("sqlite:////mnt/records.db").run(
                lambda connection: connection.execute(text(f"INSERT INTO volumes {{columns}} VALUES {{values}}"))
            )

        def show():
            ids = Records("sqlite:////mnt/records.db").run(
                lambda connection: list(connection.scalars(text("SELECT id FROM volumes ORDER BY id")))
            )
            print(*ids)

        def refused(work):
            try:
                work()
            except BarestackError as error:
                print(error)
            else:
                print("done")

        write("first")
    """
    command = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /mnt && exec "$0" -c "$1"']
    whole = textwrap.dedent(begin) + textwrap.dedent(script)
    done = subprocess.run([*command, sys.executable, whole], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("left", "cause", "advice"),
    [
        (0, "disk I/O error", "See whether its file system is full or its disk is failing"),
        (128, "database or disk is full", "Make room on its file system"),
    ],
)
def test_a_full_file_system_loses_nothing(left: int, cause: str, advice: str) -> None:
    """With ``left`` KiB free: for SQLite's index of its log, but not for the log."""
    first, full, rows, again = on_a_small_file_system(f"""
        show()
        with open("/mnt/rest", "wb", buffering=0) as rest:
            try:
                while True:
                    rest.write(bytes(4096))
            except OSError:
                pass
            rest.truncate(rest.tell() - {left} * 1024)
        refused(lambda: write("big", 300000))
        os.unlink("/mnt/rest")
        show()
        write("second")
        show()
    """).splitlines()
    assert full == (
        f"The records (sqlite:////mnt/records.db) failed: {cause}. This phase wrote nothing. {advice}, then run again."
    )
    assert (first, rows, again) == ("first", "first", "first second")


def test_no_room_for_the_first_byte() -> None:
    (message,) = on_a_small_file_system("""
        os.unlink("/mnt/records.db")
        with open("/mnt/rest", "wb", buffering=0) as rest:
            try:
                while True:
                    rest.write(bytes(512))
            except OSError:
                pass
        refused(show)
    """).splitlines()
    assert message.startswith("The records (sqlite:////mnt/records.db) failed: d")
    assert "full" in message


def test_a_read_only_file_system() -> None:
    before, message, after = on_a_small_file_system("""
        show()
        subprocess.run(["mount", "-o", "remount,ro", "/mnt"], check=True)
        refused(lambda: write("second"))
        subprocess.run(["mount", "-o", "remount,rw", "/mnt"], check=True)
        show()
    """).splitlines()
    assert message.startswith("The records (sqlite:////mnt/records.db) cannot be opened: [Errno 30] Read-only")
    assert message.endswith("Make its file system writable, or set records_url.")
    assert before == after == "first"


def test_a_file_system_that_becomes_read_only_in_a_transaction(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    Records(f"sqlite:///{path}").run(add)
    records = Records(f"sqlite:///{path}")

    def work(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA query_only = ON")
        add(connection)

    with pytest.raises(BarestackError, match="attempt to write a readonly database. This phase wrote nothing. Make"):
        records.run(work)
    assert len(records.run(ids)) == 1


def as_nobody(work: Callable[[], object]) -> str:
    """The message of the error that the work raises in a process without root's rights."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            work()
        except BarestackError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    with os.fdopen(reader) as answer:
        return answer.read()


def test_somebody_elses_file(file: Path) -> None:
    for directory in (file.parent, *file.parent.parents):
        if directory.stat().st_mode & 0o777 == 0o700 and directory != Path("/root"):
            directory.chmod(0o755)
    url = f"sqlite:///{file}"
    message = as_nobody(lambda: Records(url).run(add))
    assert "cannot be opened: [Errno 13] Permission denied" in message
    assert message.endswith("Make it writable for this user, or set records_url.")
    file.chmod(0o666)
    message = as_nobody(lambda: Records(url).run(add))
    assert "Make the file" in message, message
    assert len(Records(url).run(ids)) == 1


def test_a_directory_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(BarestackError, match="Is a directory.*records_url has to name a file"):
        Records(f"sqlite:///{tmp_path}").run(ids)


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(BarestackError, match="not a database. This phase wrote nothing. The file is damaged, or"):
        Records(f"sqlite:///{path}").run(ids)
    assert path.read_bytes() == b"not a database" * 1000


def test_a_damaged_file(file: Path) -> None:
    connection = sqlite3.connect(file)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'volumes'").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with file.open("r+b") as raw:
        raw.seek((page - 1) * size)
        raw.write(b"\xff" * size)
    with pytest.raises(BarestackError, match="database disk image is malformed. This phase wrote nothing. The file is"):
        Records(f"sqlite:///{file}").run(lambda connection: connection.execute(select(volumes)).all())


def test_a_process_killed_in_its_transaction_leaves_the_records_as_they_were(file: Path) -> None:
    url = f"sqlite:///{file}"

    def work(connection: Connection) -> None:
        add(connection, "x" * 100000)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        Records(url).run(work)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    Records(url).run(add)
    assert len(Records(url).run(ids)) == 2
