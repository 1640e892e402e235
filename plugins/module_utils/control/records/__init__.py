# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The records: what the system allocated. SQLAlchemy is imported here and nowhere else.

``Records.run`` hands a connection to one function in one transaction. Everything that checks and then takes (a claim,
an address, a name, the quota) does both in there: SQLite takes its write lock at BEGIN, PostgreSQL runs it
SERIALIZABLE, and a conflict is tried again from the start. A server that restarts is waited for.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any, Callable, TypeVar

from ansible_collections.barestack.kvm.plugins.module_utils.control.records import trouble
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError, InvalidRequest
from sqlalchemy import Connection, create_engine, event, inspect, text
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool, StaticPool

T = TypeVar("T")

DEFAULT_URL = "sqlite:////var/lib/barestack/control/records.db"
HEAD = "0003"
"""The newest migration. A test compares it with Alembic's own answer, which would cost every phase 0.5 s."""

_DRIVERS = {"sqlite": "pysqlite", "postgresql": "psycopg"}
_SETTLED_TIMEOUT = 10
"""Seconds for a session to end a transaction that it was told to end."""
_KEEPALIVE = {
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""libpq's, unless records_url has others: a server's machine that is gone is noticed within half a minute."""


class _Commit:
    """The COMMIT that was sent last, as long as nobody answered it: its transaction's number and the work's result."""

    def __init__(self) -> None:
        self.transaction: str | None = None
        self.result: Any = None


class Records:
    """The database behind ``records_url``."""

    def __init__(self, url: str, check_mode: bool = False) -> None:
        self._check_mode = check_mode
        self._engine = _engine(_parse(url or DEFAULT_URL), check_mode)

    def run(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction and return its result; in check mode the transaction is rolled back.

        ``work`` is called again from the start when the database says that another transaction was in the way, and
        when the connection was lost before COMMIT was sent: nothing of it was written then. After some conflicts it
        shuts the other transactions out, so that it gets its turn however many there are.

        A connection that is lost between COMMIT and its answer leaves it open whether the transaction was written.
        PostgreSQL knows, by the transaction's number: if it was, this returns what ``work`` returned, and only if it
        was not is ``work`` called again. No phase may meet its own commit: ``present`` and ``schedule`` would find
        what they made and report no change, ``building`` would write a host's events twice, ``active`` and ``absent``
        would find their leases given back, call the servers another run's, and send no notification.

        Where the server stays away this raises, and the next run meets that commit as one meets what a killed run
        left: ``instance`` finds a server by its name and takes no quota twice, ``schedule`` keeps the claim, ``port``
        counts the NICs that have ports, ``volume`` finds its volumes placed, an ACTIVE server is left alone, a delete
        goes on. What is lost is the one notification that follows a commit.

        BarestackError when the database does not answer, is locked, full, read-only or damaged.
        """
        patience = trouble.Patience(self._engine.url)
        commit = _Commit()
        while True:
            try:
                with self._engine.connect() as connection:
                    if commit.transaction and self._took_effect(connection, commit.transaction):
                        result: T = commit.result
                        return result
                    commit.transaction = None
                    return self._once(connection, work, commit, patience.alone)
            except trouble.Overtaken as error:
                patience.overtaken(error)
            except DBAPIError as error:
                patience.wait(error, in_doubt=commit.transaction is not None)

    def _once(self, connection: Connection, work: Callable[[Connection], T], commit: _Commit, alone: bool) -> T:
        if self._check_mode and self._is_new(connection):
            return self._rehearse(work)
        self._migrate(connection)
        with connection.begin() as transaction:
            _enter(connection, alone)
            result = work(connection)
            if self._check_mode:
                transaction.rollback()
                return result
            commit.transaction, commit.result = _number(connection), result
            try:
                transaction.commit()
            except DBAPIError as error:
                if not error.connection_invalidated:
                    commit.transaction = None  # the server's answer was no
                raise
            return result

    def _took_effect(self, connection: Connection, number: str) -> bool:
        """Whether a transaction was committed whose COMMIT nobody answered.

        Its session may wait for a client that is no longer there: it is ended. A commit that is under way ends well.
        """
        deadline = time.monotonic() + _SETTLED_TIMEOUT
        while True:
            with connection.begin():
                status = connection.scalar(text("SELECT pg_xact_status(CAST(:id AS xid8))"), {"id": number})
                if status != "in progress":
                    return bool(status == "committed")
                connection.execute(
                    text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE backend_xid = CAST(CAST(:id AS xid8) AS xid)"
                    ),
                    {"id": number},
                )
            if time.monotonic() > deadline:
                raise BarestackError(
                    f"The records ({trouble.shown(self._engine.url)}): transaction {number} has not ended for "
                    f"{_SETTLED_TIMEOUT} s after its connection was lost. Look for it in pg_stat_activity and end it, "
                    "then run again: it goes on from what is recorded."
                )
            time.sleep(0.05)

    def _is_new(self, connection: Connection) -> bool:
        with connection.begin():
            return bool(self._engine.url.database) and not inspect(connection).has_table("alembic_version")

    def _rehearse(self, work: Callable[[Connection], T]) -> T:
        """Records that nobody has made yet are as empty as ones in memory, which check mode may make."""
        self._engine = _engine(make_url("sqlite://"), True)
        with self._engine.connect() as connection:
            return self._once(connection, work, _Commit(), alone=False)

    def _migrate(self, connection: Connection) -> None:
        with connection.begin():
            current = None
            if inspect(connection).has_table("alembic_version"):
                current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if current == HEAD:
            return
        versions = f"The records ({trouble.shown(self._engine.url)}) are of version {current}, this is {HEAD}: "
        if current and current > HEAD:
            raise BarestackError(f"{versions}a newer barestack.kvm made them. Run that one.")
        if self._check_mode and self._engine.url.database:
            raise BarestackError(f"{versions}a run without --check upgrades them.")
        from ansible_collections.barestack.kvm.plugins.module_utils.control.records import migrate

        migrate.upgrade(connection)


