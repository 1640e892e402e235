# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""libvirt, and what only the kernel can say about a hypervisor. The only importer of libvirt.

Mirrors nova.virt.libvirt.host and guest. Waiting is by libvirt's lifecycle events: the callback is registered first,
then the act, then the state is looked at again after each event, until a deadline on the monotonic clock.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import threading
import time
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Callable, Iterator, List, Optional, Tuple, Type

from ansible_collections.barestack.kvm.plugins.module_utils.host.guest.config import OUR_NAMESPACE, digest_of
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict, HostError, NotFound, Timeout
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import PowerState

try:
    import libvirt
except ImportError:  # connect() says so, in words
    libvirt = None

NVRAM_DIRECTORY = "/var/lib/libvirt/qemu/nvram"
"""Where qemu:///system keeps the UEFI variables of a guest, as ``<name>_VARS.fd``."""

_UNDEFINE_FLAGS = ("MANAGED_SAVE", "SNAPSHOTS_METADATA", "CHECKPOINTS_METADATA", "NVRAM", "TPM")
"""The oldest first: a driver that does not know one does not know those after it."""

_loop_lock = threading.Lock()
_loop_pid: Optional[int] = None


@dataclass(frozen=True)
class Guest:
    """A domain of ours as it is now; ``power_state`` is one of PowerState."""

    uuid: str
    name: str
    power_state: str


@dataclass(frozen=True)
class Found:
    """A domain with libvirt's own XML; ``ours`` where it carries our metadata."""

    guest: Guest
    ours: bool
    xml: str


def connect(uri: str = "qemu:///system") -> Hypervisor:
    """Open libvirt; HostError where it is not there. Close it, or use it as a context manager.

    libvirt's event loop is started first, in a daemon thread of this process (an Ansible worker is a fork of one that
    never had it), because a connection delivers events only to a loop that was there when it was opened.
    """
    if libvirt is None:
        raise HostError("Python's libvirt bindings are not installed here: run playbooks/prepare_hosts.yml")
    _start_event_loop()
    return Hypervisor(uri, _open(uri))


def kvm_usable() -> bool:
    """Whether this CPU can virtualise and /dev/kvm opens. The device alone proves nothing: it may be a dead node."""
    with open("/proc/cpuinfo") as stream:
        cpuinfo = stream.read()
    if os.uname().machine in ("x86_64", "i686") and not re.search(r"^flags\s*:.*\b(vmx|svm)\b", cpuinfo, re.M):
        return False
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def takes_direct_io(directory: str) -> bool:
    """Whether files below ``directory`` (or its nearest existing parent) can be written with O_DIRECT.

    Tries it, as nova.privsep.utils.supports_direct_io does, but on a file that never has a name. An error that is not
    about O_DIRECT (a full disk, no permission) leaves the usual answer, true: whoever writes the disks will meet it.
    """
    while not os.path.isdir(directory):
        directory = os.path.dirname(directory) or "/"
    flags = os.O_WRONLY | os.O_TMPFILE | os.O_DIRECT | os.O_CLOEXEC
    try:
        descriptor = os.open(directory, flags, 0o600)
        try:
            with mmap.mmap(-1, mmap.PAGESIZE) as page:  # memory of a mapping is aligned as O_DIRECT wants it
                os.write(descriptor, page)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EISDIR)
    return True


