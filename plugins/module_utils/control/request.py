# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Entries of ``instances:`` to servers: nova-api's checks, before anything is written and all at once."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from typing import Any, Callable, Mapping, Sequence, TypeVar

from ansible_collections.barestack.kvm.plugins.module_utils.control import request_values as values
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_objects import Keypair
from ansible_collections.barestack.kvm.plugins.module_utils.control.checks import (
    Checker,
    Problems,
    check_name,
    check_range,
    check_unique,
    labelled,
    plain,
    unknown,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.identity import Identity
from ansible_collections.barestack.kvm.plugins.module_utils.control.request_network import check_multiple, nics_of
from ansible_collections.barestack.kvm.plugins.module_utils.control.request_record import (
    FROZEN,
    Requested,
    RequestedVolume,
    default_hostname,
    differences,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.request_spec import REFUSED, SPEC
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import (
    check,
    parse_availability_zone,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image, SecurityGroup

__all__ = ["FROZEN", "Requested", "RequestedVolume", "default_hostname", "differences", "parse", "sanitize_hostname"]

MAX_COUNT = 1000
DEFAULT_ZONE = "nova"

T = TypeVar("T")


@dataclass(frozen=True)
class _Scope:
    """Who asks, of which catalogue, and what is wrong so far."""

    catalog: Catalog
    problems: Problems
    project_id: str
    project_name: str
    user_id: str

    def find(self, path: str, look_up: Callable[[], T]) -> T | None:
        """The object; its absence becomes a problem of ``path``."""
        try:
            return look_up()
        except InvalidRequest as error:
            self.problems.add(path, str(error))
            return None


def parse(requests: Sequence[Any], catalog: Catalog, identity: Identity | None = None) -> list[Requested]:
    """The servers asked for, in order; one InvalidRequest says everything that is wrong, a line each.

    ``identity`` says whose private networks and keys may be named; without it only what is everybody's.
    """
    problems = Problems()
    who = (identity.project_id, identity.project_name, identity.user_id) if identity else ("", "", "")
    scope = _Scope(catalog, problems, *who)
    found: list[tuple[str, Requested]] = []
    for index, item in enumerate(plain(requests)):
        path = labelled(f"instances[{index}]", item)
        found.extend((path, server) for server in _parse_one(item, path, scope))
    _check_together(found, problems)
    problems.finish()
    return [server for _, server in found]


def sanitize_hostname(name: str) -> str:
    """nova.utils.sanitize_hostname: at most 63 of ``a-z 0-9 -``. Unlike Nova's it keeps no letters but ASCII's."""
    name = re.sub(r"[ _.]", "-", name.encode("latin-1", "ignore").decode("latin-1")[:63])
    return re.sub(r"[^a-z0-9-]+", "", name.lower()).strip("-")


@functools.cache
def _checker() -> Checker:
    return Checker(SPEC)


def _parse_one(item: Any, path: str, scope: _Scope) -> list[Requested]:
    problems = scope.problems
    if isinstance(item, Mapping):
        for key in [key for key in item if key in REFUSED]:
            problems.add(f"{path}.{key}", REFUSED[key])
        item = {key: value for key, value in item.items() if key not in REFUSED}
    entry = _checker().check(item, path, problems)
    if entry is None:
        return []
    check_name(entry["name"], path, problems)
    check_range(entry["count"], 1, MAX_COUNT, f"{path}.count", problems)
    if entry["count"] > 1 and len(entry["name"]) <= 255 < len(f"{entry['name']}-{entry['count']}"):
        problems.add(
            f"{path}.name", f"is too long: {entry['name'][:20]}...-{entry['count']} must fit in 255 characters"
        )
    flavor, image = _flavor_and_image(entry, path, scope)
    nics = nics_of(entry, scope.catalog, (scope.project_id, scope.project_name), path, problems)
    check_multiple(nics, entry["count"], path, problems)
    keypair = _keypair(entry.get("key_name"), path, scope)
    server = Requested(
        name=entry["name"],
        hostname="",
        flavor=flavor or Flavor("", "", 0, 0, 0),
        image=image or Image("", "", "", "", ""),
        networks=nics,
        security_groups=_security_groups(entry["security_groups"], f"{path}.security_groups", scope),
        key_name=keypair.name if keypair else None,
        public_key=keypair.public_key if keypair else None,
        user_data=values.user_data(entry.get("userdata"), f"{path}.userdata", problems),
        config_drive=entry["config_drive"],
        metadata=values.metadata(entry.get("meta"), f"{path}.meta", problems),
        availability_zone=_zone(entry.get("availability_zone"), f"{path}.availability_zone", scope),
        host=entry.get("host") or None,
        ignore_hosts=tuple(entry["ignore_hosts"]),
        scheduler_hints=values.hints(entry["scheduler_hints"], f"{path}.scheduler_hints", problems),
        volumes=values.volumes(entry["volumes"], entry["count"], path, problems),
        description=values.description(entry["description"], path, problems),
        wait_for=values.wait_for(entry.get("wait_for"), nics, f"{path}.wait_for", problems),
    )
    return _expand(server, entry["count"] if 1 <= entry["count"] <= MAX_COUNT else 1)


def _expand(server: Requested, count: int) -> list[Requested]:
    """Nova's multi-create: ``name-1``, ``name-2``, ...; a named volume gets the same ending."""
    if count == 1:
        return [replace(server, hostname=sanitize_hostname(server.name))]
    servers = []
    for index in range(count):
        name = f"{server.name}-{index + 1}"
        volumes = tuple(
            replace(volume, name=f"{volume.name}-{index + 1}" if volume.name else None) for volume in server.volumes
        )
        hostname = sanitize_hostname(name)
        servers.append(replace(server, name=name, hostname=hostname, volumes=volumes, launch_index=index))
    return servers


def _check_together(found: Sequence[tuple[str, Requested]], problems: Problems) -> None:
    """What two servers, or two NICs, of one request cannot share."""
    names: dict[str, str] = {}
    for path, server in found:
        if server.name in names:
            problems.add(f"{path}.name", f"{server.name!r} is already asked for by {names[server.name]}")
        names.setdefault(server.name, path)
    nics = [(f"{path}.nics[{index}]", nic) for path, server in found for index, nic in enumerate(server.networks)]
    addresses = [(path, nic["network"], nic["fixed_ip"]) for path, nic in nics if nic["network"] and nic["fixed_ip"]]
    for network_id in {network.id for _, network, _ in addresses}:
        check_unique([(path, "fixed_ip", ip) for path, n, ip in addresses if n.id == network_id], problems)
    check_unique([(path, "port", nic["port"]) for path, nic in nics if nic["port"]], problems)
    check_unique(
        [
            (f"{path}.volumes[{index}]", "name", volume.existing)
            for path, server in found
            for index, volume in enumerate(server.volumes)
            if volume.existing
        ],
        problems,
    )


def _flavor_and_image(entry: Mapping[str, Any], path: str, scope: _Scope) -> tuple[Flavor | None, Image | None]:
    flavor = scope.find(f"{path}.flavor", lambda: scope.catalog.flavor(entry["flavor"]))
    image = scope.find(f"{path}.image", lambda: scope.catalog.image(entry["image"]))
    if flavor and image:
        if flavor.ram < image.min_ram:
            scope.problems.add(
                f"{path}.flavor",
                f"Flavor's memory is too small for requested image. Flavor {flavor.name} has {flavor.ram} MiB, "
                f"image {image.name} has min_ram {image.min_ram} MiB",
            )
        if 0 < flavor.disk < image.min_disk:
            scope.problems.add(
                f"{path}.flavor",
                "Flavor's disk is smaller than the minimum size specified in image metadata. "
                f"Flavor {flavor.name} has {flavor.disk} GiB, image {image.name} has min_disk {image.min_disk} GiB",
            )
        try:
            check(flavor, image)
        except InvalidRequest as error:
            scope.problems.add(f"{path}.flavor", str(error))
    return flavor, image


def _keypair(name: str | None, path: str, scope: _Scope) -> Keypair | None:
    if name is None:
        return None
    return scope.find(f"{path}.key_name", lambda: scope.catalog.keypair(name, scope.user_id))


def _security_groups(names: Sequence[str], path: str, scope: _Scope) -> tuple[SecurityGroup, ...]:
    found: dict[str, SecurityGroup] = {}
    for index, name in enumerate(names or SPEC["security_groups"]["default"]):
        look_up = functools.partial(scope.catalog.security_group, name, scope.project_id)
        group = scope.find(f"{path}[{index}]", look_up)
        if group:
            found[group.id] = group
    return tuple(found.values())


def _zone(zone: str | None, path: str, scope: _Scope) -> str | None:
    if zone is None:
        return None
    known = {DEFAULT_ZONE} | {item.availability_zone for item in scope.catalog.aggregates if item.availability_zone}
    try:
        name, _host = parse_availability_zone(zone)
    except InvalidRequest as error:
        scope.problems.add(path, str(error))
        return zone
    if name is not None and name not in known:
        scope.problems.add(path, unknown("availability zone", name, known))
    return zone
