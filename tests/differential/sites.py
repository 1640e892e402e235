# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Sites and requests in neutral words, for Nova's side and for ours; and hypothesis strategies that make them up.

All of it is JSON. A site: ``hosts`` (see :data:`HOST` for what each has) and ``aggregates`` (``name``, ``metadata``
with ``availability_zone`` in it). A request: see :data:`REQUEST`. Options: ``{section of nova.conf: {option: value}}``.

Values are few, so that they collide often; hosts differ in what a rule looks at and are alike in all else.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]
Strategy = st.SearchStrategy[Any]


def server(number: int) -> str:
    """A server's uuid."""
    return f"00000000-0000-4000-8000-{number:012}"


def inventory(total: int, **rest: Any) -> Json:
    """Placement's inventory of one class, for one host."""
    made = {"total": total, "reserved": 0, "used": 0, "allocation_ratio": 1.0}
    return {**made, "min_unit": 1, "max_unit": max(total, 1), "step_size": 1, **rest}


HOST: Json = {
    "disabled": False,
    "up": True,
    "resources": {
        "VCPU": inventory(8, allocation_ratio=4.0),
        "MEMORY_MB": inventory(8192),
        "DISK_GB": inventory(100),
    },
    "disk_available_gb": None,
    "num_instances": 0,
    "num_io_ops": 0,
    "failed_builds": 0,
    "hypervisor_type": "QEMU",
    "hypervisor_version": 7002000,
    "cpu_info": {"arch": "x86_64", "maxphysaddr": {"mode": "passthrough", "bits": 40}},
    "supported_instances": [["x86_64", "kvm", "hvm"]],
    "stats": {},
    "traits": [],
    "aggregates": [],
    "host_ip": "10.0.0.1",
    "metrics": {},
    "servers": {},
    "numa": None,
    "pci": [],
}
"""``servers`` is uuid -> the properties of its image; the amounts are in placement's units."""

REQUEST: Json = {
    "servers": [server(100)],
    "flavor": {"name": "m1", "vcpus": 1, "ram": 512, "disk": 1, "ephemeral": 0, "swap": 0, "extra_specs": {}},
    "image": {"id": "11111111-0000-4000-8000-000000000001", "disk_format": "qcow2", "min_disk": 0, "properties": {}},
    "project_id": "alpha",
    "availability_zone": None,
    "hints": {},
    "group": None,
    "ignore_hosts": [],
    "forced_host": None,
    "requested_host": None,
    "numa": False,
    "pci": [],
}

NAMES = ("kvm1", "KVM2", "kvm3", "kvm4", "kvm5", "kvm6", "kvm7", "kvm8")
ZONES = ("z1", "z2")
METRICS = ("cpu.user.time", "cpu.idle.time", "cpu.frequency")
IMAGES = ("11111111-0000-4000-8000-000000000001", "22222222-0000-4000-8000-000000000002")


@dataclass(frozen=True)
class Question:
    """What both sides are asked: ``filter`` and ``weigher`` of a ``name``, ``resources``, ``decide``."""

    ask: str
    site: Json
    request: Json
    options: Json
    name: str = ""


@dataclass(frozen=True)
class Case:
    """What a rule looks at: strategies for parts of each host, of the aggregates, of the request and the options."""

    host: Mapping[str, Strategy] = field(default_factory=dict)
    metadata: Strategy | None = None
    """Of an aggregate."""
    request: Mapping[str, Strategy] = field(default_factory=dict)
    flavor: Mapping[str, Strategy] = field(default_factory=dict)
    image: Mapping[str, Strategy] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Strategy]] = field(default_factory=dict)

    def and_also(self, other: Case) -> Case:
        """Both; the other's where both have a strategy for the same."""
        return Case(
            {**self.host, **other.host},
            other.metadata if self.metadata is None else self.metadata,
            {**self.request, **other.request},
            {**self.flavor, **other.flavor},
            {**self.image, **other.image},
            {
                section: {**self.options.get(section, {}), **other.options.get(section, {})}
                for section in {**self.options, **other.options}
            },
        )

    def questions(self, ask: str, name: str = "", hosts: tuple[int, int] = (1, 6)) -> Strategy:
        """What to ask both sides, of sites with so many hosts."""
        return st.builds(
            lambda site, request, options: Question(ask, site, request, options, name),
            self._sites(*hosts),
            st.tuples(
                st.fixed_dictionaries(dict(self.request)),
                st.fixed_dictionaries(dict(self.flavor)),
                st.fixed_dictionaries(dict(self.image)),
            ).map(made_request),
            st.fixed_dictionaries({name: st.fixed_dictionaries(dict(rest)) for name, rest in self.options.items()}),
        )

    def _sites(self, least: int, most: int) -> Strategy:
        host = dict(self.host)
        if self.metadata is None:
            return st.lists(st.fixed_dictionaries(host), min_size=least, max_size=most).map(
                lambda found: made_site(found, [])
            )
        host["aggregates"] = some((), (0,), (1,), (2,), (0, 1), (1, 2), (2, 0), (0, 1, 2))
        return st.tuples(
            st.lists(st.fixed_dictionaries(host), min_size=least, max_size=most),
            st.lists(self.metadata, min_size=3, max_size=3),
        ).map(lambda found: made_site(*found))


