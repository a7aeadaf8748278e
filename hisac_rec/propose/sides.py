"""What describes items and users, as the SELECT of each.

From a file of its own, or from the columns of the events that are the same in all events of
an item (a user).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hisac_rec.propose.choice import id_sql
from hisac_rec.propose.database import Database
from hisac_rec.propose.facts import Facts, measure
from hisac_rec.propose.files import RawTable
from hisac_rec.propose.item_content import embedding_in, embedding_in_columns, is_prose
from hisac_rec.propose.keys import find_key
from hisac_rec.propose.side_features import Feature, feature_of
from hisac_rec.propose.sqltext import aliased, indented, quoted, wrapped

CONSTANT = 0.8
"""How much of what varies in a column the item must explain for it to describe the item."""


@dataclass(frozen=True)
class Side:
    """The SELECT of items or users, in parts."""

    side: str
    """item or user."""
    key: str
    """SQL of the id."""
    source: str
    """What to write after FROM."""
    features: tuple[Feature, ...] = ()
    text: str | None = None
    """SQL of the text."""
    text_columns: tuple[str, ...] = ()
    content: str | None = None
    """SQL of the embedding."""
    content_reason: str = ""
    dropped: tuple[tuple[str, str], ...] = ()
    """(column, why it is left out)."""
    key_reason: str = ""
    duplicates: int = 0
    """Rows beyond the first of their id."""
    coverage: float = 1.0
    """Share of the events' ids that have a row."""
    of_events: bool = False

    @property
    def useful(self) -> bool:
        return bool(self.features or self.text or self.content)


def from_file(
    db: Database,
    side: str,
    table: str,
    raw: RawTable,
    events: str,
    event_id: str,
    event_column: str | None,
    key_option: str | None,
    drop: Iterable[str],
) -> Side:
    """Describe a file of items or users.

    Args:
        db: the database.
        side: "item" or "user".
        table: the file's table in the database.
        raw: the file.
        events: the table of events.
        event_id: SQL of the id there.
        event_column: the column behind it.
        key_option: ``--item-key`` or ``--user-key``.
        drop: columns to leave out.

    Raises:
        UserError: no column of the file holds the ids of the events.
    """
    facts = measure(db, table)
    name, coverage, reason = find_key(
        db, side, table, raw, facts, events, event_id, event_column, key_option
    )
    fact = facts[name]
    rest = {other: one for other, one in facts.items() if other != name}
    return _described(
        db, side, table, rest, id_sql(fact), raw.relation, drop,
        key_reason=reason, duplicates=fact.filled - fact.distinct, coverage=coverage,
        nulls=fact.nulls > 0,
    )  # fmt: skip


def from_events(
    db: Database,
    side: str,
    table: str,
    raw: RawTable,
    facts: dict[str, Facts],
    key: str,
    time: str,
    free: Iterable[str],
    drop: Iterable[str],
) -> Side:
    """Describe items or users by the columns of the events that do not vary within them.

    The value of an item's first event is taken: it was known then, and stays.
    """
    constant = [
        name
        for name in free
        if facts[name].distinct > 1
        and not facts[name].is_list
        and _explained(db, table, key, name, facts[name]) >= CONSTANT
    ]
    if not constant:
        return Side(side, key, raw.relation, of_events=True)
    first = [
        f"arg_min({quoted(name)}, ({time}, {quoted(name)})) AS {quoted(name)}" for name in constant
    ]
    pieces = [aliased(key, side), *first]
    inner = f"SELECT {wrapped(pieces)}\nFROM {{}} WHERE {key} IS NOT NULL GROUP BY 1"
    entities = f"looked.{side}s_of_events"
    db.rows(f"CREATE TABLE {entities} AS {inner.format(table)}")
    found = measure(db, entities)
    rest = {name: fact for name, fact in found.items() if name != side}
    source = f"(\n{indented(inner.format(raw.relation))}\n)"
    why = "columns of the events that do not vary within it"
    return _described(
        db, side, entities, rest, quoted(side), source, drop, of_events=True, key_reason=why
    )


