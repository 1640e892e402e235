# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Checks of what people write: one line for each thing that is wrong, with its path, all of them at once."""

from __future__ import annotations

import difflib
import ipaddress
import re
from typing import Any, Iterable, Mapping

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest

Spec = Mapping[str, Mapping[str, Any]]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_WANTED = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
}
_TRUTH = {"yes", "on", "1", "true", "t", "y", "no", "off", "0", "false", "f", "n"}


class Problems:
    """What is wrong so far. :meth:`finish` raises them together."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.broken: set[str] = set()
        """Names of entries that were left out because something is wrong with them."""

    def add(self, path: str, message: str) -> None:
        """Note one; ``path`` is where, ``message`` says which value and what is allowed."""
        self.lines.append(f"{path}: {message}")

    def add_unknown(self, path: str, kind: str, wanted: str, known: Iterable[str]) -> None:
        """Note a name that nothing has; a broken entry's name is no further problem."""
        if wanted not in self.broken:
            self.add(path, unknown(kind, wanted, known))

    def finish(self) -> None:
        """InvalidRequest with one line for each problem, if there is any."""
        if self.lines:
            raise InvalidRequest("\n".join(dict.fromkeys(self.lines)))


class Checker:
    """An Ansible argument spec applied to single entries of a list, so that errors carry the entry's path.

    Ansible's validator does choices, conversions and defaults, one level at a time; this class goes down into
    ``options``, and says unknown keys and wrong types in terms of the path. A null is the same as a missing key.
    """

    def __init__(self, spec: Spec) -> None:
        flat = {
            key: {name: item for name, item in value.items() if "options" not in value or name in ("type", "default")}
            for key, value in spec.items()
        }
        self._spec = spec
        self._validator = ArgumentSpecValidator(flat)
        self._nested = {key: Checker(value["options"]) for key, value in spec.items() if "options" in value}
        self._names = {alias: key for key, value in spec.items() for alias in (key, *value.get("aliases", ()))}

    def check(self, entry: Any, path: str, problems: Problems) -> dict[str, Any] | None:
        """The entry with defaults filled in and types converted, without unknown keys; None where it is of no use."""
        if not isinstance(entry, Mapping):
            problems.add(path, f"must be a mapping with the keys {', '.join(self._spec)}, not {self._show(entry)}")
            return None
        given = {str(key): plain(value) for key, value in entry.items() if value is not None}
        for key in [key for key in given if key not in self._names]:
            problems.add(f"{path}.{key}", _unknown_key(key, self._spec))
            del given[key]
        before = len(problems.lines)
        for key, value in given.items():
            self._check_type(self._names[key], value, f"{path}.{key}", problems)
        self._check_aliases(given, path, problems)
        if len(problems.lines) > before:
            return None
        answer = self._validator.validate(given)
        for message in answer.error_messages:
            problems.add(path, message)
        valid: dict[str, Any] = answer.validated_parameters
        for key, checker in self._nested.items():
            valid[key] = self._descend(checker, key, valid.get(key), path, problems)
        return valid if len(problems.lines) == before else None

    def _show(self, entry: Any) -> str:
        return _kind(entry) if any(item.get("no_log") for item in self._spec.values()) else say(entry)

    def _check_type(self, key: str, value: Any, path: str, problems: Problems) -> None:
        spec = self._spec[key]
        wanted = spec.get("type", "str")
        if not _fits(wanted, value):
            shown = _kind(value) if spec.get("no_log") else say(value)
            problems.add(path, f"must be {_WANTED[wanted]}, not {shown}")
        elif wanted == "list" and isinstance(value, list) and "elements" in spec and "options" not in spec:
            for index, item in enumerate(value):
                if not _fits(spec["elements"], item):
                    problems.add(f"{path}[{index}]", f"must be {_WANTED[spec['elements']]}, not {say(item)}")

    def _check_aliases(self, given: Mapping[str, Any], path: str, problems: Problems) -> None:
        by_name: dict[str, list[str]] = {}
        for key in given:
            by_name.setdefault(self._names[key], []).append(key)
        for keys in by_name.values():
            if len(keys) > 1:
                problems.add(path, f"{' and '.join(sorted(keys))} are the same option: give one")

    @staticmethod
    def _descend(checker: Checker, key: str, value: Any, path: str, problems: Problems) -> Any:
        if isinstance(value, list):
            return [
                checker.check(item, labelled(f"{path}.{key}[{index}]", item), problems)
                for index, item in enumerate(value)
            ]
        return None if value is None else checker.check(value, f"{path}.{key}", problems)


