# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""How a guest should be: from the instance and its host to the domain's configuration. Pure; knows no XML.

Mirrors nova.virt.libvirt.driver's ``_get_guest_config`` and nova.virt.libvirt.designer. Flavor extra specs and image
properties keep Nova's names and meanings; those not handled here are left alone.
"""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass
from typing import Dict, FrozenSet, List, Optional, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host.guest import config, placement
from ansible_collections.barestack.kvm.plugins.module_utils.host.paths import Paths
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Disk, Instance, Port
from ansible_collections.barestack.kvm.plugins.module_utils.model.numa import NO_CPUS, NUMATopology

_PREFIXES = {"virtio": "vd", "scsi": "sd", "sata": "sd", "usb": "sd", "ide": "hd"}
_CDROM_BUSES = ("ide", "sata", "scsi", "usb")
_VIF_MODELS = ("virtio", "e1000", "e1000e", "ne2k_pci", "pcnet", "rtl8139", "vmxnet3")
_VIDEO_MODELS = ("virtio", "vga", "cirrus", "qxl", "bochs", "none")
_WATCHDOG_ACTIONS = ("disabled", "none", "pause", "poweroff", "reset")
_FIRMWARE_TYPES = ("bios", "uefi")
_DISK_LIMITS = tuple(f"{way}_{unit}_sec" for unit in ("bytes", "iops") for way in ("read", "write", "total"))
_MAX_QUEUES = 256

OFFERED: Dict[str, Tuple[str, ...]] = {"disk_bus": tuple(_PREFIXES), "video": _VIDEO_MODELS, "vif": _VIF_MODELS}
"""What guests can have, where libvirt can."""


@dataclass(frozen=True)
class HostOptions:
    """What the host decides for all its guests."""

    virt_type: str
    """``kvm`` or ``qemu``, already resolved."""
    paths: Paths
    direct_io: bool = True
    """Whether the file system of the disks takes O_DIRECT."""
    cpu_mode: str = "auto"
    """``auto``, ``none``, ``host-model``, ``host-passthrough``, ``maximum`` or ``custom``."""
    cpu_model: Optional[str] = None
    """For ``custom``: libvirt's name of the model."""
    machine_type: str = "pc"
    """Where the image names none with ``hw_machine_type``."""
    arch: str = "x86_64"
    vnc_listen: str = "127.0.0.1"
    cpu_shared_set: FrozenSet[int] = NO_CPUS
    """The CPUs that guests without CPUs of their own float over; empty where the site does not say."""
    topology: Optional[NUMATopology] = None
    """The host's cells; needed only for guests that claimed some."""


def design(instance: Instance, host: HostOptions) -> config.Domain:
    """The domain of this instance on this host.

    Raises InvalidRequest where an image property or an extra spec has a value that is not allowed.
    """
    machine = instance.image.properties.get("hw_machine_type", host.machine_type)
    locked = _flag(instance, "hw_locked_memory", "hw:locked_memory")
    placed = placement.place(instance.numa_topology, host.topology, host.cpu_shared_set, locked)
    return config.Domain(
        type=host.virt_type,
        uuid=instance.uuid,
        name=instance.domain_name,
        memory=instance.flavor.ram,
        vcpus=instance.flavor.vcpus,
        metadata=_metadata(instance),
        sysinfo=_sysinfo(instance),
        os=_os(instance, host, machine),
        features=config.Features(("acpi", "apic", "vmcoreinfo")),
        clock=_clock(instance, host),
        cpu=dataclasses.replace(_cpu(instance, host), cells=placed.cells),
        cputune=_cputune(instance, placed),
        cpuset=placed.cpuset,
        numatune=placed.numatune,
        memory_backing=placed.memory_backing,
        disks=_disks(instance, host, machine),
        interfaces=tuple(_interface(instance, port) for port in instance.ports),
        serial=config.Serial(host.paths.console_log(instance.uuid)),
        others=_others(instance, host),
    )


def _metadata(instance: Instance) -> config.NovaInstance:
    flavor, image = instance.flavor, instance.image
    ports = [
        config.NovaPort(port.id, tuple((ip.ip_address, 6 if ":" in ip.ip_address else 4) for ip in port.fixed_ips))
        for port in instance.ports
    ]
    return config.NovaInstance(
        name=instance.name,
        creation_time=_utc(instance.created_at),
        flavor_id=flavor.id,
        flavor_name=flavor.name,
        memory=flavor.ram,
        disk=flavor.disk,
        swap=flavor.swap,
        ephemeral=flavor.ephemeral,
        vcpus=flavor.vcpus,
        extra_specs=tuple(sorted((key, str(value)) for key, value in flavor.extra_specs.items())),
        image_id=image.id,
        disk_format=image.disk_format,
        min_disk=image.min_disk,
        min_ram=image.min_ram,
        properties=tuple(sorted((key, str(value)) for key, value in image.properties.items())),
        user_id=instance.user_id,
        user_name=instance.user_name,
        project_id=instance.project_id,
        project_name=instance.project_name,
        ports=tuple(ports),
    )


