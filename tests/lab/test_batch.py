# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Sixty servers over three hosts; a host that fails stops nobody else."""

from __future__ import annotations

import re
import time

from lab_site import HOSTS, Site

PHASES = ("L2 network", "DHCP", "Security groups", "Image", "Disk", "Config drive", "Domain", "Vif")


def test_sixty_servers(site: Site) -> None:
    run = site.boot(site.server(count=60))
    assert run.rc == 0, run.output
    assert len(site.servers()) == 60
    assert site.states() == {"ACTIVE"}
    site.placed_as_recorded()
    assert all(site.domains().values()), "every host has some"
    for phase in PHASES:
        assert sorted(run.hosts_of(phase)) == list(HOSTS), f"{phase} ran once on each host, not once a server"
    addresses = site.sql("SELECT ip_address FROM ip_allocations")
    assert len({row["ip_address"] for row in addresses}) == len(addresses) == 63  # and one DHCP server a host
    assert len({row["mac_address"] for row in site.sql("SELECT mac_address FROM ports")}) == 63

    again = site.boot(site.server(count=60))
    assert (again.rc, again.changed) == (0, 0), again.output
    site.audit_is_clean()

    gone = site.delete_all()
    assert gone.rc == 0, gone.output
    site.nothing_is_left()


def test_two_runs_at_once(site: Site) -> None:
    """The same request twice, and another beside them."""
    same = [site.starting(site.server(count=4)), site.starting(site.server(count=4))]
    other = site.starting(site.server("other", count=3))
    for run in (*(playing.end() for playing in same), other.end()):
        assert run.rc == 0, run.output
    assert [row["name"] for row in site.servers()] == [f"other-{n}" for n in (1, 2, 3)] + [
        f"t-{n}" for n in (1, 2, 3, 4)
    ]
    assert site.states() == {"ACTIVE"}
    site.placed_as_recorded()
    assert site.sql("SELECT * FROM leases") == []
    site.audit_is_clean()


def test_the_run_that_waits_says_so(site: Site) -> None:
    first = site.starting(site.server(count=2))
    first.until("TASK [Domain]")
    with first.stopped():
        waiting = site.starting(site.server(count=2))
        waiting.until("TASK [Instance record]")
        time.sleep(2)
    second = waiting.end()
    assert second.rc == 0, second.output
    assert re.search(r"waited \d+ s for another run, which was at work on\s+t-1,\s+t-2", second.output), second.output
    assert first.end().rc == 0


def test_a_run_that_does_not_wait_leaves_them(site: Site) -> None:
    first = site.starting(site.server(count=2))
    first.until("TASK [Domain]")
    with first.stopped():
        second = site.boot(site.server(count=2), site.server("mine"), lease_timeout=0)
    assert second.rc == 2
    assert "another run is at work on the server" in second.output
    assert first.end().rc == 0
    assert site.states() == {"ACTIVE"}
    assert [row["name"] for row in site.servers()] == ["mine", "t-1", "t-2"]
    site.placed_as_recorded()


def test_a_killed_run_is_taken_over(site: Site) -> None:
    first = site.starting(site.server(count=3))
    first.until("TASK [Domain]")
    first.kill()
    second = site.boot(site.server(count=3))
    assert second.rc == 0, second.output
    assert site.states() == {"ACTIVE"}
    site.placed_as_recorded()
    assert site.sql("SELECT * FROM leases") == []
    site.audit_is_clean()
