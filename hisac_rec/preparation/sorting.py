"""The events of a log in DuckDB: ids in place of raw values, sorted by user and time."""

from __future__ import annotations

from hisac_rec.data.contract import SPLITS, task_field
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.entities import AS_NUMBER, ITEMS, USERS
from hisac_rec.preparation.sql import SIGNED_TYPES, Engine, identifier, text

RAW_EVENTS = "prepared.raw_events"
EVENTS = "prepared.events"
NO_GROUP = "(-9223372036854775808)::BIGINT"
"""Group of events where ``requests.group`` is NULL."""


def sort_events(
    engine: Engine,
    definition: DatasetDefinition,
    types: dict[str, str],
    type_sql: str,
    event_types: list[str],
) -> None:
    """Make table ``EVENTS`` out of ``RAW_EVENTS``, in a complete order.

    Args:
        engine: the database.
        definition: with ``[requests]``.
        types: column -> DuckDB type of the raw events.
        type_sql: an event's type, as SQL over them.
        event_types: the types of history events, in order.

    Raises:
        UserError: DuckDB refuses an expression of the definition.
    """
    requests = definition.requests
    assert requests is not None
    sequence = "sequence" if "sequence" in types else "0"
    group, is_whole = group_key(engine, definition)
    group = f"coalesce(({group}\n)::BIGINT, {NO_GROUP})" if is_whole else f"hash(({group}\n))"
    names = ", ".join(text(name) for name in event_types)
    part, split = split_columns(definition)
    key, raw = {}, {}
    for name in ("user", "item"):
        whole_id = types[name] in SIGNED_TYPES
        key[name] = AS_NUMBER if whole_id else "value"
        raw[name] = f'"{name}"::{"BIGINT" if whole_id else "VARCHAR"}'
    of_tasks = requests.tasks or {}
    more = [identifier(task_field(task)) for task in of_tasks]
    raw_more = "".join(
        f", ({sql}\n)::FLOAT AS {name}" for name, sql in zip(more, of_tasks.values(), strict=True)
    )
    masked = "".join(f", CASE WHEN is_candidate THEN {n} ELSE 0 END AS {n}" for n in more)
    engine.run(
        f"""
        CREATE TABLE {EVENTS} AS
        WITH flagged AS (
            SELECT {raw["user"]} AS raw_user, {raw["item"]} AS raw_item, time,
                {type_sql} AS type_name, {sequence} AS place,
                coalesce(({definition.history.where}\n), false) AS is_history,
                coalesce(({requests.where}\n), false) AS is_candidate,
                ({requests.label}\n)::FLOAT AS raw_label, {group} AS "group"{part}{raw_more}
            FROM {RAW_EVENTS}
        )
        SELECT u.id AS "user", i.id AS item, time::BIGINT AS time,
            greatest(coalesce(list_position([{names}], type_name), 1) - 1, 0)::TINYINT AS type,
            is_history, is_candidate,
            CASE WHEN is_candidate THEN raw_label ELSE 0 END AS label, "group"{split}{masked}
        FROM flagged JOIN {USERS} u ON u.{key["user"]} = raw_user
            JOIN {ITEMS} i ON i.{key["item"]} = raw_item
        ORDER BY u.id, time, place, i.id, type, is_history, is_candidate, label, "group"{split}
            {"".join(f", {name}" for name in more)}
        """,
        "sort events",
        "history.where, requests.where, requests.label, requests.tasks, requests.group or "
        "split.column",
    )


def group_key(engine: Engine, definition: DatasetDefinition) -> tuple[str, bool]:
    """``requests.group`` as SQL, and whether it is a whole number, which needs no hash."""
    assert definition.requests is not None
    sql = definition.requests.group
    if sql == "event":
        return "0", True
    described = engine.rows(f"DESCRIBE SELECT ({sql}\n) AS value FROM {RAW_EVENTS}")
    return sql, described[0][1] in SIGNED_TYPES


def split_columns(definition: DatasetDefinition) -> tuple[str, str]:
    """How an event's split gets into the sorted events, where the definition names it.

    Returns:
        Two pieces of a select list: of the expression, and of its name. Both empty where rank
        or time says the split.
    """
    column = definition.split.column
    if column is None:
        return "", ""
    names = ", ".join(text(split) for split in SPLITS)
    return (
        f", (list_position([{names}], ({column}\n)::VARCHAR) - 1)::TINYINT AS split",
        ", split",
    )
