# Copyright: barestack.kvm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

_SCHEDULER = r"""  scheduler:
    description:
      - The scheduler's options under Nova's names, such as C(enabled_filters), C(weight_classes), C(host_subset_size),
        C(ram_weight_multiplier), C(pci_alias); see C(docs/scheduler.md). What is not given is Nova's default.
    type: dict
    default: {}
  scheduler_rules_path:
    description: A directory with the site's own filters and weighers, one Python file each or several. There need not be any.
    type: path
"""


class ModuleDocFragment:
    """What phases that choose hosts take."""

    DOCUMENTATION = (
        r"""
options:
  service_down_time:
    description: Seconds without a heartbeat after which a host counts as down.
    type: float
    default: 600
"""
        + _SCHEDULER
    )

    SCHEDULER = "options:\n" + _SCHEDULER
