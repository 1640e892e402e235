# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A decision for people and for programs."""

from __future__ import annotations

from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decision import SHOWN, Decision


def table(decision: Decision, complete: bool = False) -> list[str]:
    """One line a host: the chosen one, the others by their weight, then the removed ones with filter and reason.

    The first ten of those that fit and of those that were removed: with many hosts and many servers each line of all
    would be what a run is busy with. ``complete`` gives all that the decision knows. One line in all where no host was
    looked at.
    """
    shown = None if complete else SHOWN
    rows = []
    for weight in decision.weights[:shown]:
        scores = ", ".join(f"{name} {score:.3f}" for name, score in weight.scores.items() if score)
        why = f"{weight.total:.3f} = {scores or 'nothing weighs'}" if weight.scores else "the only one: not weighed"
        rows.append((weight.host, _state(decision, weight.host), why))
    removed = decision.removed[:shown]
    rows += [(host, "removed", f"{name}: {reason}") for host, name, reason in removed]
    if not rows:
        return [decision.explain]
    width = max(len(host) for host, _state, _why in rows)
    lines = [f"{host:<{width}}  {state:<9}  {why}" for host, state, why in rows]
    more = {
        "that fit": decision.fits - len(decision.weights[:shown]),
        "removed": sum(len(item.rows) for item in decision.sieved) - len(removed),
    }
    return lines + [f"and {count} more {what}" for what, count in more.items() if count]


def counts(decision: Decision) -> str:
    """``3 hosts entered, 1 fits``."""
    entered, fits = decision.entered, decision.fits
    return f"{entered} host{'' if entered == 1 else 's'} entered, {fits or 'none'} {'fit' if fits > 1 else 'fits'}"


def _state(decision: Decision, host: str) -> str:
    if host == decision.host:
        return "chosen"
    return "alternate" if host in decision.alternates else "fits"


def data(decision: Decision, complete: bool = False) -> dict[str, Any]:
    """As plain data, what JSON can hold.

    Of the hosts that fit and of those that were removed as many as :func:`table` shows, and how many each filter
    removed; ``complete`` gives every host's name that a filter removed, and all weights and reasons that the decision
    knows.
    """
    shown = None if complete else SHOWN
    filters = [
        {
            "filter": item.filter,
            "removed": len(item.rows),
            **({"hosts": [decision.names[row] for row in item.rows]} if complete else {}),
        }
        for item in decision.sieved
    ]
    return {
        "instance_uuid": decision.instance_uuid,
        "host": decision.host,
        "alternates": list(decision.alternates),
        "hosts_entered": decision.entered,
        "hosts_fit": decision.fits,
        "filters": filters,
        "removed": [removal._asdict() for removal in decision.removed[:shown]],
        "weights": [{**weight._asdict(), "scores": dict(weight.scores)} for weight in decision.weights[:shown]],
        "explain": decision.explain,
    }
