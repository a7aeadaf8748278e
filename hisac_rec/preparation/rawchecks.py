"""Checks of raw files and of what the definition's SQL makes of them, before it is used.

Every function raises :class:`UserError` that names the definition's file and key.
"""

from __future__ import annotations

import logging
from pathlib import Path

from hisac_rec.data.contract import SPLITS, task_field
from hisac_rec.errors import UserError, did_you_mean
from hisac_rec.preparation.definition import DatasetDefinition, SourceConfig
from hisac_rec.preparation.sql import INTEGER_TYPES, Engine, identifier, text

log = logging.getLogger(__name__)

_ID_TYPES = INTEGER_TYPES | {"VARCHAR", "UUID", "HUGEINT", "UHUGEINT", "ENUM"}
_INTEGER = (INTEGER_TYPES, "an integer")

NUMBER_TYPES = INTEGER_TYPES | {"FLOAT", "DOUBLE", "DECIMAL"}
COLUMN_TYPES = {
    "user": (_ID_TYPES, "an integer or text"),
    "item": (_ID_TYPES, "an integer or text"),
    "time": _INTEGER,
    "sequence": _INTEGER,
    "type": (_ID_TYPES | {"BOOLEAN"}, "an integer or text"),
}
"""Column of ``source.events`` -> the DuckDB types it may have, and these in words."""


def require_files(source: SourceConfig, raw: Path | None, origin: str) -> Path:
    """Check that the raw folder holds what the definition needs; return it, absolute.

    Raises:
        UserError: no folder given, it is absent, or a file is missing; says where to get it.
    """
    where = f"\nWhere to get the raw files: {source.where_to_get}" if source.where_to_get else ""
    needs = f"{origin} needs the raw files {', '.join(source.files)}"
    if raw is None:
        raise UserError(f"{needs}: give their folder with --raw{where}")
    if not raw.is_dir():
        raise UserError(f"{raw}: no such folder; {needs}{where}")
    for name in source.files:
        if next(raw.glob(name), None) is None:
            raise UserError(f"{raw / name}: raw file is missing; {needs}{where}")
    return raw.absolute()


def check_select(
    engine: Engine, key: str, table: str, required: list[str], optional: tuple[str, ...] = ()
) -> dict[str, str]:
    """Check the columns of a SELECT's result: there, of a usable type, without NULL.

    Args:
        engine: the database.
        key: the definition's key of the SELECT.
        table: its result.
        required: columns that must be there.
        optional: columns that are checked where they are there.

    Returns:
        Column -> DuckDB type, all columns.

    Raises:
        UserError: names key, column, expected and found type, or how many rows are NULL.
    """
    types = engine.columns(table)
    for name in required:
        if name not in types:
            hint = did_you_mean(name, types)
            raise engine.wrong(key, f"the SELECT has no column '{name}'{hint}")
    for name in (*required, *(name for name in optional if name in types)):
        kind, (allowed, wanted) = types[name], COLUMN_TYPES[name]
        if kind.partition("(")[0] not in allowed:
            is_moment = kind.startswith("TIMESTAMP") or kind == "DATE"
            advice = f": write epoch({name})::BIGINT AS {name}" if is_moment else ""
            raise engine.wrong(key, f"column '{name}' is {kind}, expected {wanted}{advice}")
        nulls = engine.rows(f"SELECT count(*) FROM {table} WHERE {identifier(name)} IS NULL")
        if nulls[0][0]:
            raise engine.wrong(
                key,
                f"{nulls[0][0]:,} rows have no {name} (NULL): leave them out with "
                f"WHERE {name} IS NOT NULL, or fill them in",
                f"SELECT 1 FROM found WHERE {identifier(name)} IS NULL LIMIT 1",
            )
    return types


def check_expressions(engine: Engine, definition: DatasetDefinition, events: str) -> None:
    """Check each SQL expression over the events by itself, so that messages name its key.

    Raises:
        UserError: an expression does not run or is of a wrong type.
    """
    requests = definition.requests
    assert requests is not None
    conditions = {"history.where": definition.history.where, "requests.where": requests.where}
    labels = {"requests.label": requests.label}
    labels |= {f"requests.tasks.{name}": sql for name, sql in (requests.tasks or {}).items()}
    others = dict(labels)
    if requests.group != "event":
        others["requests.group"] = requests.group
    if definition.split.column is not None:
        others["split.column"] = definition.split.column
    for key, expression in {**conditions, **others}.items():
        described = engine.rows(f"DESCRIBE SELECT ({expression}\n) AS value FROM {events}", key)
        kind = described[0][1]
        if key in conditions and kind != "BOOLEAN":
            raise engine.wrong(key, f"is {kind}, expected a condition (BOOLEAN)")
        is_number = kind.partition("(")[0] in NUMBER_TYPES
        if key in labels and not is_number and kind != "BOOLEAN":
            raise engine.wrong(key, f"is {kind}, expected BOOLEAN or a number in [0, 1]")
    if definition.split.column is not None:
        _check_split(engine, definition.split.column, events)


def _check_split(engine: Engine, column: str, events: str) -> None:
    wrong = f"({column}\n)::VARCHAR IS NULL OR ({column}\n)::VARCHAR NOT IN {SPLITS}"
    count, value = engine.rows(
        f"""
        SELECT count(*), coalesce(min(({column}\n)::VARCHAR), 'NULL')
        FROM {events} WHERE {wrong}
        """,
        "split.column",
    )[0]
    if count:
        raise engine.wrong(
            "split.column",
            f"{count:,} events are of split {value!r}, expected 'train', 'valid' or 'test': "
            "map the publisher's names with CASE, or leave such events out of source.events",
            f"SELECT 1 FROM found WHERE {wrong} LIMIT 1",
            "source.events",
        )


