# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What a filter is."""

from __future__ import annotations

from typing import ClassVar

from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.hosts import HostState
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class Filter:
    """One rule that removes hosts. Made once for a call of ``decide``; keeps no state between hosts."""

    name: ClassVar[str]

    def __init__(self, options: Options) -> None:
        self.options = options

    def reason(self, host: HostState, spec: RequestSpec) -> str | None:
        """None where the host passes, else a short text with the values compared."""
        raise NotImplementedError

    def reason_when_forced(self, host: HostState, spec: RequestSpec) -> str | None:
        """The same for the host that the request forces, which skips Nova's scheduler filters.

        What placement and the request filters decide in Nova still holds there: those rules override this.
        """
        return None
