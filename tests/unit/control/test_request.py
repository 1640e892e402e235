# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Requests that are right: what becomes of them, and how a later one differs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.identity import Identity
from ansible_collections.barestack.kvm.plugins.module_utils.control.request import (
    Requested,
    default_hostname,
    differences,
    parse,
    sanitize_hostname,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.request_record import FROZEN
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import WaitFor

SITE = Path(__file__).with_name("site.yml")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIeeq8xm9FYxMVCgMlYjhTcZPWzlwZCCvWUgXVnfRgOQ"


def site() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(SITE.read_text())
    return loaded


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.load(site())


@pytest.fixture(scope="module")
def alice(catalog: Catalog) -> Identity:
    user, project = catalog.user("alice"), catalog.project("demo")
    return Identity(user.id, user.name, project.id, project.name, ("member", "reader"), "audit")


def one(entry: str, catalog: Catalog, who: Identity | None) -> Requested:
    base = {"name": "web", "flavor": "m1.small", "image": "demo", "network": "private"}
    changed = {**base, **yaml.safe_load(entry or "{}")}
    servers = parse([{key: value for key, value in changed.items() if value is not None}], catalog, who)
    assert len(servers) == 1
    return servers[0]


def test_the_least_that_is_needed(catalog: Catalog, alice: Identity) -> None:
    server = one("", catalog, alice)
    assert (server.name, server.hostname, server.flavor.id, server.image.name) == ("web", "web", "2", "demo")
    assert server.networks == ({"network": catalog.network("private"), "fixed_ip": None, "port": None, "tag": None},)
    assert [group.name for group in server.security_groups] == ["default"]
    assert (server.config_drive, server.user_data, server.metadata, server.launch_index) == (True, None, {}, 0)
    assert server.wait_for is None


def test_everything(catalog: Catalog, alice: Identity) -> None:
    entry = """
    flavor: "1"
    network: null
    nics:
      - net-name: private
        v4-fixed-ip: 192.0.2.77
        tag: front
      - {port: spare}
    security_groups: web,default,web
    key_name: laptop
    user_data: "#!/bin/sh"
    config_drive: no
    metadata: role=web,tier=1=2
    availability_zone: east
    scheduler_hints: {different_host: [a, b]}
    volumes: [data, {name: logs, size: "2", delete_on_termination: yes}]
    description: front end
    wait_for: {condition: console, timeout: 12, pattern: "ready$"}
    """
    server = one(entry, catalog, alice)
    assert server.flavor.name == "m1.tiny"
    first, second = server.networks
    assert (first["network"].name, first["fixed_ip"], first["port"], first["tag"]) == (
        "private",
        "192.0.2.77",
        None,
        "front",
    )
    assert second == {"network": None, "fixed_ip": None, "port": "spare", "tag": None}
    assert [group.name for group in server.security_groups] == ["web", "default"]
    assert server.key_name == "laptop"
    assert server.public_key == f"{KEY} alice@laptop"
    assert server.user_data == "#!/bin/sh"
    assert server.config_drive is False
    assert server.metadata == {"role": "web", "tier": "1=2"}
    assert server.availability_zone == "east"
    assert server.scheduler_hints == {"different_host": ["a", "b"]}
    assert [(v.existing, v.name, v.size, v.delete_on_termination) for v in server.volumes] == [
        ("data", None, 0, False),
        (None, "logs", 2, True),
    ]
    assert server.wait_for == WaitFor("console", 12.0, "ready$")
    assert server.description == "front end"


@pytest.mark.parametrize(
    ("nics", "expected"),
    [
        ("net-name=private", [("private", None)]),
        ("net-name=private,net-name=storage", [("private", None), ("storage", None)]),
        (
            ["net-name=private,v4-fixed-ip=192.0.2.9", {"network": "storage"}],
            [("private", "192.0.2.9"), ("storage", None)],
        ),
        ([{"net-name": "private"}, {"net-name": "private"}], [("private", None), ("private", None)]),
        ("none", []),
    ],
)
def test_forms_of_nics(nics: Any, expected: list[tuple[str, str | None]], catalog: Catalog, alice: Identity) -> None:
    (server,) = parse([{"name": "web", "flavor": "m1.small", "image": "demo", "nics": nics}], catalog, alice)
    assert [(nic["network"].name, nic["fixed_ip"]) for nic in server.networks] == expected


def test_a_fixed_ip_outside_the_pools_is_allowed_and_spelt_as_usual() -> None:
    data = site()
    data["networks"][0]["subnets"] = [
        {
            "name": "v4",
            "cidr": "192.0.2.0/24",
            "allocation_pool_start": "192.0.2.10",
            "allocation_pool_end": "192.0.2.20",
        },
        {"name": "v6", "cidr": "2001:db8::/64"},
    ]
    nics = "[{net-name: private, fixed_ip: 192.0.2.99}, {net-name: private, fixed_ip: '2001:DB8:0::9'}]"
    entry = f"{{network: null, nics: {nics}}}"
    server = one(entry, Catalog.load(data), None)
    assert [nic["fixed_ip"] for nic in server.networks] == ["192.0.2.99", "2001:db8::9"]


def test_the_only_network_is_taken(alice: Identity) -> None:
    data = site()
    data["networks"] = data["networks"][1:]
    server = one("{network: null}", Catalog.load(data), alice)
    assert [nic["network"].name for nic in server.networks] == ["storage"]


def test_flavor_without_a_disk_takes_any_image(catalog: Catalog, alice: Identity) -> None:
    assert one("{flavor: diskless, image: big}", catalog, alice).image.min_disk == 10


def test_without_an_identity_only_what_is_everybodys(catalog: Catalog) -> None:
    with pytest.raises(InvalidRequest, match="key_name: unknown keypair 'laptop'. Known: none"):
        one("{key_name: laptop}", catalog, None)
    with pytest.raises(InvalidRequest, match="unknown network 'theirs'. Known: private, storage"):
        one("{network: theirs}", catalog, None)


def test_count(catalog: Catalog, alice: Identity) -> None:
    entry = {"name": "Web_1", "flavor": "m1.small", "image": "demo", "network": "private", "count": 3}
    entry["volumes"] = [{"name": "data", "size": 1}, {"size": 1}]
    servers = parse([entry], catalog, alice)
    assert [server.name for server in servers] == ["Web_1-1", "Web_1-2", "Web_1-3"]
    assert [server.hostname for server in servers] == ["web-1-1", "web-1-2", "web-1-3"]
    assert [server.launch_index for server in servers] == [0, 1, 2]
    assert [[volume.name for volume in server.volumes] for server in servers] == [
        [f"data-{n}", None] for n in (1, 2, 3)
    ]


def test_user_data_up_to_the_limit(catalog: Catalog, alice: Identity) -> None:
    assert one(f"{{userdata: {'x' * 49149}}}", catalog, alice).user_data == "x" * 49149


def test_user_data_is_not_in_the_repr(catalog: Catalog, alice: Identity) -> None:
    server = one("{userdata: hush}", catalog, alice)
    assert "hush" not in repr(server)
    assert "hush" not in json.dumps(server.to_record())


@pytest.mark.parametrize(
    ("name", "hostname"),
    [
        ("web", "web"),
        ("Web 1_a.example.org", "web-1-a-example-org"),
        ("-x-", "x"),
        ("caf\u00e9 \u4e2d", "caf"),
        ("a" * 80, "a" * 63),
        ("\u4e2d\u6587", ""),
        ("web;rm -rf /", "webrm--rf"),
    ],
)
def test_hostname(name: str, hostname: str) -> None:
    assert sanitize_hostname(name) == hostname


def test_a_name_without_a_hostname(catalog: Catalog, alice: Identity) -> None:
    assert one('{name: "\u4e2d\u6587"}', catalog, alice).hostname == ""
    assert default_hostname("9d1c") == "Server-9d1c"


def test_the_record_survives_json_and_is_no_difference(catalog: Catalog, alice: Identity) -> None:
    server = one(
        "{userdata: a, meta: {a: b}, volumes: [{size: 1}, data], nics: [port=p], network: null, "
        "scheduler_hints: {g: [x]}}",
        catalog,
        alice,
    )
    record = json.loads(json.dumps(server.to_record()))
    assert set(record) == set(FROZEN)
    assert differences(server, record) == []


@pytest.mark.parametrize(
    ("entry", "difference"),
    [
        ("{flavor: m1.tiny}", "its flavor is m1.small (2), not m1.tiny (1)"),
        ("{image: big}", "its image is demo ({demo}), not big ({big})"),
        ("{network: storage}", "its networks are {{network=private ({private})}}, not {{network=storage ({storage})}}"),
        (
            "{network: null, nics: [{net-name: private, fixed_ip: 192.0.2.9}]}",
            "its networks are {{network=private ({private})}}, not {{network=private ({private}) fixed_ip=192.0.2.9}}",
        ),
        ("{security_groups: [web]}", "its security_groups are default ({default}), not web ({web})"),
        ("{key_name: laptop}", "its key_name is none, not laptop"),
        ("{userdata: hush}", "its userdata is none, not sha256:{digest}"),
        ("{config_drive: false}", "its config_drive is true, not false"),
        ("{meta: {a: b}}", "its meta is none, not {{a=b}}"),
        ("{availability_zone: east}", "its availability_zone is none, not east"),
        ("{scheduler_hints: {group: g}}", "its scheduler_hints are none, not {{group=g}}"),
        (
            "{volumes: [{size: 1}]}",
            "its volumes are none, not {{size=1 delete_on_termination=false}}",
        ),
        ("{volumes: [data]}", "its volumes are none, not {{existing=data size=0 delete_on_termination=false}}"),
    ],
)
def test_what_cannot_change(entry: str, difference: str, catalog: Catalog, alice: Identity) -> None:
    recorded = json.loads(json.dumps(one("", catalog, alice).to_record()))
    ids = {item.name: item.id for item in (*catalog.images, *catalog.networks)}
    ids.update({group.name: group.id for group in catalog.security_groups(alice.project_id)})
    expected = difference.format(**ids, digest=hashlib.sha256(b"hush").hexdigest()[:12])
    assert differences(one(entry, catalog, alice), recorded) == [expected]


def test_what_may_change(catalog: Catalog, alice: Identity) -> None:
    recorded = one("{security_groups: [web, default]}", catalog, alice).to_record()
    later = one("{security_groups: [default, web], description: new, wait_for: ssh, count: 1}", catalog, alice)
    assert differences(later, recorded) == []


def test_a_renamed_flavor_is_the_same_flavor(catalog: Catalog, alice: Identity) -> None:
    recorded = one("", catalog, alice).to_record()
    data = site()
    data["flavors"][1]["name"] = "general.small"
    assert differences(one("{flavor: general.small}", Catalog.load(data), alice), recorded) == []


@pytest.mark.parametrize(
    ("extra_specs", "message"),
    [
        (
            {"resources:CUSTOM_GPU": "one"},
            "flavor odd: extra spec resources:CUSTOM_GPU=one: give a resource class in capit",
        ),
        (
            {"trait:CUSTOM_SSD": "wanted"},
            "flavor odd: trait:CUSTOM_SSD=wanted: give a trait in capitals, and as its value",
        ),
        ({"hw:cpu_policy": "own"}, "flavor odd: hw:cpu_policy"),
    ],
)
def test_a_flavor_that_no_host_could_be_asked_for(extra_specs: dict[str, str], message: str, alice: Identity) -> None:
    data = site()
    data["flavors"].append({"name": "odd", "vcpus": 1, "ram": 2048, "disk": 20, "extra_specs": extra_specs})
    with pytest.raises(InvalidRequest) as error:
        one("{flavor: odd}", Catalog.load(data), alice)
    assert str(error.value).startswith(f"instances[0] (web).flavor: {message}")


def test_hints_and_hosts(catalog: Catalog, alice: Identity) -> None:
    server = one("{host: kvm1, ignore_hosts: [kvm2], scheduler_hints: {group: web, same_host: null}}", catalog, alice)
    assert (server.host, server.ignore_hosts, server.scheduler_hints) == ("kvm1", ("kvm2",), {"group": "web"})
    server = one("{scheduler_hints: {group: {name: g, policy: anti-affinity, rules: {}}}}", catalog, alice)
    assert server.scheduler_hints == {"group": {"name": "g", "policy": "anti-affinity", "rules": {}}}
    assert one("{availability_zone: 'east:kvm1'}", catalog, alice).availability_zone == "east:kvm1"
