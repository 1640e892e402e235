# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The lab, and a new site on it for each test."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

import pytest
from lab_site import HOSTS, PATHS, ROOT, STATE, Site, on, sh
from postgresql_server import Server


@pytest.fixture(scope="session")
def lab() -> None:
    """The lab runs: bin/test sees to it."""
    for host in HOSTS:
        on(host, "virsh -q list")


@pytest.fixture
def site(lab: None) -> Iterator[Site]:
    """New records for each test; whatever it left on the hosts goes."""
    with _new(f"sqlite:///{STATE}/control/records.db") as site:
        yield site


@pytest.fixture
def database() -> Iterator[Server]:
    """A PostgreSQL server of the test's own."""
    server = Server()
    try:
        server.make()
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def postgresql_site(lab: None, database: Server) -> Iterator[Site]:
    """A site whose records are in PostgreSQL."""
    with _new(database.url(database.database())) as site:
        yield site


@contextlib.contextmanager
def _new(records_url: str) -> Iterator[Site]:
    shutil.rmtree(STATE, ignore_errors=True)
    (STATE / "control").mkdir(parents=True, mode=0o700)
    for host in HOSTS:  # what a test run that was killed left
        on(host, f"rm -rf {' '.join(PATHS.values())}")
    site = Site(records_url)
    yield site
    for host in HOSTS:
        with contextlib.suppress(AssertionError):
            sh("podman", "unpause", host)
    if site.has_records() and site.servers():
        run = site.delete_all()
        assert run.rc == 0, run.output


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every", type=int, default=1, help="only every Nth test; the commit's hash says which is the first"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    every = config.getoption("--every")
    first = int(sh("git", "-C", str(ROOT), "rev-parse", "HEAD"), 16) % every
    mine = [item for item in items if "tests/lab/" in item.path.as_posix()]
    kept = mine[first::every]
    items[:] = [item for item in items if item not in mine or item in kept]
