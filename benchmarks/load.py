# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""One decision from the records: load the hosts' columns, decide, claim. With PostgreSQL, and with SQLite.

    load.py [--hosts 10000] [--servers 10] [--database postgresql|sqlite] [--repeat 7]

The records hold ``--hosts`` compute hosts of four kinds in eight zones with ``--servers`` servers each, as the phases
write them. Printed is the best and the median of ``--repeat`` transactions that place one server, by part, with the
number of statements; then one that places a thousand. Each is rolled back, so that all find the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "collections"), str(ROOT / "tests" / "shared"), str(ROOT / "benchmarks")]

from ansible_collections.barestack.kvm.plugins.module_utils.control import inventory, placement  # noqa: E402
from ansible_collections.barestack.kvm.plugins.module_utils.control.catalog import Catalog  # noqa: E402
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import (  # noqa: E402
    Records,
    claims,
    instances,
)
from ansible_collections.barestack.kvm.plugins.module_utils.control.scheduler.decide import decide  # noqa: E402
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Flavor, Image, Instance  # noqa: E402
from ansible_collections.barestack.kvm.plugins.module_utils.phase import now  # noqa: E402
from common import machine  # noqa: E402
from postgresql_server import Server  # noqa: E402
from sqlalchemy import Connection, event, text  # noqa: E402

ZONES = 8
KINDS = 4
FLAVOR = Flavor("f", "m1.small", 2, 4096, 40)
IMAGE = Image("i", "debian-12", "/srv/debian.qcow2", "sha256:0", "qcow2")
PARAMS: dict[str, Any] = {"service_down_time": 600.0, "scheduler": {}, "scheduler_rules_path": None}
SETTINGS = {name: option["default"] for name, option in inventory.REPORT_SPEC.items() if "default" in option}


def host(number: int) -> str:
    return f"kvm{number:05d}"


def report(number: int) -> dict[str, Any]:
    """What hypervisor_info says of a host: of a kind, but its memory is not to the MiB that of the others."""
    kind = number % KINDS
    features = [f"feature{index}" for index in range(60 + kind)]
    cells = [
        {
            "id": cell,
            "socket": cell,
            "cpus": [*range(32 * cell, 32 * cell + 32)],
            "siblings": [[cpu, cpu + 1] for cpu in range(32 * cell, 32 * cell + 32, 2)],
            "memory_mb": 131072 - number % 97,
            "pages": [{"size_kb": 4, "total": 33554432 - number % 97}, {"size_kb": 2048, "total": 0}],
        }
        for cell in (0, 1)
    ]
    hypervisor = {
        "hostname": host(number),
        "host_ip": f"10.{number // 65536}.{number // 256 % 256}.{number % 256}",
        "hypervisor_type": "QEMU",
        "hypervisor_version": 7002000 + kind,
        "libvirt_version": 9000000,
        "virt_type": "kvm",
        "vcpus": 64,
        "memory_mb": 262144 - number % 97,
        "disk_gb": 4000,
        "disk_available_gb": 3500 - number % 13,
        "running_domains": 10,
        "numa_cells": cells,
        "cpu_info": {"arch": "x86_64", "model": f"Kind{kind}", "features": features, "vendor": "Any"},
        "supported_instances": [["x86_64", "kvm", "hvm"], ["i686", "kvm", "hvm"]],
        "machine_types": {"x86_64": ["pc", "q35", *(f"pc-q35-{index}" for index in range(40))]},
        "firmware": ["bios", "efi"],
    }
    return {**SETTINGS, "name": host(number), "hypervisor": hypervisor}


