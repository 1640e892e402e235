# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Bring a database to the newest schema with Alembic. Of two runs at once the second waits, then finds it done."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.trouble import limits
from sqlalchemy import Connection


def configuration() -> Config:
    """Alembic's configuration: the scripts beside this file."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def upgrade(connection: Connection) -> None:
    """Upgrade through ``connection``, in one transaction that holds the database's lock."""
    config = configuration()
    config.attributes["connection"] = connection
    with connection.begin():
        _lock(connection)
        command.upgrade(config, "head")


def _lock(connection: Connection) -> None:
    """PostgreSQL: a lock that goes with the transaction; READ COMMITTED, so that once it is granted the transaction
    sees what its holder before did. SQLite's BEGIN IMMEDIATE is lock enough."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(
            f"SET TRANSACTION ISOLATION LEVEL READ COMMITTED; {limits()}; SELECT pg_advisory_xact_lock(7316208)"
        )
