# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Frozen dataclasses to and from the plain data that Ansible carries between phases."""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from typing import Any, Callable, Dict, Mapping, Optional, Tuple, Type, TypeVar

T = TypeVar("T")


def to_wire(value: Any) -> Any:
    """Plain dicts, lists and scalars: what JSON can hold."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    names = _names(typing.cast(typing.Hashable, kind))
    if names is not None:
        return {name: to_wire(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): to_wire(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_wire(item) for item in value]
    if isinstance(value, frozenset):
        return sorted(value)
    return value


_SCALARS = frozenset((str, int, float, bool, type(None)))


@functools.cache
def _names(kind: Any) -> Optional[Tuple[str, ...]]:
    """A dataclass's fields; None for other types."""
    return tuple(field.name for field in dataclasses.fields(kind)) if dataclasses.is_dataclass(kind) else None


def from_wire(cls: Type[T], data: Mapping[str, Any]) -> T:
    """The dataclass ``cls`` from plain data; absent fields take their defaults, unknown ones raise TypeError."""
    builders = _builders(typing.cast(typing.Hashable, cls))
    unknown = data.keys() - builders.keys()
    if unknown:
        raise TypeError(f"{cls.__name__} has no field {', '.join(sorted(unknown))}")
    values = {}
    for name, item in data.items():
        build = builders[name]
        values[name] = item if build is None or item is None else build(item)
    return cls(**values)


_Build = Optional[Callable[[Any], Any]]
"""Makes a field's value from plain data that is not None; None where it stays as it is."""


@functools.cache
def _builders(cls: Any) -> Dict[str, _Build]:
    return {name: _builder(hint) for name, hint in typing.get_type_hints(cls).items()}


def _builder(hint: Any) -> _Build:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union:
        return _builder(next(item for item in arguments if item is not type(None)))
    if origin is tuple:
        build = _builder(arguments[0])
        if build is None:
            return tuple
        each = build
        return lambda value: tuple(None if item is None else each(item) for item in value)
    if origin is frozenset:
        return frozenset
    if dataclasses.is_dataclass(hint):
        cls = typing.cast(type, hint)
        return lambda value: value if isinstance(value, cls) else from_wire(cls, value)
    return None


_PACKED = "handle "


def pack(handle: Any) -> str:
    """A handle as one string, for Ansible's variables.

    Ansible walks through every value of a structure, several times at every task: with twenty servers that is half of
    what a run costs. The mark in front keeps old versions from taking the string for a structure after all. Each server
    has a line that begins with its host, so that a host's part is found without reading the others'.
    """
    if isinstance(handle, list) and handle and all(isinstance(item, dict) and "host" in item for item in handle):
        return _PACKED + "".join(f"\n{json.dumps(item['host'])}\t{_dump(item)}" for item in handle)
    return _PACKED + _dump(handle)


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def unpack(value: Any) -> Any:
    """What was packed; anything else as it is."""
    if not isinstance(value, str) or not value.startswith(_PACKED):
        return value
    lines = value.split("\n")
    if len(lines) == 1:
        return json.loads(value[len(_PACKED) :])
    servers = ",".join(line.partition("\t")[2] for line in lines[1:])
    return json.loads(f"[{servers}]")


def pick(value: str, host: str) -> str:
    """Of a packed handle the servers that are on this host."""
    if value.startswith(f"{_PACKED}\n"):
        begin = f"{json.dumps(host)}\t"
        lines = [line for line in value.split("\n")[1:] if line.startswith(begin)]
        return "\n".join([_PACKED, *lines]) if lines else pack([])
    return pack([item for item in unpack(value) if item["host"] == host])
