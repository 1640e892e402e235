# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Every filter and every weigher alone, against Nova's own: the same survivors, the same weights in the same order."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters import FILTERS
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers import WEIGHERS
from compared import both, same_weights
from hypothesis import given
from hypothesis import strategies as st
from nova_client import Nova
from sites import FILTERS as FILTER_CASES
from sites import WEIGHERS as WEIGHER_CASES

NOT_NOVAS = {
    "AvailabilityZone",
    "Capacity",
    "ComputeStatus",
    "IsolatedAggregates",
    "TenantAggregate",
    "Traits",
    "VolumeLocality",
}
"""Rules that stand for placement and Nova's request filters (test_decisions_as_nova.py has them), or are ours."""


def test_every_rule_is_compared() -> None:
    assert {rule.name for rule in FILTERS} - NOT_NOVAS == set(FILTER_CASES)
    assert {rule.name for rule in WEIGHERS} == set(WEIGHER_CASES)


@pytest.mark.parametrize("name", FILTER_CASES)
@given(data=st.data())
def test_filter(nova: Nova, name: str, data: Any) -> None:
    answers = both(nova, data.draw(FILTER_CASES[name].questions("filter", name)))
    if answers:
        theirs, ours = answers
        assert ours == theirs


@pytest.mark.parametrize("name", WEIGHER_CASES)
@given(data=st.data())
def test_weigher(nova: Nova, name: str, data: Any) -> None:
    answers = both(nova, data.draw(WEIGHER_CASES[name].questions("weigher", name)))
    if answers:
        theirs, ours = answers
        same_weights(ours, theirs)
