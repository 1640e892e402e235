# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The catalogue: what people declare in Git, checked as a whole, and given out as the model's objects."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import Any, Mapping, Protocol, Sequence, TypeVar

from ansible_collections.barestack.kvm.plugins.module_utils.control import catalog_build as build
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_groups import (
    DEFAULT_GROUP,
    DEFAULT_RULES,
    Group,
    build_group,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_network import (
    build_network,
    check_overlaps,
    check_physical_networks,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_objects import (
    Aggregate,
    DeclaredGroup,
    Keypair,
    Project,
    User,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog_spec import SPEC
from ansible_collections.barestack.kvm.plugins.module_utils.control.checks import (
    Checker,
    Problems,
    check_id,
    check_name,
    check_unique,
    labelled,
    plain,
    say,
    unknown,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image, Network, SecurityGroup

SECTIONS = tuple(SPEC)
IDENTITY_SECTIONS = ("projects", "users")
"""What a token's validation needs."""

_Entries = Mapping[str, Sequence[tuple[str, dict[str, Any]]]]


class _Named(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=_Named)


@dataclass(frozen=True)
class Catalog:
    """The declared objects. A look-up takes a name or an id; InvalidRequest lists the known names."""

    flavors: tuple[Flavor, ...] = ()
    images: tuple[Image, ...] = ()
    networks: tuple[Network, ...] = ()
    groups: tuple[Group, ...] = ()
    keypairs: tuple[Keypair, ...] = ()
    projects: tuple[Project, ...] = ()
    users: tuple[User, ...] = ()
    aggregates: tuple[Aggregate, ...] = ()
    server_groups: tuple[DeclaredGroup, ...] = ()
    network_owners: Mapping[str, str] = field(default_factory=dict)
    """Network id to project id, for networks that are not shared."""

    @classmethod
    def load(cls, data: Mapping[str, Any], sections: Sequence[str] = SECTIONS) -> Catalog:
        """Check ``data`` (section to list of entries) and build the catalogue; one InvalidRequest says all problems.

        With ``sections`` only those are looked at; they must not refer to others.
        """
        problems = Problems()
        entries = _read(data, sections, problems)
        catalog = _build(entries, problems)
        problems.finish()
        return catalog

    def flavor(self, name_or_id: str) -> Flavor:
        """The flavor."""
        return _find("flavor", name_or_id, self.flavors)

    def image(self, name_or_id: str) -> Image:
        """The image."""
        return _find("image", name_or_id, self.images)

    def project(self, name_or_id: str) -> Project:
        """The project."""
        return _find("project", name_or_id, self.projects)

    def user(self, name_or_id: str) -> User:
        """The user."""
        return _find("user", name_or_id, self.users)

    def aggregate(self, name_or_id: str) -> Aggregate:
        """The host aggregate."""
        return _find("aggregate", name_or_id, self.aggregates)

    def aggregates_of(self, host: str) -> tuple[Aggregate, ...]:
        """The aggregates that a compute host is in."""
        return tuple(item for item in self.aggregates if host in item.hosts)

    def networks_for(self, project_id: str) -> tuple[Network, ...]:
        """The networks that a project may use: the shared ones and its own."""
        return tuple(item for item in self.networks if self.network_owners.get(item.id, project_id) == project_id)

    def network(self, name_or_id: str, project_id: str | None = None) -> Network:
        """The network, among those that the project may use; among all where no project is given."""
        return _find("network", name_or_id, self.networks if project_id is None else self.networks_for(project_id))

    def security_group(self, name_or_id: str, project_id: str) -> SecurityGroup:
        """The security group as ``project_id`` sees it: ``default`` is another group in every project."""
        return _find("security group", name_or_id, self.security_groups(project_id))

    def security_groups(self, project_id: str) -> tuple[SecurityGroup, ...]:
        """The groups that a project may use: the declared ones, and its ``default`` unless one is declared."""
        groups = self.groups
        if all(group.name != DEFAULT_GROUP for group in groups):
            identifier = build.default_id("security_groups", DEFAULT_GROUP, project_id)
            groups = (Group(identifier, DEFAULT_GROUP, DEFAULT_RULES), *groups)
        ids = {reference: group.id for group in groups for reference in (group.name, group.id)}
        return tuple(
            SecurityGroup(
                group.id,
                group.name,
                tuple(
                    replace(item.rule, remote_group_id=ids[item.remote_group]) if item.remote_group else item.rule
                    for item in group.rules
                ),
            )
            for group in groups
        )

    def server_groups_for(self, project_id: str) -> tuple[DeclaredGroup, ...]:
        """The declared server groups that a project may use: everybody's and its own."""
        return tuple(item for item in self.server_groups if item.project_id in (None, project_id))

    def keypair(self, name: str, user_id: str) -> Keypair:
        """The user's key of this name, else everybody's."""
        visible = [item for item in self.keypairs if item.user_id in (user_id, None)]
        found = [item for item in visible if item.name == name]
        if not found:
            raise InvalidRequest(unknown("keypair", name, {item.name for item in visible}))
        return next((item for item in found if item.user_id), found[0])


def _find(kind: str, wanted: str, items: Sequence[T]) -> T:
    for item in items:
        if wanted in (item.name, item.id):
            return item
    raise InvalidRequest(unknown(kind, wanted, (item.name for item in items)))


@functools.cache
def _checker(section: str) -> Checker:
    return Checker(SPEC[section])


def _read(data: Mapping[str, Any], sections: Sequence[str], problems: Problems) -> _Entries:
    """Each section's entries with their paths; ``id`` filled in, names and ids checked."""
    if not isinstance(data, Mapping):
        raise InvalidRequest(f"catalog: must be a mapping with the sections {', '.join(SECTIONS)}, not {say(data)}")
    for key in data:
        if key not in SPEC:
            problems.add("catalog", unknown("section", str(key), SECTIONS))
    entries: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for section in sections:
        items = plain(data.get(section)) or []
        if not isinstance(items, list):
            problems.add(section, f"must be a list of mappings, not {say(items)}")
            items = []
        entries[section] = []
        for index, item in enumerate(items):
            path = labelled(f"{section}[{index}]", item)
            entry = _checker(section).check(item, path, problems)
            if entry is None:
                problems.broken.update(
                    str(item[key]) for key in ("name", "id") if isinstance(item, dict) and key in item
                )
            else:
                _identify(entry, section, path, problems)
                entries[section].append((path, entry))
    return entries


def _identify(entry: dict[str, Any], section: str, path: str, problems: Problems) -> None:
    check_name(entry["name"], path, problems)
    entry["id"] = entry.get("id") or build.default_id(section, entry["name"])
    check_id(entry["id"], path, problems)
    for index, subnet in enumerate(entry.get("subnets") or ()):
        check_name(subnet["name"], f"{path}.subnets[{index}]", problems)
        subnet["id"] = subnet.get("id") or build.default_id(section, entry["name"], "subnets", subnet["name"])
        check_id(subnet["id"], f"{path}.subnets[{index}]", problems)


def _build(entries: _Entries, problems: Problems) -> Catalog:
    for section, items in entries.items():
        if section != "keypairs":
            _check_references(items, problems)
    projects = [build.build_project(e, e["id"], path, problems) for path, e in entries.get("projects", ())]
    users = [build.build_user(e, e["id"], projects, path, problems) for path, e in entries.get("users", ())]
    networks, owners = _networks(entries.get("networks", ()), projects, problems)
    aggregates = [
        (path, build.build_aggregate(e, e["id"], path, problems)) for path, e in entries.get("aggregates", ())
    ]
    build.check_zones(aggregates, problems)
    return Catalog(
        flavors=tuple(build.build_flavor(e, e["id"], path, problems) for path, e in entries.get("flavors", ())),
        images=tuple(build.build_image(e, e["id"], path, problems) for path, e in entries.get("images", ())),
        networks=networks,
        groups=_groups(entries.get("security_groups", ()), problems),
        keypairs=_keypairs(entries.get("keypairs", ()), users, problems),
        projects=tuple(projects),
        users=tuple(users),
        aggregates=tuple(aggregate for _, aggregate in aggregates),
        server_groups=tuple(
            build.build_server_group(e, e["id"], projects, path, problems)
            for path, e in entries.get("server_groups", ())
        ),
        network_owners=owners,
    )


def _check_references(items: Sequence[tuple[str, dict[str, Any]]], problems: Problems) -> None:
    """A name or an id means one object: neither may be another object's name or id."""
    check_unique([(path, key, entry[key]) for key in ("name", "id") for path, entry in items], problems)
    subnets = [(path, index, subnet) for path, e in items for index, subnet in enumerate(e.get("subnets") or ())]
    for owner in dict.fromkeys(path for path, _, _ in subnets):
        own = [(f"{path}.subnets[{index}]", subnet) for path, index, subnet in subnets if path == owner]
        check_unique([(path, key, subnet[key]) for key in ("name", "id") for path, subnet in own], problems)
    check_unique([(path, f"subnets[{index}].id", subnet["id"]) for path, index, subnet in subnets], problems)


def _networks(
    items: Sequence[tuple[str, dict[str, Any]]], projects: Sequence[Project], problems: Problems
) -> tuple[tuple[Network, ...], dict[str, str]]:
    built, owners = [], {}
    for path, entry in items:
        subnet_ids = [subnet["id"] for subnet in entry["subnets"]]
        built.append((path, build_network(entry, entry["id"], subnet_ids, path, problems)))
        owner = entry.get("project")
        project = next((item for item in projects if owner in (item.name, item.id)), None)
        if owner is not None and project is None:
            problems.add_unknown(f"{path}.project", "project", owner, (item.name for item in projects))
        if not entry["shared"] and owner is None:
            problems.add(f"{path}.project", "is missing: shared is false, so say whose network it is")
        if not entry["shared"] and project is not None:
            owners[entry["id"]] = project.id
    bridges: dict[str, str] = {}
    for path, network in built:
        other = bridges.setdefault(network.bridge, path)
        if other != path:
            problems.add(f"{path}.id", f"{network.id!r} begins as that of {other}: both would be {network.bridge}")
    check_overlaps(built, problems)
    check_physical_networks(built, problems)
    return tuple(network for _, network in built), owners


def _groups(items: Sequence[tuple[str, dict[str, Any]]], problems: Problems) -> tuple[Group, ...]:
    names = {entry[key]: entry["name"] for _, entry in items for key in ("name", "id")}
    names.setdefault(DEFAULT_GROUP, DEFAULT_GROUP)
    return tuple(build_group(entry, entry["id"], names, path, problems) for path, entry in items)


def _keypairs(
    items: Sequence[tuple[str, dict[str, Any]]], users: Sequence[User], problems: Problems
) -> tuple[Keypair, ...]:
    built = [(path, build.build_keypair(entry, users, path, problems)) for path, entry in items]
    for owner in {keypair.user_id for _, keypair in built}:
        check_unique([(path, "name", key.name) for path, key in built if key.user_id == owner], problems)
    return tuple(keypair for _, keypair in built)
