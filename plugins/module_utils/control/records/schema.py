# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""The tables. A change here needs a migration in ``migrations/versions``; a test compares the two.

Names follow Nova's, Neutron's, Cinder's and Placement's tables. Times are ISO 8601 in UTC, as text, so that SQLite and
PostgreSQL hold the same.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

instances = Table(
    "instances",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("project_id", String(64), nullable=False),
    Column("user_id", String(64), nullable=False),
    Column("name", String(255), nullable=False),
    Column("request", JSON, nullable=False, comment="what was asked for: the immutable properties"),
    Column("spec", JSON, nullable=False, comment="the handle as it was created, without ports and volumes"),
    Column("vcpus", Integer, nullable=False),
    Column("memory_mb", Integer, nullable=False),
    Column("vm_state", String(32), nullable=False),
    Column("task_state", String(32)),
    Column("power_state", String(32), nullable=False),
    Column("host", String(255)),
    Column("availability_zone", String(255), comment="what was asked for; once placed, its host's"),
    Column("fault", JSON),
    Column("attempts", JSON, nullable=False, server_default="[]", comment="the faults on the hosts that were tried"),
    Column("created_at", String(32), nullable=False),
    Column("updated_at", String(32), nullable=False),
    Column("launched_at", String(32)),
    Column("deleted_at", String(32)),
    Column("deleted", Integer, nullable=False, default=0, comment="0, or the row's id once deleted"),
    UniqueConstraint("project_id", "name", "deleted"),
    sqlite_autoincrement=True,
)

leases = Table(
    "leases",
    metadata,
    Column("instance_uuid", ForeignKey("instances.uuid"), primary_key=True),
    Column("owner", String(64), nullable=False, index=True, comment="the audit id of the run's token"),
    Column("process", String(255), nullable=False),
    Column("expires_at", Float, nullable=False, comment="seconds since 1970 by the database's clock"),
)

residues = Table(
    "residues",
    metadata,
    Column("instance_uuid", ForeignKey("instances.uuid"), primary_key=True),
    Column("host", String(255), primary_key=True),
    Column("handle", JSON, nullable=False),
)

volumes = Table(
    "volumes",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("project_id", String(64), nullable=False),
    Column("size", Integer, nullable=False, comment="GiB"),
    Column("volume_type", String(64), nullable=False),
    Column("status", String(32), nullable=False),
    Column("host", String(255)),
    Column("created_at", String(32), nullable=False),
    Index(None, "project_id"),
)

block_device_mappings = Table(
    "block_device_mappings",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("instance_uuid", ForeignKey("instances.uuid"), nullable=False, index=True),
    Column("position", Integer, nullable=False),
    Column("source_type", String(32), nullable=False),
    Column("destination_type", String(32), nullable=False),
    Column("volume_id", ForeignKey("volumes.id"), nullable=False, unique=True),
    Column("boot_index", Integer, nullable=False),
    Column("delete_on_termination", Boolean, nullable=False),
    Column("connection_info", JSON, nullable=False),
)

ports = Table(
    "ports",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("network_id", String(64), nullable=False),
    Column("project_id", String(64), nullable=False),
    Column("name", String(255), nullable=False),
    Column("mac_address", String(17), nullable=False),
    Column("status", String(16), nullable=False),
    Column("device_owner", String(255), nullable=False),
    Column("device_id", String(255), nullable=False, comment="the instance's uuid, or the DHCP server's name"),
    Column("position", Integer, nullable=False),
    Column("binding_host", String(255)),
    Column("security_groups", JSON, nullable=False),
    Column("tag", String(64)),
    Column("preserve", Boolean, nullable=False, comment="made on its own, not by a server: it outlives the server"),
    UniqueConstraint("network_id", "mac_address"),
    Index(None, "device_id"),
)

ip_allocations = Table(
    "ip_allocations",
    metadata,
    Column("subnet_id", String(64), primary_key=True),
    Column("ip_address", String(64), primary_key=True),
    Column("network_id", String(64), nullable=False),
    Column("port_id", ForeignKey("ports.id", ondelete="CASCADE"), nullable=False, index=True),
)

compute_nodes = Table(
    "compute_nodes",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("host", String(255), nullable=False, unique=True),
    Column("enabled", Boolean, nullable=False, default=True),
    Column("disabled_reason", Text, nullable=False, default=""),
    Column("hypervisor", JSON, nullable=False, comment="what hypervisor_info reported"),
    Column("failed_builds", Integer, nullable=False, default=0),
    Column("updated_at", String(32), nullable=False, comment="the heartbeat"),
)

inventories = Table(
    "inventories",
    metadata,
    Column("compute_node_id", ForeignKey("compute_nodes.id", ondelete="CASCADE"), primary_key=True),
    Column("resource_class", String(255), primary_key=True),
    Column("total", Integer, nullable=False),
    Column("reserved", Integer, nullable=False),
    Column("min_unit", Integer, nullable=False),
    Column("max_unit", Integer, nullable=False),
    Column("step_size", Integer, nullable=False),
    Column("allocation_ratio", Float, nullable=False),
    CheckConstraint("total >= 0", name="total"),
)

allocations = Table(
    "allocations",
    metadata,
    Column("consumer_id", ForeignKey("instances.uuid"), primary_key=True),
    Column("resource_class", String(255), primary_key=True),
    Column("compute_node_id", ForeignKey("compute_nodes.id"), nullable=False, index=True),
    Column("used", Integer, nullable=False),
)

instance_actions = Table(
    "instance_actions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("instance_uuid", ForeignKey("instances.uuid"), nullable=False, index=True),
    Column("action", String(64), nullable=False),
    Column("user_id", String(64), nullable=False),
    Column("project_id", String(64), nullable=False),
    Column("start_time", String(32), nullable=False),
    Column("finish_time", String(32)),
    Column("message", Text),
)

instance_action_events = Table(
    "instance_action_events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("action_id", ForeignKey("instance_actions.id"), nullable=False, index=True),
    Column("event", String(64), nullable=False),
    Column("host", String(255)),
    Column("start_time", String(32), nullable=False),
    Column("finish_time", String(32), nullable=False),
    Column("result", String(32), nullable=False),
    Column("traceback", Text),
)
