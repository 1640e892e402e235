# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The handle across plays: what each host made of its part, put together again on the control host."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import pack, pick, unpack

Handle = list[dict[str, Any]]

CONTROL = "localhost"
NO_HOST = "compute:!all"

_SETTINGS = (
    "cpu_allocation_ratio",
    "ram_allocation_ratio",
    "disk_allocation_ratio",
    "reserved_host_cpus",
    "reserved_host_memory_mb",
    "reserved_host_disk_mb",
    "resources",
    "traits",
)


def merge(handle: Handle, hostvars: Mapping[str, Any], phases: Sequence[str], only: str = "uuid") -> Handle:
    """The handle with each instance as its host's last phase returned it; those that have nothing under ``only`` as is.

    ``phases`` are the names that the host play registered its results under, in their order. A phase that failed as a
    whole, or a host that was not reached, becomes the fault of the host's instances that have none yet.
    """
    last = functools.cache(functools.partial(_returned, hostvars, tuple(phases)))
    result = []
    for instance in handle:
        if instance["host"] and instance[only] and not instance["fault"]:
            instance, missing = _last(instance, last(instance["host"]))
            instance = {**instance, "fault": instance["fault"] or missing}
        result.append(instance)
    return result


def undone(handle: Handle, hostvars: Mapping[str, Any], phases: Sequence[str]) -> Handle:
    """As :func:`merge`, for undos: what an undo left on its host makes the instance ``stuck``."""
    last = functools.cache(functools.partial(_returned, hostvars, tuple(phases)))
    result = []
    for instance in handle:
        if instance["host"]:
            instance, missing = _last(instance, last(instance["host"]))
            instance = {**instance, "stuck": instance["stuck"] or missing}
        result.append(instance)
    return result


_Returned = list[tuple[str, dict[str, dict[str, Any]], str]]
"""For each phase its name, uuid -> the instance that it returned, and its message."""


def _returned(hostvars: Mapping[str, Any], phases: Sequence[str], host: str) -> _Returned:
    results = hostvars[host] if host in hostvars else {}  # noqa: SIM401 - its get() gives an undefined
    nothing = {"msg": "the host did not get there" if results else "the host is not in the inventory"}
    returned = []
    for phase in phases:
        registered = results.get(phase)  # or a variable of the inventory that has the phase's name
        result: Mapping[str, Any] = registered if isinstance(registered, Mapping) else nothing
        found = {item["uuid"]: item for item in unpack(result.get("instances", []))}
        returned.append((phase, found, str(result.get("msg", "no answer"))))
    return returned


def _last(instance: dict[str, Any], returned: _Returned) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The instance as the last phase returned it, and as a fault the phase that did not return it."""
    for phase, found, message in returned:
        if found.get(instance["uuid"], {}).get("attempts") != instance["attempts"]:  # or it is of an earlier attempt
            return instance, {"phase": phase, "host": instance["host"], "message": message, "code": 500}
        instance = found[instance["uuid"]]
    return instance, None


def on_host(handle: Any, host: str) -> str:
    """The instances that are placed on this host. Each host asks for its own: the others' are not even read."""
    return pick(handle if isinstance(handle, str) else pack(handle), host)


def reports(hosts: Sequence[str], hostvars: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What ``compute_node`` takes, for the hosts that ``hypervisor_info`` answered on."""
    return [
        {
            "name": host,
            "hypervisor": hostvars[host]["hypervisor_info"]["hypervisor"],
            **{key: hostvars[host][key] for key in _SETTINGS if key in hostvars[host]},
        }
        for host in hosts
        if "hypervisor" in hostvars[host].get("hypervisor_info", {})
    ]


def faults(handle: Handle) -> list[str]:
    """A line for each instance that has a fault or is stuck."""
    lines = []
    for instance in handle:
        for kind, text in (("fault", "failed in"), ("stuck", "could not be undone in")):
            fault = instance[kind]
            if fault:
                where = fault["host"] or "the control host"
                lines.append(f"{instance['name']} {text} {fault['phase']} on {where}: {fault['message']}")
    return lines


def trouble(hostvars: Mapping[str, Any]) -> list[str]:
    """What a boot's summary says: a line for each server that failed, or that did not get ready in time."""
    control = hostvars.get(CONTROL, {})
    gone = {instance["uuid"]: instance for instance in unpack(control.get("undone", {}).get("instances", []))}
    ended = unpack(control.get("finish", {}).get("instances", []))
    waited = merge([item for item in ended if item["wait_for"] and not item["fault"]], hostvars, ["wait"])
    rest = [gone.get(item["uuid"], item) for item in ended if not item["wait_for"] or item["fault"]]
    return faults([*waited, *rest])


def hosts_of(hostvars: Mapping[str, Any], names: str | Sequence[str], key: str = "hosts", until: str = "") -> Any:
    """The hosts that a control phase's registered result names, or a pattern that matches none, for a play's ``hosts``.

    Plays are imported several times: a result that ``until`` answered since, another registered result, counts no more.
    ``hostvars`` is empty while Ansible only checks the syntax.
    """
    return _result(hostvars, names, until).get(key) or NO_HOST


def control_if(hostvars: Mapping[str, Any], names: str | Sequence[str], key: str, until: str = "") -> str:
    """The control host where such a result has something under ``key``, or a pattern that matches none."""
    return CONTROL if _result(hostvars, names, until).get(key) else NO_HOST


def latest(hostvars: Mapping[str, Any], names: str | Sequence[str], key: str) -> Any:
    """What the latest of these registered results has under ``key``."""
    return _result(hostvars, names)[key]


def _result(hostvars: Mapping[str, Any], names: str | Sequence[str], until: str = "") -> Mapping[str, Any]:
    """The latest of the control host's results that are registered under these names, unless ``until`` is later."""
    control = hostvars.get(CONTROL, {})
    wanted = [names] if isinstance(names, str) else names
    results = [control[name] for name in wanted if "at" in control.get(name, {})]
    result = max(results, key=lambda item: str(item["at"]), default={})
    answer = control.get(until, {}) if until else {}
    return {} if result and str(answer.get("at", "")) > str(result["at"]) else result


def _takes_handle(function: Callable[..., list[str]]) -> Callable[..., list[str]]:
    return lambda handle, *arguments: function(unpack(handle), *arguments)


def _gives_handle(function: Callable[..., Handle]) -> Callable[..., str]:
    return lambda handle, *arguments: pack(function(unpack(handle), *arguments))


class FilterModule:
    """Ansible's entry."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function. A handle comes and goes packed, as the phases give it."""
        return {
            **{function.__name__: _gives_handle(function) for function in (merge, undone)},
            **{function.__name__: function for function in (on_host, reports, trouble, hosts_of, control_if, latest)},
            "faults": _takes_handle(faults),
        }