def _utc(created_at: str) -> str:
    """Nova's ``creationTime`` from ISO 8601; without an offset it is UTC already."""
    when = datetime.datetime.fromisoformat(created_at.replace("Z", "+00:00"))
    if when.tzinfo:
        when = when.astimezone(datetime.timezone.utc)
    return when.strftime("%Y-%m-%d %H:%M:%S")


def _sysinfo(instance: Instance) -> config.Sysinfo:
    # cloud-init's ds-identify knows an OpenStack guest by this product name: stock cloud images need it.
    return config.Sysinfo(
        (
            ("manufacturer", "OpenStack Foundation"),
            ("product", "OpenStack Nova"),
            ("serial", instance.uuid),
            ("uuid", instance.uuid),
            ("family", "Virtual Machine"),
        )
    )


def _os(instance: Instance, host: HostOptions, machine: str) -> config.Os:
    firmware = _choice(instance, "hw_firmware_type", "bios", _FIRMWARE_TYPES)
    secure_boot: Optional[bool] = None
    if firmware == "uefi":
        secure_boot = instance.image.properties.get("os_secure_boot") == "required"
    if secure_boot and "q35" not in machine:
        raise InvalidRequest(
            f"image {instance.image.name}: os_secure_boot=required needs machine type q35, not {machine}: "
            "set hw_machine_type=q35"
        )
    return config.Os(host.arch, machine, secure_boot, boot_menu=_flag(instance, "hw_boot_menu", "hw:boot_menu"))


def _clock(instance: Instance, host: HostOptions) -> config.Clock:
    offset = "localtime" if instance.image.properties.get("os_type") == "windows" else "utc"
    if host.virt_type != "kvm":
        return config.Clock(offset)
    return config.Clock(
        offset,
        (
            config.Timer("pit", tickpolicy="delay"),
            config.Timer("rtc", tickpolicy="catchup"),
            config.Timer("hpet", present=_flag(instance, "hw_time_hpet")),
        ),
    )


def _cpu(instance: Instance, host: HostOptions) -> config.Cpu:
    """Under KVM the host's model. Under TCG all that QEMU can emulate, so that images built for x86-64-v2 and v3
    boot; but not 5-level paging, which lengthens each walk of the page tables in software."""
    sockets = instance.flavor.vcpus
    mode = host.cpu_mode
    if mode == "auto":
        mode = "host-model" if host.virt_type == "kvm" else "maximum"
    if mode == "none":
        return config.Cpu(sockets)
    if mode == "custom":
        return config.Cpu(sockets, mode, host.cpu_model, match="exact")
    if mode == "maximum":
        return config.Cpu(sockets, mode, disabled=("la57",) if host.virt_type == "qemu" else ())
    return config.Cpu(sockets, mode, match="exact" if mode == "host-model" else None)


def _cputune(instance: Instance, placed: placement.Placed) -> Optional[config.CpuTune]:
    limits = {name: _quota(instance, f"cpu_{name}") for name in ("shares", "period", "quota")}
    tune = config.CpuTune(**limits, emulatorpin=placed.emulatorpin, vcpupin=placed.vcpupin)
    return None if tune == config.CpuTune() else tune


class _Targets:
    """Hands out device names: vda, vdb, ... as nova.virt.libvirt.blockinfo does."""

    def __init__(self) -> None:
        self._used: Dict[str, int] = {}

    def next(self, bus: str) -> str:
        prefix = _PREFIXES[bus]
        index = self._used.get(prefix, 0)
        self._used[prefix] = index + 1
        return prefix + _letters(index)


def _letters(index: int) -> str:
    """0 a, 25 z, 26 aa, as the kernel counts disks."""
    letters = ""
    index += 1
    while index:
        index, remainder = divmod(index - 1, 26)
        letters = chr(ord("a") + remainder) + letters
    return letters


def _disks(instance: Instance, host: HostOptions, machine: str) -> Tuple[config.Config, ...]:
    bus = _choice(instance, "hw_disk_bus", "virtio", tuple(_PREFIXES))
    cdrom_bus = _choice(instance, "hw_cdrom_bus", "sata" if "q35" in machine else "ide", _CDROM_BUSES)
    targets = _Targets()
    devices: List[config.Config] = []
    for disk in instance.disks:
        if disk.role == "config_drive":
            devices.append(_cdrom(disk, cdrom_bus, targets.next(cdrom_bus)))
        else:
            devices.append(_disk(instance, host, disk, bus, targets.next(bus)))
    model = instance.image.properties.get("hw_scsi_model")
    if model or (devices and "scsi" in (bus, cdrom_bus)):
        devices.append(config.Controller("scsi", model=model or "virtio-scsi"))
    return tuple(devices)


