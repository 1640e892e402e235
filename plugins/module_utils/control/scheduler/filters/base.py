# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""What a filter is."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.columns import Bools, Hosts
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.options import Options
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.request import RequestSpec


class Filter:
    """One rule that removes hosts. Made once for a call of ``decide``; keeps no state between servers.

    A subclass has a ``name``, ``mask`` and ``reason``.
    """

    name: ClassVar[str]
    once: ClassVar[bool] = False
    """Nova's run_filter_once_per_request: what the servers of one request take changes nothing in this rule."""
    always: ClassVar[bool] = False
    """On, whatever ``enabled_filters`` names: it stands for placement, a request filter of Nova's, or the claim."""
    holds_when_forced: ClassVar[bool] = False
    """A forced host skips Nova's filters; what placement, the request filters or the claim decide holds there too."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        """Whether each host passes, other rules aside; ``hosts.everywhere`` itself where it has nothing to look at."""
        raise NotImplementedError

    def reason(self, hosts: Hosts, row: int, spec: RequestSpec) -> str:
        """Why the row's host does not pass: a short text with the values compared. Asked only for such hosts."""
        raise NotImplementedError


class RowFilter(Filter):
    """A rule that no expression over columns can give: asked host by host, and only of those that earlier rules left.

    Its answer for a host depends on that host's row alone: it is asked again only once a server was put there.
    """

    def concerns(self, spec: RequestSpec) -> bool:
        """Whether the request has anything to ask for; if not, every host passes."""
        raise NotImplementedError

    def passes(self, hosts: Hosts, row: int, spec: RequestSpec) -> bool:
        """Whether the row's host passes."""
        raise NotImplementedError

    def mask(self, hosts: Hosts, spec: RequestSpec) -> Bools:
        """All hosts' answers; the pipeline asks for less."""
        if not self.concerns(spec):
            return hosts.everywhere
        return np.fromiter((self.passes(hosts, row, spec) for row in range(len(hosts))), np.bool_, len(hosts))
