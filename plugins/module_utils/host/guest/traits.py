# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What a host can do, in the names of os_traits. Pure.

Mirrors the traits that nova.virt.libvirt.driver gives its resource provider; of what libvirt offers only what our
guests can be given, of CPU features those that a guest sees.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Dict, FrozenSet, List, Sequence, Set, Tuple

_SAME_NAME = "3dnow abm avx avx2 avx512bw avx512cd avx512dq avx512er avx512f avx512pf avx512vl avx512vnni avx512vbmi \
avx512ifma avx512vbmi2 avx512bitalg f16c fma4 mmx mpx sse sse2 sse3 sse4a ssse3 tbm xop svm vmx"
_OTHER_NAMES: Dict[str, Tuple[str, ...]] = {
    "aes": ("AESNI",),
    "amx-bf16": ("AMXBF16",),
    "amx-int8": ("AMXINT8",),
    "amx-tile": ("AMXTILE",),
    "avx512-vpopcntdq": ("AVX512VPOPCNTDQ",),
    "bmi1": ("BMI",),
    "bmi2": ("BMI2",),
    "fma": ("FMA3",),
    "gfni": ("AVX512GFNI",),
    "pclmuldq": ("CLMUL",),
    "sha-ni": ("SHA",),
    "pni": ("SSE3",),
    "sse4.1": ("SSE41",),
    "sse4.2": ("SSE42",),
    "svm": ("SVM", "AMD_SVM"),
    "vaes": ("AVX512VAES",),
    "vmx": ("VMX", "INTEL_VMX"),
    "vpclmulqdq": ("AVX512VPCLMULQDQ",),
}
_ALWAYS = ("COMPUTE_SOCKET_PCI_NUMA_AFFINITY",)


def guest_cpu(domain_capabilities: str, mode: str, model: str = "") -> str:
    """The CPU that guests get, as the XML that libvirt's baseline takes; empty where libvirt does not tell it.

    ``mode`` and ``model`` as the domain module's ``cpu_mode`` and ``cpu_model``. All of the host's CPU, or all that
    QEMU emulates, is what libvirt calls the host-model here; guests without a mode get QEMU's own model.
    """
    cpu = ET.Element("cpu", {"mode": "custom", "match": "exact"})
    name = {"custom": model, "none": "qemu64"}.get(mode)
    if name:
        ET.SubElement(cpu, "model", {"fallback": "forbid"}).text = name
        return ET.tostring(cpu, encoding="unicode")
    found = ET.fromstring(domain_capabilities).find("./cpu/mode[@name='host-model']")  # noqa: S314 - libvirt's own
    if found is None or found.find("model") is None:
        return ""
    cpu.extend(list(found))
    return ET.tostring(cpu, encoding="unicode")


def features(cpu: str) -> FrozenSet[str]:
    """The names of the features in this CPU's XML that a guest of it has; none of an empty text."""
    if not cpu:
        return frozenset()
    found = ET.fromstring(cpu).findall("feature")  # noqa: S314 - libvirt's own answer
    return frozenset(one.get("name", "") for one in found if one.get("policy") not in ("disable", "forbid"))


def traits(
    domain_capabilities: str, cpu_features: FrozenSet[str], arch: str, threads: bool, offered: Dict[str, Sequence[str]]
) -> List[str]:
    """The host's traits, by name. ``threads``: whether its cores have several CPUs.

    ``offered``: what our guests can have at most, by ``disk_bus``, ``video``, ``vif`` and ``disk_format``.
    """
    root = ET.fromstring(domain_capabilities)  # noqa: S314 - libvirt's own answer
    found: Set[str] = {*_ALWAYS, f"HW_ARCH_{arch.upper()}", f"COMPUTE_ARCH_{arch.upper()}"}
    if threads:
        found.add("HW_CPU_HYPERTHREADING")
    if arch == "x86_64":
        found.update(_cpu_trait(name) for feature in cpu_features for name in _names(feature))
    if "yes" in _values(root, "./os/loader/enum[@name='secure']"):
        found.add("COMPUTE_SECURITY_UEFI_SECURE_BOOT")
    buses = _values(root, "./devices/disk/enum[@name='bus']")
    models = _values(root, "./devices/video/enum[@name='modelType']")
    found.update(f"COMPUTE_STORAGE_BUS_{_upper(bus)}" for bus in offered["disk_bus"] if bus in buses)
    found.update(f"COMPUTE_GRAPHICS_MODEL_{_upper(model)}" for model in offered["video"] if model in models)
    found.update(f"COMPUTE_NET_VIF_MODEL_{_upper(model)}" for model in offered["vif"])
    found.update(f"COMPUTE_IMAGE_TYPE_{_upper(name)}" for name in offered["disk_format"])
    return sorted(found)


def _names(feature: str) -> Tuple[str, ...]:
    if feature in _OTHER_NAMES:
        return _OTHER_NAMES[feature]
    return (feature.upper(),) if feature in _SAME_NAME.split() else ()


def _cpu_trait(name: str) -> str:
    return f"HW_CPU_X86_{name}"


def _upper(name: str) -> str:
    return name.replace("-", "_").upper()


def _values(root: ET.Element, path: str) -> FrozenSet[str]:
    return frozenset(value.text or "" for value in root.findall(f"{path}/value"))
