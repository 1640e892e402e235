# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The values of a request that stand for themselves: user data, metadata, hints, volumes, what to wait for."""

from __future__ import annotations

import functools
import re
from typing import Any, Mapping, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_build import check_group_rules
from ansible_collections.barestack.kvm.plugins.module_utils.control.checks import (
    Checker,
    Problems,
    check_name,
    check_range,
    say,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.request_record import RequestedVolume
from ansible_collections.barestack.kvm.plugins.module_utils.control.request_spec import GROUP, VOLUME, WAIT_FOR
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import WaitFor

MAX_USER_DATA = 65535
MAX_METADATA_ITEMS = 128
_METADATA_KEY = re.compile(r"[a-zA-Z0-9\-_:. ]{1,255}")


@functools.cache
def _checker(kind: str) -> Checker:
    return Checker({"volume": VOLUME, "wait_for": WAIT_FOR, "group": GROUP}[kind])


def user_data(text: str | None, path: str, problems: Problems) -> str | None:
    """Nova's limit on user data; an empty text is none."""
    length = -(-len((text or "").encode()) // 3) * 4
    if length > MAX_USER_DATA:
        problems.add(
            path,
            f"User data too large. User data must be no larger than {MAX_USER_DATA} bytes once base64 encoded. "
            f"Your data is {length} bytes",
        )
    return text or None


def metadata(value: Any, path: str, problems: Problems) -> dict[str, str]:
    """The metadata of a mapping or of ``key1=value1,key2=value2``, by Nova's rules."""
    if isinstance(value, str):
        pairs = [pair.partition("=") for pair in value.split(",")] if value else []
        for key, sign, _ in pairs:
            if not sign:
                problems.add(path, f"{key!r} is not of the form key=value")
        value = {key.strip(): text for key, _, text in pairs}
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        problems.add(path, f"must be a mapping or a string of key=value,key=value, not {say(value)}")
        return {}
    if len(value) > MAX_METADATA_ITEMS:
        problems.add(path, f"Maximum number of metadata items exceeds {MAX_METADATA_ITEMS}: there are {len(value)}")
    for key, text in value.items():
        if not _METADATA_KEY.fullmatch(key):
            problems.add(path, f"key {key[:60]!r} must be 1 to 255 letters, digits, '-', '_', ':', '.', spaces")
        elif not isinstance(text, str):
            problems.add(
                f"{path}.{key}", f"must be a string, not {say(text) if text is not None else 'null'}: quote it"
            )
        elif len(text) > 255:
            problems.add(f"{path}.{key}", f"has {len(text)} characters, at most 255 are allowed")
    return dict(value)


def hints(hints: Mapping[str, Any], path: str, problems: Problems) -> dict[str, Any]:
    """The scheduler hints; ``group`` is a name or an id, or a mapping as GROUP."""
    for key in hints:
        if key.startswith("_nova"):
            problems.add(f"{path}.{key}", "hints that begin with _nova are Nova's own")
    result = {key: value for key, value in hints.items() if value is not None}
    if "group" in result:
        result["group"] = _group(result["group"], f"{path}.group", problems)
    return result


def _group(value: Any, path: str, problems: Problems) -> Any:
    if isinstance(value, str) and value.strip():
        return value
    if not isinstance(value, Mapping):
        wanted = "a server group's name or id, or a mapping with name and policy that makes one"
        problems.add(path, f"must be {wanted}, not {say(value)}")
        return value
    entry = _checker("group").check(value, path, problems)
    if entry is None:
        return value
    check_name(entry["name"], path, problems)
    most = check_group_rules(entry["policy"], entry["rules"], path, problems)
    rules = {} if most is None else {"max_server_per_host": most}
    return {"name": entry["name"], "policy": entry["policy"], "rules": rules}


def volumes(items: Sequence[Any], count: int, path: str, problems: Problems) -> tuple[RequestedVolume, ...]:
    """New volumes from mappings, existing ones from strings."""
    volumes = []
    for index, item in enumerate(items):
        where = f"{path}.volumes[{index}]"
        if isinstance(item, str):
            volumes.append(RequestedVolume(existing=item))
            if not item:
                problems.add(where, "is empty: name a volume, or give a mapping with its size")
            continue
        entry = _checker("volume").check(item, where, problems)
        if entry is None:
            continue
        check_range(entry["size"], 1, None, f"{where}.size", problems)
        if entry.get("name") is not None:
            check_name(entry["name"], where, problems)
        volumes.append(RequestedVolume(entry["size"], entry.get("name"), entry["delete_on_termination"]))
    if count > 1 and any(volume.existing for volume in volumes):
        problems.add(f"{path}.count", "Cannot attach one or more volumes to multiple instances")
    names = [volume.name for volume in volumes if volume.name]
    for name in {name for name in names if names.count(name) > 1}:
        problems.add(f"{path}.volumes", f"the name {name!r} is given twice")
    return tuple(volumes)


def description(text: str, path: str, problems: Problems) -> str:
    """Nova's limit on descriptions."""
    if len(text) > 255:
        problems.add(f"{path}.description", f"has {len(text)} characters, at most 255 are allowed")
    return text


def wait_for(value: Any, nics: Sequence[Mapping[str, Any]], path: str, problems: Problems) -> WaitFor | None:
    """What to wait for; ``nics`` tell whether it can ever happen."""
    if value is None:
        return None
    entry = _checker("wait_for").check({"condition": value} if isinstance(value, str) else value, path, problems)
    if entry is None:
        return None
    if entry["timeout"] <= 0:
        problems.add(f"{path}.timeout", f"{entry['timeout']:g} is not allowed, it must be more than 0 seconds")
    pattern = entry.get("pattern")
    if pattern is not None and entry["condition"] != "console":
        problems.add(f"{path}.pattern", f"is for condition console only, not for {entry['condition']}")
    try:
        re.compile(pattern or "")
    except re.error as error:
        problems.add(f"{path}.pattern", f"{pattern!r} is not a regular expression: {error}")
    networks = [nic["network"] for nic in nics]
    served = not networks or not all(networks) or any(s.enable_dhcp for network in networks for s in network.subnets)
    if entry["condition"] == "lease" and not served:
        problems.add(path, "there would never be a lease: no subnet of the server's networks has enable_dhcp")
    return WaitFor(entry["condition"], entry["timeout"], pattern if pattern is not None else WaitFor.pattern)
