# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The pipeline: filter, weigh, choose, take, for one server after the other (nova.scheduler.manager._schedule)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decision import Decision, Removal, Weight
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters import FILTERS
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.hosts import HostState
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers import WEIGHERS
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest

_Rule = TypeVar("_Rule", bound="type[Filter] | type[Weigher]")
_DEFAULTS = Options()


def decide(hosts: Sequence[HostState], specs: Iterable[RequestSpec], options: Options = _DEFAULTS) -> list[Decision]:
    """A decision for each server, in order. What one takes is gone for the next; nothing else remembers it.

    Hosts of equal weight keep the order they came in: give them in a fixed one. Each server is looked at with all the
    hosts; Nova does so between requests, and within one request lets a host that was filtered out never return, which
    comes to the same as long as hosts only fill up.

    InvalidRequest where an option names no rule.
    """
    _check_multipliers(options)
    filters = [rule(options) for rule in _enabled("enabled_filters", FILTERS, options.enabled_filters)]
    weighers = [rule(options) for rule in _enabled("weight_classes", WEIGHERS, options.weight_classes)]
    states = {host.name: host for host in hosts}
    decisions = []
    for spec in specs:
        left, removed = _filter(list(states.values()), spec, filters)
        weights = _weigh(left, spec, weighers)
        chosen = weights[0].host if weights else None
        alternates = tuple(weight.host for weight in weights[1 : max(1, options.max_attempts)])
        decisions.append(Decision(spec.instance_uuid, chosen, alternates, tuple(removed), tuple(weights)))
        if chosen:
            states[chosen] = states[chosen].with_claim(spec.resources)
    return decisions


def _filter(
    hosts: list[HostState], spec: RequestSpec, filters: Sequence[Filter]
) -> tuple[list[HostState], list[Removal]]:
    """(hosts that pass, hosts removed). Each filter sees only what the one before it let through."""
    hosts, removed = _named(hosts, spec)
    for rule in filters:
        reason = rule.reason_when_forced if spec.forced_host else rule.reason
        passed = []
        for host in hosts:
            why_not = reason(host, spec)
            if why_not is None:
                passed.append(host)
            else:
                removed.append(Removal(host.name, rule.name, why_not))
        hosts = passed
    return hosts, removed


def _named(hosts: list[HostState], spec: RequestSpec) -> tuple[list[HostState], list[Removal]]:
    """Without the hosts that the request excludes by name; case does not matter (host_manager.get_filtered_hosts).

    And without those on which it failed before. Nova takes the alternates of its first decision instead, which may
    have filled up meanwhile.
    """
    if not spec.ignore_hosts and not spec.forced_host and not spec.tried:
        return hosts, []
    ignored = {name.lower() for name in spec.ignore_hosts}
    removed = [Removal(host.name, "IgnoreHosts", "the request excludes it") for host in hosts if host.key in ignored]
    hosts = [host for host in hosts if host.key not in ignored]
    removed += [Removal(host.name, "Retry", spec.tried[host.name]) for host in hosts if host.name in spec.tried]
    hosts = [host for host in hosts if host.name not in spec.tried]
    if spec.forced_host:
        forced, why = spec.forced_host.lower(), f"the request wants {spec.forced_host}"
        removed += [Removal(host.name, "ForceHosts", why) for host in hosts if host.key != forced]
        hosts = [host for host in hosts if host.key == forced]
    return hosts, removed


def _weigh(hosts: Sequence[HostState], spec: RequestSpec, weighers: Sequence[Weigher]) -> list[Weight]:
    """Each host's weight, best first, stable. One host alone is not weighed."""
    if len(hosts) <= 1:
        return [Weight(host.name, 0.0, {}) for host in hosts]
    columns = [weigher.weights(hosts, spec) for weigher in weighers]
    names = [weigher.name for weigher in weighers]
    weights = [
        Weight(host.name, float(sum(scores)), dict(zip(names, scores))) for host, *scores in zip(hosts, *columns)
    ]
    return sorted(weights, key=lambda weight: weight.total, reverse=True)


def _enabled(option: str, rules: Sequence[_Rule], names: Sequence[str] | None) -> list[_Rule]:
    """The rules of these names, in the names' order; all of them where the option is not given."""
    if names is None:
        return list(rules)
    by_name = {rule.name: rule for rule in rules}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise InvalidRequest(f"{option}: there is no {', '.join(unknown)}; there are {', '.join(by_name)}")
    return [by_name[name] for name in names]


def _check_multipliers(options: Options) -> None:
    known = [weigher.multiplier_option for weigher in WEIGHERS]
    for name, value in options.multipliers.items():
        if name not in known:
            raise InvalidRequest(f"multipliers: there is no {name}; there are {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidRequest(f"multipliers: {name} is {value!r}, which is not a number")
