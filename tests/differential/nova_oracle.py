# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Nova's side: its own filters, weighers and scheduler on a site that is told in JSON. Runs in the environment of Nova.

One question a line on standard input, one answer a line on standard output; sites.py says how a site, a request and
the options are told. What Nova reads from its databases is handed over in memory instead; what placement does is
written here after placement's rule (capacity with reserved amounts, ratio and units, traits, aggregates), because
placement is a database. All else is Nova's code: the request filters, ResourceRequest, HostState, every filter and
weigher, SchedulerManager._schedule with its claims, its consumption and its alternates.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import sys
import time
import uuid as uuids
from typing import Any

logging.disable(logging.CRITICAL)

import nova.conf  # noqa: E402
from nova import context, exception, objects  # noqa: E402
from nova.scheduler import host_manager, manager, request_filter, utils, weights  # noqa: E402
from nova.scheduler.weights import image_props  # noqa: E402
from nova.virt import hardware  # noqa: E402
from oslo_utils import timeutils  # noqa: E402

CONF = nova.conf.CONF
CELL = "00000000-0000-4000-8000-0000000000ce"
# With us these two are always on. Not in the benchmark, where they would cost Nova most of its time for nothing.
CLAIMED = ("NUMATopologyFilter", "PciPassthroughFilter")
LONG_AGO = timeutils.utcnow(with_timezone=True) - datetime.timedelta(days=1)

Json = dict[str, Any]


# The site, as Nova's objects


class Site:
    """The hosts of a description as HostStates, and placement's view of them.

    ``parsed`` hands cpu_info to Nova's rules as a dictionary. In Nova it is JSON text, which ComputeCapabilitiesFilter
    parses, while ImagePropertiesFilter fails on it.
    """

    def __init__(self, told: Json, parsed: bool) -> None:
        self.parsed = parsed
        self.aggregates = {
            item["name"]: objects.Aggregate(
                id=number,
                uuid=str(uuids.uuid5(uuids.NAMESPACE_DNS, item["name"])),
                name=item["name"],
                metadata=item["metadata"],
            )
            for number, item in enumerate(told["aggregates"])
        }
        self.told = {host["name"]: host for host in told["hosts"]}
        self.states = [self._state(host) for host in told["hosts"]]
        self.placement = {
            state.uuid: Provider(host, {self.aggregates[name].uuid for name in host["aggregates"]})
            for state, host in zip(self.states, told["hosts"])
        }

    def _state(self, host: Json) -> host_manager.HostState:
        state, now = host_manager.HostState(host["name"], host["name"], CELL), timeutils.utcnow(with_timezone=True)
        state.update(
            _compute_node(host),
            {"disabled": host["disabled"], "last_seen_up": now if host["up"] else LONG_AGO, "host": host["name"]},
            [self.aggregates[name] for name in host["aggregates"]],
            {name: _server(name, properties) for name, properties in host["servers"].items()},
        )
        if self.parsed:
            state.cpu_info = host["cpu_info"]
        return state


def _compute_node(host: Json) -> objects.ComputeNode:
    """What the resource tracker reports: reserved amounts count as used."""
    nothing = {"total": 0, "reserved": 0, "used": 0, "allocation_ratio": 1.0}
    vcpu, ram, disk = (host["resources"].get(name, nothing) for name in ("VCPU", "MEMORY_MB", "DISK_GB"))
    pcpu = host["resources"].get("PCPU", nothing)  # not in the total, but the servers' use of them counts
    stats = {
        **host["stats"],
        "num_instances": host["num_instances"],
        "io_workload": host["num_io_ops"],
        "failed_builds": host["failed_builds"],
    }
    return objects.ComputeNode(
        uuid=str(uuids.uuid5(uuids.NAMESPACE_URL, host["name"])),
        host=host["name"],
        hypervisor_hostname=host["name"],
        updated_at=LONG_AGO,
        vcpus=vcpu["total"],
        vcpus_used=vcpu["used"] + vcpu["reserved"] + pcpu["used"],
        memory_mb=ram["total"],
        memory_mb_used=ram["used"] + ram["reserved"],
        free_ram_mb=ram["total"] - ram["used"] - ram["reserved"],
        local_gb=disk["total"],
        local_gb_used=disk["used"] + disk["reserved"],
        free_disk_gb=disk["total"] - disk["used"] - disk["reserved"],
        disk_available_least=host["disk_available_gb"],
        cpu_allocation_ratio=vcpu["allocation_ratio"],
        ram_allocation_ratio=ram["allocation_ratio"],
        disk_allocation_ratio=disk["allocation_ratio"],
        hypervisor_type=host["hypervisor_type"],
        hypervisor_version=host["hypervisor_version"],
        host_ip=host["host_ip"],
        cpu_info=json.dumps(host["cpu_info"]),
        supported_hv_specs=[objects.HVSpec.from_list(item) for item in host["supported_instances"]],
        stats={name: str(value) for name, value in stats.items()},
        metrics=json.dumps(
            [
                {"name": name, "value": value, "source": "test", "timestamp": LONG_AGO.isoformat()}
                for name, value in host["metrics"].items()
            ]
        ),
        numa_topology=_numa(host["numa"]),
        pci_device_pools=_pools(host["pci"]),
    )


