# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The driver against libvirt's own test driver, and against libvirtd with guests that have no disk."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Iterator

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import driver
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest.config import OUR_NAMESPACE
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict, HostError, NotFound, Timeout
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import PowerState

libvirt = pytest.importorskip("libvirt")

URI = "test:///default"


def xml(identity: str, name: str = "", ours: bool = True, kind: str = "test", os_: str = "", digest: str = "d1") -> str:
    mark = f'<metadata><b:domain xmlns:b="{OUR_NAMESPACE}" digest="{digest}"/></metadata>' if ours else ""
    return (
        f"<domain type='{kind}'><uuid>{identity}</uuid><name>{name or 'barestack-' + identity[:8]}</name>"
        f"<memory unit='MiB'>64</memory><vcpu>1</vcpu>{mark}"
        f"<os {os_}><type arch='x86_64' machine='pc'>hvm</type></os>"
        "<features><acpi/></features></domain>".replace(
            "arch='x86_64' machine='pc'", "" if kind == "test" else "arch='x86_64' machine='pc'"
        )
    )


@pytest.fixture
def identity() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def hypervisor() -> Iterator[driver.Hypervisor]:
    with driver.connect(URI) as connection:
        yield connection


def test_life_of_a_domain(hypervisor: driver.Hypervisor, identity: str) -> None:
    assert hypervisor.digest(identity) is None
    assert not hypervisor.is_active(identity)
    hypervisor.define(xml(identity))
    assert hypervisor.digest(identity) == "d1"
    assert hypervisor.power_state(identity) == PowerState.SHUTDOWN
    assert hypervisor.uuid_of(f"barestack-{identity[:8]}") == identity
    hypervisor.define(xml(identity, digest="d2"))
    assert hypervisor.digest(identity) == "d2"
    domain = hypervisor._domain(identity)
    domain.create()  # the test driver does not start paused
    domain.suspend()
    assert hypervisor.is_active(identity)
    assert hypervisor.power_state(identity) == PowerState.PAUSED
    hypervisor.resume(identity, 5)
    assert hypervisor.power_state(identity) == PowerState.RUNNING
    assert [guest.uuid for guest in hypervisor.list_domains()] == [identity]
    hypervisor.destroy(identity, 5)
    hypervisor.destroy(identity, 5)
    assert hypervisor.power_state(identity) == PowerState.SHUTDOWN
    hypervisor.undefine(identity)
    hypervisor.undefine(identity)
    assert hypervisor.list_domains() == []


def test_what_is_not_ours(hypervisor: driver.Hypervisor) -> None:
    """The test driver's own domain ``test`` has no mark."""
    stranger = hypervisor.uuid_of("test")
    assert stranger
    assert hypervisor.list_domains() == []
    with pytest.raises(Conflict, match=f"domain test with uuid {stranger} exists and is not ours"):
        hypervisor.digest(stranger)


def test_no_such_domain(hypervisor: driver.Hypervisor, identity: str) -> None:
    assert hypervisor.uuid_of("nobody") is None
    for call in (hypervisor.power_state, hypervisor.start_paused, hypervisor.domain_xml):
        with pytest.raises(NotFound, match=identity):
            call(identity)
    with pytest.raises(NotFound, match=identity):
        hypervisor.resume(identity, 1)


def test_resume_of_what_is_off(hypervisor: driver.Hypervisor, identity: str) -> None:
    hypervisor.define(xml(identity))
    try:
        with pytest.raises(Conflict, match="it is SHUTDOWN, not PAUSED"):
            hypervisor.resume(identity, 1)
    finally:
        hypervisor.undefine(identity)


def test_error_names_domain_and_cause(hypervisor: driver.Hypervisor, identity: str) -> None:
    with pytest.raises(HostError, match=r"cannot define domain barestack-.*: .*[Uu]nknown|cannot define domain.*type"):
        hypervisor.define(xml(identity, kind="nonsense"))