def _disk(instance: Instance, host: HostOptions, disk: Disk, bus: str, target: str) -> config.Disk:
    volume = disk.role == "volume"
    limits = [(name, _quota(instance, f"disk_{name}")) for name in _DISK_LIMITS] if not volume else []
    return config.Disk(
        path=disk.path,
        format=disk.format,
        target=target,
        bus=bus,
        cache="none" if host.direct_io else "writeback",
        discard="unmap" if disk.format == "qcow2" else None,
        serial=disk.serial,
        alias=f"ua-{disk.serial}" if volume and disk.serial else None,
        iotune=tuple((name, value) for name, value in limits if value is not None),
    )


def _cdrom(disk: Disk, bus: str, target: str) -> config.Disk:
    return config.Disk(path=disk.path, format=disk.format, target=target, bus=bus, device="cdrom", readonly=True)


def _interface(instance: Instance, port: Port) -> config.Interface:
    model = _choice(instance, "hw_vif_model", "virtio", _VIF_MODELS)
    vcpus = instance.flavor.vcpus
    many = model == "virtio" and vcpus > 1
    many = many and _flag(instance, "hw_vif_multiqueue_enabled", "hw:vif_multiqueue_enabled")
    return config.Interface(
        mac=port.mac_address,
        bridge=port.network.bridge,
        tap=port.tap_device,
        model=model,
        mtu=port.network.mtu,
        queues=min(vcpus, _MAX_QUEUES) if many else None,
        inbound=_bandwidth(instance, "inbound"),
        outbound=_bandwidth(instance, "outbound"),
    )


def _bandwidth(instance: Instance, way: str) -> Tuple[Tuple[str, int], ...]:
    """libvirt has no peak or burst without an average."""
    limits = [(name, _quota(instance, f"vif_{way}_{name}")) for name in ("average", "peak", "burst")]
    return tuple((name, value) for name, value in limits if value is not None) if limits[0][1] is not None else ()


def _others(instance: Instance, host: HostOptions) -> Tuple[config.Config, ...]:
    properties = instance.image.properties
    # A USB tablet, and the controller under it, keeps the host polling an idle guest: only where it is asked for.
    tablet = properties.get("hw_pointer_model") == "usbtablet"
    usb = tablet or "usb" in (properties.get("hw_disk_bus"), properties.get("hw_cdrom_bus"))
    video = _choice(instance, "hw_video_model", "virtio", _VIDEO_MODELS)
    devices: List[config.Config] = [config.Channel("org.qemu.guest_agent.0")]
    if tablet:
        devices.append(config.Input("tablet", "usb"))
    if video != "none":
        devices.append(config.Graphics("vnc", host.vnc_listen))
    devices.append(config.Video(video))
    if str(instance.flavor.extra_specs.get("hw_rng:allowed", "true")).lower() in ("true", "1", "yes"):
        devices.append(_rng(instance))
    devices.append(config.Controller("usb", model=None if usb else "none"))
    devices += [config.HostDevice(device.address, device.managed) for device in instance.pci_devices]
    action = _watchdog(instance)
    if action != "disabled":
        devices.append(config.Watchdog(action))
    devices.append(config.MemBalloon(period=10))
    return tuple(devices)


def _rng(instance: Instance) -> config.Rng:
    rate = _number(instance, "hw_rng:rate_bytes")
    period = _number(instance, "hw_rng:rate_period")
    return config.Rng("/dev/urandom", rate, period if rate is not None else None)


def _watchdog(instance: Instance) -> str:
    """The image's word wins over the flavor's, as in Nova."""
    wanted = str(instance.flavor.extra_specs.get("hw:watchdog_action", "disabled"))
    return _choice(instance, "hw_watchdog_action", wanted, _WATCHDOG_ACTIONS)


def _choice(instance: Instance, name: str, default: str, allowed: Tuple[str, ...]) -> str:
    """An image property that must be one of ``allowed``; InvalidRequest where it is not."""
    value = str(instance.image.properties.get(name, default))
    if value not in allowed:
        raise InvalidRequest(f"image {instance.image.name}: {name}={value} is not one of {', '.join(allowed)}")
    return value


def _flag(instance: Instance, name: str, extra_spec: str = "") -> bool:
    """A boolean of the image, or of the flavor; false where neither speaks."""
    value = instance.image.properties.get(name, instance.flavor.extra_specs.get(extra_spec, "false"))
    return str(value).lower() in ("true", "1", "yes")


def _quota(instance: Instance, name: str) -> Optional[int]:
    return _number(instance, f"quota:{name}")


def _number(instance: Instance, name: str) -> Optional[int]:
    """A whole number among the flavor's extra specs; None where it is not there."""
    value = instance.flavor.extra_specs.get(name)
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        raise InvalidRequest(f"flavor {instance.flavor.name}: {name}={value} is not a whole number") from None
