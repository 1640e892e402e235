# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Records of earlier versions, with what was in them."""

from __future__ import annotations

import json
from typing import Any

from alembic import command
from ansible_collections.barestack.kvm.plugins.module_utils.control.records import Records, claims, instances, migrate
from ansible_collections.barestack.kvm.plugins.module_utils.control.records.schema import metadata
from sqlalchemy import Connection, create_engine, select, text

TIME = "2026-01-01T00:00:00.000000Z"
COMMON = {
    "hypervisor_type": "QEMU",
    "hypervisor_version": 7002000,
    "cpu_info": {"arch": "x86_64"},
    "supported_instances": [["x86_64", "kvm", "hvm"]],
    "machine_types": {"x86_64": ["pc"]},
    "firmware": ["bios"],
}
OWN = {"hostname": "h", "vcpus": 4, "memory_mb": 4096, "disk_gb": 10, "running_domains": 2, "numa_cells": []}


def as_of(url: str, revision: str) -> None:
    """The tables of that version."""
    engine = create_engine(url)
    with engine.begin() as connection:
        config = migrate.configuration()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def rows(connection: Connection, table: str) -> list[dict[str, Any]]:
    found = metadata.tables[table]
    return [dict(row._mapping) for row in connection.execute(select(found).order_by(*found.primary_key))]


def fill(url: str) -> None:
    """Three hosts of two kinds with two servers as 0002 has them, one of them deleted with a claim that was left."""
    engine = create_engine(url)
    with engine.begin() as connection:
        for number, host in enumerate(("kvm1", "kvm2", "kvm3"), 1):
            version = 8000000 if host == "kvm3" else COMMON["hypervisor_version"]
            report = {**COMMON, **OWN, "hypervisor_version": version, "host_ip": f"192.0.2.{number}"}
            connection.execute(
                text(
                    "INSERT INTO compute_nodes (id, host, enabled, disabled_reason, hypervisor, failed_builds, "
                    "updated_at) VALUES (:id, :host, :enabled, '', :report, 0, :now)"
                ),
                {
                    "id": number,
                    "host": host,
                    "enabled": True,
                    "report": json.dumps({**report, "disk_available_gb": number}),
                    "now": TIME,
                },
            )
            for name, total in (("VCPU", 4), ("MEMORY_MB", 4096)):
                connection.execute(
                    text("INSERT INTO inventories VALUES (:id, :name, :total, 0, 1, :total, 1, 1.0)"),
                    {"id": number, "name": name, "total": total},
                )
        for number in (1, 2, 3):
            connection.execute(
                text(
                    "INSERT INTO instances (id, uuid, project_id, user_id, name, request, spec, vcpus, memory_mb, "
                    "vm_state, power_state, host, attempts, created_at, updated_at, deleted) VALUES (:id, :uuid, 'p', "
                    "'u', :uuid, '{}', :spec, 1, 128, 'ACTIVE', 'RUNNING', 'kvm1', '[]', :now, :now, 0)"
                ),
                {"id": number, "uuid": f"s{number}", "now": TIME, "spec": json.dumps(SPEC | {"uuid": f"s{number}"})},
            )
            for name, amount in (("VCPU", 1), ("MEMORY_MB", 128 * number)):
                connection.execute(
                    text("INSERT INTO allocations VALUES (:uuid, :name, :node, :used)"),
                    {"uuid": f"s{number}", "name": name, "node": 1 if number < 3 else 2, "used": amount},
                )
    engine.dispose()


SPEC = {
    "name": "s",
    "hostname": "s",
    "project_id": "p",
    "user_id": "u",
    "created_at": TIME,
    "flavor": {"id": "f", "name": "f", "vcpus": 1, "ram": 128, "disk": 1},
    "image": {"id": "i", "name": "i", "url": "/i", "checksum": "sha256:0", "disk_format": "qcow2"},
}


def test_what_hosts_and_servers_had_is_still_there(records_url: str) -> None:
    as_of(records_url, "0002")
    fill(records_url)

    def look(connection: Connection) -> None:
        nodes = rows(connection, "compute_nodes")
        assert [(n["host"], n["servers"], n["generation"], n["enabled"]) for n in nodes] == [
            ("kvm1", 2, 0, True),
            ("kvm2", 1, 0, True),
            ("kvm3", 0, 0, True),
        ]
        assert [(n["host_ip"], n["disk_available_gb"]) for n in nodes] == [(f"192.0.2.{n}", n) for n in (1, 2, 3)]
        kinds = {row["id"]: row["report"] for row in rows(connection, "hypervisors")}
        assert len(kinds) == 2
        assert kinds[nodes[0]["hypervisor_id"]] == kinds[nodes[1]["hypervisor_id"]] == COMMON
        assert kinds[nodes[2]["hypervisor_id"]] == {**COMMON, "hypervisor_version": 8000000}
        assert [row["report"]["memory_mb"] for row in rows(connection, "reports")] == [4096] * 3
        used = {(row["compute_node_id"], row["resource_class"]): row["used"] for row in rows(connection, "inventories")}
        assert used == {
            (1, "VCPU"): 2,
            (1, "MEMORY_MB"): 384,
            (2, "VCPU"): 1,
            (2, "MEMORY_MB"): 384,
            (3, "VCPU"): 0,
            (3, "MEMORY_MB"): 0,
        }
        assert claims.miscounted(connection) == []

    Records(records_url).run(look)


def test_the_upgraded_records_work(records_url: str) -> None:
    as_of(records_url, "0002")
    fill(records_url)

    def work(connection: Connection) -> None:
        assert set(instances.known(connection, ["s1", "s2"])) == {"s1", "s2"}
        assert claims.release(connection, ["s1", "s3"]) == {"s1", "s3"}
        claims.claim(connection, {"s3": claims.Claim("kvm3", {"VCPU": 2})})
        assert claims.miscounted(connection) == []
        assert [row["servers"] for row in rows(connection, "compute_nodes")] == [1, 0, 1]

    Records(records_url).run(work)