def test_no_libvirt_there() -> None:
    with pytest.raises(HostError, match=r"cannot open libvirt qemu:///session\?socket=/nowhere.*prepare_hosts"):
        driver.connect("qemu:///session?socket=/nowhere")


def test_a_wait_wakes_on_the_event_and_not_before(hypervisor: driver.Hypervisor, identity: str) -> None:
    """Somebody else's act, seen by our wait: only an event can end it early."""
    hypervisor.define(xml(identity))
    raw = libvirt.open(URI)
    try:
        hypervisor._listen()
        domain = hypervisor._domain(identity)
        other = threading.Timer(0.3, raw.lookupByUUIDString(identity).create)
        other.start()
        started = time.monotonic()
        hypervisor._wait(domain, "run", lambda: hypervisor.is_active(identity), 30)
        assert 0.25 < time.monotonic() - started < 5
        other.join()
    finally:
        hypervisor.destroy(identity, 5)
        hypervisor.undefine(identity)
        raw.close()


def test_a_wait_ends_at_its_deadline(hypervisor: driver.Hypervisor, identity: str) -> None:
    hypervisor.define(xml(identity))
    try:
        started = time.monotonic()
        with pytest.raises(Timeout, match=r"did not run within 0.2 s: it is SHUTDOWN"):
            hypervisor._wait(hypervisor._domain(identity), "run", lambda: False, 0.2)
        assert time.monotonic() - started < 2
    finally:
        hypervisor.undefine(identity)


def _events_in_child(identity: str, answer: multiprocessing.Queue[str]) -> None:
    with driver.connect("qemu:///system") as hypervisor:
        hypervisor.resume(identity, 20)
        answer.put(hypervisor.power_state(identity))


@pytest.mark.usefixtures("need_system_libvirt")
@pytest.mark.parametrize("firmware", ["", "firmware='efi'"])
def test_a_real_guest(firmware: str, identity: str) -> None:
    """Started here, resumed by a forked process (as Ansible's workers are), and gone with its NVRAM."""
    name = f"barestack-test-{identity[:8]}"
    nvram = f"{driver.NVRAM_DIRECTORY}/{name}_VARS.fd"
    fork = multiprocessing.get_context("fork")
    answer = fork.Queue()
    with driver.connect() as hypervisor:
        try:
            hypervisor.define(xml(identity, name, kind="qemu", os_=firmware), validate=True)
            hypervisor.start_paused(identity)
            hypervisor.start_paused(identity)
            assert hypervisor.power_state(identity) == PowerState.PAUSED
            assert os.path.exists(nvram) == bool(firmware)
            child = fork.Process(target=_events_in_child, args=(identity, answer))
            child.start()
            assert answer.get(timeout=30) == PowerState.RUNNING
            child.join(10)
            assert child.exitcode == 0
            assert identity in [guest.uuid for guest in hypervisor.list_domains()]
            hypervisor._domain(identity).suspend()
            with ThreadPoolExecutor(8) as pool:  # one wins, the others find it done
                list(pool.map(lambda _: hypervisor.resume(identity, 20), range(8)))
            assert hypervisor.power_state(identity) == PowerState.RUNNING
        finally:
            hypervisor.destroy(identity, 30)
            hypervisor.undefine(identity)
        assert hypervisor.uuid_of(name) is None
        assert not os.path.exists(nvram)


def test_direct_io(tmp_path: pathlib.Path) -> None:
    """A file system that takes O_DIRECT, one that cannot, and a path that is not there yet; nothing is left."""
    assert not driver.takes_direct_io("/proc")
    try:
        os.close(os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
        takes = True
    except OSError:
        takes = False
    (tmp_path / "file").unlink(missing_ok=True)
    assert driver.takes_direct_io(f"{tmp_path}/not/there/yet") == takes
    assert os.listdir(tmp_path) == []
