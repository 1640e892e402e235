# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import HEAD, Records, migrate
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import instances, metadata, volumes
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError, InvalidRequest
from sqlalchemy import Connection, func, insert, select, text


def add(connection: Connection, name: str = "v") -> None:
    connection.execute(
        insert(volumes).values(
            id=f"{name}-{os.getpid()}-{os.urandom(4).hex()}",
            name=name,
            project_id="p",
            size=1,
            volume_type="directory",
            status="available",
            created_at="2026-01-01T00:00:00.000000Z",
        )
    )


def count(connection: Connection) -> int:
    return int(connection.scalar(select(func.count()).select_from(volumes)) or 0)


def fork(work: Callable[[], object]) -> int:
    """Run a callable in a process of its own; returns its pid."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the child has only its exit code to say it with
            os._exit(1)
    return pid


def test_the_migrations_make_the_schema(records_url: str) -> None:
    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    assert Records(records_url).run(differences) == []


def test_head_is_alembics_head() -> None:
    assert ScriptDirectory.from_config(migrate.configuration()).get_current_head() == HEAD


def test_two_sites_do_not_number_their_servers_alike(records_url: str, tmp_path: Path) -> None:
    def first(connection: Connection) -> int:
        values = dict.fromkeys(("uuid", "project_id", "user_id", "name", "vm_state", "power_state"), "x")
        times = dict.fromkeys(("created_at", "updated_at"), "2026-01-01T00:00:00.000000Z")
        row = insert(instances).values(**values, **times, request={}, spec={}, vcpus=1, memory_mb=1, deleted=0)
        return int(connection.execute(row).inserted_primary_key[0])

    numbers = {Records(records_url).run(first), *(Records(f"sqlite:///{tmp_path}/{i}.db").run(first) for i in range(4))}
    assert len(numbers) > 1
    assert max(numbers) < 1 << 31


def test_a_transaction_that_raises_leaves_nothing(records_url: str) -> None:
    records = Records(records_url)

    def work(connection: Connection) -> None:
        add(connection)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        records.run(work)
    assert records.run(count) == 0


def test_check_mode_sees_what_it_wrote_and_leaves_nothing(records_url: str) -> None:
    Records(records_url).run(add)

    def work(connection: Connection) -> int:
        add(connection)
        return count(connection)

    assert Records(records_url, check_mode=True).run(work) == 2
    assert Records(records_url).run(count) == 1


def test_check_mode_makes_no_file(tmp_path: Path) -> None:
    assert Records(f"sqlite:///{tmp_path}/records.db", check_mode=True).run(count) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_private(tmp_path: Path) -> None:
    Records(f"sqlite:///{tmp_path}/records.db").run(add)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o600"}


def test_foreign_keys_are_on(tmp_path: Path) -> None:
    records = Records(f"sqlite:///{tmp_path}/records.db")
    assert records.run(lambda connection: connection.scalar(text("PRAGMA foreign_keys"))) == 1
    assert records.run(lambda connection: connection.scalar(text("PRAGMA journal_mode"))) == "wal"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://h/d", "records_url: Can't load plugin: sqlalchemy.dialects:mysql"),
        ("nonsense", "records_url: Could not parse"),
        ("postgres://h/d", "records_url: Can't load plugin: sqlalchemy.dialects:postgres; allowed: sqlite:////"),
    ],
)
def test_a_wrong_url_says_what_is_allowed(url: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        Records(url)
    assert str(error.value).startswith(message) or "is not supported; allowed: sqlite, postgresql" in str(error.value)


def test_a_missing_directory_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BarestackError, match=r"Run playbooks/prepare_hosts.yml first"):
        Records(f"sqlite:///{tmp_path}/nowhere/records.db").run(count)


def test_processes_that_check_and_take_never_take_the_last_one_twice(records_url: str) -> None:
    """Eight processes race for five; each looks before it takes, in one transaction."""
    Records(records_url).run(count)

    def take(connection: Connection) -> None:
        if count(connection) < 5:
            add(connection)

    pids = [fork(lambda: [Records(records_url).run(take) for _ in range(3)]) for _ in range(8)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 8
    assert Records(records_url).run(count) == 5


def test_two_first_runs_at_once_both_find_the_tables(records_url: str) -> None:
    pids = [fork(lambda: Records(records_url).run(add)) for _ in range(6)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 6
    assert Records(records_url).run(count) == 6
