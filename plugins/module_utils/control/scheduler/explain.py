# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A decision for people and for programs."""

from __future__ import annotations

from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decision import Decision

_SHOWN = 10


def table(decision: Decision) -> list[str]:
    """One line a host: the chosen one, the others by their weight, then the removed ones with filter and reason.

    The first ten of those that fit and of those that were removed: with many hosts and many servers each line of all
    would be what a run is busy with.
    """
    rows = []
    for weight in decision.weights[:_SHOWN]:
        scores = ", ".join(f"{name} {score:.3f}" for name, score in weight.scores.items())
        rows.append(
            (
                weight.host,
                _state(decision, weight.host),
                f"{weight.total:.3f} = {scores}" if scores else "the only one: not weighed",
            )
        )
    rows += [(host, "removed", f"{name}: {reason}") for host, name, reason in decision.removed[:_SHOWN]]
    width = max((len(host) for host, _state, _why in rows), default=0)
    lines = [f"{host:<{width}}  {state:<9}  {why}" for host, state, why in rows]
    return [*lines, *_rest(decision)]


def _rest(decision: Decision) -> list[str]:
    counts = {"that fit": len(decision.weights), "removed": len(decision.removed)}
    return [f"and {count - _SHOWN} more {what}" for what, count in counts.items() if count > _SHOWN]


def _state(decision: Decision, host: str) -> str:
    if host == decision.host:
        return "chosen"
    return "alternate" if host in decision.alternates else "fits"


def data(decision: Decision) -> dict[str, Any]:
    """As plain data, what JSON can hold; of the hosts as many as :func:`table` shows."""
    return {
        "instance_uuid": decision.instance_uuid,
        "host": decision.host,
        "alternates": list(decision.alternates),
        "hosts_entered": decision.entered,
        "removed": [removal._asdict() for removal in decision.removed[:_SHOWN]],
        "weights": [{**weight._asdict(), "scores": dict(weight.scores)} for weight in decision.weights[:_SHOWN]],
        "explain": decision.explain,
    }
