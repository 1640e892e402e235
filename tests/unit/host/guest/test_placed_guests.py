# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The domain phase with servers that claimed NUMA cells, on libvirt's test driver: two cells of eight CPUs each."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import cells, driver
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest.hypervisor import facts
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import InstanceNUMACell, InstanceNUMATopology
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import from_wire, to_wire
from ansible_collections.barestack.kvm.plugins.module_utils.phase import execute
from ansible_collections.barestack.kvm.plugins.modules.domain import Domain

TEST = "test:///default"
SETS = {"cpu_shared_set": "0-1,8-9", "cpu_dedicated_set": "2-7,10-15"}
NOBODY = frozenset[int]()
CLAIMED = InstanceNUMATopology(
    (InstanceNUMACell(1, frozenset([0]), frozenset([1]), 64, None, "mixed", None, ((1, 10),), frozenset([11])),),
    "isolate",
)


def planned(tmp_path: Path, instance: Instance, **options: Any) -> tuple[Instance, ET.Element]:
    """The server as the phase returns it in check mode, and the domain that it would define."""
    paths = {name: str(tmp_path) for name in ("instances_path", "log_path")}
    given = {"instances": to_wire([instance]), "libvirt_uri": TEST, "virt_type": "qemu", **paths, **options}
    validated = ArgumentSpecValidator(Domain.argument_spec).validate(given)
    assert not validated.error_messages, validated.error_messages
    result = execute(Domain, validated.validated_parameters, True)
    texts = [change["after"] for change in result["diff"] if "<domain" in change["after"]]
    return from_wire(Instance, result["instances"][0]), ET.fromstring(texts[0] if texts else "<none/>")


def test_what_the_host_tells() -> None:
    with driver.connect(TEST) as hypervisor:
        found = facts(hypervisor.capabilities(), "<domainCapabilities/>", "qemu")["numa_cells"]
    topology = cells.numa_topology(found, SETS)
    assert topology
    assert [(cell.id, cell.socket, cell.memory, cell.smallest_page) for cell in topology.cells] == [
        (0, 0, 2048, 4),
        (1, 1, 4096, 8),
    ]
    assert [sorted(cell.cpuset) for cell in topology.cells] == [[0, 1], [8, 9]]
    assert [sorted(cell.pcpuset) for cell in topology.cells] == [[*range(2, 8)], [*range(10, 16)]]


def test_a_claim_becomes_pins(tmp_path: Path, tiny: Instance) -> None:
    instance, domain = planned(tmp_path, tiny.with_(numa_topology=CLAIMED), **SETS)
    assert instance.fault is None
    assert [pin.attrib for pin in domain.findall("./cputune/*")] == [
        {"cpuset": "11"},
        {"vcpu": "0", "cpuset": "8-9"},
        {"vcpu": "1", "cpuset": "10"},
    ]
    assert [node.get("nodeset") for node in domain.findall("./numatune/*")] == ["1", "1"]
    assert [cell.get("cpus") for cell in domain.findall("./cpu/numa/cell")] == ["0-1"]
    assert domain.find("./vcpu[@cpuset]") is None


def test_others_float_over_the_shared_cpus(tmp_path: Path, tiny: Instance) -> None:
    _instance, domain = planned(tmp_path, tiny, **SETS)
    vcpu = domain.find("vcpu")
    assert vcpu is not None and vcpu.get("cpuset") == "0-1,8-9"
    _instance, domain = planned(tmp_path, tiny)
    assert domain.find("./vcpu[@cpuset]") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpu_shared_set": "x"}, "cpu_shared_set: 'x' is not a set of CPUs"),
        ({"cpu_shared_set": "0-99"}, "cpu_shared_set=0-99 has CPUs 16-99, which are not online"),
        ({"cpu_dedicated_set": "2-7"}, "claimed shared CPUs of NUMA cell 1, which has none: see cpu_shared_set"),
    ],
)
def test_wrong_sets_are_each_servers_fault(
    tmp_path: Path, tiny: Instance, options: dict[str, str], message: str
) -> None:
    instance, _domain = planned(tmp_path, tiny.with_(numa_topology=CLAIMED), **options)
    assert instance.fault and message in instance.fault.message


def test_a_libvirt_that_cannot_say_more_of_a_cpu() -> None:
    cpu = "<cpu mode='custom' match='exact'><model>EPYC</model><feature policy='require' name='avx512f'/></cpu>"
    with driver.connect(TEST) as hypervisor:
        assert hypervisor.baseline(cpu, "x86_64", "qemu") == cpu
