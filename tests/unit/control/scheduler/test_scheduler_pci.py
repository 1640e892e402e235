# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""PCI devices: aliases and requests, pools, who gets which device and why not.

That the choice is Nova's is shown in tests/differential/test_numa_pci.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import pci
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.pci import PciRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import InstanceNUMACell, NUMACell, NUMATopology
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import PciDevice

GPU = {"name": "gpu", "vendor_id": "10DE", "product_id": "20b5"}
CARD = PciDevice("0000:81:00.0", "8086", "1572", "type-PF", 0)
FUNCTIONS = tuple(PciDevice(f"0000:81:02.{n}", "8086", "154c", "type-VF", 0, CARD.address) for n in range(3))
NO_CPUS = frozenset[int]()


def flavor(text: str, **specs: str) -> Flavor:
    return Flavor("1", "m1.gpu", 1, 512, 1, extra_specs={"pci_passthrough:alias": text, **specs})


def found(*nodes: int | None) -> tuple[PciDevice, ...]:
    return tuple(PciDevice(f"0000:{0x41 + n:02x}:00.0", "10de", "20b5", numa_node=node) for n, node in enumerate(nodes))


def ask(count: int, policy: str = "legacy", **spec: str) -> tuple[PciRequest, ...]:
    spec = spec or {"vendor_id": "10de", "product_id": "20b5"}
    return (PciRequest("gpu", count, (tuple(spec.items()),), policy),)


def addresses(answer: Any) -> list[str] | None:
    return [device.address for device in answer[1]] if answer else None


