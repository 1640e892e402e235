# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations


class ModuleDocFragment:
    """What every phase on a compute host takes and answers."""

    DOCUMENTATION = r"""
options:
  instances:
    description:
      - The handle, as the phase before returned it in one string; a list of dicts is taken too.
      - An instance that already has a C(fault) is passed over when I(state=present), one that is C(stuck) when I(state=absent).
    type: list
    elements: dict
    required: true
  state:
    description:
      - V(present) carries the phase out, V(absent) undoes whatever exists of it.
    type: str
    choices: [present, absent]
    default: present
  max_concurrent_builds:
    description:
      - How many instances of this host are worked on side by side, as Nova's option of the same name.
    type: int
    default: 10
attributes:
  check_mode:
    description: Computes everything, changes nothing.
    support: full
  diff_mode:
    description: Says what is, or would be, changed.
    support: full
"""
