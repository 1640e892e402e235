# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What the scheduler decided on one server, and all that it compared."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

_SHOWN = 10


class Removal(NamedTuple):
    """A host that a filter removed, and why."""

    host: str
    filter: str
    reason: str


class Weight(NamedTuple):
    """A host that passed every filter: its total and each weigher's ``normalised * multiplier``.

    With one such host nothing is weighed, as in Nova: 0 and no scores.
    """

    host: str
    total: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Decision:
    """One server's host, or None. ``weights`` are in descending order, the chosen host first."""

    instance_uuid: str
    host: str | None
    alternates: tuple[str, ...]
    """Where to try again, best first; nothing is claimed there."""
    removed: tuple[Removal, ...]
    weights: tuple[Weight, ...]

    @property
    def entered(self) -> int:
        """The number of hosts that were looked at."""
        return len(self.removed) + len(self.weights)

    @property
    def explain(self) -> str:
        """One line: which host, or that there is none, and which filter removed which host and why."""
        hosts = f"{self.entered} host{'' if self.entered == 1 else 's'} entered"
        lead = f"{self.host} was chosen" if self.host else "No valid host was found"
        if not self.entered:
            return f"{lead}: {hosts}: the records hold no compute node"
        return "; ".join([f"{lead}: {hosts}", *_removals(self.removed)])


def _removals(removed: Iterable[Removal]) -> Iterator[str]:
    """``<filter> removed <host> (<reason>), ...`` for each filter; at most ten reasons, and ten hosts of a reason."""
    for name, group in itertools.groupby(removed, key=lambda removal: removal.filter):
        by_reason: dict[str, list[str]] = {}
        for removal in group:
            by_reason.setdefault(removal.reason, []).append(removal.host)
        reasons = list(by_reason.items())
        shown = [f"{_names(hosts)} ({reason})" for reason, hosts in reasons[:_SHOWN]]
        rest = sum(len(hosts) for _reason, hosts in reasons[_SHOWN:])
        yield f"{name} removed {', '.join(shown)}" + (f" and {rest} more" if rest else "")


def _names(hosts: list[str]) -> str:
    rest = len(hosts) - _SHOWN
    return ", ".join(hosts[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