def check_unique(engine: Engine, key: str, table: str, side: str) -> None:
    """Check that every item (user) has one row.

    Raises:
        UserError: names the first that has several, and the second of its rows.
    """
    twice = engine.rows(
        f'SELECT "{side}" FROM {table} GROUP BY ALL HAVING count(*) > 1 ORDER BY 1 LIMIT 1'
    )
    if twice:
        name = twice[0][0]
        raise engine.wrong(
            key,
            f"{side} {name!r} has several rows, expected one: remove this one, or keep one of "
            "them in the SELECT",
            f'SELECT 1 FROM found WHERE "{side}"::VARCHAR = {text(str(name))} HAVING count(*) > 1',
        )


def check_times(engine: Engine, events: str) -> None:
    """Check that no event of a data set with a clock lies before 1970.

    Raises:
        UserError: says how many do, and names the first raw row.
    """
    count, least = engine.rows(f"SELECT count(*), min(time) FROM {events} WHERE time < 0")[0]
    if count:
        raise engine.wrong(
            "source.events",
            f"{count:,} events have a negative time (down to {least}), expected seconds since "
            "1970: leave them out with WHERE, or set clock = false where time is an order only",
            "SELECT 1 FROM found WHERE time < 0 LIMIT 1",
        )


def check_labels(engine: Engine, definition: DatasetDefinition, events: str, users: str) -> None:
    """Check that every candidate has a label in [0, 1], of further tasks in [0, 1] or none.

    Raises:
        UserError: says how many have not, and names a user.
    """
    requests = definition.requests
    assert requests is not None
    for task, expression in (requests.tasks or {}).items():
        name = identifier(task_field(task))
        wrong = "NOT {} BETWEEN 0 AND 1"
        count, user, label = engine.rows(f"""
            SELECT count(*), arg_min(u.value, u.id), arg_min({name}, u.id)
            FROM {events} e JOIN {users} u ON u.id = e."user"
            WHERE is_candidate AND {wrong.format(name)}""")[0]
        if count:
            raise engine.wrong(
                f"requests.tasks.{task}",
                f"{count:,} candidates have a label outside [0, 1], for example one of user {user} "
                f"({label}); NULL says that the task does not apply",
                _finding_label(requests.where, expression, wrong),
                "source.events",
            )
    wrong = "({0} IS NULL OR NOT {0} BETWEEN 0 AND 1)"
    count, user, label = engine.rows(f"""
        SELECT count(*), arg_min(u.value, u.id), arg_min(coalesce(label::VARCHAR, 'NULL'), u.id)
        FROM {events} e JOIN {users} u ON u.id = e."user"
        WHERE is_candidate AND {wrong.format("label")}""")[0]
    if count:
        raise engine.wrong(
            "requests.label",
            f"{count:,} candidates have no label in [0, 1], for example one of user {user} "
            f"({label}): mend the expression, or leave them out in requests.where",
            _finding_label(requests.where, requests.label, wrong),
            "source.events",
        )


def _finding_label(where: str, expression: str, wrong: str) -> str:
    """The finding that a candidate has a wrong label, over the rows of ``source.events``."""
    return f"""
        SELECT 1 FROM (SELECT ({expression}\n)::FLOAT AS label FROM found WHERE ({where}\n))
        WHERE {wrong.format("label")} LIMIT 1"""


def content_width(engine: Engine, types: dict[str, str], items: str) -> int | None:
    """Width of the content embeddings; None where items have none.

    Integers (int8 vectors) are taken as the numbers that they are: semantic IDs scale every
    vector to length 1 unless told otherwise, so the quantiser's own scale does not matter.

    Raises:
        UserError: the column is no list of numbers, its lists differ in length, or one holds
            NULL or a number that is not finite.
    """
    kind = types.get("content")
    if kind is None:
        return None
    element = kind.rpartition("[")[0].partition("(")[0]
    if not kind.endswith("]") or element not in NUMBER_TYPES:
        raise engine.wrong(
            "source.items",
            f"column 'content' is {kind}, expected a list of numbers (FLOAT[], or TINYINT[] for "
            "int8)",
        )
    low, high, usual = engine.rows(
        f"SELECT min(len(content)), max(len(content)), mode(len(content)) FROM {items}"
    )[0]
    if low is None:
        log.warning("no item has an embedding: column 'content' of source.items is NULL throughout")
        return None
    if not low or low != high:
        found = f"of {low} to {high} numbers" if high else "empty"
        raise engine.wrong(
            "source.items",
            f"column 'content' is {found}; all embeddings need the same width"
            + (f", and most have {usual}" if usual else ""),
            f"SELECT 1 FROM found WHERE len(content) <> {usual or -1} LIMIT 1",
        )
    bad = "list_count(content) < len(content) OR NOT isfinite(list_sum(content::DOUBLE[]))"
    count = engine.rows(f"SELECT count(*) FROM {items} WHERE {bad}")[0][0]
    if count:
        raise engine.wrong(
            "source.items",
            f"{count:,} embeddings of column 'content' hold a value that is no finite number: "
            "leave these embeddings out (NULL), or make them anew",
            f"SELECT 1 FROM found WHERE {bad} LIMIT 1",
        )
    return int(low)
