# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What an operator may set, named as in nova.conf's ``[scheduler]`` and ``[filter_scheduler]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Options:
    """The scheduler's options with Nova's defaults. A rule gets them when it is made."""

    enabled_filters: tuple[str, ...] | None = None
    """Names, in the order to apply them; None is all of FILTERS."""
    weight_classes: tuple[str, ...] | None = None
    """Names of weighers; None is all of WEIGHERS."""
    multipliers: Mapping[str, float] = field(default_factory=dict)
    """``ram_weight_multiplier`` and the like; an aggregate's metadata of the same name goes before."""
    max_attempts: int = 3
    """Hosts tried for one server: the chosen one and up to ``max_attempts - 1`` alternates."""
    default_availability_zone: str = "nova"
    image_properties_default_architecture: str | None = None
