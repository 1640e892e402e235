# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A PostgreSQL server that restarts, goes away, or whose answer is lost; and one that never was there."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records, trouble
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import volumes
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError
from sqlalchemy import Connection, create_engine, event, func, insert, select, text


def add(connection: Connection, name: str = "v") -> str:
    identifier = f"{name}-{os.urandom(8).hex()}"
    values = {"name": name, "project_id": "p", "size": 1, "volume_type": "directory", "status": "available"}
    connection.execute(insert(volumes).values(id=identifier, created_at="2026-01-01T00:00:00.000000Z", **values))
    return identifier


def ids(connection: Connection) -> list[str]:
    return list(connection.scalars(select(volumes.c.id)))


@pytest.mark.parametrize(("lost", "calls"), [("answer", 1), ("commit", 2), ("commit, unnoticed", 2)])
def test_a_commit_without_an_answer_is_looked_up(server: Any, proxy: Any, lost: str, calls: int) -> None:
    """Written once, and what is returned is what was written, whichever message was lost."""
    name = server.database()
    direct = Records(server.url(name))
    assert direct.run(ids) == []
    made: list[str] = []

    def work(connection: Connection) -> str:
        made.append(add(connection))
        return made[-1]

    proxy.lose = lost
    assert Records(proxy.url(name)).run(work) == made[-1]
    assert proxy.lost == 1
    assert (len(made), direct.run(ids)) == (calls, [made[-1]])


def test_what_only_read_is_read_again(server: Any, proxy: Any) -> None:
    name = server.database()
    Records(server.url(name)).run(add)
    tries: list[int] = []

    def work(connection: Connection) -> int:
        tries.append(len(ids(connection)))
        if len(tries) == 1:
            connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return tries[-1]

    assert Records(server.url(name)).run(work) == 1
    assert tries == [1, 1]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.parametrize("stopped", ["between transactions", "in a transaction", "at its end"])
def test_a_restart_is_ridden_out(unsteady_server: Any, stopped: str, mode: str) -> None:
    records = Records(unsteady_server.url(unsteady_server.database()))
    first = records.run(add)
    back: list[threading.Timer] = []

    def stop() -> None:
        if not back:
            unsteady_server.stop(mode)
            back.append(threading.Timer(1.5, unsteady_server.start))
            back[0].start()

    def work(connection: Connection) -> str:
        if stopped == "in a transaction":
            stop()
        identifier = add(connection)
        if stopped == "at its end":
            stop()
        return identifier

    if stopped == "between transactions":
        stop()
    second = records.run(work)
    back[0].join()
    assert sorted(records.run(ids)) == sorted([first, second])


@pytest.mark.parametrize("lost", ["answer", "commit", "commit, unnoticed"])
def test_a_first_run_that_loses_the_server_in_its_migration_goes_on(
    server: Any, proxy: Any, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trouble, "IDLE_TIMEOUT", 1)
    name = server.database()
    proxy.lose = lost
    identifier = Records(proxy.url(name)).run(add)
    assert proxy.lost == 1
    assert Records(server.url(name)).run(ids) == [identifier]


def test_a_server_that_stays_away_is_one_clear_error(unsteady_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble, "AWAY_TIMEOUT", 1)
    url = unsteady_server.url(unsteady_server.database()).replace("postgres@", "postgres:hush-hush@")
    Records(url).run(add)
    unsteady_server.stop("fast")
    before = time.monotonic()
    with pytest.raises(BarestackError) as caught:
        Records(f"{url}&sslpassword=hush-hush").run(add)
    assert 0.9 < time.monotonic() - before < 3
    message = str(caught.value)
    assert message.startswith("The records (postgresql+psycopg://postgres@/records_")
    assert "have not answered for 1 s: connection" in message
    assert "This phase wrote nothing. Start the database server, or correct records_url" in message
    assert "hush-hush" not in message
    assert "\n" not in message


