# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The handle as JSON and back, on every Python that a compute host may have."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.model import instance

CLASSES = [item for _, item in inspect.getmembers(instance, dataclasses.is_dataclass)]


def parts(hint: Any) -> Iterator[Any]:
    yield hint
    for argument in typing.get_args(hint):
        yield from parts(argument)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: str(cls.__name__))
def test_hints_can_be_evaluated_on_python_39(cls: type) -> None:
    """``from_wire`` evaluates them: ``X | None`` would be a TypeError there, and no linter knows."""
    for name, hint in typing.get_type_hints(cls).items():
        assert not any(isinstance(part, types.UnionType) for part in parts(hint)), f"{name}: write Optional"