def _explained(db: Database, table: str, key: str, name: str, fact: Facts) -> float:
    """How much better the id knows a column's value than the column's most frequent value does."""
    column = quoted(name)
    part = max(1, fact.rows // 2_000_000)
    row = db.rows(f"""
        WITH counted AS (
            SELECT {key} AS k, {column} AS v, count(*) AS n FROM {table}
            WHERE {key} IS NOT NULL AND {column} IS NOT NULL
                AND hash(({key})::VARCHAR) % {part} = 0
            GROUP BY 1, 2
        ), per_key AS (
            SELECT max(n) AS top, sum(n) AS n FROM counted GROUP BY k HAVING sum(n) > 1
        )
        SELECT (SELECT sum(top) / sum(n) FROM per_key), (SELECT count(*) FROM per_key),
            (SELECT max(n) / sum(n) FROM (SELECT v, sum(n) AS n FROM counted GROUP BY v))""")[0]
    within, keys, overall = row
    if not keys or keys < 2 or overall is None or overall >= 1:
        return 0.0
    return float((within - overall) / (1 - overall))


def _described(
    db: Database,
    side: str,
    table: str,
    facts: dict[str, Facts],
    key: str,
    source: str,
    drop: Iterable[str],
    *,
    key_reason: str = "",
    duplicates: int = 0,
    coverage: float = 1.0,
    nulls: bool = False,
    of_events: bool = False,
) -> Side:
    unwanted = {name.lower() for name in drop}
    dropped: list[tuple[str, str]] = [
        (name, "--drop says so") for name in facts if name.lower() in unwanted
    ]
    left = {name: fact for name, fact in facts.items() if name.lower() not in unwanted}
    features: list[Feature] = []
    texts: list[str] = []
    words: list[str] = []
    content, content_reason = (None, "") if side == "user" else embedding_in_columns(left)
    if content is not None:
        prefix = content_reason.split()[0]
        left = {
            name: f
            for name, f in left.items()
            if not re.fullmatch(rf"{re.escape(prefix)}_?\d+", name)
        }
    used: set[str] = set()
    for name, fact in left.items():
        if side == "item":
            embedding = embedding_in(db, table, fact)
            if embedding is not None and content is None:
                content, content_reason = embedding
                continue
            if embedding is not None:
                dropped.append((name, "a second embedding"))
                continue
            if is_prose(fact):
                texts.append(name)
                continue
        outcome = feature_of(db, table, side, fact, used)
        if isinstance(outcome, str):
            dropped.append((name, outcome))
            continue
        features.append(outcome)
        used.add(outcome.name)
        if fact.is_text and any(re.search(r"[A-Za-z]{3}", str(v)) for v in fact.values[:20]):
            split = "[]" in outcome.reason
            words.append(f"array_to_string({outcome.sql}, ' ')" if split else quoted(name))
    text_sql = None
    if texts:
        parts = [*(quoted(name) for name in texts), *words]
        text_sql = parts[0] if len(parts) == 1 else f"concat_ws(' . ', {', '.join(parts)})"
    if duplicates or nulls:
        source = (
            f"(\n    SELECT * FROM {source} AS t WHERE {key} IS NOT NULL\n"
            f"    QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY t) = 1\n)"
        )
    return Side(
        side, key, source, tuple(features), text_sql, tuple(texts), content, content_reason,
        tuple(dropped), key_reason, duplicates, coverage, of_events,
    )  # fmt: skip


def select(side: Side) -> str:
    """The SELECT of ``[source]``; ``{raw}`` stands for the raw folder."""
    columns = [aliased(side.key, side.side)]
    columns += [aliased(feature.sql, feature.name) for feature in side.features]
    if side.text is not None:
        columns.append(aliased(side.text, "text"))
    if side.content is not None:
        columns.append(aliased(side.content, "content"))
    return indented(f"SELECT {wrapped(columns)}\nFROM {side.source}")
