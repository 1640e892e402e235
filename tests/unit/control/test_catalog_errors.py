# ruff: noqa: E501 - a message is one line
# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Every malformed catalogue with all that is said about it."""

from __future__ import annotations

import pytest
import yaml
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog
from ansible_collections.barestack.kvm.plugins.module_utils.model.errors import InvalidRequest

WORDS = {
    "FLAVOR": "vcpus: 1, ram: 64",
    "V4": "{name: v4, cidr: 192.0.2.0/24}",
    "SHA": "sha256:" + "1" * 64,
    "HASH": "'$argon2id$v=19$m=65536,t=3,p=4$eobz+p9E6VB6TvSeBkq1Aw$1TLKFkc7+kEmxFLftkbfIQh4DoXd+da/cze8mSXkqxs'",
    ": KEY": ": ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIeeq8xm9FYxMVCgMlYjhTcZPWzlwZCCvWUgXVnfRgOQ",
}

# (what is wrong, the catalogue as YAML, what is said: one line for each problem)
MALFORMED: list[tuple[str, str, list[str]]] = [
    (
        "an unknown section",
        "flavours: []",
        [
            "catalog: unknown section 'flavours', did you mean flavors? Known: aggregates, flavors, images, keypairs, networks, projects, security_groups, server_groups, users",
        ],
    ),
    (
        "a section that is a mapping",
        "flavors: {m1: {vcpus: 1}}",
        [
            "flavors: must be a list of mappings, not the mapping {'m1': {'vcpus': 1}}",
        ],
    ),
    (
        "an entry that is a string",
        "flavors: [m1.tiny]",
        [
            "flavors[0]: must be a mapping with the keys name, id, description, vcpus, ram, disk, ephemeral, swap, extra_specs, not the string 'm1.tiny'",
        ],
    ),
    (
        "a missing key",
        "flavors: [{name: f, vcpus: 1}]",
        [
            "flavors[0] (f): missing required arguments: ram",
        ],
    ),
    (
        "an unknown key",
        "flavors: [{name: f, vcpu: 1, FLAVOR}]",
        [
            "flavors[0] (f).vcpu: unknown key, did you mean vcpus? Allowed: description, disk, ephemeral, extra_specs, id, name, ram, swap, vcpus",
        ],
    ),
    (
        "a wrong type",
        "flavors: [{name: f, vcpus: two, ram: 64}]",
        [
            "flavors[0] (f).vcpus: must be a whole number, not the string 'two'",
        ],
    ),
    (
        "no CPU",
        "flavors: [{name: f, vcpus: 0, ram: 64}]",
        [
            "flavors[0] (f).vcpus: 0 is not allowed, it must be at least 1",
        ],
    ),
    (
        "no memory and a negative disk",
        "flavors: [{name: f, vcpus: 1, ram: 0, disk: -1}]",
        [
            "flavors[0] (f).ram: 0 is not allowed, it must be at least 1",
            "flavors[0] (f).disk: -1 is not allowed, it must be at least 0",
        ],
    ),
    (
        "an extra spec that is a mapping",
        "flavors: [{name: f, FLAVOR, extra_specs: {hw: {cpu: 1}}}]",
        [
            "flavors[0] (f).extra_specs.hw: must be a string, not the mapping {'cpu': 1}",
        ],
    ),
    (
        "a name twice",
        "flavors: [{name: f, FLAVOR}, {name: f, FLAVOR}]",
        [
            "flavors[1] (f).name: 'f' is already used by flavors[0] (f)",
        ],
    ),
    (
        "an id twice",
        "flavors: [{name: f, id: '1', FLAVOR}, {name: g, id: 1, FLAVOR}]",
        [
            "flavors[1] (g).id: '1' is already used by flavors[0] (f)",
        ],
    ),
    (
        "an id that is another's name",
        "flavors: [{name: f, FLAVOR}, {name: g, id: f, FLAVOR}]",
        [
            "flavors[1] (g).id: 'f' is already used by flavors[0] (f)",
        ],
    ),
    (
        "an id that is a path",
        "flavors: [{name: f, id: ../f, FLAVOR}]",
        [
            "flavors[0] (f).id: '../f' must be 1 to 64 letters, digits, '_', '.' or '-', and begin with a letter or a digit",
        ],
    ),
    (
        "an empty name",
        "flavors: [{name: '', FLAVOR}]",
        [
            "flavors[0].name: is empty",
        ],
    ),
    (
        "a checksum of md5",
        "images: [{name: i, url: /i, checksum: 'md5:0123456789abcdef0123456789abcdef'}]",
        [
            "images[0] (i).checksum: 'md5:0123456789abcdef0123456789abcdef' is not sha256:<64 hex digits> or sha512:<128 hex digits>",
        ],
    ),
    (
        "a checksum too short",
        "images: [{name: i, url: /i, checksum: 'sha256:0123'}]",
        [
            "images[0] (i).checksum: 'sha256:0123' is not sha256:<64 hex digits> or sha512:<128 hex digits>",
        ],
    ),
    (
        "no checksum",
        "images: [{name: i, url: /i}]",
        [
            "images[0] (i): missing required arguments: checksum",
        ],
    ),
    (
        "an unknown disk format",
        "images: [{name: i, url: /i, checksum: SHA, disk_format: vmdk}]",
        [
            "images[0] (i): value of disk_format must be one of: raw, qcow2, got: vmdk",
        ],
    ),
    (
        "a relative path",
        "images: [{name: i, filename: i.qcow2, checksum: SHA}]",
        [
            "images[0] (i).url: 'i.qcow2' is neither an absolute path nor a file:///, http:// or https:// address",
        ],
    ),
    (
        "an ftp address",
        "images: [{name: i, url: 'ftp://images.example/i', checksum: SHA}]",
        [
            "images[0] (i).url: 'ftp://images.example/i' is neither an absolute path nor a file:///, http:// or https:// address",
        ],
    ),
    (
        "url and filename",
        "images: [{name: i, url: /i, filename: /i, checksum: SHA}]",
        [
            "images[0] (i): filename and url are the same option: give one",
        ],
    ),
    (
        "a negative minimum",
        "images: [{name: i, url: /i, checksum: SHA, min_ram: -1}]",
        [
            "images[0] (i).min_ram: -1 is not allowed, it must be at least 0",
        ],
    ),
    (
        "a network without a subnet",
        "networks: [{name: n}]",
        [
            "networks[0] (n).subnets: is empty: a network needs at least one subnet",
        ],
    ),
    (
        "an mtu too small",
        "networks: [{name: n, mtu: 67, subnets: [V4]}]",
        [
            "networks[0] (n).mtu: 67 is not allowed, it must be between 68 and 65535",
        ],
    ),
    (
        "an mtu too small for IPv6",
        "networks: [{name: n, mtu: 1279, subnets: [{name: v6, cidr: '2001:db8::/64'}]}]",
        [
            "networks[0] (n).mtu: 1279 is too small for IPv6, which needs 1280",
        ],
    ),
    (
        "an unknown network type",
        "networks: [{name: n, provider_network_type: vlan, subnets: [V4]}]",
        [
            "networks[0] (n): value of network_type must be one of: local, flat, got: vlan",
        ],
    ),
    (
        "a flat network on no wire",
        "networks: [{name: n, network_type: flat, subnets: [V4]}]",
        [
            "networks[0] (n).physical_network: is missing: network_type is flat, so say which wire it is",
        ],
    ),
    (
        "a local network on a wire",
        "networks: [{name: n, provider_physical_network: physnet1, subnets: [V4]}]",
        [
            "networks[0] (n).physical_network: 'physnet1' is for a flat network: network_type is local",
        ],
    ),
    (
        "a wire without a name",
        "networks: [{name: n, network_type: flat, physical_network: '', subnets: [V4]}]",
        [
            "networks[0] (n).physical_network: '' is not a name: 1 to 64 of letters, digits, '_', '.', '-'",
        ],
    ),
    (
        "two flat networks on one wire",
        "networks: [{name: n, network_type: flat, physical_network: p, subnets: [V4]}, {name: m, network_type: flat, physical_network: p, subnets: [{name: b, cidr: 198.51.100.0/24}]}]",
        [
            "networks[1] (m).physical_network: 'p' is that of networks[0] (n): a physical network holds one flat network",
        ],
    ),
    (
        "a flat network that overlaps with a local one",
        "networks: [{name: n, subnets: [V4]}, {name: m, network_type: flat, physical_network: p, subnets: [V4]}]",
        [
            "networks[1] (m).subnets (v4).cidr: 192.0.2.0/24 overlaps with 192.0.2.0/24 of n/v4",
        ],
    ),
    (
        "a domain that is none",
        "networks: [{name: n, dns_domain: a_b, subnets: [V4]}]",
        [
            "networks[0] (n).dns_domain: 'a_b' is not a domain name",
        ],
    ),
    (
        "a private network of nobody",
        "networks: [{name: n, shared: false, subnets: [V4]}]",
        [
            "networks[0] (n).project: is missing: shared is false, so say whose network it is",
        ],
    ),
    (
        "a network of an unknown project",
        "networks: [{name: n, shared: false, project: p, subnets: [V4]}]",
        [
            "networks[0] (n).project: unknown project 'p'. Known: none",
        ],
    ),
    (
        "an error in the second subnet",
        "networks: [{name: n, subnets: [V4, {name: b, cidr: 198.51.100.0/24, gateway: 198.51.100.1}]}]",
        [
            "networks[0] (n).subnets[1] (b).gateway: unknown key, did you mean gateway_ip? Allowed: allocation_pool_end, allocation_pool_start, allocation_pools, cidr, description, disable_gateway_ip, dns_nameservers, enable_dhcp, gateway_ip, host_routes, id, name",
        ],
    ),
    (
        "subnets that overlap",
        "networks: [{name: n, subnets: [V4, {name: b, cidr: 192.0.2.128/25}]}]",
        [
            "networks[0] (n).subnets (b).cidr: 192.0.2.128/25 overlaps with 192.0.2.0/24 of n/v4",
        ],
    ),
    (
        "local networks that overlap",
        "networks: [{name: n, subnets: [V4]}, {name: m, subnets: [V4]}]",
        [
            "networks[1] (m).subnets (v4).cidr: 192.0.2.0/24 overlaps with 192.0.2.0/24 of n/v4",
        ],
    ),
    (
        "a subnet's name twice",
        "networks: [{name: n, subnets: [V4, {name: v4, cidr: 198.51.100.0/24}]}]",
        [
            "networks[0] (n).subnets[1].name: 'v4' is already used by networks[0] (n).subnets[0]",
        ],
    ),
    (
        "ids that mean the same bridge",
        "networks: [{name: n, id: network-abc-1, subnets: [V4]}, {name: m, id: network-abc-2, subnets: [{name: b, cidr: 198.51.100.0/24}]}]",
        [
            "networks[1] (m).id: 'network-abc-2' begins as that of networks[0] (n): both would be brqnetwork-abc",
        ],
    ),
    (
        "a cidr that is none",
        "networks: [{name: n, subnets: [{name: s, cidr: 192.0.2.0/33}]}]",
        [
            "networks[0] (n).subnets[0] (s).cidr: '192.0.2.0/33' is not a network address such as 192.0.2.0/24 or 2001:db8::/64",
        ],
    ),
    (
        "a cidr with host bits",
        "networks: [{name: n, subnets: [{name: s, cidr: 192.0.2.5/24}]}]",
        [
            "networks[0] (n).subnets[0] (s).cidr: '192.0.2.5/24' is not a network address: it has host bits set, the network is 192.0.2.0/24",
        ],
    ),
    (
        "a cidr without room",
        "networks: [{name: n, subnets: [{name: s, cidr: 192.0.2.0/31}]}]",
        [
            "networks[0] (n).subnets[0] (s).cidr: 192.0.2.0/31 is too small: a subnet needs a gateway's and a guest's address, so 4 addresses",
        ],
    ),
    (
        "a multicast cidr",
        "networks: [{name: n, subnets: [{name: s, cidr: 224.0.0.0/24}]}]",
        [
            "networks[0] (n).subnets[0] (s).cidr: 224.0.0.0/24 cannot be a subnet: it is the whole address space, multicast or loopback",
        ],
    ),
    (
        "a gateway elsewhere",
        "networks: [{name: n, subnets: [{name: s, cidr: 192.0.2.0/24, gateway_ip: 198.51.100.1}]}]",
        [
            "networks[0] (n).subnets[0] (s).gateway_ip: 198.51.100.1 is not in 192.0.2.0/24",
        ],
    ),
    (
        "a gateway that is the broadcast address",
        "networks: [{name: n, subnets: [{name: s, cidr: 192.0.2.0/24, gateway_ip: 192.0.2.255}]}]",
        [
            "networks[0] (n).subnets[0] (s).gateway_ip: 192.0.2.255 is the network's or the broadcast address of 192.0.2.0/24",
        ],
    ),
    (
        "a gateway that is none",
        "networks: [{name: n, subnets: [{name: s, cidr: 192.0.2.0/24, gateway_ip: router}]}]",
        [
            "networks[0] (n).subnets[0] (s).gateway_ip: 'router' is not an IP address",
        ],
    ),
    (
        "a gateway disabled and given",
        "networks: [{name: n, subnets: [{name: s, cidr: 192.0.2.0/24, gateway_ip: 192.0.2.1, disable_gateway_ip: true}]}]",
        [
            "networks[0] (n).subnets[0] (s): gateway_ip and disable_gateway_ip exclude each other",
        ],
    ),
    (
        "a pool with the gateway",
        "networks: [{name: n, subnets: [{name: s, cidr: 192.0.2.0/24, allocation_pools: [{start: 192.0.2.1, end: 192.0.2.9}]}]}]",
        [
            "networks[0] (n).subnets[0] (s).allocation_pools[0]: 192.0.2.1 to 192.0.2.9 holds the gateway 192.0.2.1",
        ],
    ),
    (
        "a pool outside",
        "networks: [{name: n, subnets: [{name: s, cidr: 192.0.2.0/24, allocation_pool_start: 192.0.2.9, allocation_pool_end: 192.0.3.9}]}]",
        [
            "networks[0] (n).subnets[0] (s).allocation_pool_end: 192.0.3.9 is not in 192.0.2.0/24",
        ],
    ),
    (
        "a pool that ends before it begins",
        "networks: [{name: n, subnets: [{name: s, cidr: 192.0.2.0/24, allocation_pools: [{start: 192.0.2.9, end: 192.0.2.5}]}]}]",
        [
            "networks[0] (n).subnets[0] (s).allocation_pools[0]: 192.0.2.9 to 192.0.2.5 ends before it begins",
        ],
    ),
    (
        "pools that overlap",
        "networks: [{name: n, subnets: [{name: s, cidr: 192.0.2.0/24, allocation_pools: [{start: 192.0.2.5, end: 192.0.2.9}, {start: 192.0.2.9, end: 192.0.2.12}]}]}]",
        [
            "networks[0] (n).subnets[0] (s).allocation_pools[1]: 192.0.2.9 to 192.0.2.12 overlaps with the pool 192.0.2.5 to 192.0.2.9",
        ],
    ),
    (
        "half a pool",
        "networks: [{name: n, subnets: [{name: s, cidr: 192.0.2.0/24, allocation_pool_start: 192.0.2.9}]}]",
        [
            "networks[0] (n).subnets[0] (s): allocation_pool_start and allocation_pool_end go together: give both",
        ],
    ),
    (
        "both forms of pools",
        "networks: [{name: n, subnets: [{name: s, cidr: 192.0.2.0/24, allocation_pool_start: 192.0.2.9, allocation_pool_end: 192.0.2.9, allocation_pools: [{start: 192.0.2.5, end: 192.0.2.6}]}]}]",
        [
            "networks[0] (n).subnets[0] (s): allocation_pools excludes allocation_pool_start and allocation_pool_end",
        ],
    ),
    (
        "a name server that is a name",
        "networks: [{name: n, subnets: [{name: s, cidr: 192.0.2.0/24, dns_nameservers: [ns.example]}]}]",
        [
            "networks[0] (n).subnets[0] (s).dns_nameservers[0]: 'ns.example' is not an IP address",
        ],
    ),
    (
        "a route of the other family",
        "networks: [{name: n, subnets: [{name: s, cidr: 192.0.2.0/24, host_routes: [{destination: '2001:db8::/64', nexthop: 192.0.2.9}]}]}]",
        [
            "networks[0] (n).subnets[0] (s).host_routes[0]: destination 2001:db8::/64 and nexthop '192.0.2.9' must be IPv4",
        ],
    ),
    (
        "a route to nowhere",
        "networks: [{name: n, subnets: [{name: s, cidr: 192.0.2.0/24, host_routes: [{destination: there, nexthop: 192.0.2.9}]}]}]",
        [
            "networks[0] (n).subnets[0] (s).host_routes[0].destination: 'there' is not a network address",
        ],
    ),
    (
        "an unknown direction",
        "security_groups: [{name: g, rules: [{direction: in}]}]",
        [
            "security_groups[0] (g).rules[0]: value of direction must be one of: ingress, egress, got: in",
        ],
    ),
    (
        "an unknown ether type",
        "security_groups: [{name: g, rules: [{ether_type: ipv4}]}]",
        [
            "security_groups[0] (g).rules[0]: value of ether_type must be one of: IPv4, IPv6, got: ipv4",
        ],
    ),
    (
        "an unknown protocol",
        "security_groups: [{name: g, rules: [{protocol: tpc}]}]",
        [
            "security_groups[0] (g).rules[0].protocol: 'tpc' is not a protocol: a number from 0 to 255, any, or one of ah, dccp, egp, esp, gre, icmp, icmpv6, igmp, ipip, ipv6-encap, ipv6-frag, ipv6-icmp, ipv6-nonxt, ipv6-opts, ipv6-route, ospf, pgm, rsvp, sctp, tcp, udp, udplite, vrrp",
        ],
    ),
    (
        "a protocol of the other family",
        "security_groups: [{name: g, rules: [{protocol: ipv6-icmp}]}]",
        [
            "security_groups[0] (g).rules[0].protocol: 'ipv6-icmp' is not a protocol of IPv4",
        ],
    ),
    (
        "ports without a protocol",
        "security_groups: [{name: g, rules: [{port_range_min: 80, port_range_max: 80}]}]",
        [
            "security_groups[0] (g).rules[0]: port_range_min and port_range_max need a protocol with ports, not any",
        ],
    ),
    (
        "half a port range",
        "security_groups: [{name: g, rules: [{protocol: tcp, port_range_min: 80}]}]",
        [
            "security_groups[0] (g).rules[0]: port_range_min and port_range_max go together: give both",
        ],
    ),
    (
        "ports backwards",
        "security_groups: [{name: g, rules: [{protocol: udp, port_range_min: 90, port_range_max: 80}]}]",
        [
            "security_groups[0] (g).rules[0]: ports 90 to 80 are no range: 1 to 65535, port_range_min <= port_range_max",
        ],
    ),
    (
        "a port beyond 65535",
        "security_groups: [{name: g, rules: [{protocol: tcp, port_range_min: 80, port_range_max: 65536}]}]",
        [
            "security_groups[0] (g).rules[0]: ports 80 to 65536 are no range: 1 to 65535, port_range_min <= port_range_max",
        ],
    ),
    (
        "an ICMP code without a type",
        "security_groups: [{name: g, rules: [{protocol: icmp, port_range_max: 0}]}]",
        [
            "security_groups[0] (g).rules[0]: ICMP code (port_range_max) 0 is given but ICMP type (port_range_min) is missing",
        ],
    ),
    (
        "an ICMP type beyond 255",
        "security_groups: [{name: g, rules: [{protocol: icmp, port_range_min: 256}]}]",
        [
            "security_groups[0] (g).rules[0].port_range_min: 256 is not an ICMP type or code, it must be between 0 and 255",
        ],
    ),
    (
        "an unknown remote group",
        "security_groups: [{name: g, rules: [{remote_group: h}]}]",
        [
            "security_groups[0] (g).rules[0].remote_group: unknown security group 'h'. Known: default, g",
        ],
    ),
    (
        "a remote prefix that is none",
        "security_groups: [{name: g, rules: [{remote_ip_prefix: all}]}]",
        [
            "security_groups[0] (g).rules[0].remote_ip_prefix: 'all' is not an address or a network such as 192.0.2.0/24",
        ],
    ),
    (
        "a remote prefix of the other family",
        "security_groups: [{name: g, rules: [{remote_ip_prefix: '2001:db8::/32'}]}]",
        [
            "security_groups[0] (g).rules[0].remote_ip_prefix: 2001:db8::/32 is IPv6, but ether_type is IPv4",
        ],
    ),
    (
        "both remotes",
        "security_groups: [{name: g, rules: [{remote_ip_prefix: 192.0.2.0/24, remote_group: g}]}]",
        [
            "security_groups[0] (g).rules[0]: remote_group and remote_ip_prefix exclude each other",
        ],
    ),
    (
        "a public key that is none",
        "keypairs: [{name: k, public_key: 'ssh-ed25519 AAAA'}]",
        [
            "keypairs[0] (k).public_key: is not an OpenSSH public key, one line of '<type> <base64> [comment]', type ssh-ed25519, ssh-rsa, ecdsa-sha2-nistp256, ecdsa-sha2-nistp384, ecdsa-sha2-nistp521, sk-ssh-ed25519@openssh.com, sk-ecdsa-sha2-nistp256@openssh.com",
        ],
    ),
    (
        "a private key",
        'keypairs: [{name: k, public_key: "-----BEGIN OPENSSH PRIVATE KEY-----\\nhush"}]',
        [
            "keypairs[0] (k).public_key: is a private key: keep it to yourself, give the line of the .pub file",
        ],
    ),
    (
        "a key of an unknown user",
        "keypairs: [{name: k, public_key: KEY, user: carol}]",
        [
            "keypairs[0] (k).user: unknown user 'carol'. Known: none",
        ],
    ),
    (
        "a key's name twice",
        "keypairs: [{name: k, public_key: KEY}, {name: k, public_key: KEY}]",
        [
            "keypairs[1] (k).name: 'k' is already used by keypairs[0] (k)",
        ],
    ),
    (
        "a negative quota",
        "projects: [{name: p, quota: {cores: -2}}]",
        [
            "projects[0] (p).quota.cores: -2 is not allowed, it must be at least -1",
        ],
    ),
    (
        "an unknown quota",
        "projects: [{name: p, quota: {core: 2}}]",
        [
            "projects[0] (p).quota.core: unknown key, did you mean cores? Allowed: cores, instances, ram",
        ],
    ),
    (
        "a password in plain text",
        "users: [{name: u, password_hash: hush}]",
        [
            "users[0] (u).password_hash: is not an argon2id hash ($argon2id$v=19$m=...,t=...,p=...$salt$hash). Make one: python3 -c 'import argon2, getpass; print(argon2.PasswordHasher().hash(getpass.getpass()))'",
        ],
    ),
    (
        "a password hash that is a mapping",
        "users: [{name: u, password_hash: {hush: hush}}]",
        [
            "users[0] (u).password_hash: must be a string, not a mapping",
        ],
    ),
    (
        "a password instead of its hash",
        "users: [{name: u, password: hush}]",
        [
            "users[0] (u).password: unknown key, did you mean password_hash? Allowed: description, enabled, id, name, password_hash, roles",
            "users[0] (u): missing required arguments: password_hash",
        ],
    ),
    (
        "a role in an unknown project",
        "users: [{name: u, password_hash: HASH, roles: {demo: member}}]",
        [
            "users[0] (u).roles.demo: unknown project 'demo'. Known: none",
        ],
    ),
    (
        "an unknown role",
        "projects: [{name: demo}]\nusers: [{name: u, password_hash: HASH, roles: {demo: [member, root]}}]",
        [
            "users[0] (u).roles.demo: must be reader, member, admin or a list of them, not the string 'root'",
        ],
    ),
    (
        "a host in two zones",
        "aggregates: [{name: a, hosts: [kvm1], availability_zone: east}, {name: b, hosts: [kvm1], availability_zone: west}]",
        [
            "aggregates[1] (b).hosts: 'kvm1' is in the availability zone 'east' already, through aggregates[0] (a)",
        ],
    ),
    (
        "a host twice",
        "aggregates: [{name: a, hosts: [kvm1, kvm1]}]",
        [
            "aggregates[0] (a).hosts: 'kvm1' is listed twice",
        ],
    ),
    (
        "two zones of one aggregate",
        "aggregates: [{name: a, availability_zone: east, metadata: {availability_zone: west}}]",
        [
            "aggregates[0] (a).metadata.availability_zone: 'west' differs from availability_zone 'east': give one",
        ],
    ),
    (
        "a zone with a colon",
        "aggregates: [{name: a, availability_zone: 'east:kvm1'}]",
        [
            "aggregates[0] (a).availability_zone: 'east:kvm1' is no name of a zone: it is empty or holds a ':'",
        ],
    ),
    (
        "a server group without a policy, and one with an unknown policy",
        "server_groups: [{name: a}, {name: b, policy: near}]",
        [
            "server_groups[0] (a): missing required arguments: policy",
            "server_groups[1] (b): value of policy must be one of: affinity, anti-affinity, soft-affinity, soft-anti-affinity, got: near",
        ],
    ),
    (
        "rules that a policy does not have, or that allow nothing",
        "server_groups: [{name: a, policy: affinity, rules: {max_server_per_host: 2}}, {name: b, policy: anti-affinity, rules: {max_server_per_host: 0}}]",
        [
            "server_groups[0] (a).rules.max_server_per_host: is a rule of policy anti-affinity only, not of affinity",
            "server_groups[1] (b).rules.max_server_per_host: 0 is not allowed, it must be at least 1",
        ],
    ),
    (
        "a server group of nobody, and a name that two have",
        "{projects: [{name: demo}], server_groups: [{name: a, policy: affinity, project: dmo}, {name: a, policy: affinity}]}",
        [
            "server_groups[1] (a).name: 'a' is already used by server_groups[0] (a)",
            "server_groups[0] (a).project: unknown project 'dmo', did you mean demo? Known: demo",
        ],
    ),
    (
        "a reference to a broken entry",
        "projects: [{name: p, colour: red, enabled: maybe}]\nusers: [{name: u, password_hash: HASH, roles: {p: member}}]",
        [
            "projects[0] (p).colour: unknown key. Allowed: description, enabled, id, name, quota",
            "projects[0] (p).enabled: must be true or false, not the string 'maybe'",
        ],
    ),
    (
        "problems everywhere",
        "flavors: [{name: f}]\nimages: [{name: i, url: i, checksum: SHA}]\nusers: [7]",
        [
            "flavors[0] (f): missing required arguments: ram, vcpus",
            "users[0]: must be a mapping with the keys name, id, description, password_hash, enabled, roles, not a number",
            "images[0] (i).url: 'i' is neither an absolute path nor a file:///, http:// or https:// address",
        ],
    ),
]


def load(text: str) -> Catalog:
    for word, meaning in WORDS.items():
        text = text.replace(word, meaning)
    return Catalog.load(yaml.safe_load(text))


@pytest.mark.parametrize(("text", "lines"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED])
def test_malformed_catalogue(text: str, lines: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load(text)
    assert str(caught.value) == "\n".join(lines)
    assert "hush" not in str(caught.value)


def test_a_catalogue_that_is_a_list() -> None:
    with pytest.raises(
        InvalidRequest, match=r"^catalog: must be a mapping with the sections flavors, .*, not the list"
    ):
        load("[flavors]")
