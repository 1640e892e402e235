# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""One host's contents against the records: guests, their files, their ports, the networks. Pure."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from ansible_collections.barestack.kvm.plugins.module_utils.control.audit import (
    DATA_GONE,
    DIFFERS,
    HEAL,
    ONLY_HOST,
    ONLY_RECORDS,
    UNKNOWN,
    Clearance,
    Finding,
    Recorded,
    Report,
    Scope,
    bare_network,
    is_active,
)
from ansible_collections.barestack.kvm.plugins.module_utils.model.contents import Contents, FoundServer, LeftoverGuest
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import (
    Instance,
    Network,
    Port,
    TaskState,
    VmState,
)

HERE, QUIET, GONE, STRANGE = "here", "quiet", "gone", "strange"
"""How a server stands to a host: it lives there and all of it must be there; it may have something there, and nothing
is concluded; it has nothing to look for there; these records never knew it."""

_DHCP_OWNER = "network:dhcp"
_DISKS = {"disk": "root disk", "disk.local": "ephemeral disk", "disk.swap": "swap disk", "disk.config": "config drive"}


def compare_host(host: str, recorded: Recorded, scope: Scope, report: Report) -> None:
    """Add one host's differences and their cures to the report."""
    _Host(host, scope.contents[host], recorded, report).compare()


@dataclass(frozen=True)
class _Owner:
    """Whose a thing is, and how that server stands to the host."""

    standing: str
    uuid: str = ""


