# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""``--cases`` says how many sites and requests each test makes up."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from nova_client import Nova

CASES = 25


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", type=int, default=CASES, help="cases of each test")


def pytest_configure(config: pytest.Config) -> None:
    """Every run makes up others; a failure prints how to have its case again."""
    settings.register_profile(
        "as nova",
        max_examples=config.getoption("--cases"),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        database=None,
        derandomize=bool(os.environ.get("CI")),
    )
    settings.load_profile("as nova")


@pytest.fixture(scope="session")
def nova() -> Iterator[Nova]:
    with Nova() as process:
        yield process


@pytest.fixture(scope="session")
def nova_numa() -> Iterator[Nova]:
    with Nova("nova_numa_oracle.py") as process:
        yield process
