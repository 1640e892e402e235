# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What was asked for: a server as requested, its record, and how a later request differs from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Mapping

from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    Flavor,
    Image,
    SecurityGroup,
    WaitFor,
)

FROZEN = (
    "flavor",
    "image",
    "networks",
    "security_groups",
    "key_name",
    "userdata",
    "config_drive",
    "meta",
    "availability_zone",
    "scheduler_hints",
    "volumes",
)
"""A server's properties that cannot change once it is made. ``wait_for`` and ``description`` may."""


@dataclass(frozen=True)
class RequestedVolume:
    """A volume to make (``size`` in GiB), or in ``existing`` the name or id of one that the records have."""

    size: int = 0
    name: str | None = None
    delete_on_termination: bool = False
    existing: str | None = None


@dataclass(frozen=True)
class Requested:
    """One server as asked for, with the catalogue's objects; ``count`` is already expanded."""

    name: str
    hostname: str
    """The sanitised name; empty where nothing of the name can be kept: see :func:`default_hostname`."""
    flavor: Flavor
    image: Image
    networks: tuple[dict[str, Any], ...]
    """One ``{"network": Network, "fixed_ip": str, "port": str, "tag": str}`` a NIC; each may be None, network if and
    only if there is a port."""
    security_groups: tuple[SecurityGroup, ...]
    key_name: str | None = None
    public_key: str | None = None
    user_data: str | None = field(default=None, repr=False)
    config_drive: bool = True
    metadata: dict[str, str] = field(default_factory=dict)
    availability_zone: str | None = None
    scheduler_hints: dict[str, Any] = field(default_factory=dict)
    host: str | None = None
    """The only compute host that may do."""
    ignore_hosts: tuple[str, ...] = ()
    volumes: tuple[RequestedVolume, ...] = ()
    description: str = ""
    wait_for: WaitFor | None = None
    launch_index: int = 0

    def to_record(self) -> dict[str, Any]:
        """What is kept to recognise the request again: plain data, a digest instead of the user data."""
        return {
            "flavor": _reference(self.flavor),
            "image": _reference(self.image),
            "networks": [
                {
                    "network": _reference(nic["network"]) if nic["network"] else None,
                    **{key: nic[key] for key in ("fixed_ip", "port", "tag")},
                }
                for nic in self.networks
            ],
            "security_groups": sorted((_reference(group) for group in self.security_groups), key=lambda g: g["id"]),
            "key_name": self.key_name,
            "userdata": _digest(self.user_data),
            "config_drive": self.config_drive,
            "meta": dict(self.metadata),
            "availability_zone": self.availability_zone,
            "scheduler_hints": dict(self.scheduler_hints),
            "volumes": [
                {
                    "existing": volume.existing,
                    "name": volume.name,
                    "size": volume.size,
                    "delete_on_termination": volume.delete_on_termination,
                }
                for volume in self.volumes
            ],
        }


def default_hostname(uuid: str) -> str:
    """Nova's hostname for a server whose name has nothing that a hostname may hold."""
    return f"Server-{uuid}"


def differences(requested: Requested, recorded: Mapping[str, Any]) -> list[str]:
    """``its flavor is m1.tiny, not m1.small`` for each immutable property in which a new request differs.

    ``recorded`` is :meth:`Requested.to_record` as it was at the server's creation. Objects are compared by id, so
    that renaming a flavor in the catalogue is no difference.
    """
    wanted = requested.to_record()
    return [
        f"its {name} {'are' if name.endswith('s') else 'is'} {_show(recorded[name])}, not {_show(wanted[name])}"
        for name in FROZEN
        if name in recorded and _compared(recorded[name]) != _compared(wanted[name])
    ]


def _reference(item: Any) -> dict[str, str]:
    return {"id": item.id, "name": item.name}


def _digest(text: str | None) -> str | None:
    return None if text is None else f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _compared(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value["id"] if set(value) == {"id", "name"} else {key: _compared(item) for key, item in value.items()}
    return [_compared(item) for item in value] if isinstance(value, list) else value


def _show(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_show(item) for item in value) or "none"
    if isinstance(value, Mapping):
        if set(value) == {"id", "name"}:
            return f"{value['name']} ({value['id']})"
        shown = [f"{key}={_show(item)}" for key, item in value.items() if item is not None]
        return f"{{{' '.join(shown)}}}" if shown else "none"
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text[:19] if text.startswith("sha256:") else text
