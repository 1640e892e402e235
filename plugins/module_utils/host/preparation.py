# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What makes a machine a compute host besides packages: kernel settings, libvirt's daemons, and what it lacks."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
from dataclasses import dataclass
from typing import Dict, List, Mapping, Sequence, Tuple

from ansible_collections.barestack.kvm.plugins.module_utils.host.system import read_file, replace_file, run
from ansible_collections.barestack.kvm.plugins.module_utils.model.effects import Effects
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError

_PROBE_SECONDS = 300.0
"""libvirt asks every QEMU binary what it can do when it does not know it yet."""

# Tried in a network namespace that ends with the command, so that nothing is left of it.
_KERNEL_FEATURES: Dict[str, Tuple[str, ...]] = {
    "network namespaces": ("true",),
    "bridges": ("ip", "link", "add", "check0", "type", "bridge"),
    "veth pairs": ("ip", "link", "add", "check0", "type", "veth", "peer", "name", "check1"),
    "tap devices": ("ip", "tuntap", "add", "check0", "mode", "tap"),
    "nf_tables for bridges": ("nft", "add", "table", "bridge", "check0"),
    "nf_tables masquerading": (
        "nft",
        "add table ip check0; add chain ip check0 post { type nat hook postrouting priority 100; };"
        " add rule ip check0 post masquerade",
    ),
}


@dataclass(frozen=True)
class KernelSettings:
    """Modules and sysctls that stay over a reboot, under one name."""

    name: str
    modules: Sequence[str]
    settings: Mapping[str, str]

    def apply(self, effects: Effects) -> None:
        """Write the files, load the modules where a setting is not there yet, and set what differs."""
        modules = "".join(f"{module}\n" for module in self.modules)
        settings = "".join(f"{key} = {value}\n" for key, value in self.settings.items())
        _keep(effects, f"/etc/modules-load.d/{self.name}.conf", modules)
        _keep(effects, f"/etc/sysctl.d/60-{self.name}.conf", settings)
        loaded = effects.check_mode or self._load_modules()
        for key, value in self.settings.items():
            current = " ".join(read_file(_proc(key)).split())
            if current != value:
                if not (current or loaded):
                    raise HostError(
                        f"this kernel has no setting {key}: modules {', '.join(self.modules)} did not bring it"
                    )
                effects.apply("host.sysctl", key, lambda: _write(key, value), before=f"{current}\n", after=f"{value}\n")  # noqa: B023

    def _load_modules(self) -> bool:
        """Whether every setting exists, if need be after loading the modules: a built-in one cannot be loaded."""
        if not self._missing():
            return True
        for module in self.modules:
            run("modprobe", module)
        return not self._missing()

    def _missing(self) -> List[str]:
        return [key for key in self.settings if not os.path.exists(_proc(key))]


def _proc(key: str) -> str:
    """``net.ipv4.ip_forward`` is ``/proc/sys/net/ipv4/ip_forward``; a key with slashes may have dots in its names."""
    return "/proc/sys/" + (key if "/" in key else key.replace(".", "/"))


def _write(key: str, value: str) -> None:
    try:
        with open(_proc(key), "w") as stream:
            stream.write(value)
    except OSError as error:
        raise HostError(f"cannot set {key} to {value}: {error.strerror}") from None


def _keep(effects: Effects, path: str, text: str) -> None:
    current = read_file(path)
    if current != text:
        effects.apply("host.settings", path, lambda: _replace(path, text), before=current, after=text)


def _replace(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    replace_file(path, text)


def start_daemon(effects: Effects, name: str, socket_path: str) -> None:
    """Start a daemon that goes into the background by itself with ``-d``, unless it answers on its socket."""
    if not answers(socket_path):
        effects.apply("host.daemon", name, lambda: run(name, "-d", timeout=60), before="stopped\n", after="running\n")
        if not effects.check_mode and not answers(socket_path):
            raise HostError(f"{name} was started and does not answer on {socket_path}: see its log")


def answers(path: str) -> bool:
    """Whether someone listens on this Unix socket. A file that a dead daemon left behind does not count."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def missing_commands(names: Sequence[str]) -> List[str]:
    """One line for each command that is not in root's path. ``a|b`` is either of the two."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/libexec"])
    return [
        f"the command {' or '.join(name.split('|'))} is not installed"
        for name in names
        if not any(shutil.which(choice, path=path) for choice in name.split("|"))
    ]


def missing_libraries(names: Sequence[str]) -> List[str]:
    """One line for each Python library that the modules on this host could not import."""
    return [f"this Python has no {name} library" for name in names if importlib.util.find_spec(name) is None]


def missing_kernel_features() -> List[str]:
    """One line for each thing that the kernel could not do when it was tried."""
    problems = [] if os.path.exists("/dev/net/tun") else ["there is no /dev/net/tun: guests could have no tap devices"]
    for feature, command in _KERNEL_FEATURES.items():
        try:
            run("unshare", "--net", *command, timeout=30)
        except HostError as error:
            problems.append(f"the kernel has no {feature}: {error}")
    return problems


def missing_space(path: str, wanted_gib: float) -> List[str]:
    """One line where the file system of ``path`` (or of its nearest directory that exists) has less room than this."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    free = shutil.disk_usage(path).free / 1024**3
    return [f"{path} has {free:.1f} GiB free, {wanted_gib:g} GiB are wanted"] if free < wanted_gib else []


def warm_libvirt(virt_type: str) -> List[str]:
    """Have libvirt probe QEMU now, and keep what it learns: a guest's first definition is then as fast as the next.

    One line where libvirt does not answer, or cannot run guests of this type.
    """
    command = ("virsh", "--connect", "qemu:///system", "domcapabilities", "--virttype", virt_type)
    try:
        run(*command, timeout=_PROBE_SECONDS)
    except HostError as error:
        return [f"libvirt cannot run {virt_type} guests: {error}"]
    return []
