# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Reading the metadata of a host's aggregates, as nova.scheduler.filters.utils does."""

from __future__ import annotations

from collections.abc import Iterable

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Aggregate


def values(aggregates: Iterable[Aggregate]) -> dict[str, set[str]]:
    """Key -> every value that an aggregate gives it; a value with commas is several.

    The zone is metadata too, as it is in Nova.
    """
    found: dict[str, set[str]] = {}
    for item in aggregates:
        zone = {"availability_zone": item.availability_zone} if item.availability_zone else {}
        for key, value in {**zone, **item.metadata}.items():
            found.setdefault(key, set()).update(part.strip() for part in str(value).split(","))
    return found


def least(aggregates: Iterable[Aggregate], key: str, default: int) -> int:
    """The least whole number that an aggregate gives the key; the default where none does, or one is no number."""
    given = [item.metadata[key] for item in aggregates if key in item.metadata]
    try:
        return min((int(value) for value in given), default=default)
    except ValueError:
        return default
