# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Bring a database to the newest schema with Alembic. Two runs at once are safe: the second waits, then finds it done."""

from __future__ import annotations

from pathlib import Path

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
    with connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(7316208)"))
        command.upgrade(config, "head")