class Hypervisor:
    """One connection. Safe to share between threads. A libvirt error becomes HostError naming domain and cause."""

    def __init__(self, uri: str, connection: Any) -> None:
        self._uri = uri
        self._connection = connection
        self._callback: Optional[int] = None
        self._event = threading.Condition()
        self._events: Counter[str] = Counter()

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; domains run on."""
        with contextlib.suppress(libvirt.libvirtError):
            if self._callback is not None:
                self._connection.domainEventDeregisterAny(self._callback)
            self._connection.close()

    def define(self, xml: str, validate: bool = False) -> None:
        """Store the persistent domain, or replace its definition. ``validate``: against libvirt's schema too."""
        name = ET.fromstring(xml).findtext("name")  # noqa: S314 - our own XML
        with _errors(f"cannot define domain {name}"):
            self._connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE if validate else 0)

    def digest(self, uuid: str) -> Optional[str]:
        """The digest that the domain was defined with; None where there is no such domain.

        Conflict where there is one that is not ours.
        """
        domain = self._find(uuid)
        if domain is None:
            return None
        mark = _mark(domain)
        if mark is None:
            raise Conflict(
                f"domain {domain.name()} with uuid {uuid} exists and is not ours (no metadata of {OUR_NAMESPACE}): "
                "it is left alone; remove it, or give the server another id"
            )
        return digest_of(mark) or ""

    def uuid_of(self, name: str) -> Optional[str]:
        """The uuid of the domain with this name; None where there is none."""
        try:
            return str(self._connection.lookupByName(name).UUIDString())
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise _host_error(f"cannot look for domain {name}", error) from error

    def is_active(self, uuid: str) -> bool:
        """Whether the domain has a QEMU, in whatever state; false where there is no such domain."""
        domain = self._find(uuid)
        return domain is not None and _is_active(domain)

    def power_state(self, uuid: str) -> str:
        """One of PowerState; NotFound where there is no such domain."""
        return _power_state(self._domain(uuid))

    def start_paused(self, uuid: str) -> None:
        """Start QEMU with its CPUs stopped; a domain that is active already is left as it is."""
        domain = self._domain(uuid)
        try:
            domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        except libvirt.libvirtError as error:
            if not (_is_invalid(error) and _power_state(domain) in (PowerState.PAUSED, PowerState.RUNNING)):
                raise _host_error(f"cannot start domain {domain.name()} ({uuid})", error) from error

    def resume(self, uuid: str, timeout: float) -> None:
        """Let a paused guest run and return once libvirt says it does; Timeout after ``timeout`` seconds."""
        self._listen()
        domain = self._domain(uuid)
        state = _power_state(domain)
        if state == PowerState.RUNNING:
            return
        if state != PowerState.PAUSED:
            raise Conflict(f"cannot resume domain {domain.name()} ({uuid}): it is {state}, not {PowerState.PAUSED}")
        try:
            domain.resume()
        except libvirt.libvirtError as error:  # somebody else may have been faster
            if not (_is_invalid(error) and _power_state(domain) == PowerState.RUNNING):
                raise _host_error(f"cannot resume domain {domain.name()} ({uuid})", error) from error
        self._wait(domain, "run", lambda: _power_state(domain) == PowerState.RUNNING, timeout)

    def destroy(self, uuid: str, timeout: float = 60.0) -> None:
        """Pull the plug, and return once the guest is gone; nothing to do where it is off or does not exist.

        Timeout after ``timeout`` seconds. On a connection of its own: libvirtd works on at most five calls of one
        client at a time, and this one waits more than a second for QEMU to end.
        """
        self._listen()
        domain = self._find(uuid)
        if domain is None or not _is_active(domain):
            return
        own = _open(self._uri)
        try:
            own.lookupByUUIDString(uuid).destroyFlags(libvirt.VIR_DOMAIN_DESTROY_DEFAULT)
        except libvirt.libvirtError as error:
            # A QEMU that cannot be killed yet (it waits for its disk) may still end: EBUSY is not the last word.
            busy = error.get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_int1() == errno.EBUSY
            if _is_active(domain) and not busy:
                raise _host_error(f"cannot destroy domain {domain.name()} ({uuid})", error) from error
        finally:
            own.close()
        self._wait(domain, "stop", lambda: not _is_active(domain), timeout)

    def undefine(self, uuid: str) -> None:
        """Remove the persistent domain with its managed save, snapshot and checkpoint metadata, NVRAM and TPM state.

        Never its disks. Nothing to do where there is no such domain.
        """
        domain = self._find(uuid)
        if domain is None:
            return
        flags = [getattr(libvirt, f"VIR_DOMAIN_UNDEFINE_{name}", 0) for name in _UNDEFINE_FLAGS]
        while True:
            try:
                domain.undefineFlags(sum(flags))
                return
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return
                if error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG or not flags:
                    raise _host_error(f"cannot undefine domain {domain.name()} ({uuid})", error) from error
                flags.pop()

    def domain_xml(self, uuid: str) -> str:
        """libvirt's own XML of the domain; NotFound where there is none."""
        domain = self._domain(uuid)
        with _errors(f"cannot read domain {uuid}"):
            return str(domain.XMLDesc(0))

    def list_domains(self) -> List[Guest]:
        """The domains that carry our metadata, running or not, by name."""
        with _errors("cannot list domains"):
            domains = self._connection.listAllDomains(0)
        guests = []
        for domain in domains:
            with contextlib.suppress(NotFound):  # gone since it was listed
                if _mark(domain) is not None:
                    guests.append(Guest(domain.UUIDString(), domain.name(), _power_state(domain)))
        return sorted(guests, key=lambda guest: guest.name)

    def survey(self) -> List[Found]:
        """Every domain, ours or not, with its XML as it is now, by name."""
        with _errors("cannot list domains"):
            domains = self._connection.listAllDomains(0)
        found = []
        for domain in domains:
            with contextlib.suppress(NotFound):  # gone since it was listed
                with _errors(f"cannot read domain {domain.name()}"):
                    xml = str(domain.XMLDesc(0))
                guest = Guest(domain.UUIDString(), domain.name(), _power_state(domain))
                found.append(Found(guest, _mark(domain) is not None, xml))
        return sorted(found, key=lambda item: item.guest.name)

    def running(self) -> int:
        """How many domains are active, ours or not."""
        with _errors("cannot count domains"):
            return int(self._connection.numOfDomains())

    def capabilities(self) -> str:
        """libvirt's capabilities XML: the host's CPU, topology, and the guests it can run."""
        with _errors("cannot read capabilities"):
            return str(self._connection.getCapabilities())

    def domain_capabilities(self, arch: str, virt_type: str, machine: Optional[str] = None) -> str:
        """libvirt's domain capabilities XML; ``machine`` None is the arch's default.

        libvirt keeps QEMU's answers in a cache, so that only the first is slow.
        """
        with _errors(f"cannot read domain capabilities of {arch} {machine or ''} {virt_type}"):
            return str(self._connection.getDomainCapabilities(None, arch, machine, virt_type, 0))

    def baseline(self, cpu: str, arch: str, virt_type: str) -> str:
        """This CPU's XML with every feature that it has by name; as it is where libvirt cannot say more of it."""
        flags = libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES
        try:
            return str(self._connection.baselineHypervisorCPU(None, arch, None, virt_type, [cpu], flags))
        except libvirt.libvirtError:  # another arch's, or a driver without it
            return cpu

    def node_devices(self) -> List[str]:
        """The XML of the host's PCI devices and network interfaces."""
        flags = libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV | libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_NET
        with _errors("cannot list the host's devices"):
            devices = self._connection.listAllDevices(flags)
        found = []
        for device in devices:
            with contextlib.suppress(libvirt.libvirtError):  # gone since it was listed
                found.append(str(device.XMLDesc(0)))
        return found

    def node(self) -> Tuple[str, int, int, int, int]:
        """(host name, hypervisor version, libvirt version, CPUs online, memory in MiB)."""
        with _errors("cannot read the node's facts"):
            cpus = int(self._connection.getInfo()[2])
            # getInfo's memory adds up the NUMA cells, which leave out memory that was plugged in later.
            memory = self._connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)["total"] // 1024
            versions = self._connection.getVersion(), self._connection.getLibVersion()
            return str(self._connection.getHostname()), versions[0], versions[1], cpus, int(memory)

    def _find(self, uuid: str) -> Optional[Any]:
        try:
            return self._connection.lookupByUUIDString(uuid)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise _host_error(f"cannot look for domain {uuid}", error) from error

    def _domain(self, uuid: str) -> Any:
        domain = self._find(uuid)
        if domain is None:
            raise NotFound(f"no domain {uuid} in {self._uri}")
        return domain

    def _listen(self) -> None:
        """Register for lifecycle events, once; a run that waits for nothing does not."""
        with self._event:
            if self._callback is None:
                with _errors("cannot register for events"):
                    self._callback = self._connection.domainEventRegisterAny(
                        None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_event, None
                    )

    def _on_event(self, _connection: Any, domain: Any, _event: int, _detail: int, _opaque: Any) -> None:
        with self._event:
            self._events[domain.UUIDString()] += 1
            self._event.notify_all()

    def _wait(self, domain: Any, verb: str, done: Callable[[], bool], timeout: float) -> None:
        """Look, and look again after each event of this domain, until ``done`` or the deadline."""
        deadline = time.monotonic() + timeout
        uuid = domain.UUIDString()
        while True:
            with self._event:
                seen = self._events[uuid]
            if done():
                return
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                state = _power_state(domain)
                raise Timeout(f"domain {domain.name()} ({uuid}) did not {verb} within {timeout:g} s: it is {state}")
            with self._event:
                if self._events[uuid] == seen:
                    self._event.wait(remaining)  # woken by any domain's event: then look again, cheap enough


