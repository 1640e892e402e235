# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Where we differ from Nova on purpose, and why. test_differences.py shows each with both sides' answers.

What Nova's code fails on (its API answers 500 then) needs no entry: ours answers, or refuses with the field and the
value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sites import HOST, Json, Question, inventory, made_request, made_site, server


@dataclass(frozen=True)
class Difference:
    """``concerns`` says of a question that its answers may differ for this reason; then they are not compared.

    None where the comparison itself allows for it.
    """

    why: str
    concerns: Callable[[Question], bool] | None
    example: Question
    nova: Any
    ours: Any
    """An answer, or the beginning of what Nova raises or InvalidRequest says. Of decisions: each server's host, or its
    host and alternates; None where Nova gives up on all."""
    more: Json = field(default_factory=dict)
    """What else Nova's side is told."""


def _question(
    ask: str,
    name: str = "",
    hosts: tuple[Json, ...] = ({},),
    metadata: tuple[Json, ...] = (),
    request: Json | None = None,
    flavor: Json | None = None,
    image: Json | None = None,
    options: Json | None = None,
) -> Question:
    site = made_site([{"aggregates": range(len(metadata)), **host} for host in hosts], list(metadata))
    return Question(ask, site, made_request((request or {}, flavor or {}, image or {})), options or {}, name)


def _unreadable_weights(question: Question) -> bool:
    settings = [
        *question.options.get("metrics", {}).get("weight_setting", ()),
        *question.options.get("filter_scheduler", {}).get("image_props_weight_setting", ()),
    ]
    return any(not _readable(item) for item in settings)


def _readable(item: str) -> bool:
    name, _equals, number = item.partition("=")
    try:
        float(number)
    except ValueError:
        return False
    return bool(name)


_TYPED = {"hw_cpu_cores": ("1", "2"), "hw_boot_menu": ("True",)}
"""Image properties of the strategies that Nova reads as other than text -> the values that it prints as they are."""


def _typed_property(question: Question) -> bool:
    properties = question.request["image"]["properties"]
    return "AggregateImagePropertiesIsolation" in (question.name, *_enabled(question)) and any(
        name in properties and properties[name] not in values for name, values in _TYPED.items()
    )


def _unknown_property(question: Question) -> bool:
    return "AggregateImagePropertiesIsolation" in (question.name, *_enabled(question)) and (
        "os_unheard_of" in question.request["image"]["properties"]
    )


def _enabled(question: Question) -> list[str]:
    return question.options.get("filter_scheduler", {}).get("enabled_filters") or []


def _zone_of_no_aggregate(question: Question) -> bool:
    zone = question.request["availability_zone"]
    zones = {item["metadata"].get("availability_zone") for item in question.site["aggregates"]}
    return question.ask == "decide" and bool(zone) and (zone not in zones or zone == "nova")


def _tenants_aggregate_is_empty(question: Question) -> bool:
    """An aggregate that names the project has no hosts."""
    full = {name for host in question.site["hosts"] for name in host["aggregates"]}
    return question.options.get("scheduler", {}).get("limit_tenants_to_placement_aggregate", False) and any(
        key.startswith("filter_tenant_id") and value == question.request["project_id"]
        for item in question.site["aggregates"]
        if item["name"] not in full
        for key, value in item["metadata"].items()
    )


def _swap_of_several(question: Question) -> bool:
    """Several servers with swap: the second one finds what the first took."""
    return question.ask == "decide" and len(question.request["servers"]) > 1 and question.request["flavor"]["swap"] > 0


def _several_alike(question: Question) -> bool:
    """Several servers of one image, and its properties weigh."""
    weight = question.options.get("filter_scheduler", {}).get("image_props_weight_multiplier", 0.0)
    properties = question.request["image"]["properties"]
    return question.ask == "decide" and len(question.request["servers"]) > 1 and weight != 0.0 and bool(properties)


def _size_of_the_image(question: Question) -> bool:
    """A flavor without a size for the root disk, of an image with one."""
    return not question.request["flavor"]["disk"] and question.request["image"]["min_disk"] > 0


def _host(cpus: int, ram: int) -> Json:
    return {"resources": {"VCPU": inventory(cpus), "MEMORY_MB": inventory(ram), "DISK_GB": inventory(100)}}


_TWO = {"servers": [server(100), server(101)]}
_NO_WEIGHTS = {
    f"{name}_weight_multiplier": 0.0 for name in ("ram", "cpu", "disk", "io_ops", "pci", "hypervisor_version")
}


