# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The lab, and a new site on it for each test."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

import pytest
from lab_site import HOSTS, PATHS, STATE, Site, on, sh


@pytest.fixture(scope="session")
def lab() -> None:
    """The lab runs: bin/test sees to it."""
    for host in HOSTS:
        on(host, "virsh -q list")


@pytest.fixture
def site(lab: None) -> Iterator[Site]:
    """New records for each test; whatever it left on the hosts goes."""
    shutil.rmtree(STATE, ignore_errors=True)
    (STATE / "control").mkdir(parents=True, mode=0o700)
    for host in HOSTS:  # what a test run that was killed left
        on(host, f"rm -rf {' '.join(PATHS.values())}")
    site = Site(f"sqlite:///{STATE}/control/records.db")
    yield site
    for host in HOSTS:
        with contextlib.suppress(AssertionError):
            sh("podman", "unpause", host)
    if (STATE / "control" / "records.db").exists() and site.servers():
        run = site.delete_all()
        assert run.rc == 0, run.output
