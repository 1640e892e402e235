# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""libvirt's domain XML as small typed classes, one for each element. No policy: the designer decides.

Mirrors nova.virt.libvirt.config. Each class renders itself with ``element()``; ``Domain.render`` gives the whole text.
Elements come in Nova's order; attributes that are None are left out.
"""

from __future__ import annotations

import hashlib
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Dict, FrozenSet, Iterable, Optional, Protocol, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import format_cpus

NOVA_NAMESPACE = "http://openstack.org/xmlns/libvirt/nova/1.1"
"""Nova's own: tools that read Nova's domains read ours."""
OUR_NAMESPACE = "urn:barestack:kvm:1"
"""Marks a domain as ours and carries the digest of the XML that we defined it with."""

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Config(Protocol):
    """Anything that renders to one XML element."""

    def element(self) -> ET.Element:
        """The element with all below it."""


def _node(
    tag: str,
    attributes: Optional[Dict[str, Optional[object]]] = None,
    *children: ET.Element,
    text: Optional[object] = None,
) -> ET.Element:
    node = ET.Element(tag, {name: str(value) for name, value in (attributes or {}).items() if value is not None})
    node.text = None if text is None else str(text)
    node.extend(children)
    return node


def _elements(*parts: Optional[Config]) -> Iterable[ET.Element]:
    """Of those that there are."""
    return [part.element() for part in parts if part]


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"


def _printable(text: str) -> str:
    """Users name servers as they like; XML does not take every character."""
    return _NOT_XML.sub("\ufffd", text)


@dataclass(frozen=True)
class NovaPort:
    """A port as Nova's metadata lists it: ``ips`` are (address, version) pairs."""

    uuid: str
    ips: Tuple[Tuple[str, int], ...]

    def element(self) -> ET.Element:
        ips = [_node("nova:ip", {"type": "fixed", "address": a, "ipVersion": v}) for a, v in self.ips]
        return _node("nova:port", {"uuid": self.uuid}, *ips)


@dataclass(frozen=True)
class NovaInstance:
    """Nova's metadata: who the domain belongs to and what it was made from.

    ``memory``, ``swap`` and ``min_ram`` in MiB; ``disk``, ``ephemeral`` and ``min_disk`` in GiB.
    """

    name: str
    creation_time: str
    """``YYYY-MM-DD HH:MM:SS`` in UTC."""
    flavor_id: str
    flavor_name: str
    memory: int
    disk: int
    swap: int
    ephemeral: int
    vcpus: int
    extra_specs: Tuple[Tuple[str, str], ...]
    image_id: str
    disk_format: str
    min_disk: int
    min_ram: int
    properties: Tuple[Tuple[str, str], ...]
    user_id: str
    user_name: str
    project_id: str
    project_name: str
    ports: Tuple[NovaPort, ...]

    def element(self) -> ET.Element:
        return _node(
            "nova:instance",
            {"xmlns:nova": NOVA_NAMESPACE},
            _node("nova:name", text=_printable(self.name)),
            _node("nova:creationTime", text=self.creation_time),
            self._flavor(),
            self._image(),
            _node(
                "nova:owner",
                {},
                _node("nova:user", {"uuid": self.user_id}, text=_printable(self.user_name)),
                _node("nova:project", {"uuid": self.project_id}, text=_printable(self.project_name)),
            ),
            _node("nova:root", {"type": "image", "uuid": self.image_id}),
            _node("nova:ports", {}, *[port.element() for port in self.ports]),
        )

    def _flavor(self) -> ET.Element:
        sizes = ("memory", "disk", "swap", "ephemeral", "vcpus")
        specs = [_node("nova:extraSpec", {"name": k}, text=_printable(v)) for k, v in self.extra_specs]
        return _node(
            "nova:flavor",
            {"name": _printable(self.flavor_name), "id": self.flavor_id},
            *[_node(f"nova:{size}", text=getattr(self, size)) for size in sizes],
            _node("nova:extraSpecs", {}, *specs),
        )

    def _image(self) -> ET.Element:
        image = _node("nova:image", {"uuid": self.image_id}, _node("nova:diskFormat", text=self.disk_format))
        if self.min_disk:
            image.append(_node("nova:minDisk", text=self.min_disk))
        if self.min_ram:
            image.append(_node("nova:minRam", text=self.min_ram))
        properties = [_node("nova:property", {"name": k}, text=_printable(v)) for k, v in self.properties]
        image.append(_node("nova:properties", {}, *properties))
        return image


@dataclass(frozen=True)
class Sysinfo:
    """``<sysinfo type='smbios'>``: what the guest reads in its DMI tables. Pairs of (entry, value)."""

    system: Tuple[Tuple[str, str], ...]

    def element(self) -> ET.Element:
        entries = [_node("entry", {"name": name}, text=value) for name, value in self.system]
        return _node("sysinfo", {"type": "smbios"}, _node("system", {}, *entries))


