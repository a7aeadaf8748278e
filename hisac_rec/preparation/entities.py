"""Items and users of an event log: a dense id for every raw one, beside what describes it."""

from __future__ import annotations

from hisac_rec.preparation.definition import FeaturesConfig
from hisac_rec.preparation.features import IN_ORDER, chosen_columns
from hisac_rec.preparation.rawchecks import check_select, check_unique
from hisac_rec.preparation.sql import Engine, identifier

ITEMS, USERS = "prepared.items", "prepared.users"
AS_NUMBER = '"raw number"'
"""Column of items and users: a raw id that is a whole number, as one; events are joined by it,
which takes a third of the time that joining by text does. No feature can have this name."""


def make_entities(
    engine: Engine, features: FeaturesConfig, side: str, names: str, raw: str | None, table: str
) -> dict[str, str]:
    """Make the table of items or users: ``id``, ``value`` (the raw id), what is used.

    Args:
        engine: the database.
        features: which columns are wanted.
        side: "item" or "user".
        names: SELECT of the different raw ids in the events, as text in column ``value``.
        raw: table that ``source.items`` or ``source.users`` gave; None: there is none.
        table: the one to make.

    Returns:
        Column -> type of the features, text and content in it.

    Raises:
        UserError: a column is missing or of a wrong type, or an id has several rows.
    """
    key = f"source.{side}s"
    used: dict[str, str] = {}
    columns = join = ""
    if raw is not None:
        types = check_select(engine, key, raw, [side])
        check_unique(engine, key, raw, side)
        chosen = chosen_columns(engine, side, types, getattr(features, side))
        more = [name for name in ("text", "content") if side == "item" and name in types]
        used = {name: types[name] for name in (*chosen, *more)}
        columns = "".join(f", r.{identifier(name)}" for name in used)
        join = f'LEFT JOIN {raw} r ON r."{side}"::VARCHAR = n.value'
    if raw is not None and side == "item":
        names += f" UNION SELECT item::VARCHAR FROM {raw}"
    engine.run(
        f"""
        CREATE TABLE {table} AS
        WITH names AS (
            SELECT row_number() OVER (ORDER BY {IN_ORDER})::INTEGER AS id, value FROM ({names})
            UNION ALL SELECT 0, NULL
        )
        SELECT n.id, n.value,
            CASE WHEN try_cast(n.value AS BIGINT)::VARCHAR = n.value
                THEN n.value::BIGINT END AS {AS_NUMBER} {columns}
        FROM names n {join} ORDER BY n.id
        """,
        f"ids of {side}s",
        key,
    )
    return used
