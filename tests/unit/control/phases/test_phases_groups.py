# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Server groups through the phases: declared or made on first use, their policies, who is in them; hosts asked for."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import Conflict, Forbidden, InvalidRequest

from .conftest import Site

HOSTS = ("kvm1", "kvm2", "kvm3")


def hint(name: str = "apart", policy: str = "anti-affinity", **rules: int) -> dict[str, Any]:
    return {"scheduler_hints": {"group": {"name": name, "policy": policy, "rules": rules}}}


def named(name: str) -> dict[str, Any]:
    return {"scheduler_hints": {"group": name}}


def declare(site: Site, name: str, policy: str, **more: Any) -> None:
    site.catalog.setdefault("server_groups", []).append({"name": name, "policy": policy, **more})


def hosts(handle: list[dict[str, Any]]) -> list[str]:
    return [item["host"] for item in handle]


@pytest.mark.parametrize(
    ("policy", "different"), [("affinity", 1), ("anti-affinity", 3), ("soft-affinity", 1), ("soft-anti-affinity", 3)]
)
def test_a_declared_group(site: Site, policy: str, different: int) -> None:
    site.record(*HOSTS)
    site.scheduler = {"soft_affinity_weight_multiplier": 10.0}  # with Nova's 1.0 a host that is building weighs as much
    declare(site, "g", policy)
    handle = site.boot(*(site.server(f"s{n}", **named("g")) for n in range(2)), twice=True)
    handle += site.boot(site.server("s2", **named("g")))
    assert len(set(hosts(handle))) == different
    assert {item["server_group"]["name"] for item in handle} == {"g"}
    assert site.rows("server_groups") == [], "what is declared is not copied"


def test_a_group_made_on_its_first_use_is_there_for_others(site: Site) -> None:
    site.record(*HOSTS)
    first = site.boot(site.server("s", count=2, **hint()))
    (group,) = site.rows("server_groups")
    (by_name,) = site.boot(site.server("by name", **named("apart")))
    assert len({*hosts(first), by_name["host"]}) == 3
    (by_id,) = site.boot(site.server("by id", **named(group["uuid"])))
    assert "at most 1 of group apart wanted, 1 there already" in by_id["fault"]["message"]
    assert len(site.rows("server_group_members")) == 4


def test_a_group_that_a_request_made_goes_with_its_last_member(site: Site) -> None:
    site.boot(site.server(**hint()), site.server("plain"))
    site.boot(site.server("db", **named("apart")), last="instance")
    site.delete("web", "plain")
    assert [row["name"] for row in site.rows("server_groups")] == ["apart"]
    site.delete("db")
    assert site.rows("server_groups") == site.rows("server_group_members") == []
    (again,) = site.boot(site.server(**hint(policy="soft-affinity")))
    assert again["server_group"]["policy"] == "soft-affinity"


def test_a_deleted_member_makes_room(site: Site) -> None:
    site.boot(site.server(**hint()))
    site.delete("web")
    assert [item["vm_state"] for item in site.boot(site.server("db", **hint()))] == ["ACTIVE"]


def test_max_server_per_host(site: Site) -> None:
    declare(site, "pairs", "anti-affinity", rules={"max_server_per_host": 2})
    handle = site.boot(*(site.server(f"s{n}", **named("pairs")) for n in range(3)))
    assert [item["vm_state"] for item in handle] == ["ACTIVE", "ACTIVE", "ERROR"]
    assert "at most 2 of group pairs wanted, 2 there already" in handle[2]["fault"]["message"]


def test_a_declared_policy_that_changes_counts_for_new_servers(site: Site) -> None:
    declare(site, "g", "anti-affinity")
    site.boot(site.server(**named("g")))
    site.catalog["server_groups"][0]["policy"] = "soft-anti-affinity"
    assert [item["vm_state"] for item in site.boot(site.server("db", **named("g")))] == ["ACTIVE"]