def test_a_flavor_asks_by_alias() -> None:
    nic = {
        "name": "nic",
        "vendor_id": "8086",
        "product_id": "154c",
        "device_type": "type-VF",
        "numa_policy": "required",
    }
    aliases = pci.aliases_of([GPU, {**GPU, "product_id": "20b7"}, nic])
    gpus, nics = pci.request_of(flavor("gpu:2, nic:1"), aliases)
    assert (gpus.count, gpus.numa_policy) == (2, "legacy")
    assert gpus.specs == (
        (("product_id", "20b5"), ("vendor_id", "10de")),
        (("product_id", "20b7"), ("vendor_id", "10de")),
    )
    assert (nics.alias_name, nics.numa_policy, dict(nics.specs[0])["dev_type"]) == ("nic", "required", "type-VF")
    image = Image("1", "i", "", "", "raw", properties={"hw_pci_numa_affinity_policy": "preferred"})
    assert pci.request_of(flavor("nic:1"), aliases, image)[0].numa_policy == "preferred"
    assert pci.request_of(Flavor("1", "m1", 1, 512, 1), aliases, image) == ()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"vendor_id": "10de"}, "name must be given"),
        ({**GPU, "vendor_id": "nvidia"}, "pci_alias gpu: vendor_id=nvidia must be four hexadecimal digits"),
        ({"name": "gpu", "vendor_id": "10de"}, "pci_alias gpu: product_id=None must be four hexadecimal digits"),
        (
            {**GPU, "numa_policy": "near"},
            "pci_alias gpu: numa_policy=near is not one of required, legacy, preferred, socket",
        ),
        ({**GPU, "device_type": "VF"}, "pci_alias gpu: device_type=VF is not one of type-PCI, type-PF, type-VF"),
        ({**GPU, "live_migratable": "maybe"}, "pci_alias gpu: live_migratable=maybe must be true or false"),
        ({**GPU, "colour": "red"}, "pci_alias gpu: there is no key colour; there are name, vendor_id"),
    ],
)
def test_wrong_aliases(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        pci.aliases_of([entry])
    assert message in str(refused.value)


def test_entries_of_one_alias_agree() -> None:
    with pytest.raises(InvalidRequest, match="pci_alias gpu: numa_policy is legacy and required"):
        pci.aliases_of([GPU, {**GPU, "numa_policy": "required"}])
    with pytest.raises(InvalidRequest, match="pci_alias gpu: device_type is not given and type-PF"):
        pci.aliases_of([GPU, {**GPU, "device_type": "type-PF"}])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu", "flavor m1.gpu: pci_passthrough:alias=gpu: 'gpu' must be an alias and a number, as gpu:1"),
        ("gpu:0", "'gpu:0' must be an alias and a number"),
        ("gpu:1,fpga:1", "there is no alias fpga in pci_alias: there are gpu"),
    ],
)
def test_wrong_requests(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        pci.request_of(flavor(text), pci.aliases_of([GPU]))
    assert message in str(refused.value)


def test_devices_are_given_once() -> None:
    pools = pci.pools_of(found(0, 1))
    assert [pool.count for pool in pools] == [1, 1]
    first = pci.consume(pools, ask(1))
    assert first and addresses(first) == ["0000:41:00.0"]
    second = pci.consume(first[0], ask(1))
    assert second and addresses(second) == ["0000:42:00.0"]
    assert pci.consume(second[0], ask(1)) is None
    assert pci.pools_of(found(0, 1), ["0000:41:00.0"]) == first[0], "as the records will have it"


def test_a_card_or_its_functions() -> None:
    pools = pci.pools_of((CARD, *FUNCTIONS))
    assert sorted(pool.count for pool in pools) == [1, 3]
    functions, card = ask(2, product_id="154c"), ask(1, product_id="1572", dev_type="type-PF")
    with_functions = pci.consume(pools, functions)
    assert with_functions and addresses(with_functions) == ["0000:81:02.2", "0000:81:02.1"]
    assert not pci.supports(with_functions[0], card)
    with_card = pci.consume(pools, card)
    assert with_card and with_card[0] == ()
    assert not pci.supports(pools, (*card, *functions)), "Nova's scheduler says yes to this, its compute host no"
    assert pci.pools_of((CARD, *FUNCTIONS), [CARD.address]) == ()
    assert {
        device.dev_type for pool in pci.pools_of((CARD, *FUNCTIONS), ["0000:81:02.0"]) for device in pool.devices
    } == {"type-VF"}


def test_cards_are_only_for_who_asks_for_one() -> None:
    assert not pci.supports(pci.pools_of((CARD,)), ask(1, product_id="1572"))
    managed = PciDevice("0000:82:00.1", "15b3", "101e", "type-VF", tags=(("remote_managed", "true"),))
    assert not pci.supports(pci.pools_of((managed,)), ask(1, vendor_id="15b3"))


@pytest.mark.parametrize(
    ("policy", "nodes", "expected"),
    [
        ("required", (1, None, 2), None),
        ("required", (1, None, 0), ["0000:43:00.0"]),
        ("legacy", (1, None, 2), ["0000:42:00.0"]),
        ("legacy", (1, None, 0), ["0000:43:00.0"]),
        ("preferred", (1, 2), ["0000:41:00.0"]),
        ("socket", (2, 1), ["0000:42:00.0"]),
        ("socket", (2, None), None),
    ],
)
def test_how_near(policy: str, nodes: tuple[int | None, ...], expected: list[str] | None) -> None:
    host = NUMATopology(tuple(NUMACell(n, NO_CPUS, NO_CPUS, 1, socket=n // 2) for n in range(4)))
    cells = (InstanceNUMACell(0, NO_CPUS, NO_CPUS, 1),)
    assert addresses(pci.consume(pci.pools_of(found(*nodes)), ask(1, policy), host, cells)) == expected


def test_the_nearest_come_first_where_they_are_not_enough() -> None:
    host = NUMATopology((NUMACell(0, NO_CPUS, NO_CPUS, 1), NUMACell(1, NO_CPUS, NO_CPUS, 1)))
    cells = (InstanceNUMACell(0, NO_CPUS, NO_CPUS, 1),)
    answer = pci.consume(pci.pools_of(found(1, 1, 0)), ask(2, "preferred"), host, cells)
    assert addresses(answer) == ["0000:43:00.0", "0000:41:00.0"]


def test_why_not() -> None:
    host = NUMATopology((NUMACell(0, NO_CPUS, NO_CPUS, 1),))
    cells = (InstanceNUMACell(0, NO_CPUS, NO_CPUS, 1),)
    pools = pci.pools_of(found(1))
    assert pci.why_not(pools, ask(2)) == "2 gpu wanted, 1 free"
    assert pci.why_not(pools, (*ask(1), *ask(1))) == "1 gpu wanted, 0 free"
    near = "1 gpu wanted, 1 free, 0 of them near enough (numa_policy required)"
    assert pci.why_not(pools, ask(1, "required"), host, cells) == near
    assert pci.why_not(pools, ask(1)) == ""
