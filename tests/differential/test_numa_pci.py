# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Aliases, and which devices a guest gets, against nova.pci.request and nova.pci.stats.

DIFFERENCES, all on purpose:

* Nova's scheduler promises a card and its virtual functions together, and its compute host then refuses: ``supports``
  is compared with what Nova's compute host does.
* Looking for devices that are near enough, Nova counts cards that nobody asked for, and then refuses though others
  would do: it is asked without them.
* Two entries of one alias without a device type: Nova fails on them, ours takes them as alternatives.
* A count of 0 or less: Nova takes 0 as asking for nothing; ours refuses it.
"""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import numa, pci
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.pci import PciRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import InstanceNUMATopology, NUMATopology
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import DeviceType, PciDevice
from hypothesis import assume, given
from hypothesis import strategies as st
from nova_client import Nova, NovaFailed
from numa_sites import devices, guests, hosts, requests, told, told_flavor


@given(hosts(), guests(), devices(), requests(), st.booleans())
def test_same_devices(
    nova_numa: Nova,
    host: NUMATopology,
    guest: InstanceNUMATopology,
    there: tuple[PciDevice, ...],
    wanted: tuple[PciRequest, ...],
    placed: bool,
) -> None:
    cells = numa.fit(host, guest) if placed else None
    cards = any(("dev_type", DeviceType.PF) in spec for request in wanted for spec in request.specs)
    there = tuple(device for device in there if cards or not cells or device.dev_type != DeviceType.PF)
    mixed = cards and any(("dev_type", DeviceType.PF) not in spec for request in wanted for spec in request.specs)
    assume(not (mixed and cells))
    question = {"host": told(host), "guest": told(cells), "devices": told(there), "requests": told(wanted)}
    theirs = nova_numa.put({"ask": "pci", **question})
    pools = pci.pools_of(there)
    ours = pci.consume(pools, wanted, host, cells.cells if cells else ())
    assert pci.supports(pools, wanted, host, cells.cells if cells else ()) == (theirs["devices"] is not None)
    if ours is None:
        assert theirs["devices"] is None
        assert pci.why_not(pools, wanted, host, cells.cells if cells else ())
        return
    assert theirs["supported"]
    left, taken = ours
    assert [device.address for device in taken] == theirs["devices"]
    assert sorted(device.address for pool in left for device in pool.devices) == theirs["left"]
    again = pci.pools_of(there, [device.address for device in taken])
    assert sorted(left, key=repr) == sorted(again, key=repr), "what is left, and what the records will say is left"


_aliases = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(("gpu", " gpu ", "nic", "")), "vendor_id": st.sampled_from(("8086", "10DE", "86"))},
        optional={
            "product_id": st.sampled_from(("0443", "ABCD", "x")),
            "device_type": st.sampled_from(("type-PCI", "type-PF", "type-VF", "type-VDPA")),
            "numa_policy": st.sampled_from(("required", "preferred", "legacy", "socket", "near")),
            "live_migratable": st.sampled_from(("true", "no", "perhaps")),
            "colour": st.just("red"),
        },
    ),
    max_size=3,
)
_asked = st.sampled_from(("gpu:1", "nic:2", "gpu:1,nic:3", " gpu :2", "gpu", "gpu:x", "gpu:1:2", "other:1", ""))
_affinity = st.sampled_from((None, None, "required", "preferred", "socket", "near"))


@given(_aliases, _asked, _affinity, _affinity)
def test_same_requests(
    nova_numa: Nova, aliases: list[dict[str, str]], asked: str, of_flavor: str | None, of_image: str | None
) -> None:
    names = [alias["name"].strip() for alias in aliases if "device_type" not in alias]
    assume(len(names) == len(set(names)))
    specs = {"pci_passthrough:alias": asked} if asked else {}
    specs.update({"hw:pci_numa_affinity_policy": of_flavor} if of_flavor else {})
    properties = {"hw_pci_numa_affinity_policy": of_image} if of_image else {}
    flavor, image = (
        Flavor("1", "flavor", 1, 512, 1, extra_specs=specs),
        Image("1", "i", "", "", "raw", properties=properties),
    )
    question: dict[str, Any] = {"ask": "pci_request", "aliases": aliases, **told_flavor(flavor, image)}
    try:
        theirs = nova_numa.put(question)
    except NovaFailed:
        with pytest.raises(InvalidRequest):
            pci.request_of(flavor, pci.aliases_of(aliases), image)
        return
    assume(asked or not aliases)  # Nova looks at the aliases only where a flavor asks for one
    ours = pci.request_of(flavor, pci.aliases_of(aliases), image)
    lowered = [
        {**item, "specs": [sorted([k, v if k == "dev_type" else v.lower()] for k, v in spec) for spec in item["specs"]]}
        for item in theirs
    ]
    assert told(ours) == lowered
