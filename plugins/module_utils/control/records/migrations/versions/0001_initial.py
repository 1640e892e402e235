# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The first tables."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create them."""

    op.create_table(
        "compute_nodes",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("disabled_reason", sa.Text(), nullable=False),
        sa.Column("hypervisor", sa.JSON(), nullable=False, comment="what hypervisor_info reported"),
        sa.Column("failed_builds", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.String(length=32), nullable=False, comment="the heartbeat"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_compute_nodes")),
        sa.UniqueConstraint("host", name=op.f("uq_compute_nodes_host")),
    )
    op.create_table(
        "instances",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False, comment="what was asked for: the immutable properties"),
        sa.Column("spec", sa.JSON(), nullable=False, comment="the handle as it was created, without ports and volumes"),
        sa.Column("vcpus", sa.Integer(), nullable=False),
        sa.Column("memory_mb", sa.Integer(), nullable=False),
        sa.Column("vm_state", sa.String(length=32), nullable=False),
        sa.Column("task_state", sa.String(length=32), nullable=True),
        sa.Column("power_state", sa.String(length=32), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=True),
        sa.Column(
            "availability_zone",
            sa.String(length=255),
            nullable=True,
            comment="what was asked for; once placed, its host's",
        ),
        sa.Column("fault", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("updated_at", sa.String(length=32), nullable=False),
        sa.Column("launched_at", sa.String(length=32), nullable=True),
        sa.Column("deleted_at", sa.String(length=32), nullable=True),
        sa.Column("deleted", sa.Integer(), nullable=False, comment="0, or the row's id once deleted"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instances")),
        sa.UniqueConstraint("project_id", "name", "deleted", name=op.f("uq_instances_project_id_name_deleted")),
        sa.UniqueConstraint("uuid", name=op.f("uq_instances_uuid")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "ports",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("network_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("mac_address", sa.String(length=17), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("device_owner", sa.String(length=255), nullable=False),
        sa.Column(
            "device_id", sa.String(length=255), nullable=False, comment="the instance's uuid, or the DHCP server's name"
        ),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("binding_host", sa.String(length=255), nullable=True),
        sa.Column("security_groups", sa.JSON(), nullable=False),
        sa.Column("tag", sa.String(length=64), nullable=True),
        sa.Column(
            "preserve", sa.Boolean(), nullable=False, comment="made on its own, not by a server: it outlives the server"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ports")),
        sa.UniqueConstraint("network_id", "mac_address", name=op.f("uq_ports_network_id_mac_address")),
    )
    op.create_index(op.f("ix_ports_device_id"), "ports", ["device_id"], unique=False)
    op.create_table(
        "volumes",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False, comment="GiB"),
        sa.Column("volume_type", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_volumes")),
    )
    op.create_index(op.f("ix_volumes_project_id"), "volumes", ["project_id"], unique=False)
    op.create_table(
        "allocations",
        sa.Column("consumer_id", sa.String(length=36), nullable=False),
        sa.Column("resource_class", sa.String(length=255), nullable=False),
        sa.Column("compute_node_id", sa.Integer(), nullable=False),
        sa.Column("used", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["compute_node_id"], ["compute_nodes.id"], name=op.f("fk_allocations_compute_node_id_compute_nodes")
        ),
        sa.ForeignKeyConstraint(["consumer_id"], ["instances.uuid"], name=op.f("fk_allocations_consumer_id_instances")),
        sa.PrimaryKeyConstraint("consumer_id", "resource_class", name=op.f("pk_allocations")),
    )
    op.create_index(op.f("ix_allocations_compute_node_id"), "allocations", ["compute_node_id"], unique=False)
    op.create_table(
        "block_device_mappings",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("instance_uuid", sa.String(length=36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("source_type", sa.String(length=32), nullable=False),
        sa.Column("destination_type", sa.String(length=32), nullable=False),
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("boot_index", sa.Integer(), nullable=False),
        sa.Column("delete_on_termination", sa.Boolean(), nullable=False),
        sa.Column("connection_info", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_uuid"], ["instances.uuid"], name=op.f("fk_block_device_mappings_instance_uuid_instances")
        ),
        sa.ForeignKeyConstraint(["volume_id"], ["volumes.id"], name=op.f("fk_block_device_mappings_volume_id_volumes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_block_device_mappings")),
        sa.UniqueConstraint("volume_id", name=op.f("uq_block_device_mappings_volume_id")),
    )
    op.create_index(
        op.f("ix_block_device_mappings_instance_uuid"), "block_device_mappings", ["instance_uuid"], unique=False
    )
    op.create_table(
        "instance_actions",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("instance_uuid", sa.String(length=36), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("user_id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("start_time", sa.String(length=32), nullable=False),
        sa.Column("finish_time", sa.String(length=32), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["instance_uuid"], ["instances.uuid"], name=op.f("fk_instance_actions_instance_uuid_instances")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance_actions")),
    )
    op.create_index(op.f("ix_instance_actions_instance_uuid"), "instance_actions", ["instance_uuid"], unique=False)
    op.create_table(
        "inventories",
        sa.Column("compute_node_id", sa.Integer(), nullable=False),
        sa.Column("resource_class", sa.String(length=255), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("reserved", sa.Integer(), nullable=False),
        sa.Column("min_unit", sa.Integer(), nullable=False),
        sa.Column("max_unit", sa.Integer(), nullable=False),
        sa.Column("step_size", sa.Integer(), nullable=False),
        sa.Column("allocation_ratio", sa.Float(), nullable=False),
        sa.CheckConstraint("total >= 0", name=op.f("ck_inventories_total")),
        sa.ForeignKeyConstraint(
            ["compute_node_id"],
            ["compute_nodes.id"],
            name=op.f("fk_inventories_compute_node_id_compute_nodes"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("compute_node_id", "resource_class", name=op.f("pk_inventories")),
    )
    op.create_table(
        "ip_allocations",
        sa.Column("subnet_id", sa.String(length=64), nullable=False),
        sa.Column("ip_address", sa.String(length=64), nullable=False),
        sa.Column("network_id", sa.String(length=64), nullable=False),
        sa.Column("port_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(
            ["port_id"], ["ports.id"], name=op.f("fk_ip_allocations_port_id_ports"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("subnet_id", "ip_address", name=op.f("pk_ip_allocations")),
    )
    op.create_index(op.f("ix_ip_allocations_port_id"), "ip_allocations", ["port_id"], unique=False)
    op.create_table(
        "instance_action_events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("action_id", sa.Integer(), nullable=False),
        sa.Column("event", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=True),
        sa.Column("start_time", sa.String(length=32), nullable=False),
        sa.Column("finish_time", sa.String(length=32), nullable=False),
        sa.Column("result", sa.String(length=32), nullable=False),
        sa.Column("traceback", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["action_id"], ["instance_actions.id"], name=op.f("fk_instance_action_events_action_id_instance_actions")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instance_action_events")),
    )
    op.create_index(op.f("ix_instance_action_events_action_id"), "instance_action_events", ["action_id"], unique=False)
    _count_from(secrets.randbelow(1 << 15) << 16)


def _count_from(first: int) -> None:
    """Number the servers from here. Libvirt knows them by their numbers, and several sites may share a host."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"ALTER SEQUENCE instances_id_seq RESTART WITH {first + 1}")
    else:
        op.execute(f"INSERT INTO sqlite_sequence (name, seq) VALUES ('instances', {first})")  # noqa: S608 - a number
