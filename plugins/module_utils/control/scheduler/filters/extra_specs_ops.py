# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The operators of extra specs, as nova.scheduler.filters.extra_specs_ops has them."""

from __future__ import annotations

import operator
from collections.abc import Callable

_NUMBERS: dict[str, Callable[[float, float], bool]] = {
    "=": operator.ge,  # Nova's: at least
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
}
_TEXTS: dict[str, Callable[[str, str], bool]] = {
    "s==": operator.eq,
    "s!=": operator.ne,
    "s<": operator.lt,
    "s<=": operator.le,
    "s>": operator.gt,
    "s>=": operator.ge,
    "<in>": operator.contains,
}


def match(value: str, requirement: str) -> bool:
    """Whether ``value`` meets ``requirement``: an operator and its operands, or without one the very same text.

    ``=`` (at least), ``==``, ``!=``, ``>=``, ``<=`` compare numbers; ``s==`` and the like compare text; ``<in> a``
    wants ``a`` within the value, ``<all-in> a b`` each of them; ``<or> a <or> b`` wants one of them exactly. What is
    not a number never matches a number's operator (Nova fails the whole request there).
    """
    words = requirement.split()
    operation, operands = (words[0], words[1:]) if words else ("", [])
    if operation == "<or>":
        return value in words[1::2]
    if operation == "<all-in>":
        return bool(operands) and all(word in value for word in operands)
    if operation in _NUMBERS:
        try:
            return bool(operands) and _NUMBERS[operation](float(value), float(operands[0]))
        except ValueError:
            return False
    if operation in _TEXTS:
        return bool(operands) and _TEXTS[operation](value, operands[0])
    return value == requirement
