# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A database of each kind: SQLite in a file, and a PostgreSQL server that the tests start and stop."""

from __future__ import annotations

import glob
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a private server without its database's name; it listens on a socket in its own directory only."""
    programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
    directory = Path(tempfile.mkdtemp(prefix="barestack-pg-"))
    shutil.chown(directory, "postgres")

    def as_postgres(*command: str) -> None:
        subprocess.run(["runuser", "-u", "postgres", "--", *command], check=True, capture_output=True, cwd="/")

    try:
        as_postgres(f"{programs}/initdb", "-D", f"{directory}/data", "-A", "trust", "-U", "postgres", "--no-sync")
        options = f"-k {directory} -c listen_addresses='' -c fsync=off"
        as_postgres(
            f"{programs}/pg_ctl", "-D", f"{directory}/data", "-w", "-l", f"{directory}/log", "-o", options, "start"
        )
        yield f"postgresql+psycopg://postgres@/{{}}?host={directory}"
    finally:
        if (directory / "data" / "postmaster.pid").exists():
            as_postgres(f"{programs}/pg_ctl", "-D", f"{directory}/data", "-m", "immediate", "stop")
        shutil.rmtree(directory)


@pytest.fixture(params=["sqlite", "postgresql"])
def records_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/records.db"
    server: str = request.getfixturevalue("postgresql")
    name = f"records_{uuid.uuid4().hex}"
    engine = create_engine(server.format("postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return server.format(name)
