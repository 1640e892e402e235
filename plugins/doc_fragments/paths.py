# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations


class ModuleDocFragment:
    """Where things are on a compute host."""

    DOCUMENTATION = r"""
options:
  instances_path:
    description:
      - Disks, the image cache and the volumes. Keep it where AppArmor and SELinux let libvirt's guests read.
    type: path
    default: /var/lib/libvirt/images/barestack
  state_path:
    description:
      - dnsmasq's files and what networks a host carries.
    type: path
    default: /var/lib/barestack
  log_path:
    description:
      - The guests' console logs.
    type: path
    default: /var/log/libvirt/barestack
"""
