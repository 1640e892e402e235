# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Server groups that requests made on their first use, and who is in which group, a declared one or one of these.

A server is a member from its record's creation to its deletion, as in Nova. A group that a request made goes with its
last member, so that a later request may give the name another policy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import (
    instances,
    server_group_members,
    server_groups,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance, ServerGroup
from sqlalchemy import Connection, delete, insert, select

_FIELDS = ("uuid", "name", "policy", "max_server_per_host")


def of_project(connection: Connection, project_id: str) -> list[ServerGroup]:
    """The groups that requests of the project made."""
    query = select(server_groups).where(server_groups.c.project_id == project_id).order_by(server_groups.c.name)
    return [ServerGroup(**{name: getattr(row, name) for name in _FIELDS}) for row in connection.execute(query)]


def create(connection: Connection, group: ServerGroup, project_id: str, user_id: str, now: str) -> None:
    """Insert a group that a request makes."""
    values = {name: getattr(group, name) for name in _FIELDS}
    connection.execute(insert(server_groups).values(**values, project_id=project_id, user_id=user_id, created_at=now))


def join(connection: Connection, made: Iterable[Instance]) -> None:
    """Write down which of these servers are in a group."""
    rows = [
        {"instance_uuid": instance.uuid, "group_uuid": instance.server_group.uuid}
        for instance in made
        if instance.server_group
    ]
    if rows:
        connection.execute(insert(server_group_members), rows)


def leave(connection: Connection, uuids: Sequence[str]) -> None:
    """These servers are in no group any more; groups that requests made go with their last member."""
    mine = server_group_members.c.instance_uuid.in_(uuids)
    left = set(connection.scalars(select(server_group_members.c.group_uuid).where(mine)))
    if not left:
        return
    connection.execute(delete(server_group_members).where(mine))
    inhabited = select(server_group_members.c.group_uuid)
    connection.execute(
        delete(server_groups).where(server_groups.c.uuid.in_(left), server_groups.c.uuid.not_in(inhabited))
    )


def members(connection: Connection, groups: Collection[str]) -> dict[str, frozenset[str]]:
    """Group -> the uuids of its servers. A claim reads them in its own transaction."""
    found: dict[str, set[str]] = {group: set() for group in groups}
    query = select(server_group_members).where(server_group_members.c.group_uuid.in_(list(groups)))
    for row in connection.execute(query) if groups else ():
        found[row.group_uuid].add(row.instance_uuid)
    return {group: frozenset(uuids) for group, uuids in found.items()}


def hosts(connection: Connection, groups: Collection[str]) -> Mapping[str, Mapping[str, str]]:
    """Group -> uuid -> host, of the members that have one."""
    found: dict[str, dict[str, str]] = {group: {} for group in groups}
    query = (
        select(server_group_members.c.group_uuid, instances.c.uuid, instances.c.host)
        .join(instances, instances.c.uuid == server_group_members.c.instance_uuid)
        .where(server_group_members.c.group_uuid.in_(list(groups)))
        .where(instances.c.deleted == 0, instances.c.host.is_not(None))
    )
    for row in connection.execute(query) if groups else ():
        found[row.group_uuid][row.uuid] = row.host
    return found