def made_site(hosts: list[Json], metadata: list[Json]) -> Json:
    """``hosts`` say what is not as in HOST; their aggregates are numbers of ``metadata``.

    Servers are on the first host that has them; a host is in one zone.
    """
    made, seen = [], set()
    for name, host in zip(NAMES, hosts, strict=False):
        whole = {**HOST, "name": name, **host}  # not copied: nobody changes what is told
        whole["servers"] = {uuid: image for uuid, image in whole["servers"].items() if uuid not in seen}
        seen.update(whole["servers"])
        whole["aggregates"] = _one_zone(sorted(whole["aggregates"]), metadata)
        made.append(whole)
    return {"hosts": made, "aggregates": [{"name": f"agg{n}", "metadata": item} for n, item in enumerate(metadata)]}


def _one_zone(numbers: list[int], metadata: list[Json]) -> list[str]:
    """Nova refuses to put a host in two zones."""
    kept, zones = [], set()
    for number in numbers:
        zone = metadata[number].get("availability_zone")
        if zone is None or not zones - {zone}:
            kept.append(f"agg{number}")
            zones.update([zone] if zone else [])
    return kept


def made_request(parts: tuple[Json, Json, Json]) -> Json:
    """``parts`` (request, flavor, image) say what is not as in REQUEST."""
    request, flavor, image = parts
    return {
        **REQUEST,
        **request,
        "flavor": {**REQUEST["flavor"], **flavor},
        "image": {**REQUEST["image"], **image},
    }


def some(*values: Any) -> Strategy:
    """One of few values."""
    return st.sampled_from(values)


def chosen(values: Mapping[str, Strategy], most: int = 2, least: int = 0) -> Strategy:
    """A dictionary of at most so many of these keys."""
    one = st.one_of([st.tuples(st.just(key), strategy) for key, strategy in values.items()])
    return st.lists(one, min_size=least, max_size=most).map(dict)


# Parts of hosts


@st.composite
def _inventory(draw: Any, totals: tuple[int, ...], used: tuple[int, ...], ratios: tuple[float, ...]) -> Json:
    total = draw(some(*totals))
    return inventory(
        total,
        used=draw(some(*used)),
        reserved=min(total, draw(some(0, 0, 1, used[1]))),
        allocation_ratio=draw(some(*ratios)),
    )


@st.composite
def _units(draw: Any, amounts: Strategy) -> Json:
    """Now and then with units of which placement has something to say."""
    found = draw(amounts)
    if draw(some(False, False, True)):
        found["min_unit"] = draw(some(1, 1, 2, 512))
        found["max_unit"] = max(1, draw(some(found["total"], found["total"], 1, 2, 1024)))
        found["step_size"] = draw(some(1, 2, 3, 256))
    return found


CPUS = _inventory((1, 2, 8, 9), (0, 1, 2, 8), (1.0, 4.0, 1.5, 0.1))
RAM = _inventory((512, 4096, 4097, 65536), (0, 512, 1024, 4000), (1.0, 1.5, 0.9))
DISK = _inventory((1, 10, 100, 101), (0, 1, 10, 99), (1.0, 1.0, 2.0))

RESOURCES = st.fixed_dictionaries({"VCPU": CPUS, "MEMORY_MB": RAM, "DISK_GB": DISK})
PLACEMENT = st.fixed_dictionaries(
    {"VCPU": _units(CPUS), "MEMORY_MB": _units(RAM), "DISK_GB": _units(DISK)},
    optional={"CUSTOM_FPGA": _units(_inventory((1, 2, 8), (0, 1, 2), (1.0, 2.0)))},
)
MEASURED = some(None, None, 0, 1, 50, 500)
COUNT = some(0, 0, 1, 2, 7, 8, 9, 50)
SERVERS = st.dictionaries(some(0, 1, 2, 3, 4, 5, 100).map(server), st.just({}), max_size=4)

