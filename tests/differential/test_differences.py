# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The differences from Nova that we have on purpose are there, each as its entry says."""

from __future__ import annotations

from typing import Any

import ours
import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from differences import DIFFERENCES, Difference
from nova_client import Nova, NovaFailed


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda item: item.why.split(".")[0][:60])
def test_difference(nova: Nova, difference: Difference) -> None:
    question = difference.example
    assert difference.concerns is None or difference.concerns(question)
    if isinstance(difference.nova, str):
        with pytest.raises(NovaFailed, match=f"^{difference.nova}"):
            nova.answer(question, **difference.more)
    else:
        assert _as_told(nova.answer(question, **difference.more), difference.nova) == difference.nova
    if isinstance(difference.ours, str):
        with pytest.raises(InvalidRequest, match=f"^{difference.ours}"):
            ours.answer(question)
    else:
        assert _as_told(ours.answer(question), difference.ours) == difference.ours


def _as_told(answer: Any, told: Any) -> Any:
    """Of decisions the chosen hosts, with their alternates where these are told."""
    if not isinstance(answer, dict) or "chosen" not in answer:
        return answer
    if isinstance(told, list) and isinstance(told[0], list):
        return answer["chosen"]
    return answer["chosen"] and [hosts and hosts[0] for hosts in answer["chosen"]]
