# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The keeper of a run's leases: a process beside ansible-playbook that renews them while it lives.

Once ansible-playbook has ended, however it did, the keeper gives back what leases are left, and ends too.
"""

from __future__ import annotations

import os
import select
import time

from ansible_collections.barestack.kvm.plugins.module_utils.control import process
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records, leases
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import BarestackError

_EVERY = leases.DURATION / 4
"""Seconds between two renewals: a database may be away for some of them."""

GRACE = 3.0
"""Seconds after a run's end until nothing of it is at work on any host any more: its modules end with it."""


def start(records_url: str, owner: str, pid: int) -> None:
    """Keep the owner's leases for as long as process ``pid`` lives. Returns at once."""
    process.detached(lambda: _keep(records_url, owner, pid))


def _keep(records_url: str, owner: str, pid: int) -> None:
    try:
        run = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    while not select.select([run], [], [], _EVERY)[0]:
        _renew(records_url, owner)
    time.sleep(GRACE)
    Records(records_url).run(lambda connection: leases.release(connection, owner))


def _renew(records_url: str, owner: str) -> None:
    try:
        Records(records_url).run(lambda connection: leases.renew(connection, owner))
    except BarestackError:
        return  # the next time, unless the run loses them before
