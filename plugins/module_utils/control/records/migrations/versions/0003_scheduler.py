# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Claims of NUMA cells, CPUs and devices, server groups; what the scheduler's columns are loaded from."""

from __future__ import annotations

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_OWN = (
    "hostname",
    "host_ip",
    "vcpus",
    "memory_mb",
    "disk_gb",
    "disk_available_gb",
    "running_domains",
    "numa_cells",
)
"""What of a host's report is its own; the rest is kept once for all hosts that say the same."""


def upgrade() -> None:
    """Forward."""
    _tables()
    _columns()
    _hypervisors()
    op.drop_column("compute_nodes", "hypervisor")
    op.execute(
        "UPDATE inventories SET used = (SELECT coalesce(sum(allocations.used), 0) FROM allocations"
        " WHERE allocations.compute_node_id = inventories.compute_node_id"
        " AND allocations.resource_class = inventories.resource_class)"
    )
    op.execute(
        "UPDATE compute_nodes SET servers = (SELECT count(DISTINCT allocations.consumer_id) FROM allocations"
        " WHERE allocations.compute_node_id = compute_nodes.id)"
    )


def _hypervisors() -> None:
    nodes = sa.table(
        "compute_nodes",
        sa.column("id", sa.Integer()),
        sa.column("hypervisor", sa.JSON()),
        sa.column("hypervisor_id", sa.Integer()),
        sa.column("host_ip", sa.String()),
        sa.column("disk_available_gb", sa.Integer()),
    )
    kinds = sa.table(
        "hypervisors", sa.column("id", sa.Integer()), sa.column("digest", sa.String()), sa.column("report", sa.JSON())
    )
    reports = sa.table("reports", sa.column("compute_node_id", sa.Integer()), sa.column("report", sa.JSON()))
    connection = op.get_bind()
    known: dict[str, int] = {}
    for row in connection.execute(sa.select(nodes.c.id, nodes.c.hypervisor)).fetchall():
        own = {key: value for key, value in row.hypervisor.items() if key in _OWN}
        common = {key: value for key, value in row.hypervisor.items() if key not in _OWN}
        digest = hashlib.sha256(json.dumps(common, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        if digest not in known:
            new = sa.insert(kinds).values(digest=digest, report=common).returning(kinds.c.id)
            known[digest] = connection.execute(new).scalar_one()
        connection.execute(sa.insert(reports).values(compute_node_id=row.id, report=own))
        values = {"hypervisor_id": known[digest], **{key: own.get(key) for key in ("host_ip", "disk_available_gb")}}
        connection.execute(sa.update(nodes).where(nodes.c.id == row.id).values(**values))


def _tables() -> None:
    op.create_table(
        "reports",
        sa.Column("compute_node_id", sa.Integer(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False, comment="what hypervisor_info says of this host alone"),
        sa.Column(
            "numa_topology",
            sa.Text(),
            nullable=True,
            comment="the host's cells with what is used of them, as JSON; null for none",
        ),
        sa.ForeignKeyConstraint(
            ["compute_node_id"],
            ["compute_nodes.id"],
            name=op.f("fk_reports_compute_node_id_compute_nodes"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("compute_node_id", name=op.f("pk_reports")),
    )
    op.create_table(
        "hypervisors",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column(
            "report", sa.JSON(), nullable=False, comment="of hypervisor_info's, what hosts of one kind have in common"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hypervisors")),
        sa.UniqueConstraint("digest", name=op.f("uq_hypervisors_digest")),
    )
    op.create_table(
        "server_groups",
        sa.Column("uuid", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("policy", sa.String(length=32), nullable=False),
        sa.Column("max_server_per_host", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_server_groups")),
        sa.UniqueConstraint("project_id", "name", name=op.f("uq_server_groups_project_id_name")),
    )
    op.create_table(
        "numa_claims",
        sa.Column("consumer_id", sa.String(length=36), nullable=False),
        sa.Column("compute_node_id", sa.Integer(), nullable=False),
        sa.Column("topology", sa.JSON(), nullable=False, comment="the server's cells, each on one of the host's"),
        sa.ForeignKeyConstraint(
            ["compute_node_id"], ["compute_nodes.id"], name=op.f("fk_numa_claims_compute_node_id_compute_nodes")
        ),
        sa.ForeignKeyConstraint(["consumer_id"], ["instances.uuid"], name=op.f("fk_numa_claims_consumer_id_instances")),
        sa.PrimaryKeyConstraint("consumer_id", name=op.f("pk_numa_claims")),
    )
    op.create_index(op.f("ix_numa_claims_compute_node_id"), "numa_claims", ["compute_node_id"], unique=False)
    op.create_table(
        "pci_devices",
        sa.Column("compute_node_id", sa.Integer(), nullable=False),
        sa.Column("address", sa.String(length=32), nullable=False),
        sa.Column(
            "device",
            sa.JSON(),
            nullable=False,
            comment="what the host reported of it, with the tags of pci_device_spec",
        ),
        sa.Column("gone", sa.Boolean(), nullable=False, comment="no longer reported, kept until it is given back"),
        sa.Column("consumer_id", sa.String(length=36), nullable=True, comment="null while it is free"),
        sa.ForeignKeyConstraint(
            ["compute_node_id"],
            ["compute_nodes.id"],
            name=op.f("fk_pci_devices_compute_node_id_compute_nodes"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["consumer_id"], ["instances.uuid"], name=op.f("fk_pci_devices_consumer_id_instances")),
        sa.PrimaryKeyConstraint("compute_node_id", "address", name=op.f("pk_pci_devices")),
    )
    op.create_index(op.f("ix_pci_devices_consumer_id"), "pci_devices", ["consumer_id"], unique=False)
    op.create_table(
        "pinned_cpus",
        sa.Column("compute_node_id", sa.Integer(), nullable=False),
        sa.Column("cpu", sa.Integer(), nullable=False),
        sa.Column("consumer_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(
            ["compute_node_id"], ["compute_nodes.id"], name=op.f("fk_pinned_cpus_compute_node_id_compute_nodes")
        ),
        sa.ForeignKeyConstraint(["consumer_id"], ["instances.uuid"], name=op.f("fk_pinned_cpus_consumer_id_instances")),
        sa.PrimaryKeyConstraint("compute_node_id", "cpu", name=op.f("pk_pinned_cpus")),
    )
    op.create_index(op.f("ix_pinned_cpus_consumer_id"), "pinned_cpus", ["consumer_id"], unique=False)
    op.create_table(
        "server_group_members",
        sa.Column("instance_uuid", sa.String(length=36), nullable=False),
        sa.Column("group_uuid", sa.String(length=64), nullable=False, comment="of server_groups, or of the catalogue"),
        sa.ForeignKeyConstraint(
            ["instance_uuid"], ["instances.uuid"], name=op.f("fk_server_group_members_instance_uuid_instances")
        ),
        sa.PrimaryKeyConstraint("instance_uuid", name=op.f("pk_server_group_members")),
    )
    op.create_index(op.f("ix_server_group_members_group_uuid"), "server_group_members", ["group_uuid"], unique=False)


def _columns() -> None:
    op.add_column(
        "compute_nodes",
        sa.Column("generation", sa.Integer(), server_default="0", nullable=False, comment="one more with each claim"),
    )
    op.add_column(
        "compute_nodes",
        sa.Column("servers", sa.Integer(), server_default="0", nullable=False, comment="how many have a claim here"),
    )
    op.add_column(
        "compute_nodes",
        sa.Column(
            "hypervisor_id", sa.Integer(), nullable=True, comment="what it reported that other hosts reported, too"
        ),
    )
    op.add_column("compute_nodes", sa.Column("host_ip", sa.String(length=64), nullable=True))
    op.add_column(
        "compute_nodes",
        sa.Column("disk_available_gb", sa.Integer(), nullable=True, comment="as measured; moves all the time"),
    )
    op.add_column(
        "compute_nodes", sa.Column("metrics", sa.JSON(), nullable=True, comment="name to number; null for none")
    )
    op.create_index(
        "ix_instances_building",
        "instances",
        ["host"],
        unique=False,
        sqlite_where=sa.text("deleted = 0 AND vm_state = 'BUILDING'"),
        postgresql_where=sa.text("deleted = 0 AND vm_state = 'BUILDING'"),
    )
    op.add_column(
        "inventories",
        sa.Column("used", sa.Integer(), server_default="0", nullable=False, comment="the sum of the allocations"),
    )