def _numa(cells: list[Json] | None) -> str | None:
    if cells is None:
        return None
    return objects.NUMATopology(
        cells=[
            objects.NUMACell(
                id=cell["id"],
                cpuset=set(cell["cpuset"]),
                pcpuset=set(cell["pcpuset"]),
                memory=cell["memory"],
                cpu_usage=cell["cpu_usage"],
                memory_usage=cell["memory_usage"],
                pinned_cpus=set(cell["pinned_cpus"]),
                siblings=[set(item) for item in cell["siblings"]],
                socket=None,
                mempages=[
                    objects.NUMAPagesTopology(
                        size_kb=page["size_kb"], total=page["total"], used=page["used"], reserved=0
                    )
                    for page in cell["mempages"]
                ],
            )
            for cell in cells
        ]
    )._to_json()


def _pools(pools: list[Json]) -> objects.PciDevicePoolList:
    made = [
        objects.PciDevicePool(
            product_id=pool["product_id"],
            vendor_id=pool["vendor_id"],
            numa_node=pool["numa_node"],
            count=pool["count"],
            tags={"dev_type": pool["dev_type"], "remote_managed": "false"},
        )
        for pool in pools
    ]
    return objects.PciDevicePoolList(objects=made)


def _server(name: str, properties: Json) -> objects.Instance:
    return objects.Instance(
        uuid=name, image_ref="", system_metadata={f"image_{key}": str(value) for key, value in properties.items()}
    )


# What is asked for


def _request(told: Json, site: Site) -> objects.RequestSpec:
    flavor = told["flavor"]
    nova_flavor = objects.Flavor(
        name=flavor["name"],
        flavorid=flavor["name"],
        vcpus=flavor["vcpus"],
        memory_mb=flavor["ram"],
        root_gb=flavor["disk"],
        ephemeral_gb=flavor["ephemeral"],
        swap=flavor["swap"],
        extra_specs=flavor["extra_specs"],
    )
    image = objects.ImageMeta.from_dict(
        {
            "id": told["image"]["id"],
            "disk_format": told["image"]["disk_format"],
            "properties": told["image"]["properties"],
        }
    )
    requested = told["requested_host"]
    return objects.RequestSpec(
        instance_uuid=told["servers"][0],
        num_instances=len(told["servers"]),
        flavor=nova_flavor,
        image=image,
        project_id=told["project_id"],
        user_id="user",
        availability_zone=told["availability_zone"],
        scheduler_hints={name: value if isinstance(value, list) else [value] for name, value in told["hints"].items()},
        instance_group=_group(told["group"], site),
        ignore_hosts=told["ignore_hosts"],
        force_hosts=[told["forced_host"]] if told["forced_host"] else None,
        force_nodes=None,
        requested_destination=objects.Destination(host=requested, node=requested) if requested else None,
        retry=None,
        limits=objects.SchedulerLimits(),
        numa_topology=hardware.numa_get_constraints(nova_flavor, image) if told["numa"] else None,
        pci_requests=_pci_requests(told["pci"]),
        requested_resources=[],
        request_level_params=objects.RequestLevelParams(),
        is_bfv=False,
    )


def _pci_requests(told: list[Json]) -> objects.InstancePCIRequests:
    requests = [
        objects.InstancePCIRequest(alias_name="alias", request_id=str(uuids.uuid5(uuids.NAMESPACE_DNS, str(n))), **item)
        for n, item in enumerate(told)
    ]
    return objects.InstancePCIRequests(requests=requests)


