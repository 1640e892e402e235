# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The whole pipeline against Nova's: what is asked of placement, who is left, the order, the chosen hosts, alternates.

Nova's side is its SchedulerManager with its request filters on host states in memory. Placement's part (capacity,
traits, aggregates) is a rewriting in nova_oracle.py of placement's rule, since placement is a database.
"""

from __future__ import annotations

from typing import Any

from compared import both, same_weights
from hypothesis import given
from nova_client import Nova
from sites import CAPACITY, REQUESTS, WITH_CELLS, Question, pipeline


@given(question=REQUESTS.questions("resources", hosts=(1, 1)))
def test_what_placement_is_asked(nova: Nova, question: Question) -> None:
    answers = both(nova, question)
    if answers:
        theirs, ours = answers
        assert ours == theirs


@given(question=CAPACITY.questions("decide"))
def test_capacity(nova: Nova, question: Question) -> None:
    _same_decisions(both(nova, question))


@given(question=pipeline())
def test_decisions(nova: Nova, question: Question) -> None:
    _same_decisions(both(nova, question))


@given(question=WITH_CELLS.questions("decide"))
def test_decisions_on_numa_cells_and_devices(nova: Nova, question: Question) -> None:
    _same_decisions(both(nova, question))


def _same_decisions(answers: tuple[Any, Any] | None) -> None:
    """Where Nova finds no host for one server it gives up on all of them; ours places those before it."""
    if not answers:
        return
    theirs, ours = answers
    assert isinstance(ours, dict), (theirs, ours)
    for number, weighed in enumerate(ours["weighed"]):
        assert number < len(theirs["weighed"]), (number, theirs, ours)
        same_weights(weighed, theirs["weighed"][number])
    if theirs["chosen"] is None:
        assert None in ours["chosen"], (theirs, ours)
        assert len(ours["weighed"]) == len(theirs["weighed"]), (theirs, ours)
        return
    assert [hosts and hosts[0] for hosts in ours["chosen"]] == [hosts[0] for hosts in theirs["chosen"]]
    if len(theirs["chosen"]) == 1:
        assert ours["chosen"] == theirs["chosen"]
