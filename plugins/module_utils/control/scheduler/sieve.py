# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The filters over the servers of one request: what did not change between two of them is not asked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Bools, Hosts, Rows
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decision import Removed
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter, RowFilter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from numpy.typing import NDArray

_UNKNOWN, _NO, _YES = -1, 0, 1


class Sieve:
    """Made for one request; ``left`` for each of its servers, ``took`` once a host has one."""

    def __init__(self, hosts: Hosts, spec: RequestSpec, filters: Sequence[Filter]) -> None:
        self._hosts = hosts
        self._filters = [rule for rule in filters if rule.holds_when_forced or not spec.forced_host]
        self._named = list(_named(hosts, spec))
        self._once: dict[str, Bools] = {}
        self._answers: dict[str, NDArray[np.int8]] = {}
        self._masks: list[Bools | None] | None = None
        self._rows: Rows = np.arange(0)
        self._removed: list[tuple[int, str, Rows]] = []
        self._reasons: dict[tuple[int, int], str] = {}

    def left(self, spec: RequestSpec) -> Rows:
        """The rows that pass every rule, ascending; the very same array where nothing changed."""
        masks = [self._mask(rule, spec) for rule in self._filters]
        if self._masks is None or not all(map(_same, masks, self._masks)):
            self._pour(masks, spec)
        self._masks = masks
        return self._rows

    def took(self, row: int) -> None:
        """The row's host has a server more: rules that look at hosts one by one look at it again."""
        for answers in self._answers.values():
            answers[row] = _UNKNOWN

    def removed(self, spec: RequestSpec, at_most: int | None) -> tuple[Removed, ...]:
        """What ``left`` removed, with the reasons of the first ``at_most`` hosts of each rule, or of all."""
        return tuple(
            Removed(name, rows, tuple(self._reason(number, row, spec) for row in rows[:at_most].tolist()))
            for number, name, rows in self._removed
        )

    def _pour(self, masks: Sequence[Bools | None], spec: RequestSpec) -> None:
        """Each rule sees only what the ones before it let through."""
        alive = self._hosts.everywhere.copy()
        self._removed = []
        steps: list[tuple[str, Bools | None]] = [(name, mask) for name, mask, _reason in self._named]
        steps += [(rule.name, mask) for rule, mask in zip(self._filters, masks)]
        for number, (name, given) in enumerate(steps):
            mask = self._ask(number, alive, spec) if given is None else given
            if mask is self._hosts.everywhere:
                continue
            rows = np.flatnonzero(alive & ~mask)
            if len(rows):
                self._removed.append((number, name, rows))
                alive &= mask
        rows = np.flatnonzero(alive)
        if not np.array_equal(rows, self._rows):
            self._rows = rows

    def _mask(self, rule: Filter, spec: RequestSpec) -> Bools | None:
        """The rule's mask; None where it has to be asked host by host."""
        if isinstance(rule, RowFilter):
            return None if rule.concerns(spec) else self._hosts.everywhere
        if not rule.once:
            return self._checked(rule, spec)
        if rule.name not in self._once:
            self._once[rule.name] = self._checked(rule, spec)
        return self._once[rule.name]

    def _checked(self, rule: Filter, spec: RequestSpec) -> Bools:
        """The rule's mask; a site's own rule may give something else, that would be taken for one."""
        mask, everywhere = rule.mask(self._hosts, spec), self._hosts.everywhere
        if not isinstance(mask, np.ndarray) or (mask.shape, mask.dtype) != (everywhere.shape, everywhere.dtype):
            wanted = f"an array of {len(everywhere)} booleans, one a host"
            raise InvalidRequest(f"filter {rule.name}: its mask is {mask!r}; wanted is {wanted}")
        return mask

    def _ask(self, number: int, alive: Bools, spec: RequestSpec) -> Bools:
        """What a rule that looks at hosts one by one says of those that are left; of others it does not matter."""
        rule = self._filters[number - len(self._named)]
        assert isinstance(rule, RowFilter)  # noqa: S101  others have a mask
        answers = self._answers.setdefault(rule.name, np.full(len(alive), _UNKNOWN, dtype=np.int8))
        for row in np.flatnonzero(alive & (answers == _UNKNOWN)).tolist():
            answers[row] = _YES if rule.passes(self._hosts, row, spec) else _NO
        mask: Bools = answers == _YES
        return mask

    def _reason(self, number: int, row: int, spec: RequestSpec) -> str:
        """A removed host has had no server of this request since, so that its reason stays."""
        if (number, row) not in self._reasons:
            if number < len(self._named):
                self._reasons[number, row] = self._named[number][2](row)
            else:
                rule = self._filters[number - len(self._named)]
                self._reasons[number, row] = rule.reason(self._hosts, row, spec)
        return self._reasons[number, row]


def _same(one: Bools | None, other: Bools | None) -> bool:
    """Whether nothing changed; what is asked host by host may have."""
    if one is None or other is None:
        return False
    return one is other or bool((one == other).all())


def _named(hosts: Hosts, spec: RequestSpec) -> list[tuple[str, Bools, Callable[[int], str]]]:
    """(rule, mask, reason) of what the request says of hosts by name; case does not matter (get_filtered_hosts).

    And of those on which it failed before. Nova takes the alternates of its first decision instead, which may have
    filled up meanwhile.
    """
    wanted, forced = spec.requested_host, spec.forced_host
    tried = {name.lower(): why for name, why in spec.tried.items()}
    rules: list[tuple[str, Bools, Callable[[int], str]]] = []
    if wanted:
        rules.append(("RequestedHost", _only(hosts, [wanted]), lambda row: f"the request wants {wanted}"))
    if spec.ignore_hosts:
        rules.append(("IgnoreHosts", ~_only(hosts, spec.ignore_hosts), lambda row: "the request excludes it"))
    if tried:
        rules.append(("Retry", ~_only(hosts, tried), lambda row: tried[hosts.keys[row]]))
    if forced:
        rules.append(("ForceHosts", _only(hosts, [forced]), lambda row: f"the request wants {forced}"))
    return rules


def _only(hosts: Hosts, names: Sequence[str] | dict[str, str]) -> Bools:
    mask = np.zeros(len(hosts), dtype=np.bool_)
    for name in names:
        row = hosts.row(name)
        if row is not None:
            mask[row] = True
    return mask
