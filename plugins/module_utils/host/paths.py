# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Where things are on a compute host.

Disks live below ``/var/lib/libvirt/images``: the one place that libvirt's AppArmor helper may read and that SELinux
labels ``virt_image_t``, so both stay on. The console log lives below ``/var/log/libvirt``, where virtlogd may write.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar, Dict, Mapping


@dataclass(frozen=True)
class Paths:
    """Every path of ours, from three roots."""

    instances_path: str = "/var/lib/libvirt/images/barestack"
    state_path: str = "/var/lib/barestack"
    log_path: str = "/var/log/libvirt/barestack"

    argument_spec: ClassVar[Dict[str, Any]] = {
        "instances_path": {"type": "path", "default": "/var/lib/libvirt/images/barestack"},
        "state_path": {"type": "path", "default": "/var/lib/barestack"},
        "log_path": {"type": "path", "default": "/var/log/libvirt/barestack"},
    }

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Paths:
        """From a module's options, as declared by ``Paths.argument_spec``."""
        return cls(params["instances_path"], params["state_path"], params["log_path"])

    @property
    def base_directory(self) -> str:
        """The image cache, Nova's ``_base``."""
        return f"{self.instances_path}/_base"

    def base(self, image_id: str) -> str:
        """The cached image: sha1 of its id, as nova.virt.libvirt.imagecache.get_cache_fname names it."""
        return f"{self.base_directory}/{hashlib.sha1(image_id.encode(), usedforsecurity=False).hexdigest()}"

    def instance_directory(self, uuid: str) -> str:
        """``<instances_path>/<uuid>``."""
        return f"{self.instances_path}/{uuid}"

    def disk(self, uuid: str, name: str) -> str:
        """A disk of the instance: ``disk``, ``disk.local``, ``disk.swap``, ``disk.config``."""
        return f"{self.instance_directory(uuid)}/{name}"

    @property
    def volumes_directory(self) -> str:
        """The directory pool of data volumes."""
        return f"{self.instances_path}/volumes"

    def volume(self, volume_id: str) -> str:
        """A volume's file, named as Cinder names it."""
        return f"{self.volumes_directory}/volume-{volume_id}"

    def console_log(self, uuid: str) -> str:
        """What the guest wrote on its serial console."""
        return f"{self.log_path}/{uuid}.console.log"

    def dhcp_directory(self, network_id: str) -> str:
        """dnsmasq's files for one network."""
        return f"{self.state_path}/dhcp/{network_id}"

    def network_directory(self, network_id: str) -> str:
        """The ports of a network on this host, one empty file each: the bridge goes with the last."""
        return f"{self.state_path}/networks/{network_id}"