def _cell(number: int, large_pages: int) -> Json:
    cpus = [2 * number, 2 * number + 1]
    return {
        "id": number,
        "cpuset": cpus,
        "pcpuset": cpus,
        "memory": 1024,
        "cpu_usage": 0,
        "memory_usage": 0,
        "pinned_cpus": [],
        "siblings": [[cpu] for cpu in cpus],
        "mempages": [
            {"size_kb": 4, "total": 262144, "used": 0},
            {"size_kb": 2048, "total": large_pages, "used": 0},
        ],
    }


_FOUR_CPUS: Json = {
    "numa": [_cell(0, large_pages=0), _cell(1, large_pages=0)],
    "resources": {**HOST["resources"], "VCPU": inventory(4), "PCPU": inventory(4)},
}


def _isolated_emulator_threads(question: Question) -> bool:
    return question.request["flavor"]["extra_specs"].get("hw:emulator_threads_policy") == "isolate" and (
        question.ask == "decide" and len(question.request["servers"]) > 1
    )


DIFFERENCES = [
    Difference(
        "Nova leaves out an item of weight_setting or image_props_weight_setting that it cannot read, with a "
        "warning in a log. A typing error would go unseen: ours refuses it.",
        _unreadable_weights,
        _question("filter", "MetricsFilter", options={"metrics": {"weight_setting": ["cpu.frequency"]}}),
        nova=["kvm1"],
        ours="scheduler: metrics_weight_setting: 'cpu.frequency' cannot be read",
    ),
    Difference(
        "Nova compares an aggregate's text with the text of a parsed image property, so that `true` never equals "
        "`true` (it has become `True`), and lets pass what is false or 0. Ours compares the texts.",
        _typed_property,
        _question(
            "filter",
            "AggregateImagePropertiesIsolation",
            metadata=({"hw_boot_menu": "true"},),
            image={"properties": {"hw_boot_menu": "true"}},
        ),
        nova=[],
        ours=["kvm1"],
    ),
    Difference(
        "Nova knows the properties of images by name and overlooks others in an aggregate's metadata. Ours compares "
        "whatever the image has.",
        _unknown_property,
        _question(
            "filter",
            "AggregateImagePropertiesIsolation",
            metadata=({"os_unheard_of": "x"},),
            image={"properties": {"os_unheard_of": "y"}},
        ),
        nova=["kvm1"],
        ours=[],
    ),
    Difference(
        "A zone that no aggregate has is no condition for Nova's scheduler: its API refuses such a zone, and its "
        "default zone means any host. Ours has no host in the first and takes the second as the hosts that are "
        "in no other zone.",
        _zone_of_no_aggregate,
        _question("decide", request={"availability_zone": "nowhere"}),
        nova=["kvm1"],
        ours=[None],
    ),
    Difference(
        "With limit_tenants_to_placement_aggregate Nova finds no host for a project whose only aggregate has no "
        "hosts. Ours knows the aggregates of hosts alone, and there is no such aggregate then.",
        _tenants_aggregate_is_empty,
        _question(
            "decide",
            hosts=({"aggregates": ()},),
            metadata=({"filter_tenant_id": "alpha"},),
            options={"scheduler": {"limit_tenants_to_placement_aggregate": True}},
        ),
        nova=None,
        ours=["kvm1"],
    ),
    Difference(
        "Among the servers of one request Nova does not count the swap that the earlier ones take; from one "
        "request to the next it does. Ours counts it at once, as placement does.",
        _swap_of_several,
        _question(
            "decide",
            hosts=({}, {"resources": {**HOST["resources"], "DISK_GB": inventory(100, used=4)}}),
            request=_TWO,
            flavor={"disk": 2, "swap": 3 * 1024},
            options={"filter_scheduler": {**_NO_WEIGHTS, "disk_weight_multiplier": 1.0}},
        ),
        nova=["kvm1", "kvm1"],
        ours=["kvm1", "KVM2"],
    ),
    Difference(
        "When one of a request's servers finds no host Nova gives up on all of them. Ours places those that have one.",
        None,
        _question("decide", hosts=(_host(1, 4096),), request=_TWO),
        nova=None,
        ours=["kvm1", None],
    ),
    Difference(
        "Nova asks placement once a request: a host that its first servers have filled stays in the list, counts "
        "when the weights of the others are normalised, and is left out when its claim fails. Ours is no "
        "candidate any more, as in a request of its own; with it Nova is compared.",
        None,
        _question("decide", hosts=(_host(2, 1024), _host(1, 4096), _host(1, 8192)), request=_TWO),
        nova=["kvm3", "kvm1"],
        ours=["kvm3", "KVM2"],
        more={"asks_again": False},
    ),
    Difference(
        "Where one request is for several servers with NUMA cells, Nova asks for the second what the first one "
        "got: the page size that was chosen, the cells' numbers. With us each asks for what the flavor says; so "
        "Nova is compared.",
        None,
        _question(
            "decide",
            hosts=({**_FOUR_CPUS, "numa": [_cell(0, large_pages=256), _cell(1, large_pages=0)]},),
            request={**_TWO, "numa": True},
            flavor={"vcpus": 2, "ram": 64, "extra_specs": {"hw:mem_page_size": "any"}},
        ),
        nova=None,
        ours=["kvm1", "kvm1"],
        more={"asks_again": False},
    ),
    Difference(
        "A CPU for emulator threads alone (hw:emulator_threads_policy=isolate) is not among the used CPUs that Nova's "
        "CPUWeigher looks at, though placement counts it. Ours counts it.",
        _isolated_emulator_threads,
        _question(
            "decide",
            hosts=(
                {**_FOUR_CPUS},
                {**_FOUR_CPUS, "resources": {**_FOUR_CPUS["resources"], "VCPU": inventory(4, used=1)}},
            ),
            request={**_TWO, "numa": True},
            flavor={"extra_specs": {"hw:cpu_policy": "dedicated", "hw:emulator_threads_policy": "isolate"}},
            options={"filter_scheduler": {**_NO_WEIGHTS, "cpu_weight_multiplier": 1.0}},
        ),
        nova=["kvm1", "kvm1"],
        ours=["kvm1", "KVM2"],
    ),
    Difference(
        "Nova looks for the alternates of a request's servers after the last of them, and leaves out hosts of "
        "the others. Ours are the next best at the moment of each server's choice.",
        None,
        _question("decide", hosts=({}, {}, {}), request=_TWO),
        nova=[["kvm1", "kvm3"], ["KVM2", "kvm3"]],
        ours=[["kvm1", "KVM2", "kvm3"], ["KVM2", "kvm3", "kvm1"]],
    ),
    Difference(
        "ImagePropertiesWeigher of Nova does not see the request's earlier servers (and with a server group it "
        "fails on them: OrphanedObjectError). Ours counts them like any other server.",
        _several_alike,
        _question(
            "decide",
            hosts=({}, {}),
            request=_TWO,
            image={"properties": {"os_distro": "debian"}},
            options={"filter_scheduler": {**_NO_WEIGHTS, "image_props_weight_multiplier": -1.0}},
        ),
        nova=["kvm1", "kvm1"],
        ours=["kvm1", "KVM2"],
    ),
    Difference(
        "For dedicated CPUs Nova asks a second time, for VCPU, unless [workarounds]disable_fallback_pcpu_query is "
        "set: so that hosts upgraded from before there was PCPU, with neither cpu_dedicated_set nor cpu_shared_set, "
        "still pin servers. Those without a pin float over the same CPUs, and placement counts them at the ratio of "
        "VCPU: they are nobody's own. We have no such hosts to carry along: CPUs of one's own are PCPU, claimed once.",
        None,
        _question(
            "decide",
            hosts=({"numa": [_cell(0, large_pages=0)]},),
            request={"numa": True},
            flavor={"extra_specs": {"hw:cpu_policy": "dedicated"}},
        ),
        nova=["kvm1"],
        ours=[None],
        more={"falls_back": True},
    ),
    Difference(
        "A flavor of disk 0 takes the image's size, which Nova counts as 0. Ours counts the image's min_disk.",
        _size_of_the_image,
        _question("resources", flavor={"disk": 0}, image={"min_disk": 5}),
        nova={"resources": {"VCPU": 1, "MEMORY_MB": 512}, "required": [], "forbidden": []},
        ours={"resources": {"VCPU": 1, "MEMORY_MB": 512, "DISK_GB": 5}, "required": [], "forbidden": []},
    ),
    Difference(
        "ImagePropertiesFilter of Nova takes a host's cpu_info, which is JSON text, for a dictionary, and fails "
        "wherever an image has hw_maxphysaddr_bits. It is compared with the text parsed.",
        None,
        _question(
            "filter",
            "ImagePropertiesFilter",
            image={"properties": {"hw_architecture": "x86_64", "hw_maxphysaddr_bits": "40"}},
        ),
        nova="AttributeError: 'str' object has no attribute 'get'",
        ours=["kvm1"],
        more={"parsed": False},
    ),
]
