# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Both sides' answers to one question."""

from __future__ import annotations

from typing import Any

import ours
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from differences import DIFFERENCES
from nova_client import Nova, NovaFailed
from sites import Question

REFUSED = "refused"
_REFUSED_CELLS = {
    "BadRequirementEmulatorThreadsPolicy",
    "CPUThreadPolicyConfigurationInvalid",
    "ImageCPUPinningForbidden",
    "ImageNUMATopologyAsymmetric",
    "InvalidRequest",
}
FAILURES = {
    "ComputeCapabilitiesFilter": {"ValueError", "IndexError"},  # no number after ==, nothing after <or>
    "ImagePropertiesFilter": {"ValueError"},  # an architecture that there is not
    "SimpleCIDRAffinityFilter": {"AddrFormatError"},
    "AggregateInstanceExtraSpecsFilter": {"ValueError", "IndexError"},
    "JsonFilter": {"KeyError", "TypeError", "JSONDecodeError"},  # no such command; what is no list, or no JSON
    "NUMATopologyFilter": _REFUSED_CELLS,
    "MetricsWeigher": {"ComputeHostMetricNotFound"},
    "resources": _REFUSED_CELLS,
    "decide": {*_REFUSED_CELLS, "JSONDecodeError"},
}
"""What Nova raises on some of the questions, by the rule's name or by what is asked."""


def both(nova: Nova, question: Question) -> tuple[Any, Any] | None:
    """(Nova's answer, ours). None where they differ on purpose, or where Nova's code fails on what it is given.

    Where it does, ours has to come to an end all the same: with an answer, or with InvalidRequest; with the latter
    where Nova's API refuses NUMA cells.
    """
    if any(difference.concerns and difference.concerns(question) for difference in DIFFERENCES):
        return None
    try:
        our_answer = ours.answer(question)
    except InvalidRequest as refusal:
        our_answer = f"{REFUSED}: {refusal}"
    try:
        return nova.answer(question), our_answer
    except NovaFailed as failure:
        name = str(failure).partition(":")[0]
        assert name in FAILURES.get(question.name or question.ask, ()), f"Nova's side failed: {failure}"
        if name in _REFUSED_CELLS:  # Nova's API refuses it, and so do we
            assert str(our_answer).startswith(REFUSED), (failure, our_answer)
        return None


def same_weights(ours: list[list[Any]], theirs: list[list[Any]]) -> None:
    """The same hosts in the same order, with the same weights to 1e-9 of the greatest."""
    assert [host for host, _weight in ours] == [host for host, _weight in theirs], (ours, theirs)
    least = 1e-9 * max([1.0, *(abs(weight) for _host, weight in theirs)])
    assert all(abs(a - b) <= least for (_, a), (_, b) in zip(ours, theirs, strict=True)), (ours, theirs)