def _group(told: Json | None, site: Site) -> objects.InstanceGroup | None:
    """As the conductor hands it over: its hosts are those of the members that have one."""
    if told is None:
        return None
    members = set(told["members"])
    most = told["max_server_per_host"]
    group = objects.InstanceGroup(
        uuid=told["uuid"],
        name=told["name"],
        policy=told["policy"],
        members=sorted(members),
        hosts=[state.host for state in site.states if members & set(state.instances)],
        rules={} if most is None else {"max_server_per_host": str(most)},
    )
    group.policies = [told["policy"]]
    return group


# Placement


class Provider:
    """One host as placement's resource provider."""

    def __init__(self, host: Json, aggregates: set[str]) -> None:
        self._inventories = host["resources"]
        self._used = {name: item["used"] for name, item in self._inventories.items()}
        self._aggregates = aggregates
        self._traits = {*host["traits"], "OWNER_NOVA", *(["COMPUTE_STATUS_DISABLED"] if host["disabled"] else [])}

    def fits(self, resources: dict[str, int]) -> bool:
        """Placement's rule for every class that is asked for."""
        return all(self._class_fits(name, wanted) for name, wanted in resources.items())

    def _class_fits(self, name: str, wanted: int) -> bool:
        held = self._inventories.get(name)
        if held is None:
            return False
        return (
            held["min_unit"] <= wanted <= held["max_unit"]
            and wanted % held["step_size"] == 0
            and self._used[name] + wanted <= (held["total"] - held["reserved"]) * held["allocation_ratio"]
        )

    def suits(self, group: Any, required: set[str], forbidden: set[str]) -> bool:
        """Traits and aggregates; member_of is a list of lists, one of each has to be there."""
        return (
            self._traits >= required
            and not self._traits & forbidden
            and all(self._aggregates.intersection(any_of) for any_of in group.aggregates)
            and not self._aggregates & set(group.forbidden_aggregates)
        )

    def claim(self, resources: dict[str, int]) -> bool:
        """PUT /allocations: refused where the amounts no longer fit."""
        if not self.fits(resources):
            return False
        for name, wanted in resources.items():
            self._used[name] += wanted
        return True


# Nova's scheduler without its databases


class HostManager(host_manager.HostManager):
    """Nova's, with no cells to ask; notes the weights that it gave."""

    def refresh_cells_caches(self) -> None:
        self.cells: Json = {}

    def _init_aggregates(self) -> None:
        pass

    def _init_instance_info(self, computes_by_cell: Any = None) -> None:
        pass

    def get_compute_nodes_by_host_or_node(self, ctxt: Any, host: str, node: str, cell: Any = None) -> list[Any]:
        """Compared without case, as the databases do."""
        names = {(name or "").lower() for name in (host, node)} - {""}
        return [
            objects.ComputeNode(uuid=state.uuid, host=state.host, hypervisor_hostname=state.nodename)
            for state in self.site.states
            if {state.host.lower()} == names
        ]

    def get_weighed_hosts(self, hosts: Any, spec_obj: Any) -> Any:
        weighed = super().get_weighed_hosts(hosts, spec_obj)
        self.noted.append([[item.obj.host, item.weight] for item in weighed])
        return weighed