SUPPORTED = st.lists(
    some(
        ["x86_64", "kvm", "hvm"],
        ["x86_64", "qemu", "hvm"],
        ["i686", "qemu", "hvm"],
        ["aarch64", "kvm", "hvm"],
        ["x86_64", "lxc", "exe"],
    ),
    max_size=3,
)
CPU_INFO = some(
    {},
    {"arch": "x86_64", "maxphysaddr": {"mode": "passthrough", "bits": 40}},
    {"arch": "x86_64", "maxphysaddr": {"mode": "emulate", "bits": 46}, "topology": {"cores": 4}},
    {"arch": "aarch64", "model": "cortex-a72"},
)
STATS = chosen({"gpu": some("yes", "no", "4", "4.0"), "rack": some("r1", "r12", "")})
METRIC_VALUES = chosen({name: some(0, 1, 5, -3) for name in METRICS}, 3)

_LAYOUTS = ("both", "both", "shared", "dedicated", "split")


@st.composite
def topologies(draw: Any) -> list[Json] | None:
    """NUMA cells of a host, with what its servers use of them; None where it tells none."""
    if draw(some(*[False] * 5, True)):
        return None
    threads, cores, layout = draw(some(1, 2)), draw(some(1, 2, 3)), draw(some(*_LAYOUTS))
    size, cells = threads * cores, []
    for number in range(draw(some(1, 2, 2))):
        cpus = list(range(number * size, number * size + size))
        dedicated = {"both": cpus, "shared": [], "dedicated": cpus, "split": cpus[size // 2 :]}[layout]
        shared = {"both": cpus, "shared": cpus, "dedicated": [], "split": cpus[: size // 2]}[layout]
        memory = draw(some(1024, 2048))
        pinned = draw(some(0, 0, 1, 2, size))
        cells.append(
            {
                "id": number,
                "cpuset": shared,
                "pcpuset": dedicated,
                "memory": memory,
                "cpu_usage": draw(some(0, 0, 1, 4)),
                "memory_usage": draw(some(0, 0, 512, 1024)),
                "pinned_cpus": dedicated[:pinned],
                "siblings": [cpus[first : first + threads] for first in range(0, size, threads)],
                "mempages": [
                    {"size_kb": 4, "total": memory * 256, "used": 0},
                    {"size_kb": 2048, "total": draw(some(0, 256, 512)), "used": draw(some(0, 0, 10, 200))},
                ],
            }
        )
        large = cells[-1]["mempages"][1]
        large["used"] = min(large["used"], large["total"])
    return cells


POOLS = st.lists(
    st.fixed_dictionaries(
        {
            "vendor_id": st.just("8086"),
            "product_id": some("1520", "1521"),
            "numa_node": some(0, 1, None),
            "dev_type": some("type-PCI", "type-PCI", "type-PF"),
            "count": some(0, 1, 2, 5, 99, 100, 130),
        }
    ),
    max_size=2,
    unique_by=lambda pool: pool["product_id"],
)
"""Free devices that are alike."""

# Parts of requests

CELLS = chosen(
    {
        "hw:numa_nodes": some("1", "1", "2"),
        "hw:cpu_policy": some("shared", "dedicated", "dedicated"),
        "hw:cpu_thread_policy": some("prefer", "isolate", "require"),
        "hw:mem_page_size": some("small", "large", "any", "2048", "2MB", "4"),
        "hw:emulator_threads_policy": some("share", "isolate"),
        "hw:pci_numa_affinity_policy": some("required", "legacy", "preferred"),
    },
    3,
    1,
)
DEVICES = st.lists(
    st.builds(
        lambda count, product, kind, policy: {
            "count": count,
            "spec": [{"vendor_id": "8086", "product_id": product, **({"dev_type": kind} if kind else {})}],
            "numa_policy": policy,
        },
        some(1, 1, 2, 6),
        some("1520", "1521"),
        some(None, "type-PCI", "type-PF"),
        some("legacy", "legacy", "required", "preferred"),
    ),
    max_size=2,
)

FLAVOR = {
    "vcpus": some(1, 2, 4),
    "ram": some(64, 512, 1024, 4096),
    "disk": some(0, 1, 10),
    "ephemeral": some(0, 0, 1),
    "swap": some(0, 0, 1, 1024, 1025),
}
NUMBERS = some("0", "1", "4", "4.0", "8", "40", "41", "512", "4096", "7002000", "1e3", "-1")
WORDS = some("yes", "no", "r1", "r12", "x86_64", "QEMU", "kvm", "ssd", "SSD", "", "a b")
_ANY_OF = st.lists(st.one_of(WORDS, NUMBERS), min_size=1, max_size=3).map(
    lambda words: " ".join(f"<or> {word}" for word in words)
)
REQUIREMENT = st.one_of(
    st.tuples(some("=", "==", "!=", ">=", "<="), NUMBERS).map(" ".join),
    st.tuples(some("s==", "s!=", "s<", "s<=", "s>", "s>="), WORDS).map(" ".join),
    st.tuples(some("<in>", "<all-in>"), WORDS).map(" ".join),
    _ANY_OF,
    NUMBERS,
    WORDS,
    some("=", "<or>", "<or> ", "<in>", "== x", " ", "<or> a b c", "<all-in> a b", "<in> a b", ">= 4 5", "> 4"),
)
CAPABILITIES = chosen(
    dict.fromkeys(
        (
            "free_ram_mb",
            "hypervisor_version",
            "gpu",
            "rack",
            "unknown",
            "capabilities:hypervisor_type",
            "capabilities:hypervisor_version",
            "capabilities:vcpus_total",
            "capabilities:vcpus_used",
            "capabilities:free_ram_mb",
            "capabilities:free_disk_mb",
            "capabilities:total_usable_disk_gb",
            "capabilities:num_instances",
            "capabilities:num_io_ops",
            "capabilities:failed_builds",
            "capabilities:disk_mb_used",
            "capabilities:ram_allocation_ratio",
            "capabilities:host",
            "capabilities:host_ip",
            "capabilities:gpu",
            "capabilities:stats:rack",
            "capabilities:stats:none",
            "capabilities:cpu_info:arch",
            "capabilities:cpu_info:maxphysaddr:bits",
            "capabilities:cpu_info:topology:cores",
            "capabilities:cpu_info:arch:deeper",
            "capabilities:unknown",
            "quota:cpu_shares",
            "hw:cpu_sockets",
        ),
        REQUIREMENT,
    )
    | {"hw:maxphysaddr_bits": some("40", "41", "46")},
    3,
)

UUIDS = st.integers(0, 5).map(server)
ONE_OR_MANY = st.one_of(UUIDS, st.lists(UUIDS, min_size=1, max_size=3), st.just(""), st.just("not-a-uuid"))

IMAGE_PROPERTIES = chosen(
    {
        "hw_architecture": some("x86_64", "i686", "aarch64", "amd64", "arm64", "AArch64", "X86_64"),
        "img_hv_type": some("kvm", "qemu", "lxc", "QEMU", "KVM"),
        "hw_vm_mode": some("hvm", "exe", "hv", "HVM"),
        "img_hv_requested_version": some(">=7.0", "<7.2.0", "==7.2.0", ">=7.0,<8.0", "!=7.2.0", ">6"),
        "hw_maxphysaddr_bits": some("40", "41", "46"),
        "os_distro": some("debian", "fedora"),
    },
    3,
)
ISOLATING = {
    "os_distro": some("debian", "fedora", "debian,fedora", "debian , arch", ""),
    "hw_vif_model": some("virtio", "e1000", "virtio,e1000"),
    "hw_cpu_cores": some("1", "2", "02"),
    "hw_boot_menu": some("True", "true", "False"),
    "os_unheard_of": some("x"),
    "availability_zone": some("z1"),
}
ISOLATED_PROPERTIES = chosen(
    {
        "os_distro": some("debian", "fedora", "arch", ""),
        "hw_vif_model": some("virtio", "e1000"),
        "hw_cpu_cores": some("1", "2", "0"),
        "hw_boot_menu": some("True", "true", "False"),
        "os_unheard_of": some("x", "y"),
    },
    3,
    1,
)


@st.composite
def groups(draw: Any, policies: tuple[str, ...]) -> Json | None:
    """A group, with the request's servers among its members as Nova's API puts them there."""
    if draw(some(True, False, False, False, False)):
        return None
    members = draw(st.sets(UUIDS, min_size=1, max_size=5))
    return {
        "uuid": "99999999-0000-4000-8000-000000000001",
        "name": "group",
        "policy": draw(some(*policies)),
        "max_server_per_host": draw(some(None, None, 1, 2, 3)),
        "members": sorted(members | {server(100 + n) for n in range(5)}),
    }


POLICIES = ("affinity", "anti-affinity", "soft-affinity", "soft-anti-affinity")

# Queries of the JsonFilter

_ATTRIBUTES = some(
    "$free_ram_mb", "$vcpus_used", "$vcpus_total", "$num_instances", "$stats.gpu", "$hypervisor_version",
    "$free_disk_mb", "$num_io_ops", "$unknown", "$stats.none", "",
)  # fmt: skip
_TERM = st.one_of(_ATTRIBUTES, some(0, 1, 4, 512, 4096, 8192, 7002000, 3.5))
_COMPARISON = st.builds(
    lambda operator, terms: [operator, *terms], some("=", "<", ">", "in", "<=", ">="), st.lists(_TERM, max_size=3)
)
_STRINGS = st.builds(
    lambda operator, left, right: [operator, left, *right],
    some("=", "in"),
    some("$hypervisor_type", "$host", "$stats.gpu", "$stats.rack"),
    st.lists(some("QEMU", "kvm1", "yes", "r1", "$host"), max_size=2),
)
_SANE = st.builds(
    lambda operator, attribute, number: [operator, attribute, number],
    some("<", ">", "<=", ">=", "="),
    some("$free_ram_mb", "$vcpus_used", "$num_instances", "$free_disk_mb", "$num_io_ops"),
    some(0, 1, 2, 8, 512, 4096, 51200),
)
QUERY = st.recursive(
    st.one_of(_SANE, _SANE, _COMPARISON, _STRINGS),
    lambda inner: st.builds(
        lambda operator, terms: [operator, *terms], some("not", "or", "and"), st.lists(inner, max_size=3)
    ),
    max_leaves=5,
)

_QUERIES = QUERY.map(json.dumps)

# The rules

_MULTIPLIERS = some(1.0, 1.0, 0.0, -1.0, 2.5)
_POSITIVE = some(1.0, 1.0, 0.0, 2.5)
_OVERRIDES = some("2.0", "0", "-1.5", "1e1", "x", "", " 3 ", "1,2")


def _limit(option: str) -> Case:
    return Case(
        host={"num_io_ops": COUNT, "num_instances": COUNT},
        metadata=chosen({option: some("1", "8", "50", "x", "", " 2 ", "1.5", "-1"), "other": some("x")}),
        options={"filter_scheduler": {option: some(8, 1, 50)}},
    )


_AMOUNTS = Case(host={"resources": RESOURCES, "disk_available_gb": MEASURED})

FILTERS: dict[str, Case] = {
    "ComputeFilter": Case(host={"disabled": st.booleans(), "up": st.booleans()}),
    "ComputeCapabilitiesFilter": _AMOUNTS.and_also(
        Case(
            host={"stats": STATS, "cpu_info": CPU_INFO, "num_instances": COUNT, "num_io_ops": COUNT},
            flavor={"extra_specs": CAPABILITIES},
        )
    ),
    "ImagePropertiesFilter": Case(
        host={
            "supported_instances": SUPPORTED,
            "cpu_info": CPU_INFO,
            "hypervisor_version": some(7002000, 8000000, 6002001, 0),
        },
        image={"properties": IMAGE_PROPERTIES},
        options={"filter_scheduler": {"image_properties_default_architecture": some(None, None, "x86_64", "aarch64")}},
    ),
    "ServerGroupAntiAffinityFilter": Case(
        host={"servers": SERVERS}, request={"group": groups(("anti-affinity", "anti-affinity", "affinity"))}
    ),
    "ServerGroupAffinityFilter": Case(
        host={"servers": SERVERS}, request={"group": groups(("affinity", "affinity", "anti-affinity"))}
    ),
    "DifferentHostFilter": Case(
        host={"servers": SERVERS}, request={"hints": chosen({"different_host": ONE_OR_MANY}, 1, 1)}
    ),
    "SameHostFilter": Case(host={"servers": SERVERS}, request={"hints": chosen({"same_host": ONE_OR_MANY}, 1, 1)}),
    "SimpleCIDRAffinityFilter": Case(
        host={"host_ip": some("10.0.0.1", "10.0.0.200", "10.0.1.1", "192.168.1.1", "fd00::1", "fd00::1:1")},
        request={
            "hints": chosen(
                {
                    "build_near_host_ip": some("10.0.0.7", "10.0.1.255", "fd00::9", "10.0.0"),
                    "cidr": some("/24", "/16", "/32", "/0", "/23", "/112", "/33", "24", ""),
                }
            )
        },
    ),
    "AggregateImagePropertiesIsolation": Case(
        metadata=chosen(ISOLATING, 2, 1), image={"properties": ISOLATED_PROPERTIES}
    ),
    "AggregateInstanceExtraSpecsFilter": Case(
        metadata=chosen(
            {"ssd": some("true", "false", "true, false", ""), "cores": some("4", "8", "4,8"), "rack": WORDS}, 3
        ),
        flavor={
            "extra_specs": chosen(
                {
                    key: st.one_of(REQUIREMENT, some("true", "false", "<or> true <or> 4", ">= 4"))
                    for key in (
                        "ssd",
                        "aggregate_instance_extra_specs:ssd",
                        "aggregate_instance_extra_specs:cores",
                        "aggregate_instance_extra_specs:rack",
                        "aggregate_instance_extra_specs:a:b",
                        "capabilities:ssd",
                        "hw:cpu_sockets",
                    )
                },
                3,
                1,
            )
        },
    ),
    "AggregateMultiTenancyIsolation": Case(
        metadata=chosen(
            {
                name: some("alpha", "beta", "alpha,beta", "beta, alpha", "", " alpha ")
                for name in ("filter_tenant_id", "filter_tenant_id2", "filter_tenant_ids_", "other")
            }
        ),
        request={"project_id": some("alpha", "beta", "gamma")},
    ),
    "AggregateTypeAffinityFilter": Case(
        metadata=chosen({"instance_type": some("m1", "m2", "m1,m2", "m2 , m1", "", "M1"), "other": some("m1")}),
        flavor={"name": some("m1", "m2")},
    ),
    "AllHostsFilter": Case(host={"disabled": st.booleans()}),
    "IoOpsFilter": _limit("max_io_ops_per_host"),
    "AggregateIoOpsFilter": _limit("max_io_ops_per_host"),
    "NumInstancesFilter": _limit("max_instances_per_host"),
    "AggregateNumInstancesFilter": _limit("max_instances_per_host"),
    "IsolatedHostsFilter": Case(
        host={"num_instances": st.just(0)},
        image={"id": some(*IMAGES)},
        options={
            "filter_scheduler": {
                "isolated_hosts": st.lists(some("kvm1", "KVM2", "kvm2", "kvm9"), max_size=2),
                "isolated_images": st.lists(some(*IMAGES), max_size=1),
                "restrict_isolated_hosts_to_isolated_images": st.booleans(),
            }
        },
    ),
    "JsonFilter": _AMOUNTS.and_also(
        Case(
            host={"stats": STATS, "num_instances": COUNT, "num_io_ops": COUNT},
            request={
                "hints": chosen(
                    {
                        "query": st.one_of(
                            QUERY.map(json.dumps), QUERY.map(json.dumps), some("[]", "{", "", '["?", 1]', "3")
                        )
                    },
                    1,
                )
            },
        )
    ),
    "NUMATopologyFilter": Case(
        host={"numa": topologies()},
        request={"numa": st.just(True)},
        flavor={"vcpus": some(1, 2, 3, 4), "ram": some(64, 512, 1024, 2048), "extra_specs": CELLS},
    ),
    "PciPassthroughFilter": Case(host={"pci": POOLS}, request={"pci": DEVICES}),
    "MetricsFilter": Case(
        host={"metrics": METRIC_VALUES},
        options={
            "metrics": {
                "weight_setting": st.lists(
                    some(*(f"{name}=1.0" for name in METRICS), "cpu.frequency", "=1", "a=b"), max_size=2
                )
            }
        },
    ),
}


def _soft(policy: str) -> Case:
    return Case(host={"servers": SERVERS}, request={"group": groups((policy, policy, policy, "affinity"))})


_WEIGHED_PROPERTIES = chosen(
    {
        "os_distro": some("debian", "fedora"),
        "hw_vif_model": some("virtio", "e1000"),
        "hw_machine_type": some("q35", "pc"),
    },
    3,
    1,
)


def _multiplied(option: str, case: Case, multipliers: Strategy = _MULTIPLIERS) -> Case:
    """With the rule's multiplier, and aggregates that have their own."""
    name = "weight_multiplier" if option == "metrics_weight_multiplier" else option
    section = "metrics" if option == "metrics_weight_multiplier" else "filter_scheduler"
    return case.and_also(
        Case(metadata=chosen({option: _OVERRIDES}, 1), options={section: {name: multipliers}}),
    )


WEIGHERS: dict[str, Case] = {
    "RAMWeigher": _multiplied("ram_weight_multiplier", _AMOUNTS),
    "CPUWeigher": _multiplied("cpu_weight_multiplier", _AMOUNTS),
    "DiskWeigher": _multiplied("disk_weight_multiplier", _AMOUNTS),
    "IoOpsWeigher": _multiplied("io_ops_weight_multiplier", Case(host={"num_io_ops": COUNT})),
    "NumInstancesWeigher": _multiplied("num_instances_weight_multiplier", Case(host={"num_instances": COUNT})),
    "HypervisorVersionWeigher": _multiplied(
        "hypervisor_version_weight_multiplier", Case(host={"hypervisor_version": some(0, 7002000, 8000000, 10000001)})
    ),
    "PCIWeigher": _multiplied(
        "pci_weight_multiplier",
        Case(host={"pci": POOLS}),
        _POSITIVE,
    ),
    "ServerGroupSoftAffinityWeigher": _multiplied("soft_affinity_weight_multiplier", _soft("soft-affinity"), _POSITIVE),
    "ServerGroupSoftAntiAffinityWeigher": _multiplied(
        "soft_anti_affinity_weight_multiplier", _soft("soft-anti-affinity"), _POSITIVE
    ),
    "BuildFailureWeigher": _multiplied("build_failure_weight_multiplier", Case(host={"failed_builds": COUNT})),
    "ImagePropertiesWeigher": _multiplied(
        "image_props_weight_multiplier",
        Case(
            host={"servers": st.dictionaries(UUIDS, _WEIGHED_PROPERTIES, max_size=4)},
            image={"properties": _WEIGHED_PROPERTIES},
            options={
                "filter_scheduler": {
                    "image_props_weight_setting": st.lists(
                        some("os_distro=2", "hw_vif_model=0.5", "hw_machine_type=-1", "os_distro=x", "os_distro"),
                        max_size=2,
                    )
                }
            },
        ),
    ),
    "MetricsWeigher": _multiplied(
        "metrics_weight_multiplier",
        Case(
            host={"metrics": METRIC_VALUES},
            options={
                "metrics": {
                    "weight_setting": st.lists(
                        some(*(f"{name}={ratio}" for name in METRICS for ratio in ("1.0", "-0.5", "0"))), max_size=3
                    ),
                    "required": st.booleans(),
                    "weight_of_unavailable": some(-10000.0, -1.0, 3.0),
                }
            },
        ),
    ),
}


# The pipeline


def _now_and_then(usual: Any, seldom: Mapping[str, Strategy]) -> Strategy:
    return st.one_of(st.just(usual), st.just(usual), st.just(usual), chosen(seldom))


_PLENTY = st.fixed_dictionaries(
    {
        "VCPU": _inventory((2, 8, 8, 9), (0, 1, 2), (1.0, 4.0, 1.5)),
        "MEMORY_MB": _inventory((4096, 65536, 65537), (0, 512, 1024), (1.0, 1.0, 1.5, 0.9)),
        "DISK_GB": _inventory((10, 100, 100, 101), (0, 1, 10), (1.0, 1.0, 2.0)),
    },
    optional={"CUSTOM_FPGA": _units(_inventory((1, 2, 8), (0, 1, 2), (1.0, 2.0)))},
)
_SELDOM = some(*[False] * 9, True)
_TRAITS = ("HW_CPU_X86_AVX2", "CUSTOM_GOLD", "COMPUTE_IMAGE_TYPE_QCOW2", "COMPUTE_NET_VIF_MODEL_VIRTIO")
_FEW = some(0, 0, 0, 1, 2, 7)

_OPTIONAL = sorted(set(FILTERS) - {"NUMATopologyFilter", "PciPassthroughFilter"})
PIPELINE = Case(
    host={
        "resources": _PLENTY,
        "disk_available_gb": some(None, None, None, 1, 50),
        "disabled": _SELDOM,
        "up": _SELDOM.map(lambda seldom: not seldom),
        "num_instances": _FEW,
        "num_io_ops": _FEW,
        "failed_builds": some(0, 0, 0, 0, 1, 2),
        "hypervisor_version": some(7002000, 7002000, 8000000),
        "traits": some([], list(_TRAITS), list(_TRAITS[:1]), list(_TRAITS[1:])),
        "servers": SERVERS.map(lambda found: {uuid: image for uuid, image in found.items() if uuid != server(100)}),
        "metrics": some({}, {METRICS[0]: 1}, {METRICS[0]: 5, METRICS[1]: 2}),
        "host_ip": some("10.0.0.1", "10.0.0.200", "10.0.1.1"),
    },
    metadata=chosen(
        {
            "availability_zone": some(*ZONES),
            "filter_tenant_id": some("alpha", "beta", "alpha,beta"),
            "filter_tenant_id_2": some("alpha", "gamma"),
            "trait:CUSTOM_GOLD": some("required", "other"),
            "instance_type": some("m1", "m2"),
            "ssd": some("true", "false"),
            "ram_weight_multiplier": _OVERRIDES,
            "cpu_weight_multiplier": _OVERRIDES,
            "max_instances_per_host": some("1", "2", "8"),
        },
        3,
    ),
    request={
        "servers": st.integers(1, 5).map(lambda number: [server(100 + n) for n in range(number)]),
        "project_id": some("alpha", "alpha", "beta"),
        "availability_zone": some(*[None] * 7, "z1", "z2", "nova"),
        "hints": _now_and_then(
            {},
            {
                "different_host": ONE_OR_MANY,
                "same_host": UUIDS,
                "build_near_host_ip": some("10.0.0.7"),
                "query": _SANE.map(json.dumps),
            },
        ),
        "group": groups((*POLICIES, "soft-affinity", "anti-affinity")),
        "ignore_hosts": some([], [], [], [], ["kvm1"], ["kvm2", "KVM3"], ["kvm99"]),
        "forced_host": some(*[None] * 15, "kvm1", "KVM2", "kvm2"),
        "requested_host": some(*[None] * 15, "kvm1", "KVM2"),
    },
    flavor={
        **FLAVOR,
        "swap": some(*[0] * 6, 1, 1025),
        "extra_specs": _now_and_then(
            {},
            {
                "trait:HW_CPU_X86_AVX2": some("required", "forbidden"),
                "trait:CUSTOM_GOLD": some("required", "forbidden"),
                "resources:CUSTOM_FPGA": some("0", "1", "2"),
                "aggregate_instance_extra_specs:ssd": some("true", "false"),
                "capabilities:hypervisor_version": some(">= 8000000", "== 7002000"),
            },
        ),
    },
    image={"properties": chosen({"hw_architecture": some("x86_64", "aarch64"), "hw_vif_model": some("virtio")}, 1)},
    options={
        "filter_scheduler": {
            "enabled_filters": st.one_of(
                st.just(None),
                st.just(None),
                st.lists(
                    some(*sorted(set(FILTERS) - {"NUMATopologyFilter", "PciPassthroughFilter"})),
                    unique=True,
                    max_size=5,
                ),
            ),
            "ram_weight_multiplier": _MULTIPLIERS,
            "cpu_weight_multiplier": _MULTIPLIERS,
            "disk_weight_multiplier": _MULTIPLIERS,
            "max_instances_per_host": some(50, 8, 2),
            "max_io_ops_per_host": some(8, 3),
        },
        "scheduler": {
            "limit_tenants_to_placement_aggregate": _SELDOM,
            "placement_aggregate_required_for_tenants": _SELDOM,
            "enable_isolated_aggregate_filtering": _SELDOM,
            "query_placement_for_image_type_support": _SELDOM,
            "image_metadata_prefilter": _SELDOM,
            "max_attempts": some(3, 1, 2),
        },
    },
)
"""Everything at once; hosts with room more often than not."""


def pipeline() -> Strategy:
    """Questions to the whole pipeline, of which most have an answer."""
    return PIPELINE.questions("decide", hosts=(2, 8)).map(_answerable)


def _answerable(question: Question) -> Question:
    """Without a zone that is nowhere, and without two wishes for hosts at once."""
    request, zones = (
        question.request,
        {item["metadata"].get("availability_zone") for item in question.site["aggregates"]},
    )
    changes: Json = {}
    if request["availability_zone"] not in zones:
        changes["availability_zone"] = None
    if request["forced_host"] or request["requested_host"]:
        changes["ignore_hosts"] = []
    if len(request["servers"]) > 1:
        changes["flavor"] = {**request["flavor"], "swap": 0}  # see differences.py
    return dataclasses.replace(question, request={**request, **changes})


CAPACITY = Case(
    host={"resources": PLACEMENT},
    flavor={**FLAVOR, "extra_specs": chosen({"resources:CUSTOM_FPGA": some("0", "1", "2", "3")}, 1)},
)
"""Placement's rule alone, with units of all kinds."""

WITH_CELLS = Case(
    host={
        "numa": topologies(),
        "pci": POOLS,
        "num_io_ops": _FEW,
        "resources": st.fixed_dictionaries(
            {
                "VCPU": _inventory((4, 8), (0, 1), (1.0, 4.0)),
                "PCPU": _inventory((4, 8), (0, 1), (1.0,)),
                "MEMORY_MB": _inventory((4096, 65536), (0, 512), (1.0, 1.5)),
                "DISK_GB": _inventory((100, 101), (0, 1), (1.0,)),
            }
        ),
        "traits": some([], ["HW_CPU_HYPERTHREADING"]),
    },
    request={"servers": PIPELINE.request["servers"], "numa": st.just(True), "pci": DEVICES},
    flavor={"vcpus": some(1, 2, 3, 4), "ram": some(64, 512, 1024, 2048), "extra_specs": CELLS},
)
"""Servers that ask for NUMA cells, CPUs of their own, pages and devices."""

REQUESTS = Case(
    request={"numa": st.just(True)},
    flavor={
        **FLAVOR,
        "extra_specs": chosen(
            {
                "resources:VCPU": some("0", "1", "8"),
                "resources:PCPU": some("1", "2"),
                "resources:MEMORY_MB": some("0", "100"),
                "resources:DISK_GB": some("0", "5"),
                "resources:CUSTOM_FPGA": some("0", "1", "2"),
                "resources1:CUSTOM_FPGA": some("1", "2"),
                "trait:CUSTOM_GOLD": some("required", "forbidden"),
                "trait:HW_CPU_X86_AVX2": some("required", "forbidden"),
                "hw:cpu_policy": some("shared", "dedicated"),
                "hw:cpu_thread_policy": some("prefer", "isolate", "require"),
                "hw:emulator_threads_policy": some("share", "isolate"),
                "hw:numa_nodes": some("1", "2"),
                "capabilities:x": some("1"),
            },
            4,
            1,
        ),
    },
    image={
        "properties": chosen(
            {
                "trait:CUSTOM_SILVER": some("required"),
                "trait:CUSTOM_GOLD": some("required"),
                "hw_cpu_policy": some("dedicated", "shared"),
            },
            2,
        )
    },
)
"""What is asked of placement."""
