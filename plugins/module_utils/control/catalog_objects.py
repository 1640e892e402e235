# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What the catalogue holds that only the control side needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping


@dataclass(frozen=True)
class Quota:
    """Nova's quota of a project, with Nova's defaults; -1 is unlimited. ``ram`` in MiB."""

    instances: int = 10
    cores: int = 20
    ram: int = 51200


@dataclass(frozen=True)
class Project:
    """Keystone's project."""

    id: str
    name: str
    description: str = ""
    enabled: bool = True
    quota: Quota = field(default_factory=Quota)


@dataclass(frozen=True)
class User:
    """Keystone's user. ``roles`` maps a project's id to the roles assigned there."""

    id: str
    name: str
    password_hash: str = field(repr=False)
    enabled: bool = True
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Keypair:
    """Nova's keypair; without ``user_id`` everybody may name it."""

    name: str
    public_key: str
    user_id: str | None = None


@dataclass(frozen=True)
class DeclaredGroup:
    """Nova's server group; without ``project_id`` every project may name it."""

    id: str
    name: str
    policy: str
    max_server_per_host: int | None = None
    project_id: str | None = None


@dataclass(frozen=True)
class Aggregate:
    """Nova's host aggregate; ``availability_zone`` is in ``metadata`` too, as Nova has it."""

    id: str
    name: str
    hosts: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    availability_zone: str | None = None
