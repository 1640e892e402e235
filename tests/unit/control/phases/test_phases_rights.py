# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Whose servers they are: roles, projects, tokens, and handles that somebody wrote himself."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.identity import authenticate
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    Unauthorized,
)

HANDLE_PHASES: list[tuple[str, dict[str, str]]] = [
    ("schedule", {}),
    ("schedule", {"state": "rolled_back"}),
    ("schedule", {"state": "absent"}),
    ("port", {}),
    ("port", {"state": "rolled_back"}),
    ("port", {"state": "absent"}),
    ("volume", {}),
    ("volume", {"state": "rolled_back"}),
    ("volume", {"state": "absent"}),
    ("instance", {"state": "building", "task_state": "spawning"}),
    ("instance", {"state": "active"}),
    ("instance", {"state": "rolled_back"}),
    ("instance", {"state": "absent"}),
]

ANY_DATABASE = pytest.mark.parametrize("records_url", ["sqlite"], indirect=True)
"""For what no database has a part in."""


def names(result: dict[str, Any]) -> list[str]:
    return [instance["name"] for instance in result["instances"]]


def test_a_project_sees_and_deletes_its_own(site: Any) -> None:
    (alices,) = site.boot(site.server())
    (bobs,) = site.boot(site.server(), user="bob")
    assert alices["uuid"] != bobs["uuid"]
    assert [item["uuid"] for item in site.phase("instance_info", "bob")["instances"]] == [bobs["uuid"]]
    site.delete("web", user="bob")
    assert site.phase("instance_info", "bob")["instances"] == []
    assert names(site.phase("instance_info")) == ["web"]
    assert set(site.claims()) == {"web"}


def test_another_projects_server_is_refused(site: Any) -> None:
    (instance,) = site.boot(site.server(), last="instance")
    site.boot(site.server("own"), user="bob", last="instance")
    before = site.dump()
    for reference in (instance["uuid"], "web"):
        message = f"Server {reference} belongs to another project."
        for check in (False, True):
            with pytest.raises(Forbidden, match=message):
                site.delete("own", reference, user="bob", check=check)
        with pytest.raises(Forbidden, match=message):
            site.phase("instance_info", "bob", names=[reference])
    assert site.dump() == before


def test_what_was_deleted_stays_deleted_whatever_another_project_calls_its_servers(site: Any) -> None:
    site.boot(site.server())
    site.boot(site.server(), user="bob")
    site.delete("web", user="bob")
    assert site.delete("web", user="bob") == []
    assert site.results["deleting"]["missing"] == ["web"]


@ANY_DATABASE
def test_an_id_goes_before_a_name(site: Any) -> None:
    (instance,) = site.boot(site.server())
    site.boot(site.server(instance["uuid"]))
    site.delete(instance["uuid"])
    assert names(site.phase("instance_info")) == [instance["uuid"]]


@ANY_DATABASE
def test_an_admin_sees_and_deletes_what_any_project_has(site: Any) -> None:
    site.boot(site.server())
    (bobs,) = site.boot(site.server("db"), user="bob")
    assert names(site.phase("instance_info", "root")) == ["web"]
    assert names(site.phase("instance_info", "root", all_projects=True)) == ["web", "db"]
    site.delete(bobs["uuid"], user="root")
    assert site.states("db")[0] == "DELETED"
    with pytest.raises(Forbidden, match="User alice needs the role admin in project demo"):
        site.phase("instance_info", all_projects=True)


@ANY_DATABASE
def test_an_admin_has_to_say_which_of_two_is_meant(site: Any) -> None:
    site.boot(site.server("db"))
    site.boot(site.server("db"), user="bob")
    assert len(site.phase("instance_info", "root", names=["db"])["instances"]) == 1, "the own project's"
    site.delete("db")
    assert len(site.phase("instance_info", "root", names=["db"])["instances"]) == 1
    with pytest.raises(NotFound, match="No server with a name or id of 'nothing' exists"):
        site.phase("instance_info", names=["nothing"])


@ANY_DATABASE
def test_a_reader_lists_and_nothing_else(site: Any) -> None:
    (instance,) = site.boot(site.server())
    assert names(site.phase("instance_info", "rita")) == ["web"]
    before = site.dump()
    refused = [
        ("instance", {"requests": [site.server("db")]}),
        ("instance", {"state": "deleting", "names": ["web"]}),
        ("compute_node", {"reports": [site.report("kvm9")]}),
        *((phase, {**options, "instances": [instance]}) for phase, options in HANDLE_PHASES),
    ]
    for check in (False, True):
        for phase, options in refused:
            with pytest.raises(Forbidden, match="User rita needs the role member in project demo"):
                site.phase(phase, "rita", check, **options)
    assert site.dump() == before


