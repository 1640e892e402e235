# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A decision for people and for programs."""

from __future__ import annotations

from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decision import Decision


def table(decision: Decision) -> list[str]:
    """One line a host: the chosen one, the others by their weight, then the removed ones with filter and reason."""
    rows = []
    for weight in decision.weights:
        scores = ", ".join(f"{name} {score:.3f}" for name, score in weight.scores.items())
        rows.append(
            (
                weight.host,
                _state(decision, weight.host),
                f"{weight.total:.3f} = {scores}" if scores else "the only one: not weighed",
            )
        )
    rows += [(host, "removed", f"{name}: {reason}") for host, name, reason in decision.removed]
    width = max((len(host) for host, _state, _why in rows), default=0)
    return [f"{host:<{width}}  {state:<9}  {why}" for host, state, why in rows]


def _state(decision: Decision, host: str) -> str:
    if host == decision.host:
        return "chosen"
    return "alternate" if host in decision.alternates else "fits"


def data(decision: Decision) -> dict[str, Any]:
    """All of it as plain data: what JSON can hold."""
    return {
        "instance_uuid": decision.instance_uuid,
        "host": decision.host,
        "alternates": list(decision.alternates),
        "hosts_entered": decision.entered,
        "removed": [removal._asdict() for removal in decision.removed],
        "weights": [{**weight._asdict(), "scores": dict(weight.scores)} for weight in decision.weights],
        "explain": decision.explain,
    }
