# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts that a query of the request finds."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters import attributes
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import RowFilter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec, WrongHint


def _first_with_all(compare: Callable[[Any, Any], bool]) -> Callable[[Sequence[Any]], bool]:
    return lambda terms: len(terms) > 1 and all(compare(terms[0], other) for other in terms[1:])


_COMMANDS: dict[str, Callable[[Sequence[Any]], Any]] = {
    "=": _first_with_all(operator.eq),
    "<": _first_with_all(operator.lt),
    ">": _first_with_all(operator.gt),
    "<=": _first_with_all(operator.le),
    ">=": _first_with_all(operator.ge),
    "in": lambda terms: len(terms) > 1 and terms[0] in terms[1:],
    "not": lambda terms: [not term for term in terms],
    "or": any,
    "and": all,
}


class JsonFilter(RowFilter):
    """Passes hosts for which the hint ``query``, a list in JSON, is true.

    ``["and", [">=", "$free_ram_mb", 1024], ["in", "$hypervisor_type", "QEMU", "kvm"]]``: a command, then what it is
    applied to. ``=  <  >  <=  >=  in`` compare the first term with the others; ``not``, ``or``, ``and`` join.
    ``$name`` is an attribute of the host as in Nova, ``$name.key`` a key of one that is a mapping; what a host does not
    have is left out.
    """

    name = "JsonFilter"

    def concerns(self, spec: RequestSpec) -> bool:
        return bool(spec.scheduler_hints.get("query"))

    def passes(self, hosts: Hosts, row: int, spec: RequestSpec) -> bool:
        query = _parsed(_text(spec))
        try:
            result = _answer(query, functools.partial(attributes.value, hosts, row))
        except TypeError as error:
            raise WrongHint(f"scheduler_hints: query {query} compares what cannot be compared: {error}") from error
        return any(result) if isinstance(result, list) else bool(result)

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        query = _parsed(_text(spec))
        paths = dict.fromkeys(_paths(query))
        values = [f"{path} {_value(path, functools.partial(attributes.value, hosts, row))}" for path in paths]
        return f"query {json.dumps(query)}: {', '.join(values) or 'never true'}"


def _text(spec: RequestSpec) -> str:
    query = spec.scheduler_hints["query"]
    return query if isinstance(query, str) else json.dumps(query)


@functools.lru_cache(maxsize=8)
def _parsed(text: str) -> list[Any]:
    try:
        query = json.loads(text)
    except ValueError as error:
        raise WrongHint(f"scheduler_hints: query {text!r} is no JSON: {error}") from error
    _check(query)
    return query  # type: ignore[no-any-return]


def _check(query: Any) -> None:
    if not isinstance(query, list):
        raise WrongHint(f"scheduler_hints: query {query!r} is no list such as ['>=', '$free_ram_mb', 1024]")
    if query and (not isinstance(query[0], str) or query[0] not in _COMMANDS):
        raise WrongHint(f"scheduler_hints: query: there is no command {query[0]!r}; there are {', '.join(_COMMANDS)}")
    for term in query[1:]:
        if isinstance(term, list):
            _check(term)


def _answer(query: Sequence[Any], attribute: Callable[[str], Any]) -> Any:
    if not query:
        return True
    terms = []
    for term in query[1:]:
        if isinstance(term, list):
            found = _answer(term, attribute)
        else:
            found = _value(term, attribute) if isinstance(term, str) else term
        if found is not None:
            terms.append(found)
    return _COMMANDS[query[0]](terms)


def _value(term: str, attribute: Callable[[str], Any]) -> Any:
    if not term.startswith("$"):
        return term or None
    name, *path = term[1:].split(".")
    found = attribute(name)
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _paths(query: Sequence[Any]) -> list[str]:
    found: list[str] = []
    for term in query[1:]:
        if isinstance(term, list):
            found += _paths(term)
        elif isinstance(term, str) and term.startswith("$"):
            found.append(term)
    return found
