# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Frozen dataclasses to and from the plain data that Ansible carries between phases."""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from typing import Any, Dict, List, Mapping, Type, TypeVar

T = TypeVar("T")


def to_wire(value: Any) -> Any:
    """Plain dicts, lists and scalars: what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_wire(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_wire(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_wire(item) for item in value]
    return value


def from_wire(cls: Type[T], data: Mapping[str, Any]) -> T:
    """The dataclass ``cls`` from plain data; absent fields take their defaults, unknown ones raise TypeError."""
    hints = _hints(typing.cast(typing.Hashable, cls))
    unknown = set(data) - set(hints)
    if unknown:
        raise TypeError(f"{cls.__name__} has no field {', '.join(sorted(unknown))}")
    return cls(**{name: _build(hints[name], item) for name, item in data.items()})


@functools.cache
def _hints(cls: Any) -> Dict[str, Any]:
    return typing.get_type_hints(cls)


def _build(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union:
        return _build(next(item for item in arguments if item is not type(None)), value)
    if origin is tuple:
        return tuple(_build(arguments[0], item) for item in value)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, typing.cast(type, hint)) else from_wire(typing.cast(type, hint), value)
    return value


_PACKED = "handle "


def pack(handle: List[Dict[str, Any]]) -> str:
    """A handle as one string, for Ansible's variables.

    Ansible walks through every value of a structure, several times at every task: with twenty servers that is half of
    what a run costs. The mark in front keeps old versions from taking the string for a structure after all.
    """
    return _PACKED + json.dumps(handle, separators=(",", ":"))


def unpack(value: Any) -> Any:
    """What was packed; anything else as it is."""
    if isinstance(value, str) and value.startswith(_PACKED):
        return json.loads(value[len(_PACKED) :])
    return value