def test_groups_are_a_projects_own(site: Site) -> None:
    site.boot(site.server(**hint()))
    with pytest.raises(
        InvalidRequest, match=r"Server web: scheduler_hints.group: unknown server group 'apart'. Known: none"
    ):
        site.boot(site.server(**named("apart")), user="bob")
    site.boot(site.server(**hint()), user="bob")
    assert len(site.rows("server_groups")) == 2
    declare(site, "theirs", "affinity", project="other")
    with pytest.raises(InvalidRequest, match="unknown server group 'theirs'"):
        site.boot(site.server("db", **named("theirs")))


def test_a_group_has_one_policy(site: Site) -> None:
    site.boot(site.server(**hint()))
    with pytest.raises(
        Conflict, match="group apart exists with policy anti-affinity and max_server_per_host 1, not affin"
    ):
        site.boot(site.server("db", **hint(policy="affinity")))
    with pytest.raises(Conflict, match="not anti-affinity and 3: a group's policy does not change"):
        site.boot(site.server("db", **hint(max_server_per_host=3)))
    assert [item["vm_state"] for item in site.boot(site.server("db", **hint(max_server_per_host=1)))] == ["ERROR"]


def test_check_mode_places_a_group_and_leaves_nothing(site: Site) -> None:
    site.record(*HOSTS)
    before = site.dump()
    handle = site.boot(*(site.server(f"s{n}", **hint()) for n in range(3)), check=True, last="schedule")
    assert sorted(hosts(handle)) == sorted(HOSTS)
    assert site.dump() == before


def test_a_server_tried_again_is_still_in_its_group(site: Site) -> None:
    site.record(*HOSTS)
    site.boot(site.server("db", **hint()))
    failing = iter([True])
    (web,) = site.play(
        site.server(**hint()), hosts=lambda item: site.failed(item) if next(failing, False) else site.built(item)
    )
    assert web["vm_state"] == "ACTIVE"
    assert web["host"] != site.row("db")["host"]
    assert len(site.rows("server_group_members")) == 2


# Hosts that are asked for


def test_a_forced_host_skips_the_filters_but_not_a_groups_hard_policy(site: Site) -> None:
    """Nova's late check refuses it on the host; here the claim is never made."""
    site.record(*HOSTS)
    (first,) = site.boot(site.server(**hint()), user="root")
    handle = site.boot(site.server("db", availability_zone=f"nova:{first['host']}", **hint()), user="root")
    assert handle[0]["fault"]["message"] == (
        f"{first['host']} was forced or chosen against the policy anti-affinity of server group apart: "
        "1 of at most 1 are there"
    )
    assert set(site.claims()) == {"web"}
    other = next(host for host in HOSTS if host != first["host"])
    near = site.boot(site.server("a", availability_zone=f"nova:{other}", **hint("near", "affinity")), user="root")
    assert near[0]["host"] == other
    far = site.boot(
        site.server("b", availability_zone=f"nova:{first['host']}", **hint("near", "affinity")), user="root"
    )
    assert far[0]["fault"]["message"].endswith(f"the policy affinity of server group near: its servers are on {other}")


def test_a_host_that_is_forced_or_asked_for(site: Site) -> None:
    site.record(*HOSTS)
    for number, request in enumerate(
        ({"availability_zone": "nova:KVM2"}, {"availability_zone": ":kvm2"}, {"host": "kvm2"})
    ):
        assert hosts(site.boot(site.server(f"s{number}", **request), user="root")) == ["kvm2"]
        with pytest.raises(Forbidden):
            site.boot(site.server(f"t{number}", **request))
    (none,) = site.boot(site.server("none", host="kvm9"), user="root")
    assert "RequestedHost removed kvm1, kvm2, kvm3 (the request wants kvm9)" in none["fault"]["message"]


def test_hosts_that_may_not_do(site: Site) -> None:
    site.record(*HOSTS)
    assert hosts(site.boot(site.server(ignore_hosts=["kvm1", "KVM3"]))) == ["kvm2"]
