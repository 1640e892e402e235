# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""A site's own filters and weighers: Python files in a directory of its own, beside ours."""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters import DEFAULT, FILTERS
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter, RowFilter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers import WEIGHERS
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.weighers.base import Weigher
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest

_BASES = (Filter, RowFilter, Weigher)


@dataclass(frozen=True)
class Rules:
    """The rules there are."""

    filters: tuple[type[Filter], ...] = FILTERS
    default_filters: tuple[str, ...] = DEFAULT
    """Those that are on where ``enabled_filters`` is not given, besides those that are always on."""
    weighers: tuple[type[Weigher], ...] = WEIGHERS


def load(directory: str | Path | None) -> Rules:
    """Ours and those of every ``*.py`` file in the directory, in the order of the files' names.

    A file holds one or more subclasses of Filter, RowFilter or Weigher with a ``name`` of their own. Where there is no
    such directory, ours. InvalidRequest names the file that cannot be loaded, or that holds no rule or one too many.
    """
    filters, weighers = list(FILTERS), list(WEIGHERS)
    added = []
    for path in sorted(Path(directory).glob("*.py")) if directory else []:
        for rule in _rules(path):
            known = filters if issubclass(rule, Filter) else weighers
            if rule.name in [other.name for other in known]:
                raise InvalidRequest(f"{path}: there is a rule {rule.name} already: give it another name")
            known.append(rule)  # type: ignore[arg-type]
            added += [rule.name] if issubclass(rule, Filter) else []
    return Rules(tuple(filters), (*DEFAULT, *added), tuple(weighers))


def _rules(path: Path) -> list[type[Filter] | type[Weigher]]:
    """The rules that the file defines."""
    spec = importlib.util.spec_from_file_location(f"barestack_scheduler_rules_{path.stem}", path)
    assert spec and spec.loader  # noqa: S101  a file that ends in .py has a loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001  whatever a site's file raises is about that file
        raise InvalidRequest(f"{path}: cannot be loaded: {type(error).__name__}: {error}") from error
    rules = [
        item
        for item in vars(module).values()
        if inspect.isclass(item) and issubclass(item, (Filter, Weigher)) and item.__module__ == module.__name__
    ]
    named = [rule for rule in rules if rule not in _BASES and not rule.__name__.startswith("_")]
    if not named:
        raise InvalidRequest(f"{path}: holds no rule: give it a subclass of Filter, RowFilter or Weigher")
    for rule in named:
        wanted = ["name"] if issubclass(rule, Filter) else ["name", "multiplier_option"]
        missing = [name for name in wanted if not isinstance(getattr(rule, name, None), str)]
        if missing:
            raise InvalidRequest(f"{path}: {rule.__name__} has no {' and no '.join(missing)}: set it in the class")
    return named


RULES = Rules()
"""Ours alone."""
