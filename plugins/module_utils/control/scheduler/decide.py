# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The pipeline: filter, weigh, choose, take, for one server after the other (nova.scheduler.manager._schedule)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import TypeVar

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Hosts, Rows
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decision import SHOWN, Decision, Ranked
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter, RowFilter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.ranking import Ranking
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec, WrongHint
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.sieve import Sieve
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.site_rules import RULES, Rules
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest

_Rule = TypeVar("_Rule", bound="type[Filter] | type[Weigher]")
_DEFAULTS = Options()
_REASONS = 100_000
"""So many reasons are written out at most for the servers without a host of one call."""
_NOTHING = Ranked(np.arange(0), np.zeros(0), (), np.zeros((0, 0)))


def decide(
    hosts: Hosts,
    specs: Iterable[RequestSpec],
    options: Options = _DEFAULTS,
    rules: Rules = RULES,
    complete: bool = False,
) -> list[Decision]:
    """A decision for each server, in the order of the requests and of their servers.

    What one server takes is gone for the next; ``hosts`` itself does not change. Hosts of equal weight keep the order
    they came in: give them in a fixed one. Among the servers of one request Nova ranks each time from the ranking
    before, and so does this. Each server is looked at with all the hosts; Nova lets a host that was filtered out never
    return within one request, which comes to the same as long as hosts only fill up. One server's failure to find a
    host does not undo its neighbours' success (Nova's does).

    A decision has the reasons of the first ten hosts that each rule removed and the weights of the best ten. It has
    all the reasons where no host was found, and all of both with ``complete``. InvalidRequest where an option names no
    rule, or where a site's rule answers what it may not. A hint that cannot be read costs its own servers the host.
    """
    filters, weighers = _made(options, rules)
    state, random, left = hosts.copy(), Random(options.seed), _REASONS  # noqa: S311  no secret
    decisions: list[Decision] = []
    for spec in specs:
        batch = _Batch(state, spec, filters, weighers, options)
        for decision in batch.decisions(random, complete, left):
            decisions.append(decision)
        left -= batch.written
    return decisions


def check(options: Options, rules: Rules = RULES) -> None:
    """InvalidRequest where an option names no rule, or a multiplier no weigher that takes it."""
    _made(options, rules)


class _Batch:
    """The servers of one request."""

    def __init__(
        self, hosts: Hosts, spec: RequestSpec, filters: Sequence[Filter], weighers: Sequence[Weigher], options: Options
    ) -> None:
        self._hosts, self._spec, self._options = hosts, spec, options
        self._sieve = Sieve(hosts, spec, filters)
        self._ranking = Ranking(hosts, spec, weighers)
        self.written = 0
        """Reasons written out for servers without a host."""

    def decisions(self, random: Random, complete: bool, reasons: int) -> Iterator[Decision]:
        """One server after the other."""
        nowhere: Decision | None = None
        for number, uuid in enumerate(self._spec.instance_uuids):
            if nowhere and uuid not in self._hosts.servers:  # nothing was taken since, so nothing changed for this one
                yield dataclasses.replace(nowhere, instance_uuid=uuid)
                continue
            spec = dataclasses.replace(self._spec, instance_uuids=(uuid,))
            try:
                rows = self._sieve.left(spec)
            except WrongHint as error:
                nowhere = Decision(uuid, None, (), self._hosts.names, 0, (), _NOTHING, wrong=str(error))
                yield nowhere
                continue
            if len(rows):
                last = number + 1 == len(self._spec.instance_uuids)
                yield self._placed(spec, rows, random, complete, last)
            else:
                nowhere = self._nowhere(spec, complete, reasons)
                yield nowhere

    def _placed(self, spec: RequestSpec, rows: Rows, random: Random, complete: bool, last: bool) -> Decision:
        """The choice, and the claim on it."""
        options, names = self._options, self._hosts.names
        shown = None if complete else SHOWN
        self._ranking.rank(rows, max(shown, options.host_subset_size) if last and shown else None)
        order = self._ranking.choose(random, options.host_subset_size, options.shuffle_best_same_weighed_hosts, shown)
        row = int(order[0])
        sieved = self._sieve.removed(spec, shown)
        ranked = self._ranking.ranked(order)
        # All that is told is of before the claim.
        packing = options.packing_host_numa_cells_allocation_strategy
        taken = self._hosts.consume(row, spec, spec.instance_uuid, packing)
        if not last:
            self._sieve.took(row)
            self._ranking.took(row)
        alternates = tuple(names[other] for other in order[1 : options.max_attempts].tolist())
        return Decision(spec.instance_uuid, names[row], alternates, names, len(rows), sieved, ranked, taken)

    def _nowhere(self, spec: RequestSpec, complete: bool, reasons: int) -> Decision:
        at_most = None if complete or len(self._hosts) <= reasons else SHOWN
        self.written += len(self._hosts) if at_most is None else 0
        sieved = self._sieve.removed(spec, at_most)
        return Decision(spec.instance_uuid, None, (), self._hosts.names, 0, sieved, _NOTHING)


def _made(options: Options, rules: Rules) -> tuple[list[Filter], list[Weigher]]:
    """The rules that are on, in their order."""
    _check_multipliers(options, rules)
    return _filters(options, rules), _weighers(options, rules)


def _filters(options: Options, rules: Rules) -> list[Filter]:
    """Those that stand for placement, then the enabled ones; last those that look at hosts one by one."""
    enabled = rules.default_filters if options.enabled_filters is None else options.enabled_filters
    named = [rule for rule in _named("enabled_filters", rules.filters, enabled) if not rule.always]
    always = [rule for rule in rules.filters if rule.always]
    first = [rule for rule in always if not issubclass(rule, RowFilter)]
    last = [rule for rule in always if issubclass(rule, RowFilter)]
    return [rule(options) for rule in [*first, *named, *last]]


def _weighers(options: Options, rules: Rules) -> list[Weigher]:
    known = rules.weighers
    return [
        rule(options)
        for rule in (
            known if options.weight_classes is None else _named("weight_classes", known, options.weight_classes)
        )
    ]


def _named(option: str, rules: Sequence[_Rule], names: Sequence[str]) -> list[_Rule]:
    """The rules of these names, each once, in the names' order."""
    by_name = {rule.name: rule for rule in rules}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise InvalidRequest(f"{option}: there is no {', '.join(unknown)}; there are {', '.join(by_name)}")
    return [by_name[name] for name in dict.fromkeys(names)]


def _check_multipliers(options: Options, rules: Rules) -> None:
    known = {rule.multiplier_option: rule.least_multiplier for rule in rules.weighers}
    for name, value in options.multipliers.items():
        if name not in known:
            raise InvalidRequest(f"multipliers: there is no {name}; there are {', '.join(known)}")
        least = known[name]
        if least is not None and value < least:
            raise InvalidRequest(f"multipliers: {name} is {value}; {least} or more is allowed")
