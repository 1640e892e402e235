# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Leases, residues, and the faults of earlier attempts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Forward."""
    op.add_column(
        "instances",
        sa.Column(
            "attempts",
            sa.JSON(),
            server_default="[]",
            nullable=False,
            comment="the faults on the hosts that were tried",
        ),
    )
    op.create_table(
        "leases",
        sa.Column("instance_uuid", sa.String(length=36), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False, comment="the audit id of the run's token"),
        sa.Column("process", sa.String(length=255), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False, comment="seconds since 1970 by the database's clock"),
        sa.ForeignKeyConstraint(["instance_uuid"], ["instances.uuid"], name=op.f("fk_leases_instance_uuid_instances")),
        sa.PrimaryKeyConstraint("instance_uuid", name=op.f("pk_leases")),
    )
    op.create_index(op.f("ix_leases_owner"), "leases", ["owner"], unique=False)
    op.create_table(
        "residues",
        sa.Column("instance_uuid", sa.String(length=36), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("handle", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["instance_uuid"], ["instances.uuid"], name=op.f("fk_residues_instance_uuid_instances")
        ),
        sa.PrimaryKeyConstraint("instance_uuid", "host", name=op.f("pk_residues")),
    )
