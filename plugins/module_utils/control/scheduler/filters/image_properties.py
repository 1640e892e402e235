# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Only hosts that can run the image."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Bools, Facts, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.filters.base import Filter
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec

_OTHER_NAMES = {
    "hw_architecture": {
        "i386": "i686",
        "i486": "i686",
        "i586": "i686",
        "x86_32": "i686",
        "x86_32p": "i686",
        "amd64": "x86_64",
    },
    "img_hv_type": {"xapi": "xen"},
    "hw_vm_mode": {"pv": "xen", "hv": "hvm", "baremetal": "hvm"},
}
_COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}


class ImagePropertiesFilter(Filter):
    """Passes hosts that support what the image's properties ask for.

    One supported instance type must have the ``hw_architecture``, ``img_hv_type`` and ``hw_vm_mode`` that are given;
    then ``img_hv_requested_version`` (``>=6.0,<9``) and ``hw_maxphysaddr_bits`` are looked at too. Nova looks at
    those two only where one of the three is given, and so does this. ``hw_machine_type`` and ``hw_firmware_type`` must
    be among what the host reports, where it reports them (beyond Nova, whose driver finds out during the build).
    """

    name = "ImagePropertiesFilter"
    once = True

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        properties = self._properties(spec)
        if not properties:
            return hosts.everywhere
        return hosts.facts.mask(lambda facts: _why_not(facts, properties) is None)

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        return _why_not(hosts.facts[row], self._properties(spec)) or ""

    def _properties(self, spec: RequestSpec) -> Mapping[str, str]:
        default = self.options.image_properties_default_architecture
        return {"hw_architecture": default, **spec.image.properties} if default else spec.image.properties


def _why_not(facts: Facts, properties: Mapping[str, str]) -> str | None:
    return _instance_type(facts, properties) or _machine(facts, properties)


def _instance_type(facts: Facts, properties: Mapping[str, str]) -> str | None:
    wanted = {key: _canonical(key, properties[key]) for key in _OTHER_NAMES if properties.get(key)}
    if not wanted:
        return None
    if not any(set(wanted.values()).issubset(supported) for supported in facts.supported_instances):
        known = ", ".join("/".join(supported) for supported in facts.supported_instances)
        asked = ", ".join(f"{key} {value}" for key, value in wanted.items())
        return f"{asked} wanted, {known or 'nothing'} supported"
    return _version(facts, properties) or _physical_address(facts, properties)


def _machine(facts: Facts, properties: Mapping[str, str]) -> str | None:
    for key, reported in (("hw_machine_type", facts.machine_types), ("hw_firmware_type", facts.firmware_types)):
        wanted = properties.get(key)
        if wanted and reported and wanted not in reported:
            return f"{key} {wanted} wanted, not among the {len(reported)} that the host reports"
    return None


def _canonical(key: str, value: str) -> str:
    name = value.lower()
    return _OTHER_NAMES[key].get(name, name)


def _version(facts: Facts, properties: Mapping[str, str]) -> str | None:
    predicate = properties.get("img_hv_requested_version")
    if not predicate or not facts.hypervisor_version:
        return None
    version = _digits(facts.hypervisor_version)
    for part in predicate.split(","):
        found = re.fullmatch(r"\s*(<=|>=|<|>|!=|==)\s*(\d+(?:\.\d+)*)\s*", part)
        if not found:
            return f"img_hv_requested_version {predicate!r} cannot be read: give one such as '>=6.0'"
        numbers = tuple(int(number) for number in found[2].split("."))
        width = max(len(version), len(numbers))
        padded = [(*item, *(0,) * (width - len(item))) for item in (version, numbers)]
        if not _COMPARE[found[1]](padded[0], padded[1]):
            return f"img_hv_requested_version {predicate} wanted, {'.'.join(map(str, version))} runs"
    return None


def _digits(version: int) -> tuple[int, ...]:
    """(7, 2, 0) of 7002000, as oslo_utils.versionutils.convert_version_to_str cuts it."""
    numbers: tuple[int, ...] = ()
    while version:
        version, number = divmod(version, 1000)
        numbers = (number, *numbers)
    return numbers


def _physical_address(facts: Facts, properties: Mapping[str, str]) -> str | None:
    wanted = properties.get("hw_maxphysaddr_bits")
    reported = facts.cpu_info.get("maxphysaddr")
    bits = reported.get("bits") if isinstance(reported, Mapping) else None
    if not wanted or not bits:
        return None
    enough = str(wanted).isdecimal() and int(bits) >= int(wanted)
    return None if enough else f"hw_maxphysaddr_bits {wanted} wanted, {bits} reported"