def _open(uri: str) -> Any:
    try:
        return libvirt.open(uri)
    except libvirt.libvirtError as error:
        raise _host_error(f"cannot open libvirt {uri} (run playbooks/prepare_hosts.yml)", error) from error


def _start_event_loop() -> None:
    global _loop_pid
    with _loop_lock:
        if _loop_pid == os.getpid():
            return
        libvirt.registerErrorHandler(lambda _context, _error: None, None)  # it would print what we raise
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=_run_event_loop, name="libvirt-events", daemon=True).start()
        _loop_pid = os.getpid()


def _run_event_loop() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _mark(domain: Any) -> Optional[str]:
    """Our metadata element; None where the domain is not ours, NotFound where it is gone."""
    try:
        return str(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, OUR_NAMESPACE, 0))
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_METADATA:
            return None
        raise _host_error(f"cannot read the metadata of domain {domain.name()}", error) from error


def _power_state(domain: Any) -> str:
    """libvirt's state in Nova's words; NotFound where the domain is gone."""
    with _errors(f"cannot read the state of domain {domain.name()}"):
        state, _reason = domain.state(0)
    return {
        libvirt.VIR_DOMAIN_RUNNING: PowerState.RUNNING,
        libvirt.VIR_DOMAIN_BLOCKED: PowerState.RUNNING,
        libvirt.VIR_DOMAIN_PAUSED: PowerState.PAUSED,
        libvirt.VIR_DOMAIN_PMSUSPENDED: PowerState.PAUSED,
        libvirt.VIR_DOMAIN_SHUTDOWN: PowerState.SHUTDOWN,
        libvirt.VIR_DOMAIN_SHUTOFF: PowerState.SHUTDOWN,
        libvirt.VIR_DOMAIN_CRASHED: PowerState.CRASHED,
    }.get(state, PowerState.NOSTATE)


def _is_active(domain: Any) -> bool:
    """Whether QEMU is there; a transient domain vanishes with it."""
    try:
        return bool(domain.isActive())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return False
        raise _host_error(f"cannot read the state of domain {domain.name()}", error) from error


def _is_invalid(error: Any) -> bool:
    """Whether libvirt refused because the domain's state does not allow it."""
    return bool(error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID)


@contextlib.contextmanager
def _errors(action: str) -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        raise _host_error(action, error) from error


def _host_error(action: str, error: Any) -> Exception:
    text = f"{action}: {error.get_error_message() or error}"
    return NotFound(text) if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN else HostError(text)
