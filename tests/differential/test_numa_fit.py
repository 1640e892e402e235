# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Where a guest's cells go, and on which CPUs, against nova.virt.hardware.numa_fit_instance_to_host.

DIFFERENCES, all on purpose:

* Nova remembers which cells did not fit by the guest's cells' numbers, but changes these numbers while it tries. So it
  takes one cell's answer for another's, and refuses hosts that would do, or hands out CPUs of another cell than the one
  it claims. It also keeps the page size that it found on a cell of the host which it then gives up. Such cases are
  compared with Nova's own search and its own look at one cell, each try on cells as they were asked for (the oracle's
  ``each``).
* Nova takes the CPUs of one core in the order of Python's hash table, ours ascending. Where these are not the same,
  the cells are compared, not the CPUs.
* Where a host tells no cores, Nova fails; ours does not fit.
* A card and its virtual functions are promised together by Nova's scheduler and refused by its compute host; ours
  refuses at once. And Nova, looking for devices that are near enough, counts cards that nobody asked for, and then
  refuses the guest although others would do: so it is asked without those.
"""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler import numa, pci
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.pci import PciRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict, InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import (
    PAGES_ANY,
    InstanceNUMACell,
    InstanceNUMATopology,
    NUMACell,
    NUMAPages,
    NUMATopology,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.pci import DeviceType, PciDevice
from ansible_collections.barestack.kvm.plugins.module_utils.model.wire import to_wire
from hypothesis import assume, given
from hypothesis import strategies as st
from nova_client import Nova, NovaFailed
from numa_sites import asked, devices, guests, hosts, requests, told

limits = st.sampled_from((None, (1.0, 1.0), (4.0, 1.0), (16.0, 1.5), (0.5, 2.0)))


@given(hosts(), guests(), limits, st.booleans())
def test_same_place(nova_numa: Nova, host: Any, guest: Any, ratios: Any, packing: bool) -> None:
    _compare(nova_numa, host, guest, ratios, packing)


@given(hosts(), asked(wild=False), limits, st.booleans())
def test_same_place_for_flavors(
    nova_numa: Nova, host: Any, pair: tuple[Flavor, Image], ratios: Any, packing: bool
) -> None:
    try:
        guest = numa.request_of(*pair)
    except InvalidRequest:
        guest = None
    assume(guest is not None)
    _compare(nova_numa, host, guest, ratios, packing)


def test_nova_keeps_a_page_size_of_a_cell_that_it_gave_up(nova_numa: Nova) -> None:
    """The first cell has large pages and too few CPUs, the second CPUs enough and only ordinary pages."""
    sizes = ((2, 1024), (4, 0))
    cells = []
    for number, (count, large) in enumerate(sizes):
        cpus = frozenset(range(8 * number, 8 * number + count))
        pages = (NUMAPages(4, 1048576), NUMAPages(2048, large))
        cells.append(NUMACell(number, cpus, cpus, 8192 - number, tuple(frozenset([cpu]) for cpu in cpus), pages))
    host = NUMATopology(tuple(cells))
    shared = InstanceNUMACell(0, frozenset(range(4)), frozenset(), 512, PAGES_ANY)
    guest = InstanceNUMATopology((shared,))
    question = {"host": told(host), "guest": told(guest), "limits": None, "packing": False, "each": False}
    assert nova_numa.put({"ask": "fit", "devices": None, "requests": [], **question})["guest"] is None
    placed = numa.fit(host, guest)
    assert placed and (placed.cells[0].id, placed.cells[0].pagesize) == (1, 4)


@given(hosts(), guests(), devices(), requests(), st.booleans())
def test_same_place_beside_devices(
    nova_numa: Nova,
    host: NUMATopology,
    guest: InstanceNUMATopology,
    there: tuple[PciDevice, ...],
    wanted: tuple[PciRequest, ...],
    packing: bool,
) -> None:
    _compare(nova_numa, host, guest, None, packing, _asked_for(there, wanted), wanted)


def _asked_for(there: tuple[PciDevice, ...], wanted: tuple[PciRequest, ...]) -> tuple[PciDevice, ...]:
    """Without cards that nobody asks for; and if somebody does, without virtual functions."""
    cards = any(("dev_type", "type-PF") in spec for request in wanted for spec in request.specs)
    unwanted = DeviceType.VF if cards else DeviceType.PF
    return tuple(device for device in there if not wanted or device.dev_type != unwanted)


def _compare(
    nova_numa: Nova,
    host: NUMATopology,
    guest: InstanceNUMATopology,
    ratios: tuple[float, float] | None,
    packing: bool,
    there: tuple[PciDevice, ...] = (),
    wanted: tuple[PciRequest, ...] = (),
) -> None:
    near = numa.Near(wanted, pci.pools_of(there))
    ours = numa.fit(host, guest, numa.Limits(*ratios) if ratios else None, near, packing)
    question = {
        "ask": "fit",
        "host": told(host),
        "guest": told(guest),
        "limits": ratios,
        "packing": packing,
        "devices": told(there),
        "requests": told(wanted),
        "each": False,
    }
    for question["each"] in (False, True):
        try:
            theirs = nova_numa.put(question)
        except NovaFailed as failure:
            assert "max()" in str(failure), failure
            assert any(not cell.siblings for cell in host.cells)
            return
        same = _places(ours, theirs["ascending"]) == _places(theirs["guest"], theirs["ascending"])
        if same:
            break
        some_size = (guest.cells[0].pagesize or 0) < 0
        assert len(guest.cells) > 1 or wanted or some_size, "nothing here that Nova could mix up"
    assert same, (to_wire(ours), theirs["guest"])
    if ours is None:
        assert numa.why_not(host, guest, numa.Limits(*ratios) if ratios else None, near)


def _places(guest: Any, ascending: bool) -> Any:
    """All that there is to compare."""
    if guest is None:
        return None
    cells = (to_wire(guest) if isinstance(guest, InstanceNUMATopology) else guest)["cells"]
    if ascending:
        return [{**cell, "cpu_pinning": [list(pair) for pair in cell["cpu_pinning"]]} for cell in cells]
    return [(cell["id"], cell["pagesize"], len(cell["cpu_pinning"]), len(cell["cpuset_reserved"])) for cell in cells]


@given(hosts(), guests())
def test_same_usage(nova_numa: Nova, host: NUMATopology, guest: InstanceNUMATopology) -> None:
    """As one guest after the other comes, until none fits, and then goes."""
    claims = []
    while len(claims) < 6:
        claimed = numa.fit(host, guest)
        if claimed is None:
            break
        _same_usage(nova_numa, host, claimed, free=False)
        assert numa.taken_cpus(host, claimed) == _pinned(numa.used(host, claimed)) - _pinned(host)
        claims.append(claimed)
        host = numa.used(host, claimed)
    for claimed in claims:
        _same_usage(nova_numa, host, claimed, free=True)
        host = numa.freed(host, claimed)


@given(hosts(), guests(), st.data())
def test_same_refusal_to_pin(nova_numa: Nova, host: NUMATopology, guest: InstanceNUMATopology, data: Any) -> None:
    """Guests claimed on another host's view: the CPUs may be taken, or none of those for guests."""
    claimed = numa.fit(data.draw(hosts()), guest)
    assume(claimed is not None and all(cell.smallest_page for cell in host.cells))
    _same_usage(nova_numa, host, claimed, free=data.draw(st.booleans()))


def _same_usage(nova_numa: Nova, host: NUMATopology, claimed: Any, free: bool) -> None:
    question = {"ask": "usage", "host": told(host), "guest": told(claimed), "free": free}
    try:
        theirs = nova_numa.put(question)
    except NovaFailed as failure:
        if "list index" in str(failure):  # a host that tells no page sizes: Nova's hosts always do
            return
        assert "CPU" in str(failure).partition(":")[0], failure
        with pytest.raises(Conflict):
            (numa.freed if free else numa.used)(host, claimed)
        return
    assert to_wire((numa.freed if free else numa.used)(host, claimed)) == theirs


def _pinned(host: NUMATopology) -> frozenset[int]:
    return frozenset().union(*(cell.pinned_cpus for cell in host.cells))