class _Host:
    """One comparison."""

    def __init__(self, host: str, contents: Contents, recorded: Recorded, report: Report) -> None:
        self.host = host
        self.contents = contents
        self.recorded = recorded
        self.report = report
        self.residues = {residue.uuid for residue in recorded.residues if residue.host == host}
        self.domains = {domain.uuid: domain for domain in contents.domains if domain.ours}
        self.strange = [domain for uuid, domain in self.domains.items() if self.standing(uuid) == STRANGE]
        self.settled = [
            server for server in recorded.servers.values() if server.host == host and recorded.is_settled(server.uuid)
        ]
        self.lost = {server.uuid for server in self.settled if any(self._lost(server))}
        # What a delete in progress has dropped from the records already may still be among what was found.
        going = (recorded.servers.get(uuid) for uuid in recorded.busy)
        self.deleting = any(server is None or server.task_state == TaskState.DELETING for server in going)
        self._rows = {row.id[:11]: row for row in recorded.ports}
        self._owners = {port_id[:11]: domain.uuid for domain in self.domains.values() for port_id in domain.ports}
        self._owners.update({mark.port_id[:11]: mark.owner for mark in contents.marks if mark.owner})
        self._links = {tap.name: tap for tap in contents.taps}
        self._wired = {tap: domain.uuid for domain in self.domains.values() for tap in domain.taps}
        self._servers = {server.network_id: server for server in contents.servers}
        # The bridges' ends of the DHCP servers, by their files and by the records.
        self._dhcp_taps = {server.interface for server in contents.servers if server.interface}
        self._dhcp_taps |= {row.tap for row in recorded.ports if row.device_owner == _DHCP_OWNER and row.host == host}

    def compare(self) -> None:
        """Both ways."""
        self._domains()
        self._files()
        self._ports()
        self._networks()
        self._volumes()

    # whose things are

    def standing(self, uuid: str) -> str:
        """How a server stands to this host."""
        server = self.recorded.servers.get(uuid)
        if uuid in self.recorded.busy or uuid in self.residues:
            return QUIET
        if server is None:
            return GONE if uuid in self.recorded.deleted else STRANGE
        if server.host == self.host:
            return HERE if is_active(server) else QUIET
        elsewhere = is_active(server)
        nowhere = server.vm_state == VmState.ERROR and not server.host and server.task_state is None
        return GONE if elsewhere or nowhere else QUIET

    def owner_of_port(self, port_id: str) -> _Owner:
        """Whose the port is, by the records, the mark on the host, or the domain; ``port_id`` may be its beginning."""
        key = port_id[:11]
        row = self._rows.get(key)
        if row is not None:
            if row.device_owner == _DHCP_OWNER:
                return _Owner(QUIET if row.host == self.host else GONE)
            return _Owner(self.standing(row.device_id) if row.device_id else GONE, row.device_id)
        uuid = self._owners.get(key, "")
        if not uuid:
            return _Owner(STRANGE)
        standing = self.standing(uuid)
        # A server that lives here has all its ports in the records: another one is what is left of an earlier one.
        return _Owner(GONE if standing == HERE else standing, uuid)

    # writing down

    @property
    def clearance(self) -> Clearance:
        """What goes from this host."""
        return self.report.clearance(self.host)

    def stray(self, kind: str, name: str, owner: _Owner, cure: str) -> bool:
        """Write down what should not be here; whether it is to be removed."""
        if owner.standing in (HERE, QUIET) or (self.deleting and not owner.uuid):
            return False
        gone = owner.standing == GONE
        self.report.add(
            Finding(
                self.host,
                kind,
                name,
                ONLY_HOST,
                self.recorded.name(owner.uuid),
                owner.uuid,
                cure=cure if gone else "",
                left="" if gone else UNKNOWN,
                differs=gone or not self.contents.shared,
            )
        )
        if gone and owner.uuid in self.recorded.servers:
            self.report.touched.add(owner.uuid)
        return gone

    def missing(self, kind: str, name: str, server: Instance, finding: str = ONLY_RECORDS, cure: str = HEAL) -> None:
        """Write down what a server that lives here lacks, and have it healed unless its data is gone."""
        lost = server.uuid in self.lost
        left = "not while a disk of its server is gone" if lost else ""
        self.report.add(
            Finding(self.host, kind, name, finding, server.name, server.uuid, cure="" if lost else cure, left=left)
        )
        if not lost:
            self.report.heal.add(server.uuid)

    # domains

    def _domains(self) -> None:
        for domain in self.domains.values():
            owner = _Owner(self.standing(domain.uuid), domain.uuid)
            if self.stray("domain", domain.name, owner, "stopped and removed"):
                self._guest(domain.uuid, domain.name)
        for server in self.settled:
            found = self.domains.get(server.uuid)
            if found is None:
                self.missing("domain", server.domain_name, server, cure="defined and started again")
            elif found.power_state != server.power_state:
                state = f"{server.domain_name}: {found.power_state}, recorded {server.power_state}"
                self.missing("domain", state, server, DIFFERS, f"the guest is made {server.power_state} again")
        mine = {server.uuid: server for server in self.settled}
        names = {server.domain_name: server for server in self.settled}
        for domain in self.contents.domains:
            known = None if domain.ours else mine.get(domain.uuid) or names.get(domain.name)
            if known:
                left = "a domain that is not ours has its name or uuid: it is left alone"
                self.report.add(Finding(self.host, "domain", domain.name, DIFFERS, known.name, known.uuid, left=left))

    # files

    def _files(self) -> None:
        for directory in self.contents.directories:
            self._directory_of(directory.name.removesuffix("_del"), directory.name.endswith("_del"))
        for uuid in self.contents.consoles:
            owner = _Owner(self.standing(uuid), uuid)
            told = owner.standing == STRANGE and uuid in self.domains
            if not told and self.stray("console log", f"{uuid}.console.log", owner, "removed"):
                self._guest(uuid)
        for part in self.contents.parts:
            owner = _Owner(self.standing(part.owner) if part.owner else HERE, part.owner)
            if owner.standing == HERE:  # a server that lives here needs none of them, and an interrupted boot goes on
                owner = _Owner(QUIET if part.owner == "" and self._is_building() else GONE, part.owner)
            if self.stray("temporary file", part.path, owner, "removed: nobody writes it"):
                self.clearance.parts.append(part.path)
        for server in self.settled:
            self._disks(server)

    def _directory_of(self, uuid: str, doomed: bool) -> None:
        owner, name = _Owner(self.standing(uuid), uuid), f"{uuid}_del" if doomed else uuid
        live = self.recorded.servers.get(uuid)
        if owner.standing == STRANGE and uuid in self.domains:
            return  # the domain was written down
        if owner.standing == HERE and doomed:
            self.stray("directory", name, _Owner(GONE, uuid), "removed: it is the rest of an earlier one")
            self.clearance.doomed.append(uuid)
        elif owner.standing == GONE and live and live.host and self.contents.shared_storage:
            return  # the very directory that it lives in, seen through a shared file system
        elif self.stray("directory", name, owner, "removed with its disks"):
            self._guest(uuid)

    def _is_building(self) -> bool:
        """Whether a server of this host is on its way, or was: what it began to fetch is its next run's."""
        return any(
            server.host == self.host and not self.recorded.is_settled(uuid)
            for uuid, server in self.recorded.servers.items()
        )

    def _guest(self, uuid: str, name: str = "") -> None:
        """Have a server's domain, console and directory go."""
        live = uuid in self.recorded.servers and bool(self.recorded.servers[uuid].host)
        disks = not (live and self.contents.shared_storage)
        told = name or self.recorded.name(uuid) or uuid
        self.clearance.guests.setdefault(uuid, LeftoverGuest(uuid, told, disks))

    def _disks(self, server: Instance) -> None:
        files, baseless = self._directory(server.uuid)
        for name in _expected_disks(server):
            told = f"{server.uuid}/{name}"
            if name not in files and name == "disk.config":
                self.missing(_DISKS[name], told, server, cure="written again")
            elif name not in files:
                self._gone(_DISKS[name], told, server)
            elif name in baseless and name == "disk":
                self.missing("image", f"base of {told}", server, cure="fetched again")
            elif name in baseless:
                self._gone(_DISKS[name], f"base of {told}", server)
        for name in sorted(set(files) - set(_expected_disks(server))):
            left = "no file that its server has: it is left alone"
            told = f"{server.uuid}/{name}"
            self.report.add(Finding(self.host, "file", told, ONLY_HOST, server.name, server.uuid, left=left))

    def _directory(self, uuid: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        found = next((item for item in self.contents.directories if item.name == uuid), None)
        return (found.files, found.baseless) if found else ((), ())

    def _gone(self, kind: str, name: str, server: Instance | None, finding: str = ONLY_RECORDS) -> None:
        told = (server.name, server.uuid) if server else ("", "")
        self.report.add(Finding(self.host, kind, name, finding, *told, left=DATA_GONE))

    def _lost(self, server: Instance) -> Iterator[str]:
        """What a guest has written on that is gone."""
        files, baseless = self._directory(server.uuid)
        for name in _expected_disks(server):
            if name != "disk.config" and (name not in files or (name in baseless and name != "disk")):
                yield name
        yield from (item.volume_id for item in server.block_devices if item.volume_id not in self.contents.volumes)

    # volumes

    def _volumes(self) -> None:
        rows = {row.id: row for row in self.recorded.volumes}
        attached = {path for domain in self.strange for path in domain.files}
        for volume_id in self.contents.volumes:
            row, name = rows.get(volume_id), f"volume-{volume_id}"
            if row is None and not self.deleting and not any(path.endswith(f"/{name}") for path in attached):
                left = f"a volume is never removed by guess, and it is {UNKNOWN}"
                self.report.add(
                    Finding(self.host, "volume", name, ONLY_HOST, left=left, differs=not self.contents.shared)
                )
            elif row is not None and row.host != self.host and not self._is_quiet(row.server):
                left = f"by the records it lies on {row.host or 'no host'}: volumes are never removed here"
                self.report.add(Finding(self.host, "volume", f"{name} ({row.name})", DIFFERS, left=left))
        for row in self.recorded.volumes:
            here = row.host == self.host and row.id not in self.contents.volumes
            if here and row.status in ("available", "in-use", "reserved") and not self._is_quiet(row.server):
                self._gone("volume", f"volume-{row.id} ({row.name})", self.recorded.servers.get(row.server))

    def _is_quiet(self, uuid: str) -> bool:
        """Whether nothing is concluded about a volume, because of its server."""
        server = self.recorded.servers.get(uuid)
        return uuid in self.recorded.busy or (server is not None and not is_active(server))

    # ports

    def _ports(self) -> None:
        for mark in self.contents.marks:
            owner = self.owner_of_port(mark.port_id)
            if self._is_strange_guests(mark.port_id):
                continue
            if self.stray("port mark", mark.port_id, owner, "taken off its network"):
                self.clearance.port(mark.port_id, mark.network_id, mark.mac)
        self._taps()
        for rules in self.contents.rules:
            self._stray_port("rules", rules.tap, rules.tap[3:])
        taps = {rules.tap for rules in self.contents.rules}
        for port_id in self.contents.members:
            if f"tap{port_id[:11]}" not in taps:
                self._stray_port("security group member", port_id, port_id)
            elif port_id[:11] in self.clearance.ports:
                self.clearance.port(port_id)
        for server in self.settled:
            for port in server.ports:
                self._port(server, port)

    def _stray_port(self, kind: str, name: str, port_id: str) -> bool:
        owner = self.owner_of_port(port_id)
        if self._is_strange_guests(port_id) or not self.stray(kind, name, owner, "removed"):
            return False
        row = self._rows.get(port_id[:11])
        self.clearance.port(row.id if row else port_id, row.network_id if row else "", row.mac if row else "")
        return True

    def _is_strange_guests(self, port_id: str) -> bool:
        """Whether a domain that these records do not know uses the port: the domain is what is written down."""
        uuid = self._wired.get(f"tap{port_id[:11]}")
        return uuid is not None and self.standing(uuid) == STRANGE

    def _taps(self) -> None:
        theirs = {self._links[tap].bridge for domain in self.strange for tap in domain.taps if tap in self._links}
        for tap in self.contents.taps:
            # A DHCP server's is the network's part to speak of, and a guest's goes with its guest.
            spoken_of = tap.name in self._dhcp_taps or tap.name in self._wired or (tap.bridge and tap.bridge in theirs)
            if not spoken_of and self._stray_port("tap", tap.name, tap.name[3:]):
                self.clearance.taps.append(tap.name)

    def _port(self, server: Instance, port: Port) -> None:
        """What a port of a server that lives here must have."""
        marks = {mark.port_id for mark in self.contents.marks}
        if port.id not in marks:
            self.missing("port mark", port.id, server, cure="registered on its network again")
        whole = {rules.tap: rules.complete for rules in self.contents.rules}
        if port.tap_device not in whole:
            self.missing("rules", port.tap_device, server, cure="loaded again")
        elif not whole[port.tap_device]:
            self.missing("rules", port.tap_device, server, DIFFERS, "loaded again")
        if server.uuid in self.domains:
            self._tap(server, port)
        found = {(item.mac, item.address) for item in self._server(port.network.id).entries}
        for address in _served_addresses(port):
            if (port.mac_address.lower(), address) not in found:
                told = f"{port.mac_address} {address}"
                self.missing("DHCP entry", told, server, cure="written again")

    def _tap(self, server: Instance, port: Port) -> None:
        tap = self._links.get(port.tap_device)
        if tap is None and self.domains[server.uuid].power_state not in ("RUNNING", "PAUSED"):
            return  # it comes with its guest
        if tap is None:
            left = "the running guest has lost its tap, and gets one at its next start: shut it off, then repair"
            self.report.add(
                Finding(self.host, "tap", port.tap_device, ONLY_RECORDS, server.name, server.uuid, left=left)
            )
        elif tap.bridge != port.network.bridge:
            where = f"{tap.name} in {tap.bridge or 'no bridge'}"
            if tap.bridge:
                left = f"it should be in {port.network.bridge}, and somebody put it where it is"
                self.report.add(Finding(self.host, "tap", where, DIFFERS, server.name, server.uuid, left=left))
            else:
                self.missing("tap", where, server, DIFFERS, f"put into {port.network.bridge} again")
        elif not tap.up:
            self.missing("tap", f"{tap.name} is down", server, DIFFERS, "set up again")

    # networks

    def _networks(self) -> None:
        # The last one counts: one that can be healed, where there is one.
        ordered = sorted(self.settled, key=lambda server: server.uuid not in self.lost)
        needed = {port.network.id: (server, port.network) for server in ordered for port in server.ports}
        for server, network in needed.values():
            self._needed(server, network)
        kept = set(needed) | self._kept()
        seen = {server.network_id for server in self.contents.servers}
        seen |= {*self.contents.networks, *self.contents.masquerades}
        known = self._known_networks()
        by_bridge = {bare_network(item).bridge: item for item in seen | set(known)}
        seen |= {by_bridge[link.name] for link in self.contents.bridges if link.name in by_bridge}
        for network_id in sorted(seen - kept):
            self._idle(network_id, known)
        for link in self.contents.bridges:
            if link.name not in by_bridge and not self._holds_strangers(link.name):
                self.stray("bridge", link.name, _Owner(STRANGE), "")
        self._entries(needed)

    def _kept(self) -> set[str]:
        """Networks of ports about which nothing is concluded, and of those that these records do not know."""
        found = {
            row.network_id
            for row in self.recorded.ports
            if row.device_owner != _DHCP_OWNER and row.device_id and row.host == self.host
            and self.standing(row.device_id) in (HERE, QUIET)
        }  # fmt: skip
        found |= {port.network.id for item in self.recorded.residues if item.host == self.host for port in item.ports}
        for mark in self.contents.marks:
            if self.owner_of_port(mark.port_id).standing in (QUIET, STRANGE):
                found.add(mark.network_id)
        return found

    def _known_networks(self) -> dict[str, Network]:
        """id -> network, of every network that the records speak of."""
        found = {row.network_id: bare_network(row.network_id) for row in self.recorded.ports}
        for server in itertools.chain(self.recorded.servers.values(), self.recorded.residues):
            found.update({port.network.id: port.network for port in server.ports})
        return found

    def _idle(self, network_id: str, known: dict[str, Network]) -> None:
        """A network that no port here needs: its bridge, DHCP server, masquerade and directory."""
        server, bridge = self._server(network_id), bare_network(network_id).bridge
        ours = network_id in known or network_id in self.contents.networks or server.files
        strangers = server.others or self._holds_strangers(bridge)
        what = [name for name, there in (
            ("bridge", any(link.name == bridge for link in self.contents.bridges)),
            ("DHCP server", server.files or server.running),
            ("namespace", server.namespace),
            ("masquerade", network_id in self.contents.masquerades),
            ("state", network_id in self.contents.networks),
        ) if there]  # fmt: skip
        if not what or (strangers and not ours):
            return
        owner = _Owner(GONE if ours and not strangers else STRANGE)
        if self.stray("network", f"{network_id} ({', '.join(what)})", owner, "removed: no port here needs it"):
            self.clearance.networks[network_id] = known.get(network_id, bare_network(network_id))
            # One whose name is lost from the server's files.
            ends = (tap.name for tap in self.contents.taps if tap.bridge == bridge and tap.name in self._dhcp_taps)
            self.clearance.taps += [name for name in ends if name != server.interface]

    def _holds_strangers(self, bridge: str) -> bool:
        """Whether a tap is in the bridge that is neither a DHCP server's nor to be removed."""
        inside = {tap.name for tap in self.contents.taps if tap.bridge == bridge} - self._dhcp_taps
        going = {tap for tap, uuid in self._wired.items() if self.standing(uuid) == GONE}
        return bool(inside - going - set(self.clearance.taps))

    def _needed(self, server: Instance, network: Network) -> None:
        """What a network must have on a host with ports of it."""
        bridge = next((link for link in self.contents.bridges if link.name == network.bridge), None)
        if bridge is None:
            self.missing("bridge", network.bridge, server, cure="made again")
        elif not bridge.up:
            self.missing("bridge", f"{network.bridge} is down", server, DIFFERS, "set up again")
        if bridge and network.network_type == "flat" and not bridge.members:
            told = f"{network.physical_network} in {network.bridge}"
            self.missing("uplink", told, server, cure="joined again")
        gateways, masqueraded = _local(network)
        lacking = [address for address in gateways if bridge and address not in bridge.addresses]
        if lacking:
            told = f"{', '.join(lacking)} on {network.bridge}"
            self.missing("gateway", told, server, cure="set again")
        if masqueraded and network.id not in self.contents.masquerades:
            self.missing("masquerade", network.bridge, server, cure="loaded again")
        if any(subnet.enable_dhcp for subnet in network.subnets):
            self._dhcp(server, network)

    def _dhcp(self, server: Instance, network: Network) -> None:
        found = self._server(network.id)
        if network.dhcp_port is None:
            self.missing("DHCP port", f"{network.name} on {self.host}", server, DIFFERS, "allocated again")
            return
        if not found.namespace:
            self.missing("namespace", network.namespace, server, cure="made again")
        if not found.running:
            self.missing("DHCP server", network.id, server, cure="started again")
        name = network.dhcp_port.tap_device
        tap = self._links.get(name)
        if tap is None:
            self.missing("DHCP interface", name, server, cure="made again")
        elif tap.bridge != network.bridge or not tap.up:
            told = f"{name} in {tap.bridge or 'no bridge'}, {'up' if tap.up else 'down'}"
            self.missing("DHCP interface", told, server, DIFFERS, "wired again")

    def _entries(self, needed: dict[str, tuple[Instance, Network]]) -> None:
        """Entries and leases of the networks that stay; of the others all go."""
        macs = self._macs()
        for server in self.contents.servers:
            if server.network_id in self.clearance.networks:
                continue
            for entry in server.entries:
                uuid_port = macs.get(entry.mac)
                owner = self.owner_of_port(uuid_port) if uuid_port else _Owner(STRANGE)
                told = f"{entry.mac} {entry.address}"
                if uuid_port and self._is_strange_guests(uuid_port):
                    continue
                if self.stray("DHCP entry", told, owner, "removed"):
                    self.clearance.port(uuid_port or "", server.network_id, entry.mac, [entry.address])
            for lease in server.stale:
                uuid_port = macs.get(lease.mac)
                quiet = uuid_port and self.owner_of_port(uuid_port).standing in (QUIET, STRANGE)
                told = f"{lease.mac} {lease.address}"
                idle = server.network_id in needed and not quiet
                if idle and self.stray("DHCP lease", told, _Owner(GONE), "given back"):
                    self.clearance.port("", server.network_id, lease.mac, [lease.address])

    def _macs(self) -> dict[str, str]:
        """MAC -> port id, by all that is known."""
        found = {mac: port_id for domain in self.domains.values() for mac, port_id in zip(domain.macs, domain.ports)}
        found.update({mark.mac: mark.port_id for mark in self.contents.marks if mark.mac})
        found.update({row.mac.lower(): row.id for row in self.recorded.ports})
        return found

    def _server(self, network_id: str) -> FoundServer:
        return self._servers.get(network_id, FoundServer(network_id))


def _expected_disks(server: Instance) -> list[str]:
    flavor = server.flavor
    there = (True, bool(flavor.ephemeral), bool(flavor.swap), server.config_drive)
    return [name for name, wanted in zip(_DISKS, there) if wanted]


def _served_addresses(port: Port) -> list[str]:
    served = {subnet.id for subnet in port.network.subnets if subnet.enable_dhcp}
    return [fixed.ip_address for fixed in port.fixed_ips if fixed.subnet_id in served]


def _local(network: Network) -> tuple[list[str], bool]:
    """(gateway addresses on the bridge, whether IPv4 is masqueraded) of a network of type local; else none."""
    if network.network_type != "local":
        return [], False
    gateways = [
        ipaddress.ip_interface(f"{subnet.gateway_ip}/{ipaddress.ip_network(subnet.cidr, strict=False).prefixlen}")
        for subnet in network.subnets
        if subnet.gateway_ip is not None
    ]
    return [str(item) for item in gateways], any(item.version == 4 for item in gateways)
