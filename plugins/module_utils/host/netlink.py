# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Links, addresses, network namespaces and link events: the only importer of pyroute2.

A socket belongs to the network namespace of the thread that opened it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import select
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Sequence, Tuple, Type, TypeVar

from ansible_collections.barestack.kvm.plugins.module_utils.host import system
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError

try:
    import pyroute2
except ImportError:  # Netlink() says so, in words
    pyroute2 = None

T = TypeVar("T")

NAMESPACES = "/run/netns"
_CLONE_NEWNET = 0x40000000
_RTMGRP_LINK = 1
_AF_BRIDGE = 7
_IFF_UP = 1
_IFA_F_NODAD = 2
_RT_SCOPE_LINK = 253


@dataclass(frozen=True)
class Link:
    """A network device. ``master`` is the index of its bridge; ``kind`` is ``bridge``, ``veth``, ``tun``, ..."""

    index: int
    name: str
    up: bool
    mtu: int
    mac: str
    master: Optional[int] = None
    kind: Optional[str] = None
    bridge: Tuple[Optional[int], ...] = ()
    """Of a bridge: forward delay (1/100 s), STP state, multicast snooping."""


class Netlink:
    """A route socket of the current network namespace. Close it, or use it in ``with``."""

    def __init__(self) -> None:
        if pyroute2 is None:
            raise HostError("python3-pyroute2 is not installed here: run playbooks/prepare_hosts.yml")
        self._socket = pyroute2.IPRoute()
        self._error: Type[Exception] = pyroute2.NetlinkError

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._socket.close()

    def links(self) -> Dict[str, Link]:
        """All links by name, in one dump."""
        return {link.name: link for link in map(_link, self._socket.get_links())}

    def addresses(self) -> Dict[int, Tuple[str, ...]]:
        """Addresses by link index, each ``10.0.0.1/24``, in one dump; IPv6 link-local ones are left out."""
        found: Dict[int, Tuple[str, ...]] = {}
        for item in self._socket.get_addr():
            if item["scope"] != _RT_SCOPE_LINK:
                address = item.get_attr("IFA_LOCAL") or item.get_attr("IFA_ADDRESS")
                found[item["index"]] = (*found.get(item["index"], ()), f"{address}/{item['prefixlen']}")
        return found

    def create_bridge(self, name: str, mac: str) -> int:
        """A bridge, down, that forwards at once, without STP and multicast snooping; returns its index."""
        with self._explained(f"bridge {name} cannot be made"):
            options = {"br_forward_delay": 0, "br_stp_state": 0, "br_mcast_snooping": 0}
            self._socket.link("add", ifname=name, kind="bridge", address=mac, **options)
        return self.links()[name].index

    def configure_bridge(self, index: int, name: str, mtu: int) -> None:
        """Set what :meth:`create_bridge` set, and bring the bridge up with this MTU."""
        with self._explained(f"bridge {name} cannot be set up with MTU {mtu}"):
            # The kernel takes a forward delay of 0 only once STP is off.
            self._socket.link("set", index=index, kind="bridge", br_stp_state=0, br_mcast_snooping=0)
            self._socket.link("set", index=index, kind="bridge", br_forward_delay=0)
            self._socket.link("set", index=index, mtu=mtu, state="up")

    def create_veth(self, name: str, master: int, mtu: int, peer: Mapping[str, Any]) -> None:
        """A veth pair in one message: this end up in a bridge, ``peer`` with pyroute2's link attributes."""
        with self._explained(f"veth {name} cannot be made"):
            end = {"mtu": mtu, "master": master, "flags": _IFF_UP, "change": _IFF_UP}
            self._socket.link("add", ifname=name, kind="veth", peer={"mtu": mtu, **peer}, **end)

    def set_link(self, index: int, name: str, **attributes: Any) -> None:
        """Set attributes of a link as pyroute2 names them: ``mtu``, ``master``, ``state``, ``address``."""
        with self._explained(f"link {name} does not take {attributes}"):
            self._socket.link("set", index=index, **attributes)

    def delete_link(self, name: str, index: int) -> None:
        """Remove a link; one that has just gone is fine."""
        with self._explained(f"link {name} cannot be removed", errno.ENODEV):
            self._socket.link("del", index=index)

    def set_addresses(self, index: int, name: str, wanted: Sequence[str]) -> None:
        """Make the link's addresses (``10.0.0.1/24``) these; IPv6 link-local ones are left alone."""
        for address in self.addresses().get(index, ()):
            if address not in wanted:
                self._delete_address(index, name, address)
        # With an address the kernel removes the others of its subnet that came after it, so look again.
        present = self.addresses().get(index, ())
        for address in wanted:
            if address not in present:
                self._add_address(index, name, address)

    def _add_address(self, index: int, name: str, address: str) -> None:
        """Add ``10.0.0.1/24``; IPv6 ones without duplicate address detection, so that they serve at once."""
        interface = ipaddress.ip_interface(address)
        flags = {"flags": _IFA_F_NODAD} if interface.version == 6 else {}
        with self._explained(f"address {address} cannot be added to {name}", errno.EEXIST):
            self._socket.addr(
                "add", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen, **flags
            )

    def _delete_address(self, index: int, name: str, address: str) -> None:
        """Remove ``10.0.0.1/24``."""
        interface = ipaddress.ip_interface(address)
        with self._explained(f"address {address} cannot be removed from {name}", errno.EADDRNOTAVAIL):
            self._socket.addr("del", index=index, address=str(interface.ip), prefixlen=interface.network.prefixlen)

    @contextlib.contextmanager
    def _explained(self, what: str, *fine: int) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            code = getattr(error, "code", 0)
            if code not in fine:
                raise HostError(f"{what}: {os.strerror(code)}") from error