def _enter(connection: Connection, alone: bool) -> None:
    """PostgreSQL: take part in the records with the others, or with ``alone`` once they are done and before new ones.

    LOCK before anything is read: a transaction sees the records as they are after the lock was granted.
    """
    if connection.dialect.name == "postgresql":
        mode = "EXCLUSIVE" if alone else "ROW SHARE"
        connection.exec_driver_sql(f"{trouble.limits()}; LOCK TABLE alembic_version IN {mode} MODE")


def _number(connection: Connection) -> str | None:
    """PostgreSQL: the number of the transaction, None for one that wrote nothing. SQLite's COMMIT needs no network."""
    if connection.dialect.name != "postgresql":
        return None
    number = connection.scalar(text("SELECT CAST(pg_current_xact_id_if_assigned() AS text)"))
    return None if number is None else str(number)


def _parse(url: str) -> URL:
    allowed = "allowed: sqlite:////absolute/path or postgresql+psycopg://user:password@host/database"
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError) as error:
        raise InvalidRequest(f"records_url: {error}; {allowed}") from None
    except ValueError:
        raise InvalidRequest(f"records_url: the port is not a number; {allowed}") from None
    backend, driver = parsed.get_backend_name(), parsed.get_driver_name()
    if _DRIVERS.get(backend) != driver:
        raise InvalidRequest(
            f"records_url: {parsed.drivername!r} is not supported; allowed: sqlite, postgresql+psycopg"
        )
    return parsed


def _engine(url: URL, check_mode: bool) -> Engine:
    if url.get_backend_name() == "postgresql":
        logging.getLogger("psycopg").setLevel(
            logging.ERROR
        )  # it warns of a connection that breaks; that is handled here
        arguments = {key: value for key, value in _KEEPALIVE.items() if key not in url.query}
        return create_engine(url, isolation_level="SERIALIZABLE", poolclass=NullPool, connect_args=arguments)
    path = Path(url.database or "")
    if check_mode and not path.is_file():
        engine = create_engine("sqlite://", poolclass=StaticPool)
    else:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise trouble.unopened(url, error) from None
        engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": trouble.LOCK_TIMEOUT})
    event.listen(engine, "connect", _sqlite_connect)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # or the driver begins transactions itself, later than ours
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA journal_mode = WAL")
