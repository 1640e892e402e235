# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What the scheduler decided on one server, and all that it compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Floats, Rows
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.numa import Taken

SHOWN = 10
"""So many of each are shown to people, and so many have their reason in a decision that is not complete."""


class Removal(NamedTuple):
    """A host that a filter removed, and why."""

    host: str
    filter: str
    reason: str

    def __str__(self) -> str:
        return f"{self.host}: {self.reason}"


class Weight(NamedTuple):
    """A host that passed every filter: its total and each weigher's ``normalised * multiplier``.

    With one such host nothing is weighed, as in Nova: 0 and no scores.
    """

    host: str
    total: float
    scores: Mapping[str, float]


class Removed(NamedTuple):
    """The hosts that one filter removed."""

    filter: str
    rows: Rows
    reasons: tuple[str, ...]
    """Of the first rows; of all in a complete decision."""


class Ranked(NamedTuple):
    """The best of the hosts that passed every filter, best first; all of them in a complete decision."""

    rows: Rows
    totals: Floats
    weighers: tuple[str, ...]
    scores: Floats
    """A row for each weigher, a column for each host; none where one host was left."""


@dataclass(frozen=True, eq=False)
class Decision:
    """One server's host, or None."""

    instance_uuid: str
    host: str | None
    alternates: tuple[str, ...]
    """Where to try again, best first; nothing is claimed there."""
    names: Sequence[str]
    """Every host that was looked at, by row."""
    fits: int
    """How many passed every filter."""
    sieved: tuple[Removed, ...]
    ranked: Ranked
    taken: Taken | None = None
    """The NUMA cells and PCI devices that the server gets on its host, where it asked for any."""
    wrong: str = ""
    """What no rule can read in the request, for which there is no host."""

    @property
    def entered(self) -> int:
        """The number of hosts that were looked at."""
        return len(self.names)

    @property
    def removed(self) -> tuple[Removal, ...]:
        """The removed hosts whose reasons are known, filter by filter."""
        return tuple(
            Removal(self.names[row], name, reason)
            for name, rows, reasons in self.sieved
            for row, reason in zip(rows, reasons)
        )

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The hosts that fit, the best of them or all, in descending order; the chosen host first."""
        rows, totals, weighers, scores = self.ranked
        return tuple(
            Weight(self.names[row], total, dict(zip(weighers, column)))
            for row, total, column in zip(rows, totals.tolist(), scores.T.tolist())
        )

    @property
    def explain(self) -> str:
        """One line: which host, or that there is none, and which filter removed which host and why."""
        hosts = f"{self.entered} host{'' if self.entered == 1 else 's'} entered"
        lead = f"{self.host} was chosen" if self.host else "No valid host was found"
        if self.wrong:
            return f"{lead}: {self.wrong}"
        if not self.entered:
            return f"{lead}: {hosts}: the records hold no compute node"
        return "; ".join([f"{lead}: {hosts}", *self._removals()])

    def _removals(self) -> Iterator[str]:
        """``<filter> removed <host> (<reason>), ...``; at most ten reasons of a filter, and ten hosts of a reason."""
        for name, rows, known in self.sieved:
            by_reason: dict[str, list[str]] = {}
            for row, reason in zip(rows, known):
                by_reason.setdefault(reason, []).append(self.names[row])
            reasons = list(by_reason.items())[:SHOWN]
            shown = [f"{_names(hosts)} ({reason})" if reason else _names(hosts) for reason, hosts in reasons]
            rest = len(rows) - sum(len(hosts) for _reason, hosts in reasons)
            yield f"{name} removed {', '.join(shown)}" + (f" and {rest} more" if rest else "")


def _names(hosts: list[str]) -> str:
    rest = len(hosts) - SHOWN
    return ", ".join(hosts[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
