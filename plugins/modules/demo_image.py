#!/usr/bin/python
# -*- coding: utf-8 -*-

# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: demo_image
short_description: Build the demo guest's disk image from Debian packages
version_added: 0.1.0
description:
  - Fetches Debian's cloud kernel, busybox and syslinux with the host's apt, unpacks them beside the image without installing
    anything, and makes a qcow2 image that boots by itself, on BIOS and on UEFI, in 80 MiB of memory or more.
  - The same packages and the same O(files) give the same bytes. The image is built again only when one of them, or this
    module's recipe, has changed.
  - Beside the image lie C(<path>.sha256), in the form of C(sha256sum), and C(<path>.json), which lists the packages.
options:
  path:
    description: The image. Its directory must exist.
    type: path
    required: true
  files:
    description:
      - The guest's own files, their paths without the leading slash and their texts. C(init) must be among them.
      - A text that starts with C(#!) may be executed.
    type: dict
    required: true
attributes:
  check_mode:
    description: Says whether the image would be built.
    support: full
author:
  - barestack.kvm contributors (@barestack)
requirements:
  - Debian or a system derived from it, on amd64
  - qemu-img
"""

EXAMPLES = r"""
- name: Build the demo image
  barestack.kvm.demo_image:
    path: /var/lib/barestack/images/demo.qcow2
    files:
      init: "{{ lookup('ansible.builtin.file', 'init', rstrip=false) }}"
"""

RETURN = r"""
checksum:
  description: The image's checksum as the catalogue's C(images) take it; empty in check mode before there is an image.
  returned: success
  type: str
  sample: sha256:0f6fa2a9dbe0e7c5cd2b9bd4ef0b8b6a5e5f86b06a0bcf9fb4c9b6f4d4c9c7d1
effects:
  description: What was changed, one entry each.
  returned: success
  type: list
  elements: str
  sample: ["host.demo_image /var/lib/barestack/images/demo.qcow2"]
"""

from pathlib import Path
from typing import Any, ClassVar, Dict, Mapping

from ansible_collections.barestack.kvm.plugins.module_utils.host import demo_image
from ansible_collections.barestack.kvm.plugins.module_utils.host.system import locked
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import HostError, InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.phase import Phase, run_module


class DemoImage(Phase):
    """Look whether the image is the one wanted; else build it."""

    name = "demo_image"
    argument_spec: ClassVar[Dict[str, Any]] = {
        "path": {"type": "path", "required": True},
        "files": {"type": "dict", "required": True},
    }

    def run(self) -> Dict[str, Any]:
        """The image's checksum."""
        path, files = Path(self.params["path"]), self.params["files"]
        if "init" not in files:
            raise InvalidRequest("files has no init: the kernel would have nothing to start")
        if path.parent.is_dir():
            with locked(f"{path}.lock"):
                return {"checksum": self._built(path, files)}
        if not self.check_mode:
            raise HostError(f"{path}: the directory does not exist")
        self.effects.apply("host.demo_image", str(path), lambda: None)
        return {"checksum": ""}

    def _built(self, path: Path, files: Mapping[str, str]) -> str:
        wanted = demo_image.fingerprint(files)
        if not demo_image.is_built(path, wanted):
            packages = demo_image.inputs()
            self.effects.apply(
                "host.demo_image",
                str(path),
                lambda: demo_image.build(path, packages, files, wanted),
                after="".join(f"{package.name} {package.version}\n" for package in packages),
            )
        return f"sha256:{demo_image.sha256(path)}" if path.exists() else ""


PHASE = DemoImage


def main() -> None:
    run_module(PHASE)


if __name__ == "__main__":
    main()
