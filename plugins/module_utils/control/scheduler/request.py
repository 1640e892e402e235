# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What servers ask of a host: Nova's RequestSpec with placement's resource request, frozen."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import numa, pci
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import (
    DISK_GB,
    MEMORY_MB,
    PCPU,
    VCPU,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.pci import PciAlias, PciRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image, Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import (
    EmulatorThreads,
    InstanceNUMATopology,
    ThreadPolicy,
)

_KEY = re.compile(r"(resources|trait)[a-zA-Z0-9_-]{0,64}:(.*)")
_NAME = re.compile(r"[A-Z0-9_]+")


class WrongHint(InvalidRequest):
    """A rule cannot read a scheduler hint: these servers get no host, their neighbours are decided on."""


@dataclass(frozen=True)
class ServerGroup:
    """Nova's server group."""

    uuid: str
    name: str
    policy: str
    """``affinity``, ``anti-affinity``, ``soft-affinity``, ``soft-anti-affinity``."""
    max_server_per_host: int = 1
    """For ``anti-affinity``: members that one host may have."""
    members: frozenset[str] = frozenset()
    """Uuids of its servers, those of this request too."""


@dataclass(frozen=True)
class RequestSpec:
    """The request of one server or of several that ask for the same. :func:`request_spec` makes it from the handle.

    A rule gets it with one server at a time: ``spec.instance_uuid``.
    """

    instance_uuids: tuple[str, ...]
    flavor: Flavor
    image: Image
    project_id: str = ""
    user_id: str = ""
    availability_zone: str | None = None
    scheduler_hints: Mapping[str, Any] = field(default_factory=dict)
    resources: Mapping[str, int] = field(default_factory=dict)
    """Amounts for each server by resource class, which the claim takes too; none is 0."""
    required_traits: frozenset[str] = frozenset()
    forbidden_traits: frozenset[str] = frozenset()
    group: ServerGroup | None = None
    ignore_hosts: tuple[str, ...] = ()
    """Hosts that are out from the start."""
    tried: Mapping[str, str] = field(default_factory=dict)
    """Hosts on which this boot failed before, and why."""
    forced_host: str | None = None
    """The only host that may do, Nova's filters skipped (placement's rules are not). The caller checks that its user
    is an admin, as Nova's policy does."""
    requested_host: str | None = None
    """The only host that may do, all filters run."""
    volume_hosts: tuple[str, ...] = ()
    """Where the existing volumes lie that the server attaches, each host once."""
    numa: InstanceNUMATopology | None = None
    """The NUMA cells that the flavor and the image ask for."""
    pci_requests: tuple[PciRequest, ...] = ()
    """The PCI devices that they ask for."""

    @property
    def instance_uuid(self) -> str:
        """The server that is looked at; the first of several."""
        return self.instance_uuids[0]


def check(flavor: Flavor, image: Image) -> None:
    """InvalidRequest where what flavor and image say cannot be read, whatever hosts there are."""
    resources(flavor, image, numa.request_of(flavor, image))
    _traits(flavor, image, "required")


def merged(specs: Iterable[RequestSpec]) -> list[RequestSpec]:
    """Those that ask for the same as one, in the order of the first of each: what ``decide`` is fastest with."""
    alike: dict[tuple[str, str], list[RequestSpec]] = {}
    for spec in specs:
        rest = repr(dataclasses.replace(spec, instance_uuids=(), group=None))
        alike.setdefault((rest, spec.group.uuid if spec.group else ""), []).append(spec)
    return [
        dataclasses.replace(some[0], instance_uuids=tuple(uuid for spec in some for uuid in spec.instance_uuids))
        for some in alike.values()
    ]


def request_spec(
    instance: Instance, group: ServerGroup | None = None, aliases: Mapping[str, PciAlias] | None = None
) -> RequestSpec:
    """What a server of the handle asks for; :func:`merged` makes one of those that ask for the same.

    ``group`` is the one that it is in, with all its members. ``aliases`` are pci.aliases_of the option ``pci_alias``.
    InvalidRequest where its availability_zone, flavor or image cannot be read. Hints that start with ``_nova`` are
    Nova's own and are dropped, as its API does. Volumes are for the caller, who knows where they lie.
    """
    zone, forced_host = parse_availability_zone(instance.availability_zone)
    flavor, image = instance.flavor, instance.image
    cells = numa.request_of(flavor, image)
    return RequestSpec(
        instance_uuids=(instance.uuid,),
        flavor=flavor,
        image=image,
        project_id=instance.project_id,
        user_id=instance.user_id,
        availability_zone=zone,
        scheduler_hints={key: hint for key, hint in instance.scheduler_hints.items() if not key.startswith("_nova")},
        resources=resources(flavor, image, cells),
        required_traits=frozenset(_traits(flavor, image, "required") + _threads(cells, ThreadPolicy.REQUIRE)),
        forbidden_traits=frozenset(_traits(flavor, image, "forbidden") + _threads(cells, ThreadPolicy.ISOLATE)),
        group=group,
        tried={str(fault.host): str(fault) for fault in instance.attempts},
        forced_host=forced_host,
        numa=cells,
        pci_requests=pci.request_of(flavor, aliases or {}, image),
    )


def resources(flavor: Flavor, image: Image, cells: InstanceNUMATopology | None = None) -> dict[str, int]:
    """Amounts by resource class, as nova.scheduler.utils.ResourceRequest counts them; classes of 0 are left out.

    ``DISK_GB`` is root + ephemeral + swap rounded up to a whole GiB. A flavor of disk 0 takes the image's size; the
    image's min_disk stands in for it (Nova counts 0 there, and lets the disk fill up). CPUs of the guest's own are
    ``PCPU``, with one more for isolated emulator threads. A ``resources:CLASS`` extra spec goes before what the flavor
    says of that class; groups (``resources1:CLASS``) add up, since a host is one provider.
    """
    given = _given(flavor)
    own = sum(len(cell.pcpuset) for cell in cells.cells) if cells else 0
    wanted = {MEMORY_MB: flavor.ram, DISK_GB: _disk(flavor, image)}
    if own and cells and PCPU not in given:
        wanted[PCPU] = own + (cells.emulator_threads_policy == EmulatorThreads.ISOLATE)
    if VCPU not in given and PCPU not in given:
        wanted[VCPU] = flavor.vcpus - own
    return {resource_class: amount for resource_class, amount in {**wanted, **given}.items() if amount}


def _disk(flavor: Flavor, image: Image) -> int:
    return (flavor.disk or image.min_disk) + flavor.ephemeral - (-flavor.swap // 1024)


def _given(flavor: Flavor) -> dict[str, int]:
    """Resource class -> amount of the ``resources:CLASS`` extra specs."""
    given: dict[str, int] = {}
    for key, value in flavor.extra_specs.items():
        found = _KEY.fullmatch(key)
        if found and found[1] == "resources":
            if not _NAME.fullmatch(found[2]) or not str(value).isdecimal():
                raise InvalidRequest(
                    f"flavor {flavor.name}: extra spec {key}={value}: give a resource class in capitals and a whole "
                    "number, such as resources:CUSTOM_GPU=1"
                )
            given[found[2]] = given.get(found[2], 0) + int(value)
    return given


def _traits(flavor: Flavor, image: Image, kind: str) -> list[str]:
    """The traits that are ``required`` or ``forbidden`` by extra specs, and by image properties (required only)."""
    traits = []
    for owner, values in ((f"flavor {flavor.name}", flavor.extra_specs), (f"image {image.name}", image.properties)):
        allowed = ("required", "forbidden") if values is flavor.extra_specs else ("required",)
        for key, value in values.items():
            found = _KEY.fullmatch(key)
            if found and found[1] == "trait":
                if value not in allowed or not _NAME.fullmatch(found[2]):
                    raise InvalidRequest(
                        f"{owner}: {key}={value}: give a trait in capitals, and as its value {' or '.join(allowed)}"
                    )
                traits += [found[2]] if value == kind else []
    return traits


def _threads(cells: InstanceNUMATopology | None, policy: str) -> list[str]:
    """The trait of hosts with several CPUs a core, if that is the server's thread policy: ``require`` requires it,
    ``isolate`` forbids it (ResourceRequest._translate_pinning_policies)."""
    return ["HW_CPU_HYPERTHREADING"] if cells and cells.cells[0].cpu_thread_policy == policy else []


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
