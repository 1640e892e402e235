# Copyright: barestack.kvm contributors
# GNU General Public License v3.0 or later (see LICENSE)
"""Many rows in one statement, and whole columns as one value: what JSON functions both databases have for that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Integer,
    String,
    Subquery,
    Text,
    cast,
    func,
    literal,
    literal_column,
    select,
)
from sqlalchemy.types import TypeEngine

_TYPES: dict[type, TypeEngine[Any]] = {int: Integer(), str: String()}


def given(connection: Connection, rows: Sequence[Sequence[Any]], **columns: type) -> Subquery:
    """The rows as a table with these columns (name to int or str), for one statement to insert or to join.

    They travel as one JSON text: a statement takes only so many parameters, and one for each row takes its time.
    """
    told = literal(json.dumps(rows, separators=(",", ":")), Text())
    if connection.dialect.name == "postgresql":
        each = func.json_array_elements(cast(told, JSON())).table_valued("value")
    else:
        each = func.json_each(told).table_valued("value")
    parts = [
        cast(each.c.value.op("->>")(literal_column(str(index))), _TYPES[kind]).label(name)
        for index, (name, kind) in enumerate(columns.items())
    ]
    return select(*parts).subquery("given")


def listed(
    connection: Connection, column: ColumnElement[Any], only: ColumnElement[bool] | None = None
) -> ColumnElement[Any]:
    """A column's values as one JSON list, in the order of the rows; read it with :func:`values`.

    ``only``: those of the rows for which it holds.
    """
    if connection.dialect.name == "postgresql":
        every = func.json_agg(column)
    else:
        every = func.json_group_array(func.json(column) if isinstance(column.type, JSON) else column)
    return cast(every if only is None else every.filter(only), Text())


def values(text: str | None) -> list[Any]:
    """What :func:`listed` came to; PostgreSQL says null for no rows."""
    return json.loads(text) or [] if text else []