class Scheduler(manager.SchedulerManager):
    """Nova's, on the hosts of a site.

    Nova asks placement once for a request. A host that the request's earlier servers have filled stays in its list
    then: it counts when weights are normalised and is left out only when its claim fails. And the NUMA cells that one
    server got are what the next one asks for. ``asks_again`` asks placement before each server, for cells as they were
    asked for, as if every server came in a request of its own, which is what ours does. ``falls_back``: Nova's second
    question for who asks for dedicated CPUs, of hosts that do not tell any to placement.
    """

    def __init__(self, hosts: HostManager) -> None:
        self.host_manager = hosts
        self.asks_again, self.falls_back = True, False
        self.stale = False

    @property
    def placement_client(self) -> Scheduler:
        """Itself, for what Nova takes back when it gives up; nothing reads placement's state after that."""
        return self

    def delete_allocation_for_instance(self, ctxt: Any, server: str, force: bool = False) -> None:
        """In place of the report client's."""

    def _get_all_host_states(self, ctxt: Any, spec_obj: Any, summaries: Any) -> list[host_manager.HostState]:
        return [state for state in self.host_manager.site.states if state.uuid in summaries]

    def _get_sorted_hosts(self, spec_obj: Any, host_states: Any, index: int) -> list[host_manager.HostState]:
        states = list(host_states)
        if self.asks_again:
            spec_obj.numa_topology = self.cells and self.cells.obj_clone()
        free = [state for state in states if self.host_manager.site.placement[state.uuid].fits(self.resources)]
        self.stale = self.stale or len(free) < len(states)
        return super()._get_sorted_hosts(spec_obj, free if self.asks_again else states, index)

    def _candidates(self, wanted: utils.ResourceRequest) -> Json:
        """Placement's GET /allocation_candidates by provider, in the order of the hosts."""
        site, group, resources = self.host_manager.site, wanted.get_request_group(None), self.resources
        return {
            state.uuid: [{"allocations": {state.uuid: {"resources": resources}}, "mappings": {"": [state.uuid]}}]
            for state in site.states
            if group.in_tree in (None, state.uuid)
            and site.placement[state.uuid].fits(resources)
            and site.placement[state.uuid].suits(group, *traits_of(wanted))
        }

    def decide(self, spec: objects.RequestSpec, servers: list[str], alternates: bool) -> list[list[str]]:
        """The hosts of each server: the chosen one, then the alternates. Raises NoValidHost."""
        ctxt = context.RequestContext("user", "project")
        self.cells = spec.numa_topology and spec.numa_topology.obj_clone()
        request_filter.process_reqspec(ctxt, spec)
        found: Json = {}
        for pinned in (True, False) if self.falls_back else (True,):
            wanted = utils.resources_from_request_spec(ctxt, spec, self.host_manager, enable_pinning_translate=pinned)
            self.resources = wanted.merged_resources()  # a host is one provider, whatever group asks
            found = {**self._candidates(wanted), **found}
        if not found:
            raise exception.NoValidHost(reason="placement has no candidate")
        selections = self._schedule(ctxt, spec, servers, found, found, "1.36", return_alternates=alternates)
        return [[item.service_host for item in chosen] for chosen in selections]


def _claim(ctxt: Any, client: Any, spec: Any, server: str, request: Json, **rest: Any) -> bool:
    """In place of nova.scheduler.utils.claim_resources."""
    ((provider, wanted),) = request["allocations"].items()
    return bool(ORACLE.hosts.site.placement[provider].claim(wanted["resources"]))


class Oracle:
    """Answers questions; one at a time."""

    def __init__(self) -> None:
        self._options: Json | None = None
        self.hosts: HostManager

    def answer(self, question: Json) -> Any:
        """The question's ``ask`` names one of the methods below."""
        self._configure(question["options"], () if question["ask"] == "benchmark" else CLAIMED)
        site = Site(question["site"], question["parsed"])
        self.hosts.site, self.hosts.noted = site, []
        spec = _request(question["request"], site)
        return getattr(self, f"ask_{question['ask']}")(question, site, spec)

    def ask_filter(self, question: Json, site: Site, spec: objects.RequestSpec) -> list[str]:
        """The hosts that one filter lets pass."""
        for state in site.states:
            state.allocation_candidates = [{"mappings": {}}]
        rule = self.hosts.filter_cls_map[question["name"]]()
        return [state.host for state in rule.filter_all(site.states, spec)]

    def ask_weigher(self, question: Json, site: Site, spec: objects.RequestSpec) -> list[list[Any]]:
        """(host, weight) of one weigher, normalised and multiplied, best first."""
        rule = next(item for item in self.hosts.weighers if type(item).__name__ == question["name"])
        weighed = weights_of(rule, site.states, spec)
        return [[item.obj.host, item.weight] for item in weighed]

    def ask_resources(self, question: Json, site: Site, spec: objects.RequestSpec) -> Json:
        """What is asked of placement."""
        request_filter.process_reqspec(context.RequestContext("user", "project"), spec)
        wanted = utils.ResourceRequest.from_request_spec(spec)
        required, forbidden = traits_of(wanted)
        return {
            "resources": wanted.merged_resources(),
            "required": sorted(required - {"OWNER_NOVA"}),
            "forbidden": sorted(forbidden - {"COMPUTE_STATUS_DISABLED"}),
        }

    def ask_decide(self, question: Json, site: Site, spec: objects.RequestSpec) -> Json:
        """Each server's hosts, and every list of weighed hosts on the way."""
        scheduler = Scheduler(self.hosts)
        scheduler.asks_again, scheduler.falls_back = question["asks_again"], question.get("falls_back", False)
        servers = question["request"]["servers"]
        try:
            chosen = scheduler.decide(spec, servers, question["alternates"])
        except (exception.NoValidHost, exception.RequestFilterFailed):
            chosen = None
        return {"chosen": chosen, "weighed": self.hosts.noted, "stale": scheduler.stale}

    def ask_benchmark(self, question: Json, site: Site, spec: objects.RequestSpec) -> Json:
        """CPU seconds of each server: filter, weigh, take the best, consume it. Of three servers, or more."""
        scheduler, states = Scheduler(self.hosts), list(site.states)
        for state in states:
            state.allocation_candidates = [{"mappings": {}}]
        seconds, chosen = [], []
        for number, server in enumerate(question["request"]["servers"]):
            started = time.process_time()
            spec.instance_uuid = server
            states = manager.SchedulerManager._get_sorted_hosts(scheduler, spec, states, number)
            if not states:
                break
            chosen.append(states[0].host)
            scheduler._consume_selected_host(states[0], spec, instance_uuid=server)
            seconds.append(time.process_time() - started)
            if number > 1 and sum(seconds) > question["within"]:
                break
        return {"seconds": seconds, "chosen": chosen}

    def _configure(self, options: Json, always: tuple[str, ...]) -> None:
        """``always``: filters that are on whatever the options say."""
        if options == self._options:
            return
        CONF.clear_override("enabled_filters", group="filter_scheduler")
        for section, values in (self._options or {}).items():
            for name in values:
                CONF.clear_override(name, group=section)
        for section, values in options.items():
            for name, value in values.items():
                if value is not None:
                    CONF.set_override(name, value, group=section)
        enabled = CONF.filter_scheduler.enabled_filters
        CONF.set_override("enabled_filters", list(dict.fromkeys([*enabled, *always])), group="filter_scheduler")
        self._options, self.hosts = options, HostManager()