class LinkWatcher:
    """One subscription to link events, opened before the first look: no change between the two is missed."""

    def __init__(self) -> None:
        self._events = Netlink()
        self._links: Dict[str, Link] = {}
        self._changed = threading.Condition()
        self._wake, self._stop = os.pipe()
        self._reader = threading.Thread(target=self._read, name="link-events", daemon=True)

    def __enter__(self) -> LinkWatcher:
        self._events._socket.bind(groups=_RTMGRP_LINK)
        self._look()
        self._reader.start()
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        os.close(self._stop)
        self._reader.join()
        os.close(self._wake)
        self._events._socket.close()

    def wait(self, accept: Callable[[Mapping[str, Link]], bool], deadline: float) -> Dict[str, Link]:
        """The links once ``accept`` likes them, or at ``deadline`` (monotonic seconds), whichever is first."""
        with self._changed:
            while not accept(self._links):
                left = deadline - time.monotonic()
                if left <= 0 or not self._reader.is_alive():
                    break
                self._changed.wait(left)
            return dict(self._links)

    def _look(self) -> None:
        with Netlink() as netlink, self._changed:
            self._links = netlink.links()

    def _read(self) -> None:
        try:
            while self._wake not in select.select([self._events._socket.fileno(), self._wake], [], [])[0]:
                self._take()
        finally:
            with self._changed:
                self._changed.notify_all()

    def _take(self) -> None:
        try:
            messages = self._events._socket.get()
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            # The kernel dropped events: only a new look tells what they were.
            self._look()
            messages = ()
        with self._changed:
            for message in messages:
                self._apply(message)
            self._changed.notify_all()

    def _apply(self, message: Any) -> None:
        # Messages of the bridge family speak of a link's place in a bridge: DELLINK there does not end the link.
        if message.get("family") == _AF_BRIDGE or message.get("event") not in ("RTM_NEWLINK", "RTM_DELLINK"):
            return
        link = _link(message)
        self._links = {name: item for name, item in self._links.items() if item.index != link.index}
        if message["event"] == "RTM_NEWLINK":
            self._links[link.name] = link


def _link(message: Any) -> Link:
    """A Link from pyroute2's message."""
    info = message.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else None
    bridge: Tuple[Optional[int], ...] = ()
    if info and kind == "bridge":
        data = info.get_attr("IFLA_INFO_DATA")
        names = ("IFLA_BR_FORWARD_DELAY", "IFLA_BR_STP_STATE", "IFLA_BR_MCAST_SNOOPING")
        bridge = tuple(data.get_attr(name) for name in names) if data else ()
    return Link(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME") or "",
        up=bool(message["flags"] & _IFF_UP),
        mtu=message.get_attr("IFLA_MTU") or 0,
        mac=message.get_attr("IFLA_ADDRESS") or "",
        master=message.get_attr("IFLA_MASTER"),
        kind=kind,
        bridge=bridge,
    )


def namespace_exists(name: str) -> bool:
    """Whether ``ip netns`` has it. A file of that name without a namespace mounted on it does not count."""
    try:
        return os.stat(f"{NAMESPACES}/{name}").st_dev != os.stat(NAMESPACES).st_dev
    except FileNotFoundError:
        return False


def is_in_namespace(pid: int, name: str) -> bool:
    """Whether a process is in the namespace that has this name now: it lives on in one that was deleted."""
    try:
        inside, named = os.stat(f"/proc/{pid}/ns/net"), os.stat(f"{NAMESPACES}/{name}")
    except FileNotFoundError:
        return False
    return (inside.st_dev, inside.st_ino) == (named.st_dev, named.st_ino)


def create_namespace(name: str) -> None:
    """``ip netns add``, over whatever a killed attempt left."""
    if os.path.exists(f"{NAMESPACES}/{name}"):
        system.run("ip", "netns", "delete", name)
    system.run("ip", "netns", "add", name)


def delete_namespace(name: str) -> None:
    """``ip netns delete``."""
    system.run("ip", "netns", "delete", name)


def in_namespace(name: str, work: Callable[[], T]) -> T:
    """``work()`` in a thread of its own that has joined the namespace; processes it starts are in there too."""

    def joined() -> T:
        descriptor = os.open(f"{NAMESPACES}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
                raise HostError(f"namespace {name} cannot be joined: {os.strerror(ctypes.get_errno())}")
        finally:
            os.close(descriptor)
        return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(joined).result()


def read_sysctl(name: str) -> Optional[str]:
    """A network sysctl of the current thread's namespace, ``net/ipv4/ip_forward``; None where there is none."""
    try:
        with open(f"/proc/sys/{name}") as stream:
            return stream.read().strip()
    except FileNotFoundError:
        return None


def write_sysctl(name: str, value: str) -> None:
    """Set one; a kernel without it (IPv6 off) has nothing to set."""
    if read_sysctl(name) is not None:
        with open(f"/proc/sys/{name}", "w") as stream:
            stream.write(value)
