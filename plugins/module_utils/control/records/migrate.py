# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Bring a database to the newest schema with Alembic. Of two runs at once the second waits, then finds it done."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Iterator

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text


def configuration() -> Config:
    """Alembic's configuration: the scripts beside this file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def upgrade(connection: Connection) -> None:
    """Upgrade through ``connection``, in one transaction that holds the database's lock."""
    config = configuration()
    config.attributes["connection"] = connection
    with _locked(connection), connection.begin():
        command.upgrade(config, "head")


@contextlib.contextmanager
def _locked(connection: Connection) -> Iterator[None]:
    """PostgreSQL: a session's lock, taken before the transaction that migrates, or that would not see what the
    holder before did. SQLite's BEGIN IMMEDIATE is lock enough."""
    if connection.dialect.name != "postgresql":
        yield
        return
    with connection.begin():
        connection.execute(text("SELECT pg_advisory_lock(7316208)"))
    try:
        yield
    finally:
        with connection.begin():
            connection.execute(text("SELECT pg_advisory_unlock(7316208)"))