def traits_of(wanted: utils.ResourceRequest) -> tuple[set[str], set[str]]:
    """(required, forbidden), whatever group asks."""
    groups = list(wanted._rg_by_id.values())
    required = wanted._root_required.union(*(group.required_traits for group in groups))
    return required, wanted._root_forbidden.union(*(group.forbidden_traits for group in groups))


def weights_of(rule: Any, states: list[Any], spec: Any) -> list[Any]:
    """What get_weighed_objects makes of one weigher alone."""
    return list(weights.HostWeightHandler().get_weighed_objects([rule], states, spec))


def _aggregates_by_metadata(cls: Any, ctxt: Any, key: str | None = None, value: str | None = None) -> list[Any]:
    return [
        item
        for item in ORACLE.hosts.site.aggregates.values()
        if any(key in (None, name) and value in (None, text) for name, text in item.metadata.items())
    ]


def _aggregates_without(cls: Any, ctxt: Any, ignored: list[str], prefix: str, value: str) -> list[Any]:
    return [
        item
        for item in ORACLE.hosts.site.aggregates.values()
        if any(
            name.startswith(prefix) and text == value and name not in ignored for name, text in item.metadata.items()
        )
    ]


def _no_metadata(servers: Any) -> None:
    """A server that the database does not know has no system_metadata."""
    for server in servers:
        if "system_metadata" not in server:
            server.system_metadata = {}


def replace_databases() -> None:
    """Every place where the code above would ask a database."""
    manager.utils.claim_resources = _claim
    objects.AggregateList.get_by_metadata = classmethod(_aggregates_by_metadata)
    objects.aggregate.AggregateList.get_non_matching_by_metadata_keys = classmethod(_aggregates_without)
    objects.CellMapping.get_by_uuid = classmethod(lambda cls, ctxt, uuid: None)
    image_props.nova_context.target_cell = lambda ctxt, cell: contextlib.nullcontext(ctxt)
    objects.service.get_minimum_version_all_cells = lambda ctxt, names: request_filter.MIN_COMPUTE_VERSION_OWNER_TRAIT
    objects.InstanceList.fill_metadata = _no_metadata


ORACLE = Oracle()


def main() -> None:
    """Until standard input ends."""
    objects.register_all()
    CONF([], project="nova", default_config_files=[], default_config_dirs=[])
    replace_databases()
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        try:
            answer = {"answer": ORACLE.answer(json.loads(line))}
        except Exception as fault:  # noqa: BLE001 - whatever Nova raises is the answer
            answer = {"error": type(fault).__name__, "message": str(fault)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
