# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""From the recorded hosts to what the scheduler's rules look at, and from its decisions to claims."""

from __future__ import annotations

import dataclasses
import datetime
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from ansible_collections.barestack.kvm.plugins.module_utils.control import server_groups
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import hosts as recorded
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import instances, residues, volumes
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import server_groups as memberships
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.claims import Claim
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.hosts import TIME, Wanted
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import decide as pipeline
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import numa, pci, request, site_rules
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import (
    DISK_GB,
    Aggregate,
    Facts,
    Hosts,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decision import Decision
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.loaded import columns
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import SCHEDULER_SPEC, Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec, ServerGroup
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance
from sqlalchemy import Connection

_PLACES = ("same_host", "different_host")
"""The hints that name servers."""


DECISION_SPEC: dict[str, Any] = {
    "service_down_time": {"type": "float", "default": 600},
    **SCHEDULER_SPEC,
}
"""What a phase that decides takes."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was asked for and what came of it. ``wrong``: uuid -> why a server's request cannot be read."""

    specs: Sequence[RequestSpec]
    decisions: Sequence[Decision]
    wrong: Mapping[str, str]
    generations: Mapping[str, int]

    def claims(self) -> dict[str, Claim]:
        """uuid -> claim, for the servers that found a host."""
        resources = {uuid: spec.resources for spec in self.specs for uuid in spec.instance_uuids}
        return {
            decision.instance_uuid: Claim(
                host=decision.host,
                resources=resources[decision.instance_uuid],
                numa=decision.taken.numa if decision.taken else None,
                devices=decision.taken.devices if decision.taken else (),
            )
            for decision in self.decisions
            if decision.host
        }


def age(recorded: str, now: str) -> float:
    """Seconds between two of the records' times."""
    return (datetime.datetime.strptime(now, TIME) - datetime.datetime.strptime(recorded, TIME)).total_seconds()


def decide(
    connection: Connection,
    catalog: Catalog,
    handle: Sequence[Instance],
    params: Mapping[str, Any],
    now: str,
    complete: bool = False,
) -> Outcome:
    """A host for each of these servers, none of which has a claim; nothing is written. ``params`` as DECISION_SPEC.

    InvalidRequest where an option or a rule of the site's is wrong.
    """
    options = options_of(params)
    specs, wrong = request_specs(connection, catalog, handle, options)
    hosts, generations = load(connection, catalog, specs, options, now, params["service_down_time"])
    rules = site_rules.load(params["scheduler_rules_path"])
    return Outcome(specs, pipeline.decide(hosts, specs, options, rules, complete), wrong, generations)


def check(params: Mapping[str, Any]) -> None:
    """InvalidRequest where an option or a rule of the site's is wrong. ``params`` as SCHEDULER_SPEC."""
    options = options_of(params)
    pipeline.check(options, site_rules.load(params["scheduler_rules_path"]))
    pci.aliases_of(options.pci_alias)


def options_of(params: Mapping[str, Any]) -> Options:
    """The site's options; what is left to chance is another one each time."""
    return Options.of({"seed": secrets.randbits(32), **params["scheduler"]})


def load(
    connection: Connection,
    catalog: Catalog,
    specs: Sequence[RequestSpec],
    options: Options,
    now: str,
    down_time: float,
) -> tuple[Hosts, dict[str, int]]:
    """Every recorded host, with what these requests and rules look at; and each one's generation.

    A host whose heartbeat is older than ``down_time`` seconds is down.
    """
    spoken_of = {uuid for spec in specs for uuid in _servers_spoken_of(spec)}
    wanted = Wanted(
        servers=spoken_of,
        numa=any(spec.numa or spec.pci_requests for spec in specs),
        image_properties=bool(options.multipliers.get("image_props_weight_multiplier")),
    )
    loaded = recorded.load(connection, now, down_time, wanted)
    aggregates = [
        (Aggregate(item.name, item.metadata, item.availability_zone), item.hosts) for item in catalog.aggregates
    ]
    return columns(loaded, aggregates, facts), dict(zip(loaded.names, loaded.generations))


def _servers_spoken_of(spec: RequestSpec) -> Iterable[str]:
    for hint in _PLACES:
        yield from _named(spec.scheduler_hints.get(hint))
    yield from spec.group.members if spec.group else ()


def _named(hint: Any) -> list[str]:
    return [str(item) for item in hint] if isinstance(hint, (list, tuple)) else [str(hint)] if hint else []


def facts(report: Mapping[str, Any]) -> Facts:
    """What the rules see of what hosts of one kind report."""
    return Facts(
        supported_instances=tuple(
            (str(arch), str(kind), str(mode)) for arch, kind, mode in report["supported_instances"]
        ),
        hypervisor_type=report["hypervisor_type"],
        hypervisor_version=report["hypervisor_version"],
        cpu_info=report["cpu_info"],
        machine_types=tuple(name for names in report["machine_types"].values() for name in names),
        firmware_types=tuple("uefi" if name == "efi" else name for name in report["firmware"]),
        traits=frozenset(report.get("traits", ())),
        stats=report,
    )


def zones(catalog: Catalog) -> dict[str, str]:
    """Host -> its availability zone, of the hosts that an aggregate puts into one."""
    return {
        host: item.availability_zone for item in catalog.aggregates if item.availability_zone for host in item.hosts
    }


def request_specs(
    connection: Connection, catalog: Catalog, handle: Sequence[Instance], options: Options
) -> tuple[list[RequestSpec], dict[str, str]]:
    """What the scheduler is asked for each server, one spec for all that ask for the same; and uuid -> what is wrong.

    A volume that lies on a host draws the server there, one that a rollback left of a blank volume too; blank volumes
    lie on the instances' file system here, so they count as disk. The members of a server group are read here, in the
    transaction that claims. InvalidRequest where ``pci_alias`` is wrong.
    """
    groups = server_groups.current(catalog, handle)
    members = memberships.members(connection, list(groups))
    for instance in handle:  # of one that is only asked about the records do not know
        if instance.server_group:
            members[instance.server_group.uuid] |= {instance.uuid}
    whole = {
        uuid: ServerGroup(uuid, group.name, group.policy, group.max_server_per_host or 1, members[uuid])
        for uuid, group in groups.items()
    }
    aliases = pci.aliases_of(options.pci_alias)
    left: dict[str, dict[str, str]] = {}
    for item in residues.of(connection, [instance.uuid for instance in handle]):
        left.setdefault(item.uuid, {})[str(item.host)] = "it has yet to undo what an earlier attempt left there"
    specs, wrong = [], {}
    for instance in _resolved(connection, handle):
        try:
            group = whole[instance.server_group.uuid] if instance.server_group else None
            spec = request.request_spec(instance, group, aliases)
        except InvalidRequest as error:
            wrong[instance.uuid] = str(error)
        else:
            specs.append(_completed(connection, spec, instance, left.get(instance.uuid, {})))
    return request.merged(specs), wrong


def _completed(connection: Connection, spec: RequestSpec, instance: Instance, left: Mapping[str, str]) -> RequestSpec:
    spec = dataclasses.replace(spec, requested_host=instance.requested_host, ignore_hosts=instance.ignore_hosts)
    existing = [device.volume_id for device in instance.block_devices]
    if not left and not existing:
        return spec
    return dataclasses.replace(
        spec,
        tried={**left, **spec.tried},
        volume_hosts=tuple(sorted(volumes.hosts(connection, existing))) if existing else (),
        resources=_with_blank(spec.resources, instance),
    )


def _with_blank(resources: Mapping[str, int], instance: Instance) -> dict[str, int]:
    blank = sum(device.size for device in instance.block_devices if device.source_type == "blank")
    return {**resources, DISK_GB: resources.get(DISK_GB, 0) + blank} if blank else dict(resources)


def _resolved(connection: Connection, handle: Sequence[Instance]) -> list[Instance]:
    """The servers with uuids for the names in their hints ``same_host`` and ``different_host``, of their projects."""
    result = []
    for instance in handle:
        hints = {hint: _named(instance.scheduler_hints.get(hint)) for hint in _PLACES}
        names = [name for named in hints.values() for name in named if not _is_uuid(name)]
        if names:
            rows = instances.in_project(connection, instance.project_id, names)
            uuids = {name: row.uuid for name, row in rows.items()}
            told = {hint: [uuids.get(name, name) for name in named] for hint, named in hints.items() if named}
            instance = instance.with_(scheduler_hints={**instance.scheduler_hints, **told})
        result.append(instance)
    return result


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def against_policy(connection: Connection, specs: Iterable[RequestSpec], made: Mapping[str, Claim]) -> dict[str, str]:
    """uuid -> which hard policy of its group its claim would break. Nova's late check, without its race.

    The rules see to it before; but a forced host skips them, and ``enabled_filters`` may leave them out.
    """
    groups = {spec.group.uuid: spec.group for spec in specs if spec.group}
    hard = {uuid: group for uuid, group in groups.items() if group.policy in ("affinity", "anti-affinity")}
    there = {uuid: list(found.values()) for uuid, found in memberships.hosts(connection, list(hard)).items()}
    broken = {}
    for spec in specs:
        group = spec.group
        for uuid in spec.instance_uuids if group and group.uuid in hard else ():
            if group is None or uuid not in made:
                continue
            host, held = made[uuid].host, there[group.uuid]
            lead = f"{host} was forced or chosen against the policy {group.policy} of server group {group.name}"
            if group.policy == "affinity" and held and host not in held:
                broken[uuid] = f"{lead}: its servers are on {', '.join(sorted(set(held)))}"
            elif group.policy == "anti-affinity" and held.count(host) >= group.max_server_per_host:
                broken[uuid] = f"{lead}: {held.count(host)} of at most {group.max_server_per_host} are there"
            else:
                held.append(host)
    return broken


def claim_of(instance: Instance) -> Claim:
    """The claim that a server has to have which is on a host already, with what it had of CPUs and devices."""
    cells = instance.numa_topology or numa.request_of(instance.flavor, instance.image)
    resources = request.resources(instance.flavor, instance.image, cells)
    return Claim(str(instance.host), _with_blank(resources, instance), instance.numa_topology, instance.pci_devices)