def test_a_handle_of_another_projects_server_is_refused(site: Any) -> None:
    (instance,) = site.boot(site.server(volumes=[{"size": 1}]))
    (bobs,) = site.boot(site.server("bobs"), user="bob", last="instance")
    before = site.dump()
    for forged in (instance, {**instance, "project_id": bobs["project_id"]}):
        for check in (False, True):
            for phase, options in HANDLE_PHASES:
                with pytest.raises(Forbidden, match=f"Server web \\({instance['uuid']}\\) belongs to another project"):
                    site.phase(phase, "bob", check, instances=[bobs, forged], **options)
    assert site.dump() == before


def test_what_a_handle_says_of_a_server_does_not_count_but_the_records(site: Any) -> None:
    site.boot(site.server("bobs", volumes=[{"size": 3, "name": "treasure"}]), user="bob")
    (instance,) = site.boot(site.server(volumes=[{"size": 1}]), last="compute_node")
    theirs = {**instance["block_devices"][0], "volume_id": site.rows("volumes")[0]["id"], "delete_on_termination": True}
    forged = {
        **instance,
        "flavor": {**instance["flavor"], "vcpus": 3, "ram": 1},
        "block_devices": [theirs],
        "vm_state": "ACTIVE",
        "id": 1,
    }
    volumes = [row for row in site.rows("volumes") if row["name"] == "treasure"]
    (placed,) = site.phase("schedule", instances=[forged])["instances"]
    assert site.claims()["web"] == {"VCPU": 1, "MEMORY_MB": 128, "DISK_GB": 2}
    assert (placed["id"], placed["vm_state"]) == (instance["id"], "BUILDING")
    forged = {**forged, "networks": [], "host": placed["host"]}
    assert len(site.phase("port", instances=[forged])["instances"][0]["ports"]) == 1
    for state in ("present", "rolled_back", "absent"):
        site.phase("volume", state=state, instances=[forged])
        assert [row for row in site.rows("volumes") if row["name"] == "treasure"] == volumes


@ANY_DATABASE
def test_a_handle_that_names_nothing_or_is_none(site: Any) -> None:
    (instance,) = site.boot(site.server(), last="compute_node")
    unknown = {**instance, "uuid": "0" * 36}
    before = site.dump()
    for phase, options in HANDLE_PHASES:
        with pytest.raises(NotFound, match=r"Server web \(0{36}\) is not in the records"):
            site.phase(phase, instances=[instance, unknown], **options)
        for broken in ({}, {"uuid": "x"}, {**instance, "nmae": 1}, {**instance, "flavor": 7}, {**instance, "ports": 3}):
            with pytest.raises(InvalidRequest, match="instances: this is no handle of an earlier phase"):
                site.phase(phase, instances=[broken], **options)
    assert site.dump() == before


@ANY_DATABASE
@pytest.mark.fresh
def test_a_token_that_is_not_valid_opens_nothing(site: Any) -> None:
    good = site.token()
    auth = {"username": "alice", "password": "hush-hush", "project_name": "demo"}
    expired = authenticate(auth, Catalog.load(site.catalog), site.keys, 60, environ={}, now=time.time() - 61).secret
    middle = len(good) // 2
    tampered = good[:middle] + ("A" if good[middle] != "A" else "B") + good[middle + 1 :]
    for token, message in (
        (expired, "The token expired at"),
        (tampered, "Not a valid token"),
        ("nonsense", "Not a valid token"),
        (f"{good[:-6]}", "Not a valid token"),
    ):
        for phase, options in (("instance", {"requests": [site.server()]}), ("instance_info", {})):
            for check in (False, True):
                with pytest.raises(Unauthorized, match=message):
                    site.phase(phase, token=token, check=check, **options)
    site.catalog["users"][0]["enabled"] = False
    with pytest.raises(Unauthorized, match="user alice does not exist or is disabled"):
        site.phase("instance", token=good, requests=[site.server()])
    assert not (site.directory / "records.db").exists()
    assert site.rows("instances") == []


@ANY_DATABASE
def test_no_secret_is_in_a_result_or_in_the_records(site: Any) -> None:
    handle = site.boot(site.server(userdata="#cloud-config"))
    token, (user, *_) = site.token(), site.catalog["users"]
    told = json.dumps([handle, site.results, site.dump(), site.events()], default=str)
    assert "#cloud-config" in told
    for secret in (token, user["password_hash"], "hush-hush"):
        assert secret not in told