@dataclass(frozen=True)
class Os:
    """``<os>``. ``secure_boot`` None: SeaBIOS; else UEFI by libvirt's own choice of firmware, with or without it."""

    arch: str
    machine: str
    secure_boot: Optional[bool] = None
    boot_devices: Tuple[str, ...] = ("hd",)
    boot_menu: bool = False

    def element(self) -> ET.Element:
        uefi = self.secure_boot is not None
        os = _node("os", {"firmware": "efi" if uefi else None})
        os.append(_node("type", {"arch": self.arch, "machine": self.machine}, text="hvm"))
        if uefi:
            feature = {"enabled": _yes_no(bool(self.secure_boot)), "name": "secure-boot"}
            os.append(_node("firmware", {}, _node("feature", dict(feature))))
        os.extend([_node("boot", {"dev": device}) for device in self.boot_devices])
        if self.boot_menu:
            os.append(_node("bootmenu", {"enable": "yes"}))
        os.append(_node("smbios", {"mode": "sysinfo"}))
        return os


@dataclass(frozen=True)
class Features:
    """``<features>`` that are only switched on, by name."""

    names: Tuple[str, ...]

    def element(self) -> ET.Element:
        return _node("features", {}, *[_node(name) for name in self.names])


@dataclass(frozen=True)
class CpuTune:
    """``<cputune>``: ``period`` and ``quota`` in microseconds; where the emulator's threads and each CPU may run."""

    shares: Optional[int] = None
    period: Optional[int] = None
    quota: Optional[int] = None
    emulatorpin: FrozenSet[int] = frozenset()
    """CPUs of the host."""
    vcpupin: Tuple[Tuple[int, FrozenSet[int]], ...] = ()
    """(CPU of the guest, CPUs of the host)."""

    def element(self) -> ET.Element:
        values = [(name, getattr(self, name)) for name in ("shares", "period", "quota")]
        tune = _node("cputune", {}, *[_node(name, text=value) for name, value in values if value is not None])
        if self.emulatorpin:
            tune.append(_node("emulatorpin", {"cpuset": format_cpus(self.emulatorpin)}))
        tune.extend([_node("vcpupin", {"vcpu": vcpu, "cpuset": format_cpus(cpus)}) for vcpu, cpus in self.vcpupin])
        return tune


@dataclass(frozen=True)
class NumaTune:
    """``<numatune>``: for each cell of the guest, in their order, the host's cell that its memory is strictly from."""

    nodes: Tuple[int, ...]

    def element(self) -> ET.Element:
        memory = _node("memory", {"mode": "strict", "nodeset": format_cpus(self.nodes)})
        cells = [
            _node("memnode", {"cellid": cell, "mode": "strict", "nodeset": node})
            for cell, node in enumerate(self.nodes)
        ]
        return _node("numatune", {}, memory, *cells)


@dataclass(frozen=True)
class MemoryBacking:
    """``<memoryBacking>``: pairs of (cell of the guest, KiB of its pages); memory that is never swapped out."""

    hugepages: Tuple[Tuple[int, int], ...] = ()
    locked: bool = False

    def element(self) -> ET.Element:
        backing = _node("memoryBacking")
        if self.hugepages:
            pages = [_node("page", {"size": size, "nodeset": cell, "unit": "KiB"}) for cell, size in self.hugepages]
            backing.append(_node("hugepages", {}, *pages))
        if self.locked:
            backing.append(_node("locked"))
        return backing


@dataclass(frozen=True)
class NumaCell:
    """A cell of the guest in ``<cpu>``; ``memory`` in MiB. ``shared``: other processes may map its memory."""

    id: int
    cpus: FrozenSet[int]
    memory: int
    shared: bool = False

    def element(self) -> ET.Element:
        attributes: Dict[str, Optional[object]] = {
            "id": self.id,
            "cpus": format_cpus(self.cpus) or None,
            "memory": self.memory * 1024,
            "unit": "KiB",
            "memAccess": "shared" if self.shared else None,
        }
        return _node("cell", attributes)


@dataclass(frozen=True)
class Timer:
    """``<timer>`` of the clock."""

    name: str
    tickpolicy: Optional[str] = None
    present: Optional[bool] = None

    def element(self) -> ET.Element:
        present = None if self.present is None else _yes_no(self.present)
        return _node("timer", {"name": self.name, "tickpolicy": self.tickpolicy, "present": present})


@dataclass(frozen=True)
class Clock:
    """``<clock>``."""

    offset: str = "utc"
    timers: Tuple[Timer, ...] = ()

    def element(self) -> ET.Element:
        return _node("clock", {"offset": self.offset}, *[timer.element() for timer in self.timers])


