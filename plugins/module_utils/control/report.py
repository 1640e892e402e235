# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Servers as a table for people."""

from __future__ import annotations

import textwrap
from typing import Sequence

from ansible_collections.barestack.kvm.plugins.module_utils.control.placement import age
from ansible_collections.barestack.kvm.plugins.module_utils.model.instance import Instance

_HEADER = ("name", "id", "host", "vm_state", "task_state", "power_state", "addresses", "age", "fault")
_FAULT_WIDTH = 160
"""A fault may be a command's whole output; the handle has all of it."""


def table(handle: Sequence[Instance], now: str) -> list[str]:
    """A header and a line for each server, the columns as wide as their widest entry."""
    rows = [_HEADER, *(_row(instance, now) for instance in handle)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _row(instance: Instance, now: str) -> tuple[str, ...]:
    addresses = [f"{port.network.name}={ip.ip_address}" for port in instance.ports for ip in port.fixed_ips]
    return (
        instance.name,
        instance.uuid,
        instance.host or "-",
        instance.vm_state,
        instance.task_state or "-",
        instance.power_state,
        ", ".join(addresses) or "-",
        _duration(age(instance.created_at, now)),
        textwrap.shorten(str(instance.fault), _FAULT_WIDTH, placeholder=" ...") if instance.fault else "-",
    )


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"