def test_a_server_that_goes_with_the_commit_leaves_a_doubt_and_says_so(
    unsteady_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trouble, "AWAY_TIMEOUT", 1)
    records = Records(unsteady_server.url(unsteady_server.database()))
    records.run(add)

    def work(connection: Connection) -> None:
        add(connection)
        event.listen(connection, "commit", lambda _: unsteady_server.stop("immediate"), once=True)

    with pytest.raises(BarestackError, match="Whether the last change was written is not known; the next run finds"):
        records.run(work)
    unsteady_server.start()
    assert len(records.run(ids)) == 1


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (("/records", "/nowhere"), 'database "nowhere'),
        (("postgres@", "nobody@"), 'role "nobody" does not exist'),
    ],
)
def test_what_no_waiting_helps_against_is_said_at_once(server: Any, change: tuple[str, str], cause: str) -> None:
    before = time.monotonic()
    with pytest.raises(BarestackError, match=f"cannot be reached: .*{cause}.*Correct records_url"):
        Records(server.url(server.database()).replace(*change)).run(ids)
    assert time.monotonic() - before < 1


def test_too_many_connections_pass(unsteady_server: Any) -> None:
    """The last free place is taken for a moment."""
    url = unsteady_server.url(unsteady_server.database())
    Records(url).run(add)
    engine = create_engine(unsteady_server.url("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("ALTER SYSTEM SET max_connections = 5"))
        connection.execute(text("ALTER SYSTEM SET superuser_reserved_connections = 0"))
        connection.execute(text("ALTER SYSTEM SET max_wal_senders = 0"))
    engine.dispose()
    unsteady_server.stop("fast")
    unsteady_server.start()
    others = [create_engine(url) for _ in range(5)]
    taken = [other.connect() for other in others]

    def free() -> None:
        for connection in taken:
            connection.close()
        for other in others:
            other.dispose()

    timer = threading.Timer(1, free)
    timer.start()
    assert len(Records(url).run(ids)) == 1
    timer.join()
    with create_engine(unsteady_server.url("postgres"), isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("ALTER SYSTEM RESET ALL"))


def test_one_that_always_loses_gets_its_turn_alone(server: Any) -> None:
    """A long transaction among short ones that write what it read: by itself it would never be committed."""
    url = server.url(server.database())
    Records(url).run(add)
    done = threading.Event()
    tries: list[int] = []

    def short() -> None:
        while not done.is_set():
            Records(url).run(lambda connection: (ids(connection), add(connection, "short")))

    def long(connection: Connection) -> int:
        tries.append(connection.scalar(select(func.count()).select_from(volumes)) or 0)
        time.sleep(0.3)
        add(connection, "long")
        return len(ids(connection))

    threads = [threading.Thread(target=short) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        seen = Records(url).run(long)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert 2 <= len(tries) <= trouble.CONFLICTS_BESIDE_OTHERS + 1
    assert seen == tries[-1] + 1, "nobody else wrote meanwhile"


def test_a_key_that_is_taken_for_good_is_an_error_soon(server: Any) -> None:
    records = Records(server.url(server.database()))
    identifier = records.run(add)

    def again(connection: Connection) -> None:
        row = connection.execute(select(volumes).where(volumes.c.id == identifier)).one()
        connection.execute(insert(volumes).values(**row._mapping))

    with pytest.raises(BarestackError, match="failed: duplicate key value violates unique constraint"):
        records.run(again)


def test_a_process_that_stands_still_in_its_transaction_does_not_stop_the_others(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL ends a transaction that its client forgot; it is tried again, and nobody waits for ever."""
    monkeypatch.setattr(trouble, "IDLE_TIMEOUT", 1)
    url = server.url(server.database())
    Records(url).run(add)
    asleep = threading.Event()
    tries: list[int] = []

    def slow(connection: Connection) -> str:
        tries.append(1)
        connection.execute(volumes.update().values(size=len(tries)))
        if len(tries) == 1:
            asleep.set()
            time.sleep(1.5)
        return add(connection, "slow")

    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(Records(url).run(slow)))
    thread.start()
    assert asleep.wait(10)
    Records(url).run(lambda connection: connection.execute(volumes.update().values(size=7)))
    thread.join()
    assert len(tries) == 2
    assert Records(url).run(lambda connection: list(connection.scalars(select(volumes.c.size)))) == [2, 1]
    assert found[0] in Records(url).run(ids)


def test_an_old_collection_leaves_newer_records_alone(records_url: str) -> None:
    Records(records_url).run(lambda connection: connection.execute(text("UPDATE alembic_version SET version_num='9'")))
    with pytest.raises(BarestackError, match="are of version 9, this is .*: a newer barestack.kvm made them"):
        Records(records_url).run(ids)
