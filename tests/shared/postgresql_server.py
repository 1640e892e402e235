# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A PostgreSQL server that a test starts, stops and removes."""

from __future__ import annotations

import glob
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

from sqlalchemy import create_engine, text


class Server:
    """A private PostgreSQL server; it listens on a socket in its own directory only."""

    def __init__(self) -> None:
        self._programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
        self.directory = Path(tempfile.mkdtemp(prefix="barestack-pg-"))
        shutil.chown(self.directory, "postgres")

    def _run(self, program: str, *arguments: str) -> None:
        command = [f"{self._programs}/{program}", "-D", f"{self.directory}/data", *arguments]
        subprocess.run(["runuser", "-u", "postgres", "--", *command], check=True, capture_output=True, cwd="/")

    def make(self) -> None:
        """Its files. The first superuser may connect without a password."""
        self._run("initdb", "-A", "trust", "-U", "postgres", "--no-sync")

    def start(self) -> None:
        """Returns once it answers."""
        options = f"-k {self.directory} -c listen_addresses='' -c fsync=off"
        self._run("pg_ctl", "-w", "-l", f"{self.directory}/log", "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """``fast`` tells the clients, ``immediate`` is a crash."""
        if (self.directory / "data" / "postmaster.pid").exists():
            self._run("pg_ctl", "-m", mode, "stop")

    def url(self, name: str, directory: Path | None = None) -> str:
        """records_url of one of its databases, through a socket in this directory."""
        return f"postgresql+psycopg://postgres@/{name}?host={directory or self.directory}"

    def database(self) -> str:
        """The name of a new database."""
        name = f"records_{uuid.uuid4().hex}"
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return name

    def remove(self) -> None:
        """All of it."""
        self.stop()
        shutil.rmtree(self.directory)