def _fits(wanted: str, value: Any) -> bool:
    if wanted == "str":
        return isinstance(value, (str, int, float)) and not isinstance(value, bool)
    if wanted == "bool":
        return isinstance(value, bool) or str(value).lower() in _TRUTH
    if wanted in ("int", "float"):
        pattern = r"[+-]?\d+" if wanted == "int" else r"[+-]?\d+(\.\d*)?"
        return not isinstance(value, bool) and re.fullmatch(pattern, str(value).strip()) is not None
    if wanted == "list":
        return isinstance(value, (list, str))
    return wanted != "dict" or isinstance(value, Mapping)


def _unknown_key(key: str, spec: Spec) -> str:
    known = [name for name, value in spec.items() for name in (name, *value.get("aliases", ()))]
    return f"unknown key{_guess(key, known)} Allowed: {', '.join(sorted(known))}"


def unknown(kind: str, wanted: str, known: Iterable[str]) -> str:
    """``unknown flavor 'm1.tni', did you mean m1.tiny? Known: m1.small, m1.tiny``."""
    names = sorted(known)
    return f"unknown {kind} {wanted!r}{_guess(wanted, names)} Known: {', '.join(names) or 'none'}"


def _guess(wanted: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(wanted, list(known), n=3)
    return f", did you mean {' or '.join(close)}?" if close else "."


def say(value: Any) -> str:
    """A value as messages show it, with its kind; long ones are cut."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"the {_kind(value).split(' ')[1]} {text if len(text) <= 60 else text[:57] + '...'}"


def _kind(value: Any) -> str:
    kinds = {
        str: "a string",
        bool: "a boolean",
        Mapping: "a mapping",
        list: "a list",
        int: "a number",
        float: "a number",
    }
    return next((name for cls, name in kinds.items() if isinstance(value, cls)), "a value")


def labelled(path: str, entry: Any) -> str:
    """``flavors[2] (m1.tiny)`` where the entry has a name that can be shown."""
    name = entry.get("name") if isinstance(entry, Mapping) else None
    if isinstance(name, bool) or not isinstance(name, (str, int)) or not str(name).strip():
        return path
    shown = "".join(letter if letter.isprintable() else "?" for letter in str(name))
    return f"{path} ({shown if len(shown) <= 64 else shown[:61] + '...'})"


def plain(value: Any) -> Any:
    """Ansible's tagged values as Python's own, which every library takes."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    for kind in (str, bool, int, float):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    return value


def check_name(name: str, path: str, problems: Problems) -> None:
    """Nova's rule for names: 1 to 255 printable characters, no space at either end."""
    if not name:
        problems.add(f"{path}.name", "is empty")
    elif len(name) > 255:
        problems.add(f"{path}.name", f"has {len(name)} characters, at most 255 are allowed")
    elif name != name.strip():
        problems.add(f"{path}.name", f"{name!r} begins or ends with a space")
    elif not name.isprintable():
        problems.add(f"{path}.name", f"{name!r} holds characters that cannot be printed")


def check_id(identifier: str, path: str, problems: Problems) -> None:
    """Ids become names of files and devices: letters, digits, ``_``, ``.`` and ``-``, at most 64."""
    if not _ID.fullmatch(identifier):
        allowed = "1 to 64 letters, digits, '_', '.' or '-', and begin with a letter or a digit"
        problems.add(f"{path}.id", f"{identifier!r} must be {allowed}")


def check_unique(items: Iterable[tuple[str, str, str]], problems: Problems) -> None:
    """``items`` are (owner's path, key, value); a value that an earlier owner has is one problem of the later one."""
    seen: dict[str, str] = {}
    told: set[str] = set()
    for owner, key, value in items:
        if seen.setdefault(value, owner) != owner and owner not in told:
            told.add(owner)
            problems.add(f"{owner}.{key}", f"{value!r} is already used by {seen[value]}")


def check_range(value: int, low: int, high: int | None, path: str, problems: Problems) -> None:
    """``low`` and ``high`` (None: no limit) are the smallest and largest value allowed."""
    if value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"between {low} and {high}"
        problems.add(path, f"{value} is not allowed, it must be {allowed}")


def strings(values: Mapping[str, Any] | None, path: str, problems: Problems) -> dict[str, str]:
    """Extra specs and image properties: scalars become strings, booleans ``true`` and ``false``."""
    result: dict[str, str] = {}
    for key, value in (values or {}).items():
        if isinstance(value, (Mapping, list)) or value is None:
            problems.add(f"{path}.{key}", f"must be a string, not {'null' if value is None else say(value)}")
        else:
            result[key] = str(value).lower() if isinstance(value, bool) else str(value)
    return result


def address(value: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address; None where it is none."""
    try:
        return ipaddress.ip_address(value)
    except ValueError:
        return None