@dataclass(frozen=True)
class Cpu:
    """``<cpu>``. ``mode`` None leaves the model to the hypervisor; ``disabled`` are features to hide."""

    sockets: int
    mode: Optional[str] = None
    model: Optional[str] = None
    match: Optional[str] = None
    disabled: Tuple[str, ...] = ()
    cells: Tuple[NumaCell, ...] = ()

    def element(self) -> ET.Element:
        cpu = _node("cpu", {"mode": self.mode, "match": self.match})
        if self.model:
            cpu.append(_node("model", {"fallback": "forbid"}, text=self.model))
        cpu.append(_node("topology", {"sockets": self.sockets, "cores": 1, "threads": 1}))
        cpu.extend([_node("feature", {"policy": "disable", "name": name}) for name in self.disabled])
        if self.cells:
            cpu.append(_node("numa", {}, *[cell.element() for cell in self.cells]))
        return cpu


@dataclass(frozen=True)
class Disk:
    """``<disk type='file'>``. ``device``: ``disk`` or ``cdrom``; ``iotune`` pairs of (element, number)."""

    path: str
    format: str
    target: str
    bus: str
    device: str = "disk"
    cache: Optional[str] = None
    discard: Optional[str] = None
    serial: Optional[str] = None
    alias: Optional[str] = None
    readonly: bool = False
    iotune: Tuple[Tuple[str, int], ...] = ()

    def element(self) -> ET.Element:
        driver = {"name": "qemu", "type": self.format, "cache": self.cache, "discard": self.discard}
        disk = _node(
            "disk",
            {"type": "file", "device": self.device},
            _node("driver", dict(driver)),
            _node("source", {"file": self.path}),
            _node("target", {"dev": self.target, "bus": self.bus}),
        )
        if self.iotune:
            disk.append(_node("iotune", {}, *[_node(name, text=value) for name, value in self.iotune]))
        if self.serial:
            disk.append(_node("serial", text=self.serial))
        if self.readonly:
            disk.append(_node("readonly"))
        if self.alias:
            disk.append(_node("alias", {"name": self.alias}))
        return disk


@dataclass(frozen=True)
class Controller:
    """``<controller>``: ``usb`` with model ``none`` says that there is no USB at all."""

    type: str
    index: int = 0
    model: Optional[str] = None

    def element(self) -> ET.Element:
        return _node("controller", {"type": self.type, "index": self.index, "model": self.model})


@dataclass(frozen=True)
class Interface:
    """``<interface type='bridge'>``. ``inbound`` and ``outbound`` pairs of (attribute, KiB/s or KiB)."""

    mac: str
    bridge: str
    tap: str
    model: str
    mtu: int
    queues: Optional[int] = None
    inbound: Tuple[Tuple[str, int], ...] = ()
    outbound: Tuple[Tuple[str, int], ...] = ()

    def element(self) -> ET.Element:
        interface = _node(
            "interface",
            {"type": "bridge"},
            _node("mac", {"address": self.mac}),
            _node("source", {"bridge": self.bridge}),
            _node("target", {"dev": self.tap}),
            _node("model", {"type": self.model}),
        )
        if self.queues:
            interface.append(_node("driver", {"queues": self.queues}))
        limits = [("inbound", self.inbound), ("outbound", self.outbound)]
        if self.inbound or self.outbound:
            interface.append(_node("bandwidth", {}, *[_node(tag, dict(pairs)) for tag, pairs in limits if pairs]))
        interface.append(_node("mtu", {"size": self.mtu}))
        return interface


@dataclass(frozen=True)
class Serial:
    """``<serial type='pty'>`` whose output virtlogd also writes to a file, anew at each start, with its console."""

    log_file: str

    def elements(self) -> Tuple[ET.Element, ET.Element]:
        """The serial port and the console that is the same device."""
        log = _node("log", {"file": self.log_file, "append": "off"})
        target = _node("target", {"type": "serial", "port": 0})
        return (
            _node("serial", {"type": "pty"}, log, _node("target", {"port": 0})),
            _node("console", {"type": "pty"}, target),
        )


@dataclass(frozen=True)
class Channel:
    """``<channel type='unix'>`` over virtio; libvirt picks the socket's path."""

    name: str

    def element(self) -> ET.Element:
        return _node("channel", {"type": "unix"}, _node("target", {"type": "virtio", "name": self.name}))


@dataclass(frozen=True)
class Input:
    """``<input>``."""

    type: str
    bus: str

    def element(self) -> ET.Element:
        return _node("input", {"type": self.type, "bus": self.bus})


@dataclass(frozen=True)
class Graphics:
    """``<graphics>`` on a port that libvirt picks."""

    type: str
    listen: str

    def element(self) -> ET.Element:
        return _node("graphics", {"type": self.type, "autoport": "yes", "listen": self.listen})


