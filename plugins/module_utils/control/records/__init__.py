# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The records: what the system allocated. SQLAlchemy is imported here and nowhere else.

``Records.run`` hands a connection to one function in one transaction. Everything that checks and then takes (a claim,
an address, a name, the quota) does both in there: SQLite takes its write lock at BEGIN, PostgreSQL runs it
SERIALIZABLE, and a conflict is tried again from the start.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Callable, TypeVar

from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError, InvalidRequest
from sqlalchemy import Connection, create_engine, event, inspect, text
from sqlalchemy.engine import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool, StaticPool

T = TypeVar("T")

DEFAULT_URL = "sqlite:////var/lib/barestack/control/records.db"
HEAD = "0001"
"""The newest migration. A test compares it with Alembic's own answer, which would cost every phase 0.5 s."""

_ATTEMPTS = 10
_RETRIED = {"40001", "40P01", "23505", "57P01", "08006", "08003", "08000"}
"""PostgreSQL: serialisation failure, deadlock, server shutting down, connection lost. And a unique key that another
transaction took meanwhile: tried again, the work sees that row and says whose it is."""


class Records:
    """The database behind ``records_url``."""

    def __init__(self, url: str, check_mode: bool = False) -> None:
        self._check_mode = check_mode
        self._engine = _engine(_parse(url or DEFAULT_URL), check_mode)

    def run(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction and return its result; in check mode the transaction is rolled back.

        ``work`` is called again from the start when the database says that another transaction was in the way.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._once(work)
            except DBAPIError as error:
                if not _is_passing(error) or attempt == _ATTEMPTS:
                    raise BarestackError(f"The records ({self._engine.url!r}) failed: {error.orig}") from error
                time.sleep(0.02 * 2**attempt)
        raise AssertionError("unreachable")

    def _once(self, work: Callable[[Connection], T]) -> T:
        with self._engine.connect() as connection:
            if self._check_mode and self._is_new(connection):
                return self._rehearse(work)
            self._migrate(connection)
            with connection.begin() as transaction:
                result = work(connection)
                if self._check_mode:
                    transaction.rollback()
                return result

    def _is_new(self, connection: Connection) -> bool:
        with connection.begin():
            return bool(self._engine.url.database) and not inspect(connection).has_table("alembic_version")

    def _rehearse(self, work: Callable[[Connection], T]) -> T:
        """Records that nobody has made yet are as empty as ones in memory, which check mode may make."""
        self._engine = _engine(make_url("sqlite://"), True)
        return self._once(work)

    def _migrate(self, connection: Connection) -> None:
        with connection.begin():
            current = None
            if inspect(connection).has_table("alembic_version"):
                current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        if current != HEAD:
            if self._check_mode and self._engine.url.database:
                raise BarestackError(
                    f"The records ({self._engine.url!r}) are of version {current}, this is {HEAD}: "
                    "a run without --check upgrades them."
                )
            from ansible_collections.barestack.kvm.plugins.module_utils.control.records import migrate

            migrate.upgrade(connection)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError) as error:
        raise InvalidRequest(
            f"records_url: {error}; allowed: sqlite:////absolute/path or postgresql+psycopg://user:password@host/database"
        ) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise InvalidRequest(
            f"records_url: {parsed.get_backend_name()!r} is not supported; allowed: sqlite, postgresql"
        )
    return parsed


def _engine(url: URL, check_mode: bool) -> Engine:
    if url.get_backend_name() == "postgresql":
        return create_engine(url, isolation_level="SERIALIZABLE", poolclass=NullPool)
    path = Path(url.database or "")
    if check_mode and not path.is_file():
        engine = create_engine("sqlite://", poolclass=StaticPool)
    else:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise BarestackError(
                f"The records cannot be opened: {error}. Run playbooks/prepare_hosts.yml first, or set records_url."
            ) from None
        engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": 60})
    event.listen(engine, "connect", _sqlite_connect)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # or the driver begins transactions itself, later than ours
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA journal_mode = WAL")


def _is_passing(error: DBAPIError) -> bool:
    state = getattr(error.orig, "sqlstate", None)
    return error.connection_invalidated or state in _RETRIED or "database is locked" in str(error.orig)
