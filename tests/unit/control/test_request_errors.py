# ruff: noqa: E501 - a message is one line
# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Every malformed request with all that is said about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.control.identity import Identity
from ansible_collections.barestack.kvm.plugins.module_utils.control.request import parse
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest

SITE = Path(__file__).with_name("site.yml")

BASE = "flavor: m1.small, image: demo, network: private"
ALLOWED = (
    "availability_zone, config_drive, count, description, flavor, host, ignore_hosts, image, key_name, meta, metadata, name, network, nics, "
    "scheduler_hints, security_groups, user_data, userdata, volumes, wait_for"
)
KEYS = (
    "name, flavor, image, count, network, nics, security_groups, key_name, userdata, config_drive, meta, "
    "availability_zone, host, ignore_hosts, scheduler_hints, volumes, description, wait_for"
)

# (what is wrong, the request as YAML, what is said: one line for each problem)
MALFORMED: list[tuple[str, str, list[str]]] = [
    (
        "not a mapping",
        "[web]",
        [
            "instances[0]: must be a mapping with the keys " + KEYS + ", not a string",
        ],
    ),
    (
        "nothing given",
        "[{}]",
        [
            "instances[0]: missing required arguments: flavor, image, name",
        ],
    ),
    (
        "no flavor and no image",
        "[{name: web}]",
        [
            "instances[0] (web): missing required arguments: flavor, image",
        ],
    ),
    (
        "a null flavor",
        "[{name: web, flavor: null, image: demo, network: private}]",
        [
            "instances[0] (web): missing required arguments: flavor",
        ],
    ),
    (
        "a name that is a mapping",
        "[{name: {a: 1}, BASE}]",
        [
            "instances[0].name: must be a string, not the mapping {'a': 1}",
        ],
    ),
    (
        "a name that YAML reads as a boolean",
        "[{name: yes, BASE}]",
        [
            "instances[0].name: must be a string, not the boolean true",
        ],
    ),
    (
        "an empty name",
        "[{name: '', BASE}]",
        [
            "instances[0].name: is empty",
        ],
    ),
    (
        "a name of 256 characters",
        "[{name: " + "n" * 256 + ", BASE}]",
        [
            "instances[0] (nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn...).name: has 256 characters, at most 255 are allowed",
        ],
    ),
    (
        "a name with a space at its end",
        "[{name: 'web ', BASE}]",
        [
            "instances[0] (web ).name: 'web ' begins or ends with a space",
        ],
    ),
    (
        "a name with a line break",
        '[{name: "we\\nb", BASE}]',
        [
            "instances[0] (we?b).name: 'we\\nb' holds characters that cannot be printed",
        ],
    ),
    (
        "a name too long for its number",
        "[{name: " + "n" * 253 + ", count: 10, BASE}]",
        [
            "instances[0] (nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn...).name: is too long: nnnnnnnnnnnnnnnnnnnn...-10 must fit in 255 characters",
        ],
    ),
    (
        "a misspelt key",
        "[{name: web, flavour: m1.small, image: demo, network: private}]",
        [
            "instances[0] (web).flavour: unknown key, did you mean flavor? Allowed: " + ALLOWED,
            "instances[0] (web): missing required arguments: flavor",
        ],
    ),
    (
        "an unknown key",
        "[{name: web, colour: red, BASE}]",
        [
            "instances[0] (web).colour: unknown key. Allowed: " + ALLOWED,
        ],
    ),
    (
        "an unknown flavor",
        "[{name: web, flavor: m1.smal, image: demo, network: private}]",
        [
            "instances[0] (web).flavor: unknown flavor 'm1.smal', did you mean m1.small? Known: diskless, m1.small, m1.tiny",
        ],
    ),
    (
        "an unknown image",
        "[{name: web, flavor: m1.small, image: windows, network: private}]",
        [
            "instances[0] (web).image: unknown image 'windows'. Known: big, demo",
        ],
    ),
    (
        "a flavor with too little memory",
        "[{name: web, flavor: m1.tiny, image: big, network: private}]",
        [
            "instances[0] (web).flavor: Flavor's memory is too small for requested image. Flavor m1.tiny has 128 MiB, image big has min_ram 512 MiB",
            "instances[0] (web).flavor: Flavor's disk is smaller than the minimum size specified in image metadata. Flavor m1.tiny has 1 GiB, image big has min_disk 10 GiB",
        ],
    ),
    (
        "an unknown network",
        "[{name: web, flavor: m1.small, image: demo, network: privat}]",
        [
            "instances[0] (web).network: unknown network 'privat', did you mean private? Known: private, storage",
        ],
    ),
    (
        "another project's network",
        "[{name: web, flavor: m1.small, image: demo, network: theirs}]",
        [
            "instances[0] (web).network: unknown network 'theirs'. Known: private, storage",
        ],
    ),
    (
        "several networks and none chosen",
        "[{name: web, flavor: m1.small, image: demo}]",
        [
            "instances[0] (web).network: Multiple possible networks found, use a Network ID to be more specific. Known: private, storage",
        ],
    ),
    (
        "network and nics",
        "[{name: web, nics: [{net-name: private}], BASE}]",
        [
            "instances[0] (web): network and nics exclude each other: give one",
        ],
    ),
    (
        "a nic that is a number",
        "[{name: web, flavor: m1.small, image: demo, nics: [5]}]",
        [
            "instances[0] (web).nics[0]: must be a mapping or a string such as net-name=private, not the number 5",
        ],
    ),
    (
        "a nic that is a bare name",
        "[{name: web, flavor: m1.small, image: demo, nics: [private]}]",
        [
            "instances[0] (web).nics[0]: must be a mapping or a string such as net-name=private, not the string 'private'",
        ],
    ),
    (
        "a nic with an unknown key",
        "[{name: web, flavor: m1.small, image: demo, nics: [{net-nam: private}]}]",
        [
            "instances[0] (web).nics[0]: unknown key 'net-nam', did you mean net-name or port-name or net-id? Known: fixed_ip, net-id, net-name, network, port, port-id, port-name, tag, v4-fixed-ip, v6-fixed-ip",
            "instances[0] (web).nics[0]: names neither a network (net-id, net-name, network) nor a port (port-id, port-name, port)",
        ],
    ),
    (
        "a nic without a network",
        "[{name: web, flavor: m1.small, image: demo, nics: [{tag: a}]}]",
        [
            "instances[0] (web).nics[0]: names neither a network (net-id, net-name, network) nor a port (port-id, port-name, port)",
        ],
    ),
    (
        "a nic with network and port",
        "[{name: web, flavor: m1.small, image: demo, nics: [{net-name: private, port-name: p1}]}]",
        [
            "instances[0] (web).nics[0]: network and port exclude each other: the port knows its network",
        ],
    ),
    (
        "a nic with two networks",
        "[{name: web, flavor: m1.small, image: demo, nics: [{net-name: private, net-id: storage}]}]",
        [
            "instances[0] (web).nics[0].net-id: network is given twice",
        ],
    ),
    (
        "a port with a fixed ip",
        "[{name: web, flavor: m1.small, image: demo, nics: ['port-name=p1,v4-fixed-ip=192.0.2.9']}]",
        [
            "instances[0] (web).nics[0]: Specified Fixed IP '192.0.2.9' cannot be used with port 'p1': the two cannot be specified together.",
        ],
    ),
    (
        "a tag with a comma",
        "[{name: web, flavor: m1.small, image: demo, nics: [{net-name: private, tag: 'a,b'}]}]",
        [
            "instances[0] (web).nics[0].tag: 'a,b' is no tag: at most 60 characters without ',' and '/'",
        ],
    ),
    (
        "a fixed ip that is none",
        "[{name: web, flavor: m1.small, image: demo, nics: [{net-name: private, fixed_ip: 192.0.2.300}]}]",
        [
            "instances[0] (web).nics[0].fixed_ip: '192.0.2.300' is not an IP address",
        ],
    ),
    (
        "a fixed ip of another network",
        "[{name: web, flavor: m1.small, image: demo, nics: [{net-name: private, fixed_ip: 198.51.100.9}]}]",
        [
            "instances[0] (web).nics[0].fixed_ip: IP address 198.51.100.9 is not a valid IP for any of the subnets on the specified network. Network private has 192.0.2.0/24",
        ],
    ),
    (
        "the gateway's address",
        "[{name: web, flavor: m1.small, image: demo, nics: [{net-name: private, v4-fixed-ip: 192.0.2.1}]}]",
        [
            "instances[0] (web).nics[0].fixed_ip: IP address 192.0.2.1 is the gateway of 192.0.2.0/24",
        ],
    ),
    (
        "the network's address",
        "[{name: web, flavor: m1.small, image: demo, nics: ['net-name=private,v4-fixed-ip=192.0.2.0']}]",
        [
            "instances[0] (web).nics[0].fixed_ip: IP address 192.0.2.0 is the network's or the broadcast address of 192.0.2.0/24",
        ],
    ),
    (
        "the broadcast address",
        "[{name: web, flavor: m1.small, image: demo, nics: [{network: private, fixed_ip: 192.0.2.255}]}]",
        [
            "instances[0] (web).nics[0].fixed_ip: IP address 192.0.2.255 is the network's or the broadcast address of 192.0.2.0/24",
        ],
    ),
    (
        "one fixed ip for two servers",
        "[{name: a, flavor: m1.small, image: demo, nics: [{net-name: private, fixed_ip: 192.0.2.9}]}, {name: b, flavor: m1.small, image: demo, nics: [{net-name: private, fixed_ip: 192.0.2.9}]}]",
        [
            "instances[1] (b).nics[0].fixed_ip: '192.0.2.9' is already used by instances[0] (a).nics[0]",
        ],
    ),
    (
        "one port for two servers",
        "[{name: a, flavor: m1.small, image: demo, nics: [{port-name: p1}]}, {name: b, flavor: m1.small, image: demo, nics: [{port-name: p1}]}]",
        [
            "instances[1] (b).nics[0].port: 'p1' is already used by instances[0] (a).nics[0]",
        ],
    ),
    (
        "several servers with one fixed ip",
        "[{name: web, count: 2, flavor: m1.small, image: demo, nics: [{net-name: private, fixed_ip: 192.0.2.9}]}]",
        [
            "instances[0] (web).count: Failed to launch instances: max_count cannot be greater than 1 if an fixed_ip is specified.",
        ],
    ),
    (
        "several servers with one port",
        "[{name: web, count: 2, flavor: m1.small, image: demo, nics: [{port-id: p1}]}]",
        [
            "instances[0] (web).count: Failed to launch instances: Unable to launch multiple instances with a single configured port ID. Please launch your instance one by one with different ports.",
        ],
    ),
    (
        "a count of none",
        "[{name: web, count: 0, BASE}]",
        [
            "instances[0] (web).count: 0 is not allowed, it must be between 1 and 1000",
        ],
    ),
    (
        "a count beyond reason",
        "[{name: web, count: 100000, BASE}]",
        [
            "instances[0] (web).count: 100000 is not allowed, it must be between 1 and 1000",
        ],
    ),
    (
        "a count that is a word",
        "[{name: web, count: two, BASE}]",
        [
            "instances[0] (web).count: must be a whole number, not the string 'two'",
        ],
    ),
    (
        "a count with a fraction",
        "[{name: web, count: 1.5, BASE}]",
        [
            "instances[0] (web).count: must be a whole number, not the number 1.5",
        ],
    ),
    (
        "a name asked for twice",
        "[{name: web, BASE}, {name: web, BASE}]",
        [
            "instances[1] (web).name: 'web' is already asked for by instances[0] (web)",
        ],
    ),
    (
        "a name that count makes",
        "[{name: web, count: 2, BASE}, {name: web-2, BASE}]",
        [
            "instances[1] (web-2).name: 'web-2' is already asked for by instances[0] (web)",
        ],
    ),
    (
        "an unknown security group",
        "[{name: web, security_groups: [default, wbe], BASE}]",
        [
            "instances[0] (web).security_groups[1]: unknown security group 'wbe', did you mean web? Known: default, web",
        ],
    ),
    (
        "a security group that is a mapping",
        "[{name: web, security_groups: [{name: web}], BASE}]",
        [
            "instances[0] (web).security_groups[0]: must be a string, not the mapping {'name': 'web'}",
        ],
    ),
    (
        "an unknown key pair",
        "[{name: web, key_name: laptob, BASE}]",
        [
            "instances[0] (web).key_name: unknown keypair 'laptob', did you mean laptop? Known: laptop",
        ],
    ),
    (
        "another user's key pair",
        "[{name: web, key_name: bobs, BASE}]",
        [
            "instances[0] (web).key_name: unknown keypair 'bobs'. Known: laptop",
        ],
    ),
    (
        "user data that is a mapping",
        "[{name: web, userdata: {password: hush}, BASE}]",
        [
            "instances[0] (web).userdata: must be a string, not a mapping",
        ],
    ),
    (
        "user data under both names",
        "[{name: web, userdata: a, user_data: b, BASE}]",
        [
            "instances[0] (web): user_data and userdata are the same option: give one",
        ],
    ),
    (
        "user data that is too large",
        "[{name: web, userdata: " + "x" * 49152 + ", BASE}]",
        [
            "instances[0] (web).userdata: User data too large. User data must be no larger than 65535 bytes once base64 encoded. Your data is 65536 bytes",
        ],
    ),
    (
        "config_drive that is neither true nor false",
        "[{name: web, config_drive: maybe, BASE}]",
        [
            "instances[0] (web).config_drive: must be true or false, not the string 'maybe'",
        ],
    ),
    (
        "metadata that is a list",
        "[{name: web, meta: [a], BASE}]",
        [
            "instances[0] (web).meta: must be a mapping or a string of key=value,key=value, not the list ['a']",
        ],
    ),
    (
        "metadata without a sign",
        "[{name: web, meta: 'a=1,b', BASE}]",
        [
            "instances[0] (web).meta: 'b' is not of the form key=value",
        ],
    ),
    (
        "a metadata value that is a number",
        "[{name: web, meta: {tier: 1}, BASE}]",
        [
            "instances[0] (web).meta.tier: must be a string, not the number 1: quote it",
        ],
    ),
    (
        "a metadata value that is null",
        "[{name: web, meta: {tier: null}, BASE}]",
        [
            "instances[0] (web).meta.tier: must be a string, not null: quote it",
        ],
    ),
    (
        "a metadata value that is too long",
        "[{name: web, meta: {a: " + "v" * 256 + "}, BASE}]",
        [
            "instances[0] (web).meta.a: has 256 characters, at most 255 are allowed",
        ],
    ),
    (
        "a metadata key with a slash",
        "[{name: web, meta: {a/b: c}, BASE}]",
        [
            "instances[0] (web).meta: key 'a/b' must be 1 to 255 letters, digits, '-', '_', ':', '.', spaces",
        ],
    ),
    (
        "too many metadata",
        "[{name: web, meta: {" + ", ".join(f"k{i}: v" for i in range(129)) + "}, BASE}]",
        [
            "instances[0] (web).meta: Maximum number of metadata items exceeds 128: there are 129",
        ],
    ),
    (
        "an unknown availability zone",
        "[{name: web, availability_zone: west, BASE}]",
        [
            "instances[0] (web).availability_zone: unknown availability zone 'west', did you mean east? Known: east, nova",
        ],
    ),
    (
        "a forced host in a zone that is not there, and two hosts",
        "[{name: web, availability_zone: 'west:kvm1', BASE}, {name: db, availability_zone: 'east:kvm1:kvm2', BASE}]",
        [
            "instances[0] (web).availability_zone: unknown availability zone 'west', did you mean east? Known: east, nova",
            "instances[1] (db).availability_zone: availability_zone 'east:kvm1:kvm2': Unable to parse availability_zone; "
            "give a zone, or zone:host to force a host",
        ],
    ),
    (
        "hints that name no group, or make one that cannot be",
        "[{name: a, scheduler_hints: {group: [x]}, BASE}, {name: b, scheduler_hints: {group: {name: g}}, BASE}, "
        "{name: c, scheduler_hints: {group: {name: g, policy: affinity, rules: {max_server_per_host: 2}}}, BASE}, "
        "{name: d, scheduler_hints: {group: {name: g, policy: anti-affinity, rules: {max_server_per_host: 0}}}, BASE}, "
        "{name: e, scheduler_hints: {group: {name: g, policy: near}}, BASE}]",
        [
            "instances[0] (a).scheduler_hints.group: must be a server group's name or id, or a mapping with name and "
            "policy that makes one, not the list ['x']",
            "instances[1] (b).scheduler_hints.group: missing required arguments: policy",
            "instances[2] (c).scheduler_hints.group.rules.max_server_per_host: is a rule of policy anti-affinity only, "
            "not of affinity",
            "instances[3] (d).scheduler_hints.group.rules.max_server_per_host: 0 is not allowed, it must be at least 1",
            "instances[4] (e).scheduler_hints.group: value of policy must be one of: affinity, anti-affinity, "
            "soft-affinity, soft-anti-affinity, got: near",
        ],
    ),
    (
        "hints that are a list",
        "[{name: web, scheduler_hints: [a], BASE}]",
        [
            "instances[0] (web).scheduler_hints: must be a mapping, not the list ['a']",
        ],
    ),
    (
        "Nova's own hint",
        "[{name: web, scheduler_hints: {_nova_check_type: rebuild}, BASE}]",
        [
            "instances[0] (web).scheduler_hints._nova_check_type: hints that begin with _nova are Nova's own",
        ],
    ),
    (
        "a volume without a size",
        "[{name: web, volumes: [{name: data}], BASE}]",
        [
            "instances[0] (web).volumes[0]: missing required arguments: size",
        ],
    ),
    (
        "a volume of no size",
        "[{name: web, volumes: [{size: 0}], BASE}]",
        [
            "instances[0] (web).volumes[0].size: 0 is not allowed, it must be at least 1",
        ],
    ),
    (
        "a volume with an unknown key",
        "[{name: web, volumes: [{size: 1, type: ssd}], BASE}]",
        [
            "instances[0] (web).volumes[0].type: unknown key. Allowed: delete_on_termination, name, size",
        ],
    ),
    (
        "a volume that is a number",
        "[{name: web, volumes: [5], BASE}]",
        [
            "instances[0] (web).volumes[0]: must be a mapping with the keys name, size, delete_on_termination, not the number 5",
        ],
    ),
    (
        "two volumes of one name",
        "[{name: web, volumes: [{size: 1, name: d}, {size: 2, name: d}], BASE}]",
        [
            "instances[0] (web).volumes: the name 'd' is given twice",
        ],
    ),
    (
        "an existing volume for several servers",
        "[{name: web, count: 2, volumes: [data], BASE}]",
        [
            "instances[0] (web).count: Cannot attach one or more volumes to multiple instances",
        ],
    ),
    (
        "an existing volume for two servers",
        "[{name: a, volumes: [data], BASE}, {name: b, volumes: [data], BASE}]",
        [
            "instances[1] (b).volumes[0].name: 'data' is already used by instances[0] (a).volumes[0]",
        ],
    ),
    (
        "a description that is too long",
        "[{name: web, description: " + "d" * 256 + ", BASE}]",
        [
            "instances[0] (web).description: has 256 characters, at most 255 are allowed",
        ],
    ),
    (
        "an unknown condition to wait for",
        "[{name: web, wait_for: boot, BASE}]",
        [
            "instances[0] (web).wait_for: value of condition must be one of: lease, console, ssh, got: boot",
        ],
    ),
    (
        "no condition to wait for",
        "[{name: web, wait_for: {timeout: 10}, BASE}]",
        [
            "instances[0] (web).wait_for: missing required arguments: condition",
        ],
    ),
    (
        "a timeout of nothing",
        "[{name: web, wait_for: {condition: ssh, timeout: 0}, BASE}]",
        [
            "instances[0] (web).wait_for.timeout: 0 is not allowed, it must be more than 0 seconds",
        ],
    ),
    (
        "a pattern that is no regular expression",
        "[{name: web, wait_for: {condition: console, pattern: '(login'}, BASE}]",
        [
            "instances[0] (web).wait_for.pattern: '(login' is not a regular expression: missing ), unterminated subpattern at position 0",
        ],
    ),
    (
        "a pattern for ssh",
        "[{name: web, wait_for: {condition: ssh, pattern: login}, BASE}]",
        [
            "instances[0] (web).wait_for.pattern: is for condition console only, not for ssh",
        ],
    ),
    (
        "a lease where there is no DHCP",
        "[{name: web, flavor: m1.small, image: demo, network: storage, wait_for: lease}]",
        [
            "instances[0] (web).wait_for: there would never be a lease: no subnet of the server's networks has enable_dhcp",
        ],
    ),
    (
        "floating IPs",
        "[{name: web, floating_ips: [192.0.2.7], BASE}]",
        [
            "instances[0] (web).floating_ips: there are no floating IPs: a server's addresses are those of its networks",
        ],
    ),
    (
        "auto_ip",
        "[{name: web, auto_ip: true, BASE}]",
        [
            "instances[0] (web).auto_ip: there are no floating IPs: a server's addresses are those of its networks",
        ],
    ),
    (
        "booting from a volume",
        "[{name: web, boot_from_volume: true, volume_size: 10, BASE}]",
        [
            "instances[0] (web).boot_from_volume: booting from a volume is not supported: the root disk is made from the image and the flavor's disk",
            "instances[0] (web).volume_size: booting from a volume is not supported: the root disk is made from the image and the flavor's disk",
        ],
    ),
    (
        "a flavor by its ram",
        "[{name: web, flavor_ram: 512, image: demo, network: private}]",
        [
            "instances[0] (web).flavor_ram: a flavor is not searched by its ram: name it with flavor",
            "instances[0] (web): missing required arguments: flavor",
        ],
    ),
    (
        "credentials in the entry",
        "[{name: web, auth: {password: hush}, BASE}]",
        [
            "instances[0] (web).auth: belongs to the connection: who asks is said by auth of barestack.kvm.token",
        ],
    ),
    (
        "state",
        "[{name: web, state: absent, BASE}]",
        [
            "instances[0] (web).state: the playbook says it: boot_instance.yml makes servers, delete_instance.yml deletes them",
        ],
    ),
    (
        "tags",
        "[{name: web, tags: [a], BASE}]",
        [
            "instances[0] (web).tags: server tags are not kept: use meta",
        ],
    ),
    (
        "everything at once",
        "[{name: '', flavor: m2, image: demo2, network: nowhere, key_name: none, security_groups: [x]}, {name: web, BASE, count: -1}, 7]",
        [
            "instances[0].name: is empty",
            "instances[0].flavor: unknown flavor 'm2'. Known: diskless, m1.small, m1.tiny",
            "instances[0].image: unknown image 'demo2', did you mean demo? Known: big, demo",
            "instances[0].network: unknown network 'nowhere'. Known: private, storage",
            "instances[0].key_name: unknown keypair 'none'. Known: laptop",
            "instances[0].security_groups[0]: unknown security group 'x'. Known: default, web",
            "instances[1] (web).count: -1 is not allowed, it must be between 1 and 1000",
            "instances[2]: must be a mapping with the keys " + KEYS + ", not a number",
        ],
    ),
]


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


@pytest.mark.parametrize(
    ("request_text", "lines"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED]
)
def test_malformed_request(request_text: str, lines: list[str], catalog: Catalog, alice: Identity) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(yaml.safe_load(request_text.replace("BASE", BASE)), catalog, alice)
    assert str(caught.value) == "\n".join(lines)
    assert caught.value.code == 400
    assert "hush" not in str(caught.value)


def test_there_are_forty_at_least() -> None:
    assert len({text for _, text, _ in MALFORMED}) >= 40


def test_no_network_at_all(alice: Identity) -> None:
    bare = site()
    bare["networks"] = [network for network in bare["networks"] if network["name"] == "theirs"]
    with pytest.raises(InvalidRequest) as caught:
        parse([{"name": "web", "flavor": "m1.small", "image": "demo"}], Catalog.load(bare), alice)
    assert str(caught.value) == "instances[0] (web).network: no network of the catalogue is available to project 'demo'"