@dataclass(frozen=True)
class Video:
    """``<video>``."""

    model: str

    def element(self) -> ET.Element:
        return _node("video", {}, _node("model", {"type": self.model}))


@dataclass(frozen=True)
class Rng:
    """``<rng model='virtio'>``; at most ``rate_bytes`` every ``rate_period`` milliseconds."""

    source: str
    rate_bytes: Optional[int] = None
    rate_period: Optional[int] = None

    def element(self) -> ET.Element:
        rng = _node("rng", {"model": "virtio"})
        if self.rate_bytes is not None:
            rng.append(_node("rate", {"period": self.rate_period, "bytes": self.rate_bytes}))
        rng.append(_node("backend", {"model": "random"}, text=self.source))
        return rng


@dataclass(frozen=True)
class Watchdog:
    """``<watchdog>``."""

    action: str
    model: str = "i6300esb"

    def element(self) -> ET.Element:
        return _node("watchdog", {"model": self.model, "action": self.action})


@dataclass(frozen=True)
class HostDevice:
    """``<hostdev>``, a PCI device of the host by its address. ``managed``: libvirt takes it off its driver there."""

    address: str
    managed: bool = True

    def element(self) -> ET.Element:
        domain, bus, slot, function = re.split("[:.]", self.address)
        parts = {"domain": domain, "bus": bus, "slot": slot, "function": function}
        address = _node("address", {name: f"0x{digits}" for name, digits in parts.items()})
        attributes = {"mode": "subsystem", "type": "pci", "managed": _yes_no(self.managed)}
        return _node("hostdev", dict(attributes), _node("source", {}, address))


@dataclass(frozen=True)
class MemBalloon:
    """``<memballoon model='virtio'>`` that reports every ``period`` seconds."""

    period: int

    def element(self) -> ET.Element:
        attributes = {"model": "virtio", "autodeflate": "on", "freePageReporting": "on"}
        return _node("memballoon", dict(attributes), _node("stats", {"period": self.period}))


@dataclass(frozen=True)
class Domain:
    """``<domain>``. ``memory`` in MiB; ``devices`` in the order the guest should find them."""

    type: str
    uuid: str
    name: str
    memory: int
    vcpus: int
    metadata: NovaInstance
    sysinfo: Sysinfo
    os: Os
    features: Features
    clock: Clock
    cpu: Cpu
    serial: Serial
    disks: Tuple[Config, ...]
    interfaces: Tuple[Config, ...]
    others: Tuple[Config, ...]
    """Every device after the serial port."""
    cputune: Optional[CpuTune] = None
    cpuset: FrozenSet[int] = frozenset()
    """The host's CPUs that the guest floats over; empty for all."""
    numatune: Optional[NumaTune] = None
    memory_backing: Optional[MemoryBacking] = None

    def _element(self) -> ET.Element:
        # No element carries a version of ours: an upgrade alone must not make every domain look changed.
        domain = _node(
            "domain",
            {"type": self.type},
            _node("uuid", text=self.uuid),
            _node("name", text=self.name),
            _node("memory", {"unit": "KiB"}, text=self.memory * 1024),
            *_elements(self.memory_backing, self.numatune),
            _node("vcpu", {"cpuset": format_cpus(self.cpuset) or None}, text=self.vcpus),
            _node("metadata", {}, self.metadata.element()),
            self.sysinfo.element(),
            self.os.element(),
            self.features.element(),
        )
        domain.extend(_elements(self.cputune))
        domain.append(self.clock.element())
        domain.append(self.cpu.element())
        devices = [device.element() for device in (*self.disks, *self.interfaces)]
        devices += [*self.serial.elements(), *(device.element() for device in self.others)]
        domain.append(_node("devices", {}, *devices))
        return domain

    @property
    def digest(self) -> str:
        """sha256 of this XML without the digest itself. libvirt fills in what we leave open, so that comparing XML
        with its own would always find a difference; comparing digests does not."""
        return hashlib.sha256(_text(self._element()).encode()).hexdigest()

    def render(self) -> str:
        """The whole XML, indented, with our mark and digest beside Nova's metadata."""
        domain = self._element()
        mark = _node("barestack:domain", {"xmlns:barestack": OUR_NAMESPACE, "digest": self.digest})
        metadata = domain.find("metadata")
        assert metadata is not None  # noqa: S101 - _element always has one
        metadata.append(mark)
        return _text(domain)


def digest_of(mark: str) -> Optional[str]:
    """The digest in our metadata element as libvirt hands it back; None where it has none."""
    return ET.fromstring(mark).get("digest")  # noqa: S314 - libvirt's own answer


def _text(root: ET.Element) -> str:
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"
