# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations


class ModuleDocFragment:
    """Which CPUs of a host are whose."""

    DOCUMENTATION = r"""
options:
  cpu_shared_set:
    description:
      - Nova's C([compute]cpu_shared_set), the CPUs that guests share, as V(0-3,^2,8). Guests float over these alone. With
        neither this nor O(cpu_dedicated_set), guests share all CPUs.
    type: str
    default: ""
  cpu_dedicated_set:
    description:
      - Nova's C([compute]cpu_dedicated_set), the CPUs for guests whose flavor asks for CPUs of their own
        (C(hw:cpu_policy)). Given alone, the host takes no guests with shared CPUs.
    type: str
    default: ""
"""
