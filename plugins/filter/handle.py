# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The handle across plays: what each host made of its part, put together again on the control host."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import pack, unpack

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
        if instance["uuid"] not in found:
            return instance, {"phase": phase, "host": instance["host"], "message": message, "code": 500}
        instance = found[instance["uuid"]]
    return instance, None


def on_host(handle: Handle, host: str) -> Handle:
    """The instances that are placed on this host."""
    return [instance for instance in handle if instance["host"] == host]


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
    others = [item for item in unpack(control.get("finish", {}).get("instances", [])) if item["uuid"] not in gone]
    waited = merge([instance for instance in others if instance["wait_for"]], hostvars, ["wait"])
    rest = [instance for instance in others if not instance["wait_for"]]
    return faults([*gone.values(), *waited, *rest])


def hosts_of(hostvars: Mapping[str, Any], registered: str | Sequence[str], key: str = "hosts") -> list[str] | str:
    """The hosts that a control phase's registered result names, or a pattern that matches none.

    Of several registered names the first that there is counts. A play's ``hosts`` takes it. ``hostvars`` is empty
    while Ansible only checks the syntax.
    """
    control = hostvars.get(CONTROL, {})
    names = [registered] if isinstance(registered, str) else registered
    return next((control[name] for name in names if name in control), {}).get(key) or NO_HOST


def control_if(hostvars: Mapping[str, Any], registered: str, key: str) -> str:
    """The control host where a registered result has something under ``key``, or a pattern that matches none."""
    return CONTROL if hostvars.get(CONTROL, {}).get(registered, {}).get(key) else NO_HOST


def _takes_handle(function: Callable[..., list[str]]) -> Callable[..., list[str]]:
    return lambda handle, *arguments: function(unpack(handle), *arguments)


def _gives_handle(function: Callable[..., Handle]) -> Callable[..., str]:
    return lambda handle, *arguments: pack(function(unpack(handle), *arguments))


class FilterModule:
    """Ansible's entry."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function. A handle comes and goes packed, as the phases give it."""
        return {
            **{function.__name__: _gives_handle(function) for function in (merge, undone, on_host)},
            **{function.__name__: function for function in (reports, trouble, hosts_of, control_if)},
            "faults": _takes_handle(faults),
        }
