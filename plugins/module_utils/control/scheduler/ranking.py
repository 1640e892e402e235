# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The weighers over the servers of one request: weights that did not change between two of them stay."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from random import Random

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Floats, Hosts, Rows
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decision import Ranked
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher, bounds


class Ranking:
    """Made for one request; ``rank`` for each of its servers, ``took`` once a host has one.

    Between two servers only the chosen host's weights change, and with them perhaps the ends of the normalisation. All
    that is kept is worked out anew in Nova's order of operations, never added up, so that it is exactly Nova's.
    """

    def __init__(self, hosts: Hosts, spec: RequestSpec, weighers: Sequence[Weigher]) -> None:
        self._hosts = hosts
        self._spec = spec
        self._all = tuple(rule.name for rule in weighers)
        self._multipliers = {rule.name: rule.multipliers(hosts) for rule in weighers}
        self._weighers = [
            rule for rule in weighers if rule.concerns(spec) and np.any(np.asarray(self._multipliers[rule.name]))
        ]
        self._rows: Rows | None = None
        self._order: Rows = np.arange(0)
        """Positions in ``_rows``, as the last server's ranking had them: Nova ranks the next from there."""
        self._sorted = False
        """Whether they are in order already, and all of them."""

    def rank(self, rows: Rows, most: int | None) -> None:
        """Put the rows in order: by descending weight, equal ones as the last ranking had them.

        The best ``most`` and their equals, or all. One row alone is not weighed.
        """
        if self._rows is None:
            self._weigh(rows)
        elif rows is not self._rows:
            self._keep(rows)
        if len(rows) > 1 and not self._sorted:
            self._sort(most)

    def choose(self, random: Random, subset: int, shuffle: bool, most: int | None) -> Rows:
        """The best ``most`` rows in their order, or all, the chosen one first: one of the first ``subset``.

        ``shuffle`` puts those that share the best weight in random order before.
        """
        order = self._order
        if shuffle and len(order) > 1:
            best = order[self._totals[order] == self._totals[order[0]]].tolist()
            random.shuffle(best)
            order = np.concatenate((best, order[len(best) :]))
        chosen = random.randrange(min(subset, len(order))) if subset > 1 else 0
        if chosen:
            order = np.concatenate((order[chosen : chosen + 1], order[:chosen], order[chosen + 1 :]))
        self._order = order
        return self._rows_now()[order[:most]]

    def took(self, row: int) -> None:
        """The row's host has a server more."""
        position = int(np.searchsorted(self._rows_now(), row))
        one = np.array([row], dtype=np.intp)
        whole = False
        for number, rule in enumerate(self._weighers):
            old, new = self._raw[number][position], rule.clamped(self._hosts, one, self._spec)[0]
            if new == old:
                continue
            self._raw[number][position] = new
            if len(self._rows_now()) <= 1:
                continue
            low, high = self._ends[number]
            if (
                (rule.minval is None and not low < old)
                or (rule.maxval is None and not old < high)
                or not low <= new <= high
            ):
                whole = self._scale(number) or whole
            self._scores[number][position] = self._score(number, position)
        if whole:
            self._total()
        elif len(self._rows_now()) > 1:
            self._place(position)

    def ranked(self, rows: Rows) -> Ranked:
        """These rows' weights, of the whole ranking the best."""
        if len(self._rows_now()) <= 1:
            return Ranked(rows, np.zeros(len(rows)), (), np.zeros((0, len(rows))))
        positions = np.searchsorted(self._rows_now(), rows)
        scores = np.zeros((len(self._all), len(rows)))
        for number, rule in enumerate(self._weighers):
            scores[self._all.index(rule.name)] = self._scores[number][positions]
        return Ranked(rows, self._totals[positions], self._all, scores)

    def _rows_now(self) -> Rows:
        assert self._rows is not None  # noqa: S101  rank comes first
        return self._rows

    def _weigh(self, rows: Rows) -> None:
        self._rows = rows
        self._sorted = False
        self._raw = [rule.clamped(self._hosts, rows, self._spec).copy() for rule in self._weighers]
        self._order = np.arange(len(rows))
        self._rescale()

    def _keep(self, rows: Rows) -> None:
        """Fewer rows; where there are others, anew from the beginning."""
        old = self._rows_now()
        kept = np.searchsorted(old, rows)
        if len(rows) > len(old) or (len(rows) and (kept[-1] >= len(old) or not np.array_equal(old[kept], rows))):
            self._weigh(rows)
            return
        self._rows = rows
        self._sorted = False
        self._raw = [raw[kept] for raw in self._raw]
        position = np.full(len(old), -1)
        position[kept] = np.arange(len(rows))
        order = position[self._order]
        self._order = order[order >= 0]
        self._rescale()

    def _rescale(self) -> None:
        if len(self._rows_now()) > 1:
            self._ends = [bounds(raw, rule.minval, rule.maxval) for raw, rule in zip(self._raw, self._weighers)]
            self._scores = [self._score(number, slice(None)) for number in range(len(self._weighers))]
            self._total()

    def _scale(self, number: int) -> bool:
        """Whether the ends of this weigher's normalisation moved."""
        rule = self._weighers[number]
        ends = bounds(self._raw[number], rule.minval, rule.maxval)
        if ends == self._ends[number]:
            return False
        self._ends[number] = ends
        self._scores[number] = self._score(number, slice(None))
        return True

    def _score(self, number: int, where: int | slice) -> Floats:
        """``multiplier * normalised``."""
        low, high = self._ends[number]
        raw = self._raw[number][where]
        multipliers = self._multipliers[self._weighers[number].name]
        if isinstance(multipliers, np.ndarray):
            multipliers = multipliers[self._rows_now()[where]]
        normalised: Floats = raw * 0.0 if low == high else (raw - low) / (high - low)
        return multipliers * normalised

    def _total(self) -> None:
        """Each host's sum over the weighers, one after the other as Nova adds."""
        self._totals = np.zeros(len(self._rows_now()))
        for (low, high), scores in zip(self._ends, self._scores):
            if low != high:  # else they are all 0
                self._totals += scores
        self._sorted = False

    def _place(self, position: int) -> None:
        """The one host's sum, and its place in the order, of which it is the first and the others are sorted."""
        total = 0.0
        for scores in self._scores:
            total += scores[position]
        self._totals[position] = total
        order, totals = self._order, self._totals
        if self._sorted:
            better = bisect.bisect_left(order, -total, lo=1, key=lambda other: -totals[other]) - 1
            order[:better] = order[1 : better + 1]
            order[better] = position

    def _sort(self, most: int | None) -> None:
        totals = -self._totals[self._order]
        if most is None or most >= len(totals):
            self._order = self._order[np.argsort(totals, kind="stable")]
            self._sorted = True
            return
        candidates = np.flatnonzero(totals <= np.partition(totals, most - 1)[most - 1])
        self._order = self._order[candidates[np.argsort(totals[candidates], kind="stable")]]