def fill(connection: Connection, hosts: int, servers: int) -> None:
    """Hosts through the code that records them; their servers by SQL, as the code leaves them."""
    inventory.record(connection, [report(number) for number in range(hosts)], now())
    (made,) = instances.create(connection, [(server("pattern"), {})])
    values = {"made": made.uuid, "number": servers}
    series = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :number) "
    connection.execute(
        text(
            "INSERT INTO instances (uuid, project_id, user_id, name, request, spec, vcpus, memory_mb, vm_state, "
            "power_state, host, created_at, updated_at, deleted) "
            + series
            + "SELECT c.host || '-' || n.i, 'p', 'u', c.host || '-' || n.i, s.request, s.spec, 2, 4096, 'ACTIVE', "
            "'RUNNING', c.host, s.created_at, s.created_at, 0 FROM compute_nodes c, instances s, n WHERE s.uuid = :made"
        ),
        values,
    )
    for name, amount in (("VCPU", 2), ("MEMORY_MB", 4096), ("DISK_GB", 40)):
        connection.execute(
            text(
                "INSERT INTO allocations (consumer_id, resource_class, compute_node_id, used) SELECT i.uuid, :name, "
                "c.id, :amount FROM instances i JOIN compute_nodes c ON c.host = i.host"
            ),
            {"name": name, "amount": amount},
        )
    claims.recount(connection, [host(number) for number in range(hosts)])
    connection.execute(text("ANALYZE"))


def server(name: str) -> Instance:
    return Instance(0, str(uuid.uuid4()), name, name, "p", "u", FLAVOR, IMAGE, now())


def catalog(hosts: int) -> Catalog:
    zones = [
        {"name": f"zone{zone}", "availability_zone": f"az{zone}", "hosts": [host(n) for n in range(zone, hosts, ZONES)]}
        for zone in range(ZONES)
    ]
    return Catalog.load({"aggregates": zones}, ("aggregates",))


class Clock:
    """How long parts take, and how many statements the transactions are."""

    def __init__(self) -> None:
        self.parts: dict[str, list[float]] = {}
        self.statements = 0

    def time(self, part: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        self.parts.setdefault(part, []).append((time.perf_counter() - started) * 1000)
        return result

    def count(self, *_: Any) -> None:
        self.statements += 1

    def show(self, title: str) -> None:
        print(f"{title}: {self.statements // len(self.parts['whole'])} statements")
        for part, values in self.parts.items():
            print(f"  {part:<10} {min(values):8.1f} ms best {statistics.median(values):8.1f} ms median")


def place(url: str, declared: Catalog, number: int, repeat: int) -> Clock:
    """Transactions that place so many servers, each rolled back."""
    clock = Clock()
    new = [(server(f"new-{number}-{index}"), {}) for index in range(number)]
    handle = Records(url).run(lambda connection: instances.create(connection, new))

    def work(connection: Connection) -> None:
        event.listen(connection, "before_cursor_execute", clock.count)
        outcome = placement.decide(connection, declared, handle, PARAMS, now())
        made = outcome.claims()
        assert len(made) == number
        clock.time("claims", lambda: claims.claim(connection, made, outcome.generations))
        placed = [server.with_(host=made[server.uuid].host) for server in handle]
        clock.time("servers", lambda: instances.save_all(connection, placed, now()))

    def parts(connection: Connection) -> None:
        options = placement.options_of(PARAMS)
        specs, _ = clock.time("requests", lambda: placement.request_specs(connection, declared, handle, options))
        hosts, _ = clock.time(
            "load", lambda: placement.load(connection, declared, specs, options, now(), PARAMS["service_down_time"])
        )
        clock.time("decision", lambda: decide(hosts, specs, options))

    for _ in range(repeat):
        clock.time("whole", lambda: Records(url, check_mode=True).run(work))
        Records(url, check_mode=True).run(parts)
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=10000)
    parser.add_argument("--servers", type=int, default=10)
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    parser.add_argument("--repeat", type=int, default=7)
    given = parser.parse_args()
    server_process = Server() if given.database == "postgresql" else None
    with tempfile.TemporaryDirectory() as directory:
        try:
            if server_process:
                server_process.make()
                server_process.start()
            url = server_process.url(server_process.database()) if server_process else f"sqlite:///{directory}/r.db"
            Records(url).run(lambda connection: fill(connection, given.hosts, given.servers))
            declared = catalog(given.hosts)
            print(f"{machine()}: {given.database}, {given.hosts} hosts, {given.servers} servers on each")
            place(url, declared, 1, given.repeat).show("one server")
            place(url, declared, 1000, 3).show("a thousand servers")
        finally:
            if server_process:
                server_process.remove()


if __name__ == "__main__":
    main()
