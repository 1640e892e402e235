# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""From checked entries of the catalogue to objects: the checks that need more than one key."""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from collections import Counter
from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_objects import (
    Aggregate,
    DeclaredGroup,
    Keypair,
    Project,
    Quota,
    User,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.checks import (
    Problems,
    check_range,
    say,
    strings,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image

ROLES = ("reader", "member", "admin")
"""Keystone's default roles; each implies those before it."""

_NAMESPACE = uuid.UUID("b1f6a3a4-6f0e-5d53-9a4f-0c6d3a7e1b52")
_DIGEST_LENGTHS = {"sha256": 64, "sha512": 128}
_ARGON2 = re.compile(r"\$argon2id\$v=\d+\$m=\d+,t=\d+,p=\d+\$[A-Za-z0-9+/]{11,}\$[A-Za-z0-9+/]{16,}")
_KEY_TYPES = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)


def default_id(*path: str) -> str:
    """The id of an object that declares none: uuid5 of ``<section>/<name>``, the same everywhere and always."""
    return str(uuid.uuid5(_NAMESPACE, "/".join(path)))


def build_flavor(entry: Mapping[str, Any], identifier: str, path: str, problems: Problems) -> Flavor:
    """Sizes checked."""
    for key, low in (("vcpus", 1), ("ram", 1), ("disk", 0), ("ephemeral", 0), ("swap", 0)):
        check_range(entry[key], low, None, f"{path}.{key}", problems)
    return Flavor(
        id=identifier,
        name=entry["name"],
        vcpus=entry["vcpus"],
        ram=entry["ram"],
        disk=entry["disk"],
        ephemeral=entry["ephemeral"],
        swap=entry["swap"],
        extra_specs=strings(entry["extra_specs"], f"{path}.extra_specs", problems),
    )


def build_image(entry: Mapping[str, Any], identifier: str, path: str, problems: Problems) -> Image:
    """Address, checksum and sizes checked; the file itself is looked at by the image phase."""
    url, checksum = entry["url"], entry["checksum"].lower()
    local = url.removeprefix("file://")
    if re.fullmatch(r"https?://[^/\s]+/\S*", url) is None and not local.startswith("/"):
        problems.add(f"{path}.url", f"{url!r} is neither an absolute path nor a file:///, http:// or https:// address")
    algorithm, _, digest = checksum.partition(":")
    if re.fullmatch(r"[0-9a-f]+", digest) is None or _DIGEST_LENGTHS.get(algorithm) != len(digest):
        problems.add(
            f"{path}.checksum", f"{entry['checksum']!r} is not sha256:<64 hex digits> or sha512:<128 hex digits>"
        )
    for key in ("min_disk", "min_ram"):
        check_range(entry[key], 0, None, f"{path}.{key}", problems)
    return Image(
        id=identifier,
        name=entry["name"],
        url=url,
        checksum=checksum,
        disk_format=entry["disk_format"],
        min_disk=entry["min_disk"],
        min_ram=entry["min_ram"],
        properties=strings(entry["properties"], f"{path}.properties", problems),
    )


def build_keypair(entry: Mapping[str, Any], users: Sequence[User], path: str, problems: Problems) -> Keypair:
    """The key's form checked, and that its user exists."""
    key = entry["public_key"].strip()
    if not _is_public_key(key):
        message = f"is not an OpenSSH public key, one line of '<type> <base64> [comment]', type {', '.join(_KEY_TYPES)}"
        if "PRIVATE KEY" in key:
            message = "is a private key: keep it to yourself, give the line of the .pub file"
        problems.add(f"{path}.public_key", message)
    owner = entry.get("user")
    found = next((user.id for user in users if owner in (user.name, user.id)), None)
    if owner is not None and found is None:
        problems.add_unknown(f"{path}.user", "user", owner, (user.name for user in users))
    return Keypair(entry["name"], key, found)


def _is_public_key(key: str) -> bool:
    words = key.split(" ", 2)
    if len(words) < 2 or words[0] not in _KEY_TYPES or "\n" in key:
        return False
    try:
        blob = base64.b64decode(words[1], validate=True)
    except binascii.Error:
        return False
    kind = words[0].encode()
    return blob.startswith(len(kind).to_bytes(4, "big") + kind) and len(blob) > len(kind) + 8


def build_project(entry: Mapping[str, Any], identifier: str, path: str, problems: Problems) -> Project:
    """The project with its quota."""
    for key, value in entry["quota"].items():
        check_range(value, -1, None, f"{path}.quota.{key}", problems)
    quota = Quota(**entry["quota"])
    return Project(identifier, entry["name"], entry.get("description") or "", entry["enabled"], quota)


def build_user(
    entry: Mapping[str, Any], identifier: str, projects: Sequence[Project], path: str, problems: Problems
) -> User:
    """The user with the roles by project id."""
    if _ARGON2.fullmatch(entry["password_hash"]) is None:
        problems.add(
            f"{path}.password_hash",
            "is not an argon2id hash ($argon2id$v=19$m=...,t=...,p=...$salt$hash). Make one: python3 -c "
            "'import argon2, getpass; print(argon2.PasswordHasher().hash(getpass.getpass()))'",
        )
    roles: dict[str, tuple[str, ...]] = {}
    for name, value in entry["roles"].items():
        where = f"{path}.roles.{name}"
        project = next((item for item in projects if name in (item.name, item.id)), None)
        if project is None:
            problems.add_unknown(where, "project", name, (item.name for item in projects))
        else:
            roles[project.id] = (*roles.get(project.id, ()), *_roles(value, where, problems))
    return User(identifier, entry["name"], entry["password_hash"], entry["enabled"], roles)


def _roles(value: Any, path: str, problems: Problems) -> Iterable[str]:
    values = value if isinstance(value, list) else [value]
    for item in values:
        if item not in ROLES:
            problems.add(path, f"must be {', '.join(ROLES)} or a list of them, not {say(item)}")
    return [item for item in values if item in ROLES]


def build_server_group(
    entry: Mapping[str, Any], identifier: str, projects: Sequence[Project], path: str, problems: Problems
) -> DeclaredGroup:
    """The server group, its rules checked as Nova does."""
    owner = entry.get("project")
    found = next((item.id for item in projects if owner in (item.name, item.id)), None)
    if owner is not None and found is None:
        problems.add_unknown(f"{path}.project", "project", owner, (item.name for item in projects))
    most = check_group_rules(entry["policy"], entry["rules"], path, problems)
    return DeclaredGroup(identifier, entry["name"], entry["policy"], most, found)


def check_group_rules(policy: str, rules: Mapping[str, Any], path: str, problems: Problems) -> int | None:
    """Of a group's rules ``max_server_per_host``, which only anti-affinity has, and which is at least 1."""
    most = rules.get("max_server_per_host")
    if most is None:
        return None
    where = f"{path}.rules.max_server_per_host"
    if policy != "anti-affinity":
        problems.add(where, f"is a rule of policy anti-affinity only, not of {policy}")
    check_range(most, 1, None, where, problems)
    return int(most)


def build_aggregate(entry: Mapping[str, Any], identifier: str, path: str, problems: Problems) -> Aggregate:
    """The aggregate, with its zone in its metadata as in Nova."""
    metadata = strings(entry["metadata"], f"{path}.metadata", problems)
    zone = entry.get("availability_zone") or metadata.get("availability_zone")
    if zone is not None:
        if metadata.setdefault("availability_zone", zone) != zone:
            problems.add(
                f"{path}.metadata.availability_zone",
                f"{metadata['availability_zone']!r} differs from availability_zone {zone!r}: give one",
            )
        if ":" in zone or not zone.strip():
            problems.add(f"{path}.availability_zone", f"{zone!r} is no name of a zone: it is empty or holds a ':'")
    for host in [host for host, times in Counter(entry["hosts"]).items() if times > 1]:
        problems.add(f"{path}.hosts", f"{host!r} is listed twice")
    return Aggregate(identifier, entry["name"], tuple(entry["hosts"]), metadata, zone)


def check_zones(aggregates: Sequence[tuple[str, Aggregate]], problems: Problems) -> None:
    """A host is in one availability zone at most, as Nova demands."""
    zones: dict[str, tuple[str, str]] = {}
    for path, aggregate in aggregates:
        for host in aggregate.hosts:
            if aggregate.availability_zone is None:
                continue
            zone, where = zones.setdefault(host, (aggregate.availability_zone, path))
            if zone != aggregate.availability_zone:
                problems.add(f"{path}.hosts", f"{host!r} is in the availability zone {zone!r} already, through {where}")
