# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What a host can do. That the names are those of os_traits: tests/differential/test_numa_traits.py."""

from __future__ import annotations

from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import traits

CAPABILITIES = """
<domainCapabilities><os><loader><enum name='secure'><value>yes</value><value>no</value></enum></loader></os>
<cpu><mode name='host-passthrough' supported='yes'/><mode name='host-model' supported='yes'>
  <model fallback='forbid'>EPYC</model><vendor>AMD</vendor>
  <feature policy='require' name='avx512f'/><feature policy='disable' name='sha-ni'/></mode></cpu>
<devices><disk><enum name='bus'><value>virtio</value><value>fdc</value><value>scsi</value></enum></disk>
<video><enum name='modelType'><value>virtio</value><value>vmvga</value></enum></video></devices></domainCapabilities>"""
OFFERED = {
    "disk_bus": ("virtio", "scsi", "ide"),
    "video": ("virtio", "qxl"),
    "vif": ("e1000",),
    "disk_format": ("raw",),
}


def test_all_traits() -> None:
    features = frozenset(["avx2", "sse4.1", "svm", "pni", "made-up"])
    assert traits.traits(CAPABILITIES, features, "x86_64", True, OFFERED) == [
        "COMPUTE_ARCH_X86_64",
        "COMPUTE_GRAPHICS_MODEL_VIRTIO",
        "COMPUTE_IMAGE_TYPE_RAW",
        "COMPUTE_NET_VIF_MODEL_E1000",
        "COMPUTE_SECURITY_UEFI_SECURE_BOOT",
        "COMPUTE_SOCKET_PCI_NUMA_AFFINITY",
        "COMPUTE_STORAGE_BUS_SCSI",
        "COMPUTE_STORAGE_BUS_VIRTIO",
        "HW_ARCH_X86_64",
        "HW_CPU_HYPERTHREADING",
        "HW_CPU_X86_AMD_SVM",
        "HW_CPU_X86_AVX2",
        "HW_CPU_X86_SSE3",
        "HW_CPU_X86_SSE41",
        "HW_CPU_X86_SVM",
    ]


def test_another_arch_has_no_x86_features() -> None:
    found = traits.traits("<domainCapabilities/>", frozenset(["avx2"]), "aarch64", False, OFFERED)
    assert not [name for name in found if "X86" in name or "HYPERTHREADING" in name or "SECURE_BOOT" in name]


def test_the_cpu_that_guests_get() -> None:
    model = traits.guest_cpu(CAPABILITIES, "auto")
    assert ">EPYC<" in model
    assert traits.features(model) == {"avx512f"}, "what libvirt would hide does not count"
    assert ">Nehalem<" in traits.guest_cpu(CAPABILITIES, "custom", "Nehalem")
    assert ">qemu64<" in traits.guest_cpu(CAPABILITIES, "none")
    assert traits.guest_cpu("<domainCapabilities/>", "auto") == ""
    assert traits.features("") == frozenset()
