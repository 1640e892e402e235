# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What one server asks of a host: Nova's RequestSpec with placement's resource request, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.hosts import DISK_GB, MEMORY_MB, VCPU
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image, Instance


@dataclass(frozen=True)
class RequestSpec:
    """One server's request. :func:`request_spec` makes it from the handle."""

    instance_uuid: str
    flavor: Flavor
    image: Image
    project_id: str = ""
    availability_zone: str | None = None
    scheduler_hints: Mapping[str, Any] = field(default_factory=dict)
    resources: Mapping[str, int] = field(default_factory=dict)
    """Amounts by resource class, which the claim takes too."""
    ignore_hosts: tuple[str, ...] = ()
    """Hosts that are out from the start."""
    tried: Mapping[str, str] = field(default_factory=dict)
    """Hosts on which this boot failed before, and why."""
    forced_host: str | None = None
    """The only host that may do. The caller checks that its user is an admin, as Nova's policy does."""
    volume_hosts: tuple[str, ...] = ()
    """Where the existing volumes lie that the server attaches, each host once."""


def request_spec(instance: Instance) -> RequestSpec:
    """The request of a server in the handle. InvalidRequest where its availability_zone cannot be read.

    Hints that start with ``_nova`` are Nova's own and are dropped, as its API does. Volumes are for the caller, who
    knows where they lie.
    """
    zone, forced_host = parse_availability_zone(instance.availability_zone)
    return RequestSpec(
        instance_uuid=instance.uuid,
        flavor=instance.flavor,
        image=instance.image,
        project_id=instance.project_id,
        availability_zone=zone,
        scheduler_hints={key: hint for key, hint in instance.scheduler_hints.items() if not key.startswith("_nova")},
        resources=resources(instance.flavor, instance.image),
        tried={str(fault.host): str(fault) for fault in instance.attempts},
        forced_host=forced_host,
    )


def resources(flavor: Flavor, image: Image) -> dict[str, int]:
    """Amounts by resource class, as nova.scheduler.utils.ResourceRequest counts them; classes of 0 are left out.

    ``DISK_GB`` is root + ephemeral + swap rounded up to a whole GiB. A flavor of disk 0 takes the image's size; the
    image's min_disk stands in for it (Nova counts 0 there, and lets the disk fill up).
    """
    swap = -(-flavor.swap // 1024)
    disk = (flavor.disk or image.min_disk) + flavor.ephemeral + swap
    wanted = {VCPU: flavor.vcpus, MEMORY_MB: flavor.ram, DISK_GB: disk}
    return {resource_class: amount for resource_class, amount in wanted.items() if amount}


def parse_availability_zone(text: str | None) -> tuple[str | None, str | None]:
    """(zone, forced host) of ``zone``, ``zone:host``, ``:host``, ``zone::node`` or ``zone:host:node``.

    Nova's legacy form, nova.compute.api.parse_availability_zone. Each host is one node of the same name here, so a
    node names the host; one that differs from the host is an InvalidRequest.
    """
    zone, *rest = (text or "").split(":")
    names = {name for name in rest if name}
    if len(rest) > 2 or len(names) > 1 or (rest and not names):
        raise InvalidRequest(
            f"availability_zone {text!r}: Unable to parse availability_zone; give a zone, or zone:host to force a host"
        )
    return zone or None, names.pop() if names else None
