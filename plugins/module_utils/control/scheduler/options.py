# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What an operator may set, named as in nova.conf's ``[scheduler]``, ``[filter_scheduler]`` and ``[metrics]``.

Options of ``[metrics]`` have their section's name in front, as Nova's own metrics_weight_multiplier has in aggregates.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest

_MULTIPLIER = "_weight_multiplier"

_LIMITS: dict[str, tuple[int, int | None]] = {
    "max_attempts": (1, 3),  # boot_instance.yml has the plays of three
    "host_subset_size": (1, None),
    "max_io_ops_per_host": (0, None),
    "max_instances_per_host": (1, None),
}

SCHEDULER_SPEC: dict[str, Any] = {
    "scheduler": {"type": "dict", "default": {}},
    "scheduler_rules_path": {"type": "path"},
}
"""What a phase takes of a site's options, which are as :class:`Options`, and of its own rules."""


@dataclass(frozen=True)
class Options:
    """The scheduler's options with Nova's defaults. A rule gets them when it is made; :meth:`of` checks a site's."""

    enabled_filters: tuple[str, ...] | None = None
    """Names, in the order to apply them; None is Nova's default set and a site's own filters. Rules that stand for
    placement, and those of what a claim takes, are always on."""
    weight_classes: tuple[str, ...] | None = None
    """Names of weighers; None is all of them."""
    multipliers: Mapping[str, float] = field(default_factory=dict)
    """``ram_weight_multiplier`` and the like; an aggregate's metadata of the same name goes before."""
    max_attempts: int = 3
    """Hosts tried for one server, 1 to 3: the chosen one and up to ``max_attempts - 1`` alternates."""
    host_subset_size: int = 1
    """The host is chosen at random among so many of the best."""
    shuffle_best_same_weighed_hosts: bool = False
    """Hosts that share the best weight are taken in random order."""
    seed: int = 0
    """Of the random order: the same seed, the same decision. Callers that want chance give a fresh one each time."""
    max_io_ops_per_host: int = 8
    max_instances_per_host: int = 50
    default_availability_zone: str = "nova"
    image_properties_default_architecture: str | None = None
    image_props_weight_setting: tuple[str, ...] = ()
    """``<image property>=<weight>``; without any, each property weighs 1."""
    isolated_images: tuple[str, ...] = ()
    isolated_hosts: tuple[str, ...] = ()
    restrict_isolated_hosts_to_isolated_images: bool = True
    aggregate_image_properties_isolation_namespace: str | None = None
    aggregate_image_properties_isolation_separator: str = "."
    limit_tenants_to_placement_aggregate: bool = False
    placement_aggregate_required_for_tenants: bool = False
    query_placement_for_image_type_support: bool = False
    enable_isolated_aggregate_filtering: bool = False
    image_metadata_prefilter: bool = False
    metrics_weight_setting: tuple[str, ...] = ()
    """``<metric>=<ratio>``."""
    metrics_required: bool = True
    metrics_weight_of_unavailable: float = -10000.0
    packing_host_numa_cells_allocation_strategy: bool = False
    pci_alias: tuple[Mapping[str, Any], ...] = ()
    """Nova's ``[pci]alias``: what a flavor's ``pci_passthrough:alias`` names."""
    site: Mapping[str, Any] = field(default_factory=dict)
    """Whatever a site's own rules want to be told."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Options:
        """The options of a site's mapping; ``*_weight_multiplier`` may stand among the others.

        InvalidRequest with the option, its value and what is allowed. Names of rules and multipliers are checked where
        the rules are known (``decide.check``).
        """
        types_of = typing.get_type_hints(cls)
        multipliers = {name: value for name, value in values.items() if str(name).endswith(_MULTIPLIER)}
        unknown = [name for name in values if name not in types_of and name not in multipliers]
        if unknown:
            known = ", ".join(sorted([*types_of, f"<weigher>{_MULTIPLIER}"]))
            raise InvalidRequest(f"scheduler: there is no option {', '.join(map(str, unknown))}; there are {known}")
        given: dict[str, Any] = {}
        for name, value in values.items():
            if name not in multipliers:
                given[name] = _value(name, value, types_of[name])
        given["multipliers"] = {**given.get("multipliers", {}), **multipliers}
        return cls(**given)

    def __post_init__(self) -> None:
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if value < least or (most is not None and value > most):
                allowed = f"{least} or more" if most is None else f"{least} to {most}"
                raise InvalidRequest(f"scheduler: {name} is {value}; {allowed} is allowed")
        for name, value in self.multipliers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise InvalidRequest(f"multipliers: {name} is {value!r}, which is not a number")
        for name in ("image_props_weight_setting", "metrics_weight_setting"):
            self.weights(name)

    def weights(self, name: str) -> list[tuple[str, float]]:
        """The pairs of an option whose items are ``<name>=<number>``."""
        pairs = []
        for item in getattr(self, name):
            key, separator, number = str(item).partition("=")
            try:
                pairs.append((key, float(number)))
            except ValueError:
                key = ""
            if not key or not separator:
                raise InvalidRequest(f"scheduler: {name}: {item!r} cannot be read; give <name>=<number>")
        return pairs


def _value(name: str, value: Any, kind: Any) -> Any:
    """The value as the field's type has it."""
    allowed = [item for item in typing.get_args(kind) if isinstance(kind, types.UnionType)] or [kind]
    if value is None and types.NoneType in allowed:
        return None
    for item in allowed:
        origin = typing.get_origin(item) or item
        if origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
            if all(isinstance(part, _inner(item)) for part in value):
                return tuple(value)
        elif origin is Mapping and isinstance(value, Mapping):
            return dict(value)
        elif origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        elif origin in (bool, str, int) and isinstance(value, origin) and isinstance(value, bool) == (origin is bool):
            return value
    raise InvalidRequest(f"scheduler: {name} is {value!r}, which is not {_NAMES[_kind(allowed)]}")


def _inner(kind: Any) -> Any:
    """What a tuple is of."""
    inner = typing.get_args(kind)[0]
    return typing.get_origin(inner) or inner


def _kind(allowed: Sequence[Any]) -> str:
    origin = typing.get_origin(allowed[0]) or allowed[0]
    return f"tuple of {_inner(allowed[0]).__name__}" if origin is tuple else str(origin.__name__)


_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "tuple of str": "a list of names",
    "tuple of Mapping": "a list of mappings",
    "Mapping": "a mapping",
}


def names() -> list[str]:
    """Every option's name, multipliers apart; for documentation and argument specs."""
    return [item.name for item in dataclasses.fields(Options) if item.name != "multipliers"]
