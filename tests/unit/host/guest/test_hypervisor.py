# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The facts, from capabilities as a host with two NUMA cells, hyper-threads and KVM gives them."""

from __future__ import annotations

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest.hypervisor import (
    facts,
    resolve_virt_type,
    with_memory,
)

CAPABILITIES = """
<capabilities>
  <host>
    <cpu>
      <arch>x86_64</arch><model>EPYC</model><vendor>AMD</vendor>
      <topology sockets='1' dies='1' cores='2' threads='2'/>
      <feature name='svm'/><feature name='aes'/>
    </cpu>
    <topology><cells num='2'>
      <cell id='0'><memory unit='KiB'>4194304</memory>
        <pages unit='KiB' size='4'>1048000</pages><pages unit='KiB' size='2048'>1</pages><cpus num='2'>
        <cpu id='2' socket_id='0' siblings='0,2'/><cpu id='0' socket_id='0' siblings='0,2'/></cpus></cell>
      <cell id='1'><memory unit='KiB'>2098000</memory><cpus num='2'>
        <cpu id='1' socket_id='0' siblings='1,3'/><cpu id='3' socket_id='1' siblings='1,3'/></cpus></cell>
    </cells></topology>
  </host>
  <guest><os_type>hvm</os_type>
    <arch name='x86_64'>
      <machine canonical='pc-i440fx-7.2' maxCpus='255'>pc</machine><machine maxCpus='255'>pc-i440fx-7.2</machine>
      <domain type='qemu'/><domain type='kvm'><machine maxCpus='288'>q35</machine></domain>
    </arch>
  </guest>
</capabilities>
"""
WITH_EFI = "<domainCapabilities><os><enum name='firmware'><value>efi</value></enum></os></domainCapabilities>"
NO_EFI = "<domainCapabilities><os><enum name='firmware'/></os></domainCapabilities>"


def test_all_facts() -> None:
    assert facts(CAPABILITIES, WITH_EFI, "kvm") == {
        "numa_cells": [
            {
                "id": 0,
                "cpus": [0, 2],
                "memory_mb": 4096,
                "siblings": [[0, 2]],
                "socket": 0,
                "pages": [{"size_kb": 4, "total": 1048000}, {"size_kb": 2048, "total": 1}],
            },
            {"id": 1, "cpus": [1, 3], "memory_mb": 2048, "siblings": [[1, 3]], "socket": None, "pages": []},
        ],
        "cpu_info": {
            "arch": "x86_64",
            "model": "EPYC",
            "vendor": "AMD",
            "features": ["aes", "svm"],
            "topology": {"sockets": 1, "cores": 2, "threads": 2},
        },
        "supported_instances": [["x86_64", "qemu", "hvm"], ["x86_64", "kvm", "hvm"]],
        "machine_types": {"x86_64": ["pc", "pc-i440fx-7.2", "q35"]},
        "firmware": ["bios", "efi"],
    }


def test_the_only_cell_has_the_memory_that_the_kernel_has() -> None:
    cell = facts(CAPABILITIES, NO_EFI, "kvm")["numa_cells"][0]
    grown = with_memory(cell, 5000)
    assert grown["memory_mb"] == 5000
    assert grown["pages"] == [{"size_kb": 4, "total": (5000 - 2) * 256}, {"size_kb": 2048, "total": 1}]
    assert with_memory({**cell, "pages": []}, 1)["pages"] == []


def test_kvm_that_guests_would_not_use_is_not_counted() -> None:
    assert facts(CAPABILITIES, NO_EFI, "qemu")["supported_instances"] == [["x86_64", "qemu", "hvm"]]
    assert facts(CAPABILITIES, NO_EFI, "qemu")["firmware"] == ["bios"]


def test_a_host_that_says_little() -> None:
    little = facts("<capabilities><host/></capabilities>", NO_EFI, "qemu")
    assert little["numa_cells"] == []
    assert little["cpu_info"]["model"] == ""
    assert little["supported_instances"] == []


@pytest.mark.parametrize(
    ("wanted", "usable", "resolved"),
    [("auto", True, "kvm"), ("auto", False, "qemu"), ("kvm", False, "kvm"), ("qemu", True, "qemu")],
)
def test_virt_type(wanted: str, usable: bool, resolved: str) -> None:
    assert resolve_virt_type(wanted, usable) == resolved
