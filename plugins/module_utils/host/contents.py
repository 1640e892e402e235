# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What of ours there is on this host, in one look: Nova's periodic tasks and Neutron's resync, reading only.

What is ours is known by where it is (our directories), by our mark (domains), or by its name (taps, bridges, rules).
Whose it is, and whether it belongs there, only the records can say.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
import xml.etree.ElementTree as ET
from typing import Collection, Dict, Iterator, List, Set, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host import (
    dnsmasq,
    firewall,
    image_format,
    netlink,
    nft,
    system,
)
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import driver
from ansible_collections.barestack.kvm.plugins.module_utils.host.guest.config import NOVA_NAMESPACE
from ansible_collections.barestack.kvm.plugins.module_utils.host.netlink import Netlink
from ansible_collections.barestack.kvm.plugins.module_utils.host.network import MASQUERADE
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.contents import (
    Contents,
    FoundDirectory,
    FoundDomain,
    FoundLease,
    FoundLink,
    FoundMark,
    FoundPart,
    FoundRules,
    FoundServer,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest

_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_SHORT = "[0-9a-f]{8}-[0-9a-f]{2}"
_DIRECTORY = re.compile(f"({_UUID})(?:_del)?")
_VOLUME = re.compile(f"volume-({_UUID})")
_CONSOLE = re.compile(rf"({_UUID})\.console\.log.*")
_TAP = re.compile(f"tap{_SHORT}")
_BRIDGE = re.compile(f"brq{_SHORT}")
_NAMESPACE = "qdhcp-"
_PART = re.compile(r".*\.part|\.directio\..*")
_SHARED = {
    *("nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs", "gfs2", "ocfs2"),
    *("lustre", "beegfs", "gpfs", "afs", "9p", "virtiofs", "fuse.juicefs"),
}
"""File systems that several hosts may have mounted at once."""
_PROBE_AGE = 60.0
"""Seconds: the probe for direct I/O lives for an instant and is not locked."""


def look(paths: Paths, hypervisor: driver.Hypervisor, shared: bool = False) -> Contents:
    """Everything; ``shared`` goes into it as it is.

    HostError where something that is there cannot be read: then nothing can be concluded.
    """
    with _quiet(paths):
        servers = tuple(_servers(paths))
        with Netlink() as socket:
            taps, bridges = _links(socket)
        loaded = nft.load()
    return Contents(
        machine=_machine(),
        shared=shared,
        shared_storage=_is_shared(paths.instances_path),
        domains=tuple(_domain(found) for found in hypervisor.survey()),
        directories=tuple(_directories(paths)),
        volumes=tuple(_matching(_VOLUME, _listed(paths.volumes_directory))),
        consoles=tuple(dict.fromkeys(_matching(_CONSOLE, _listed(paths.log_path)))),
        parts=tuple(_parts(paths)),
        networks=tuple(_listed(f"{paths.state_path}/networks")),
        marks=tuple(_marks(paths)),
        servers=servers,
        taps=taps,
        bridges=bridges,
        rules=tuple(FoundRules(tap, complete) for tap, complete in sorted(firewall.guarded(loaded).items())),
        members=_members(loaded),
        masquerades=_masquerades(loaded),
    )


def _machine() -> str:
    """The kernel's boot with the network namespace: containers of one kernel are machines of their own."""
    namespace = os.stat(f"/proc/self/task/{threading.get_native_id()}/ns/net").st_ino
    return f"{system.read_file('/proc/sys/kernel/random/boot_id').strip()} {namespace}"


def _is_shared(path: str) -> bool:
    """Whether the file system below ``path`` is one that several hosts mount, by its type."""
    path, found = os.path.realpath(path), ("", "")
    for line in system.read_file("/proc/self/mountinfo").splitlines():
        mounted, _, described = line.partition(" - ")
        point = mounted.split()[4].encode().decode("unicode_escape")  # a blank is \\040 there
        below = path == point or path.startswith(point.rstrip("/") + "/")
        if below and len(point) >= len(found[0]):
            found = point, described.split()[0]
    return found[1] in _SHARED


@contextlib.contextmanager
def _quiet(paths: Paths) -> Iterator[None]:
    """While no phase changes the host's networks. Reading leaves no lock where there is none yet."""
    lock = f"{paths.state_path}/network.lock"
    with system.locked(lock) if os.path.exists(lock) else contextlib.nullcontext():
        yield


def _domain(found: driver.Found) -> FoundDomain:
    guest = found.guest
    if not found.ours:
        return FoundDomain(guest.uuid, guest.name, False)
    root = ET.fromstring(found.xml)  # noqa: S314 - libvirt's own answer
    wires = interfaces(found.xml)
    return FoundDomain(
        uuid=guest.uuid,
        name=guest.name,
        ours=True,
        power_state=guest.power_state,
        ports=_attributes(root.findall(f".//{{{NOVA_NAMESPACE}}}port"), "uuid"),
        taps=tuple(tap for tap, _ in wires if tap),
        macs=tuple(mac for _, mac in wires if mac),
        files=_attributes(root.findall("./devices/disk/source"), "file"),
    )


def interfaces(xml: str) -> List[Tuple[str, str]]:
    """(tap, MAC) of each interface of a domain; the tap is empty where libvirt would choose one at the start."""
    found = []
    for item in ET.fromstring(xml).findall("./devices/interface"):  # noqa: S314 - libvirt's own answer
        tap, mac = item.find("target"), item.find("mac")
        found.append(("" if tap is None else tap.get("dev", ""), "" if mac is None else mac.get("address", "")))
    return found


def _attributes(nodes: List[ET.Element], name: str) -> Tuple[str, ...]:
    return tuple(value for value in (node.get(name) for node in nodes) if value)


def _directories(paths: Paths) -> Iterator[FoundDirectory]:
    for name in _listed(paths.instances_path):
        if _DIRECTORY.fullmatch(name):
            directory = f"{paths.instances_path}/{name}"
            files = [file for file in _listed(directory) if not _PART.fullmatch(file)]
            baseless = [file for file in files if _is_baseless(f"{directory}/{file}")]
            yield FoundDirectory(name, tuple(files), tuple(baseless))


def _is_baseless(path: str) -> bool:
    """Whether it is a qcow2 overlay whose backing file is gone; a raw file that holds a qcow2 is the guest's matter."""
    try:
        header = image_format.read_qcow2(path)
    except (InvalidRequest, OSError):  # no qcow2, or gone since it was listed
        return False
    return bool(header.backing_file) and not os.path.lexists(str(header.backing_file))


def _parts(paths: Paths) -> Iterator[FoundPart]:
    """Temporary files wherever we make them, but for those that their writer still holds."""
    roots = [(paths.base_directory, ""), (paths.volumes_directory, "")]
    roots += [(paths.instance_directory(name), name) for name in _listed(paths.instances_path) if _is_uuid(name)]
    roots += [(paths.dhcp_directory(name), "") for name in _listed(f"{paths.state_path}/dhcp")]
    for root, owner in roots:
        for name in _listed(root):
            path = f"{root}/{name}"
            if is_abandoned(path):
                yield FoundPart(path, owner)


def is_abandoned(path: str) -> bool:
    """Whether this is a temporary file without a writer: each locks its own, and the kernel drops that with it."""
    if not _PART.fullmatch(os.path.basename(path)):
        return False
    with system.unwritten(path) as idle:
        return idle and (path.endswith(".part") or time.time() - os.stat(path).st_mtime > _PROBE_AGE)


def _marks(paths: Paths) -> Iterator[FoundMark]:
    for network_id in _listed(f"{paths.state_path}/networks"):
        directory = paths.network_directory(network_id)
        for port_id in _listed(directory):
            owner, _, mac = system.read_file(f"{directory}/{port_id}").strip().partition(" ")
            yield FoundMark(network_id, port_id, owner, mac)


def _links(socket: Netlink) -> Tuple[Tuple[FoundLink, ...], Tuple[FoundLink, ...]]:
    """(taps, bridges) by our names, whatever they are."""
    links, addresses = socket.links(), socket.addresses()
    names = {link.index: link.name for link in links.values()}
    ordered = sorted(links.values(), key=lambda link: link.name)
    taps = [FoundLink(i.name, i.up, names.get(i.master or 0, "")) for i in ordered if _TAP.fullmatch(i.name)]
    bridges = [
        FoundLink(
            i.name,
            i.up,
            addresses=tuple(sorted(addresses.get(i.index, ()))),
            members=tuple(j.name for j in ordered if j.master == i.index and not _TAP.fullmatch(j.name)),
        )
        for i in ordered
        if _BRIDGE.fullmatch(i.name)
    ]
    return tuple(taps), tuple(bridges)


def _servers(paths: Paths) -> Iterator[FoundServer]:
    listed = _listed(netlink.NAMESPACES)
    namespaces = {name[len(_NAMESPACE) :] for name in listed if name.startswith(_NAMESPACE)}
    directories = set(_listed(f"{paths.state_path}/dhcp"))
    running = dnsmasq_processes(paths)
    present = processes_in([f"{_NAMESPACE}{network_id}" for network_id in namespaces])
    for network_id in sorted(namespaces | directories | set(running)):
        mine, inside = running.get(network_id, set()), present.get(f"{_NAMESPACE}{network_id}", set())
        entries, stale, interface = _files(paths, network_id)
        yield FoundServer(
            network_id=network_id,
            files=network_id in directories,
            interface=interface,
            entries=entries,
            stale=stale,
            running=bool(mine & inside),
            namespace=network_id in namespaces,
            others=bool(inside - mine),
        )


def _files(paths: Paths, network_id: str) -> Tuple[Tuple[FoundLease, ...], Tuple[FoundLease, ...], str]:
    """(entries, leases that have none, the veth's name) of a network's dnsmasq files."""
    directory = paths.dhcp_directory(network_id)
    keys = [dnsmasq.host_key(line) for line in system.read_file(f"{directory}/host").splitlines()]
    leases, _ = dnsmasq.leases(system.read_file(f"{directory}/leases"))
    served = {address for _, address in keys}
    stale = [FoundLease(lease.hardware, lease.address) for lease in leases if lease.address not in served]
    entries = tuple(FoundLease(mac, address) for mac, address in keys)
    return entries, tuple(stale), system.read_file(f"{directory}/interface").strip()


def dnsmasq_processes(paths: Paths) -> Dict[str, Set[int]]:
    """network id -> the dnsmasq processes that were started with our files of it."""
    option = re.compile(f"--pid-file={re.escape(paths.state_path)}/dhcp/([^/]+)/pid")
    found: Dict[str, Set[int]] = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = system.read_file(f"/proc/{pid}/cmdline").split("\0")
        except (OSError, UnicodeDecodeError):  # it ended while it was read, or is none of ours
            continue
        for match in filter(None, map(option.fullmatch, words)):
            found.setdefault(match[1], set()).add(int(pid))
    return found


def processes_in(namespaces: Collection[str]) -> Dict[str, Set[int]]:
    """named network namespace -> the processes in it."""
    found: Dict[str, Set[int]] = {name: set() for name in namespaces}
    names = {_identity(f"{netlink.NAMESPACES}/{name}"): name for name in namespaces if netlink.namespace_exists(name)}
    for pid in filter(str.isdigit, os.listdir("/proc")) if names else ():
        with contextlib.suppress(OSError):  # it ended
            name = names.get(_identity(f"/proc/{pid}/ns/net"))
            if name:
                found[name].add(int(pid))
    return found


def _identity(path: str) -> Tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _members(loaded: nft.Ruleset) -> Tuple[str, ...]:
    groups = (items for name, items in loaded.sets.items() if name.startswith("sg"))
    return tuple(sorted({owner for items in groups for owner in items.values() if owner}))


def _masquerades(loaded: nft.Ruleset) -> Tuple[str, ...]:
    chain = loaded.chains.get(MASQUERADE)
    return tuple(sorted({rule.comment for rule in chain.rules if rule.comment})) if chain else ()


def _matching(pattern: re.Pattern[str], names: Collection[str]) -> Iterator[str]:
    return (match[1] for match in map(pattern.fullmatch, names) if match)


def _is_uuid(name: str) -> bool:
    return re.fullmatch(_UUID, name) is not None


def _listed(directory: str) -> List[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
