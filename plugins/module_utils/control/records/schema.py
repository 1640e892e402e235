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
    text,
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
    Index(
        "ix_instances_building",
        "host",
        sqlite_where=text("deleted = 0 AND vm_state = 'BUILDING'"),
        postgresql_where=text("deleted = 0 AND vm_state = 'BUILDING'"),
    ),
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
    Column("failed_builds", Integer, nullable=False, default=0),
    Column("updated_at", String(32), nullable=False, comment="the heartbeat"),
    Column("generation", Integer, nullable=False, default=0, server_default="0", comment="one more with each claim"),
    Column("servers", Integer, nullable=False, default=0, server_default="0", comment="how many have a claim here"),
    Column("hypervisor_id", Integer, comment="what it reported that other hosts reported, too"),
    Column("host_ip", String(64)),
    Column("disk_available_gb", Integer, comment="as measured; moves all the time"),
    Column("metrics", JSON(none_as_null=True), comment="name to number; null for none"),
)

reports = Table(
    "reports",
    metadata,
    Column("compute_node_id", ForeignKey("compute_nodes.id", ondelete="CASCADE"), primary_key=True),
    Column("report", JSON, nullable=False, comment="what hypervisor_info says of this host alone"),
    Column("numa_topology", Text, comment="the host's cells with what is used of them, as JSON; null for none"),
)
"""Beside the hosts, not in their rows: it is long, and few decisions look at it."""

hypervisors = Table(
    "hypervisors",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("report", JSON, nullable=False, comment="of hypervisor_info's, what hosts of one kind have in common"),
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
    Column("used", Integer, nullable=False, default=0, server_default="0", comment="the sum of the allocations"),
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

pinned_cpus = Table(
    "pinned_cpus",
    metadata,
    Column("compute_node_id", ForeignKey("compute_nodes.id"), primary_key=True),
    Column("cpu", Integer, primary_key=True),
    Column("consumer_id", ForeignKey("instances.uuid"), nullable=False, index=True),
)

numa_claims = Table(
    "numa_claims",
    metadata,
    Column("consumer_id", ForeignKey("instances.uuid"), primary_key=True),
    Column("compute_node_id", ForeignKey("compute_nodes.id"), nullable=False, index=True),
    Column("topology", JSON, nullable=False, comment="the server's cells, each on one of the host's"),
)

pci_devices = Table(
    "pci_devices",
    metadata,
    Column("compute_node_id", ForeignKey("compute_nodes.id", ondelete="CASCADE"), primary_key=True),
    Column("address", String(32), primary_key=True),
    Column("device", JSON, nullable=False, comment="what the host reported of it, with the tags of pci_device_spec"),
    Column("gone", Boolean, nullable=False, default=False, comment="no longer reported, kept until it is given back"),
    Column("consumer_id", ForeignKey("instances.uuid"), index=True, comment="null while it is free"),
)

server_groups = Table(
    "server_groups",
    metadata,
    Column("uuid", String(64), primary_key=True),
    Column("project_id", String(64), nullable=False),
    Column("user_id", String(64), nullable=False),
    Column("name", String(255), nullable=False),
    Column("policy", String(32), nullable=False),
    Column("max_server_per_host", Integer),
    Column("created_at", String(32), nullable=False),
    UniqueConstraint("project_id", "name"),
)

server_group_members = Table(
    "server_group_members",
    metadata,
    Column("instance_uuid", ForeignKey("instances.uuid"), primary_key=True),
    Column("group_uuid", String(64), nullable=False, index=True, comment="of server_groups, or of the catalogue"),
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
