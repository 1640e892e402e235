# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The scheduler's claims on three real hosts, as libvirt and the records show them."""

from __future__ import annotations

import json
from typing import Any

from lab_site import HOSTS, Site, on

APART = {"group": {"name": "apart", "policy": "anti-affinity"}}


def names(site: Site) -> dict[str, list[str]]:
    """Host -> the names of the servers whose domains run there."""
    of = {row["uuid"]: row["name"] for row in site.servers()}
    return {host: sorted(of[uuid] for uuid in uuids) for host, uuids in site.domains().items()}


def test_servers_that_must_be_apart_are(site: Site) -> None:
    request = site.server("apart", count=3, scheduler_hints=APART)
    run = site.boot(request)
    assert run.rc == 0, run.output
    assert [len(there) for there in names(site).values()] == [1, 1, 1]
    again = site.boot(request)
    assert (again.rc, again.changed) == (0, 0), again.output

    more = site.boot(site.server("fourth", scheduler_hints={"group": "apart"}))
    assert more.rc == 2
    fault = next(row["fault"] for row in site.servers() if row["name"] == "fourth")
    assert "ServerGroupAntiAffinityFilter removed" in json.dumps(fault)
    assert [len(there) for there in names(site).values()] == [1, 1, 1]

    gone = site.delete_all()
    assert gone.rc == 0, gone.output
    assert site.sql("SELECT * FROM server_groups") == []
    site.nothing_is_left()


def test_two_runs_at_once_keep_the_policy(site: Site) -> None:
    runs = [
        site.starting(site.server(name, count=2, scheduler_hints=APART), scheduler={"max_attempts": 1})
        for name in ("left", "right")
    ]
    ended = [run.end() for run in runs]
    assert sorted(run.rc for run in ended) == [0, 2], "\n".join(run.output for run in ended)
    assert [len(there) for there in names(site).values()] == [1, 1, 1]
    assert sorted(row["vm_state"] for row in site.servers()) == ["ACTIVE", "ACTIVE", "ACTIVE", "ERROR"]
    site.audit_is_clean()


def test_why_tells_of_every_host_and_changes_nothing(site: Site) -> None:
    assert site.boot(site.server(availability_zone="az2")).rc == 0
    before = site.sql("SELECT * FROM allocations")
    run = site.play("playbooks/why.yml", names=["t"])
    assert (run.rc, run.changed) == (0, 0), run.output
    told = " ".join(run.output.split())
    assert "kvm03 chosen" in told
    for host in ("kvm01", "kvm02"):
        assert f"{host} removed AvailabilityZone: zone az2 wanted, in az1" in told
    asked = site.play("playbooks/why.yml", instances=[site.server("big", flavor="m1.nano", count=2)])
    assert (asked.rc, asked.changed) == (0, 0), asked.output
    assert "chosen" in asked.output
    assert site.sql("SELECT * FROM allocations") == before
    assert [row["name"] for row in site.servers()] == ["t"]


def test_cpus_of_their_own(site: Site) -> None:
    """One CPU of each host is given out whole: libvirt pins to it, and a fourth server finds none."""
    own: dict[str, Any] = {
        "name": "own",
        "vcpus": 1,
        "ram": 64,
        "disk": 1,
        "extra_specs": {"hw:cpu_policy": "dedicated"},
    }
    options = {"cpu_dedicated_set": "1", "cpu_shared_set": "0", "flavors": [own]}
    run = site.boot(site.server("own", flavor="own", count=3), **options)
    assert run.rc == 0, run.output
    placed = site.domains()
    assert [len(there) for there in placed.values()] == [1, 1, 1]
    for host in HOSTS:
        [uuid] = placed[host]
        pins = [line.split() for line in on(host, f"virsh -q vcpupin {uuid}").splitlines()]
        assert [(vcpu.rstrip(":"), cpus) for vcpu, cpus in pins if vcpu.rstrip(":").isdigit()] == [("0", "1")]
    assert len(site.sql("SELECT * FROM pinned_cpus")) == 3

    more = site.boot(site.server("more", flavor="own"), **options)
    assert more.rc == 2
    fault = next(row["fault"] for row in site.servers() if row["name"] == "more")
    assert "pcpus: 1 wanted" in json.dumps(fault)
    gone = site.delete_all()
    assert gone.rc == 0, gone.output
    assert site.sql("SELECT * FROM pinned_cpus") == []
