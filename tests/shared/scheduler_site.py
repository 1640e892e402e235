# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Hosts and requests for the scheduler's tests, in few words."""

from __future__ import annotations

import dataclasses

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import (
    Aggregate,
    Facts,
    HostRow,
    Hosts,
    Inventory,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decide import decide
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters import FILTERS
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec, ServerGroup
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image

FACTS = [field.name for field in dataclasses.fields(Facts)]


def host(name="h", **fields):
    """A host; fields of its facts, ``zone`` and ``metadata`` (of an aggregate each) stand among the others."""
    facts = Facts(**{key: fields.pop(key) for key in FACTS if key in fields})
    aggregates = fields.pop("aggregates", ())
    if "zone" in fields:
        aggregates += (Aggregate("zone", availability_zone=fields.pop("zone")),)
    if "metadata" in fields:
        aggregates += (Aggregate("meta", fields.pop("metadata")),)
    return HostRow(name, facts=facts, aggregates=aggregates, **fields)


def roomy(name="h", vcpus=16, ram=65536, disk=1000, **fields):
    """A host with room for servers."""
    inventories = {
        "VCPU": Inventory(vcpus, allocation_ratio=fields.pop("cpu_ratio", 1.0)),
        "MEMORY_MB": Inventory(ram, used=fields.pop("ram_used", 0)),
        "DISK_GB": Inventory(disk),
        **fields.pop("more", {}),
    }
    return host(name, inventories=inventories, **fields)


def spec(*uuids, extra_specs=None, properties=None, vcpus=1, ram=1024, disk=10, **fields):
    """A request of servers with these uuids."""
    flavor = Flavor("1", "m1.small", vcpus, ram, disk, extra_specs=extra_specs or {})
    image = Image("i", "debian", "/i", "sha256:0", "qcow2", properties=properties or {})
    resources = fields.pop("resources", {"VCPU": vcpus, "MEMORY_MB": ram, "DISK_GB": disk})
    return RequestSpec(uuids or ("u",), flavor, image, resources=resources, **fields)


def group(policy, *members, **fields):
    """A server group."""
    return ServerGroup("g-uuid", "web", policy, members=frozenset(members), **fields)


def reason(name, row, request, **options):
    """Why the filter of this name removes the host; None where it passes."""
    return reasons(name, [row], request, **options)[0]


def reasons(name, rows, request, **options):
    """The same for each of the hosts."""
    rule = {item.name: item for item in FILTERS}[name](Options(**options))
    hosts = Hosts.of(rows)
    mask = rule.mask(hosts, request)
    assert len(mask) == len(rows)
    return [None if passes else rule.reason(hosts, row, request) for row, passes in enumerate(mask)]


def one(rows, request, **options):
    """The decision on the only server of the request."""
    [decision] = decide(Hosts.of(rows), [request], Options(**options))
    return decision
