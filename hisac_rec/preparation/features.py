"""Side features in SQL: vocabularies of the training period, and ids in place of values."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from hisac_rec.data.contract import Feature
from hisac_rec.errors import did_you_mean
from hisac_rec.preparation.sql import INTEGER_TYPES, Engine, identifier

SCALAR_TYPES = INTEGER_TYPES | {"VARCHAR", "BOOLEAN", "UUID", "DATE", "HUGEINT", "UHUGEINT"}
RESERVED = frozenset(
    {"item", "user", "id", "value", "raw_id", "text", "content", "train_count", "first_time"}
)
"""Columns of our own that no feature may be called."""
IN_ORDER = "try_cast(value AS BIGINT) NULLS LAST, value"
"""The order of ids: numbers by size, then text."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A feature with its vocabulary in the database as table ``vocabulary``."""

    feature: Feature
    column: str
    """Quoted name in the table of entities."""
    vocabulary: str
    values: pa.Array
    """Raw values, index = id; index 0 is null."""


def chosen_columns(
    engine: Engine, side: str, types: dict[str, str], wanted: list[str] | None
) -> list[str]:
    """The columns that become features.

    Args:
        engine: for messages.
        side: "item" or "user".
        types: column -> DuckDB type of the SELECT.
        wanted: what the definition asks for; None: all there are.

    Raises:
        UserError: a column is missing, has a reserved name or a type that is no category.
    """
    key, own = f"source.{side}s", {"item": {"item", "text", "content"}, "user": {"user"}}[side]
    names = [name for name in types if name not in own] if wanted is None else wanted
    for name in names:
        if name not in types:
            hint = did_you_mean(name, types)
            raise engine.wrong(f"features.{side}", f"no column '{name}' in {key}{hint}")
        if name in RESERVED or not name.isidentifier():
            raise engine.wrong(key, f"a feature cannot be called '{name}': rename the column")
        scalar = types[name].removesuffix("[]")
        if types[name].endswith("[]") and side == "user":
            raise engine.wrong(key, f"column '{name}' is {types[name]}, expected one value a user")
        if scalar not in SCALAR_TYPES and not scalar.startswith("ENUM"):
            raise engine.wrong(
                key,
                f"column '{name}' is {types[name]}, expected a category (text, integer, boolean, "
                "date, or a list of these); cast or bin it in the SELECT, or leave it out of "
                f"features.{side}",
            )
    return names


def encode(
    engine: Engine, side: str, name: str, entities: str, seen: str, min_count: int, *, multi: bool
) -> Encoded:
    """Make the vocabulary of one feature.

    Args:
        engine: the database.
        side: "item" or "user".
        name: the column.
        entities: table of entities with column ``id`` and the features.
        seen: table of the ids (column ``id``) whose values are known in the training period.
        min_count: values carried by fewer seen entities are left out.
        multi: the column holds lists.
    """
    column = identifier(name)
    value = f"unnest({column})" if multi else column
    table = f"prepared.{identifier(f'vocabulary_{side}_{name}')}"
    engine.run(
        f"""
        CREATE TABLE {table} AS
        SELECT row_number() OVER (ORDER BY {IN_ORDER})::INTEGER AS id, value
        FROM (
            SELECT value FROM (
                SELECT DISTINCT id, {value}::VARCHAR AS value
                FROM {entities} SEMI JOIN {seen} USING (id)
            )
            WHERE value IS NOT NULL GROUP BY value HAVING count(*) >= {min_count}
        )
        """,
        f"vocabulary of {side} {name}",
        f"source.{side}s",
    )
    values = vocabulary(engine, table)
    return Encoded(Feature(name=name, rows=len(values), multi=multi), column, table, values)


def vocabulary(engine: Engine, table: str, value: str = "value") -> pa.Array:
    """Raw values in the order of their ids, null first."""
    values = engine.arrow(f"SELECT {value} FROM {table} WHERE id > 0 ORDER BY id")
    return pa.concat_arrays([pa.nulls(1, pa.string()), *values.column(0).cast(pa.string()).chunks])


def ids_query(entities: str, features: list[Encoded], others: list[str]) -> str:
    """SELECT with ids in place of values, in the order of the entities' ids.

    Single-valued features are 0 where unknown; multi-valued ones ``[0]`` where nothing is
    known, else their known ids in ascending order.

    Args:
        entities: table with columns ``id`` and the features.
        features: what to encode.
        others: further expressions over ``entities AS e``.
    """
    columns, joins = [], []
    for index, encoded in enumerate(features):
        alias = f"f{index}"
        if encoded.feature.multi:
            columns.append(f"coalesce({alias}.ids, [0]) AS {encoded.column}")
            joins.append(f"""
                LEFT JOIN (
                    SELECT u.id, list(DISTINCT v.id ORDER BY v.id) AS ids
                    FROM (SELECT id, unnest({encoded.column})::VARCHAR AS value FROM {entities}) u
                    JOIN {encoded.vocabulary} v USING (value) GROUP BY u.id
                ) {alias} ON {alias}.id = e.id""")
        else:
            columns.append(f"coalesce({alias}.id, 0) AS {encoded.column}")
            joins.append(
                f"LEFT JOIN {encoded.vocabulary} {alias} "
                f"ON {alias}.value = e.{encoded.column}::VARCHAR"
            )
    return f"SELECT {', '.join([*others, *columns])} FROM {entities} e {' '.join(joins)}"
