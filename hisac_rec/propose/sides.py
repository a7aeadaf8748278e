"""What describes items and users: categories, bins, lists, text and embeddings.

From a file of its own, or from the columns of the events that are the same in all events of
an item (a user).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hisac_rec.errors import UserError, did_you_mean
from hisac_rec.preparation.features import RESERVED
from hisac_rec.preparation.sql import text
from hisac_rec.propose import names
from hisac_rec.propose.database import Database
from hisac_rec.propose.facts import NUMBERS, Facts, measure
from hisac_rec.propose.files import RawTable
from hisac_rec.propose.roles import id_sql
from hisac_rec.propose.sqltext import aliased, indented, quoted, wrapped

MIN_WIDTH = 8
"""Narrowest list of numbers that is taken for an embedding."""
MANY = 1_000
"""Text with more values than this is read as words, where it has several."""
NEARLY = 0.9
"""Share of rows with a value of their own from which a column is an id."""
TEXT_NAMES = frozenset(
    [
        "title",
        "name",
        "description",
        "desc",
        "text",
        "body",
        "abstract",
        "plot",
        "summary",
        "headline",
        "subtitle",
        "caption",
        "titel",
        "beschreibung",
        "content",
        "review",
        "ingredients",
        "overview",
    ]
)
SEPARATORS = ("|", ";", ",")
CONSTANT = 0.8
"""How much of what varies in a column the item must explain for it to describe the item."""
SAMPLE_ENTITIES = 20_000


@dataclass(frozen=True)
class Feature:
    """One column of the SELECT of items or users."""

    name: str
    sql: str
    reason: str
    min_count: int = 1


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
    name, coverage, reason = _key(
        db, side, table, raw, facts, events, event_id, event_column, key_option
    )
    fact = facts[name]
    rest = {other: one for other, one in facts.items() if other != name}
    return _described(
        db, side, table, rest, id_sql(fact), raw.relation, drop,
        key_reason=reason, duplicates=fact.filled - fact.distinct, coverage=coverage,
        nulls=fact.nulls > 0,
    )  # fmt: skip


def _key(
    db: Database,
    side: str,
    table: str,
    raw: RawTable,
    facts: dict[str, Facts],
    events: str,
    event_id: str,
    event_column: str | None,
    option: str | None,
) -> tuple[str, float, str]:
    folded = {name.lower(): name for name in facts}
    if option is not None:
        if option.lower() not in folded:
            hint = did_you_mean(option, facts)
            raise UserError(f"{raw.title}: --{side}-key {option}: no such column{hint}")
        candidates = [folded[option.lower()]]
    else:
        candidates = [
            name
            for name, fact in facts.items()
            if fact.can_be_id and fact.distinct > max(1, 0.5 * fact.filled)
        ]
    ids = (
        f"(SELECT DISTINCT ({event_id})::VARCHAR AS v FROM {events} "
        f"WHERE {event_id} IS NOT NULL ORDER BY hash(v) LIMIT {SAMPLE_ENTITIES})"
    )
    ranked = []
    for name in candidates:
        keys = f"SELECT ({id_sql(facts[name])})::VARCHAR FROM {table}"
        covered = db.rows(f"SELECT avg((v IN ({keys}))::INTEGER) FROM {ids}")[0][0]
        unique = facts[name].distinct / max(facts[name].filled, 1)
        same = event_column is not None and name.lower() == event_column.lower()
        points = float(covered or 0) + 0.5 * unique + (1.0 if same else 0)
        points += 0.2 * names.score(name, side)
        ranked.append((points, name, float(covered or 0)))
    ranked.sort(key=lambda one: -one[0])
    if not ranked or (ranked[0][2] == 0 and option is None):
        raise raw.no_column(
            f"no column holds the {side}s of the events",
            f"--{side}-key COLUMN, or leave the file out",
        )
    _, name, covered = ranked[0]
    same = event_column is not None and name.lower() == event_column.lower()
    reason = f"{covered:.1%} of the events' {side}s are found there"
    reason += ", and the name is the same" if same else ""
    return name, covered, reason


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
    content, content_reason = (None, "") if side == "user" else _columns_of_content(left)
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
            embedding = _content(db, table, fact)
            if embedding is not None and content is None:
                content, content_reason = embedding
                continue
            if embedding is not None:
                dropped.append((name, "a second embedding"))
                continue
            if _is_text(fact):
                texts.append(name)
                continue
        outcome = _feature(db, table, side, fact, used)
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


def _columns_of_content(facts: dict[str, Facts]) -> tuple[str | None, str]:
    """Columns e0, e1, ... of numbers: an embedding with a column for each dimension."""
    families: dict[str, list[tuple[int, str]]] = {}
    for name, fact in facts.items():
        match = re.fullmatch(r"(.*?[A-Za-z])_?(\d+)", name)
        if match and fact.is_number and not fact.is_flag and not fact.nulls and not fact.whole:
            families.setdefault(match[1], []).append((int(match[2]), name))
    for prefix, members in families.items():
        if len(members) >= MIN_WIDTH:
            columns = ", ".join(quoted(name) for _, name in sorted(members))
            reason = f"{prefix} with a number behind it: {len(members)} columns of numbers"
            return f"[{columns}]::FLOAT[]", reason
    return None, ""


def _content(db: Database, table: str, fact: Facts) -> tuple[str, str] | None:
    column = quoted(fact.name)
    if fact.is_list and fact.low == fact.high and (fact.low or 0) >= MIN_WIDTH:
        inner = fact.kind.partition("[")[0].partition("(")[0]
        if inner in NUMBERS:
            sql = (
                column
                if inner in ("FLOAT", "DOUBLE") and fact.kind.endswith("[]")
                else f"{column}::FLOAT[]"
            )
            return sql, f"lists of {fact.low:.0f} numbers"
    if (
        fact.is_text
        and fact.values
        and all(re.fullmatch(r"[\[\]\d\s.,eE+-]+", str(v)) for v in fact.values[:50])
    ):
        for separator, label in ((",", "commas"), (" ", "spaces"), (";", "semicolons")):
            sql = f"string_split(trim({column}, '[] '), {text(separator)})::FLOAT[]"
            probe = sql.replace("::FLOAT[]", "")
            low, high = db.rows(f"SELECT min(len({probe})), max(len({probe})) FROM {table}")[0]
            if low == high and (low or 0) >= MIN_WIDTH:
                return sql, f"{low} numbers as text, separated by {label}"
    return None


def _is_text(fact: Facts) -> bool:
    if not fact.is_text or fact.distinct < 2 or _separator(fact) is not None:
        return False
    if any(str(value).startswith(("http://", "https://")) for value in fact.values[:20]):
        return False
    many = fact.distinct > 0.3 * fact.filled or fact.distinct > MANY
    named = names.mentions(fact.name, TEXT_NAMES)
    return many and (
        fact.mean_words >= 2.5 or (named and fact.mean_words >= 1.2) or fact.mean_length > 60
    )


def _separator(fact: Facts) -> str | None:
    """The separator of a column that holds lists as text, such as Action|Comedy."""
    if not fact.is_text or not fact.values:
        return None
    for separator in SEPARATORS:
        lists = [str(value).split(separator) for value in fact.values]
        several = sum(len(parts) > 1 for parts in lists)
        if several < 0.1 * len(lists):
            continue
        parts = [part.strip() for one in lists for part in one]
        kinds = set(parts)
        short = max(len(part.split()) for part in kinds) <= 4
        if short and len(kinds) <= 0.5 * len(parts) and len(kinds) < max(len(lists), 3):
            return separator
    return None


def _feature(db: Database, table: str, side: str, fact: Facts, used: set[str]) -> Feature | str:
    """The feature that a column becomes, or why it becomes none."""
    column, name = quoted(fact.name), names.slug(fact.name)
    if name in RESERVED or name in used or name == side:
        name = f"{side}_{name}"
    if name in used:
        return "its name is taken"
    if fact.distinct < 2:
        return "one value alone"
    if fact.nulls > 0.99 * fact.rows:
        return "empty but for 1 %"
    if names.mentions(fact.name, names.BEHAVIOUR):
        return "sums up behaviour, perhaps that of the test period (leakage)"
    nearly_unique = fact.distinct > NEARLY * fact.filled and fact.distinct > 20
    if fact.is_list:
        inner = fact.kind.removesuffix("[]")
        if side == "user" or not fact.kind.endswith("[]"):
            return "a list"
        if inner == "VARCHAR" or inner in NUMBERS - {"FLOAT", "DOUBLE", "DECIMAL"}:
            return Feature(name, column, "lists ([])", 3)
        return f"a {fact.kind}"
    if fact.kind == "BOOLEAN":
        return Feature(name, column, "true or false")
    if fact.is_moment:
        years = f"year({column})::INTEGER"
        if db.rows(f"SELECT count(DISTINCT {years}) FROM {table}")[0][0] < 2:
            return "dates of one year"
        return Feature(f"{name}_year", years, "the year of a date")
    if fact.is_number:
        return _number_feature(fact, column, name, nearly_unique)
    if not fact.is_text:
        return f"{fact.kind} is no category"
    separator = _separator(fact)
    if separator is not None and side == "item":
        sql = f"string_split({column}, {text(separator)})"
        return Feature(name, sql, f"lists as text, separated by {separator} ([])", 3)
    if nearly_unique:
        return _an_id(fact)
    rare = fact.distinct > 100 and fact.filled / fact.distinct < 20
    return Feature(name, column, f"{fact.distinct:,} categories", 3 if rare else 1)


def _an_id(fact: Facts) -> str:
    return f"{fact.distinct:,} different values of {fact.filled:,}: an id, nothing to learn from"


def _number_feature(fact: Facts, column: str, name: str, nearly_unique: bool) -> Feature | str:
    whole = fact.whole and fact.low is not None and abs(fact.low) < 2**62
    as_whole = (
        column
        if fact.kind not in ("FLOAT", "DOUBLE") and "DEC" not in fact.kind
        else f"{column}::BIGINT"
    )
    category = names.is_id_name(fact.name) or names.mentions(fact.name, names.CATEGORIES)
    if whole and category:
        if nearly_unique:
            return _an_id(fact)
        return Feature(
            name, as_whole, f"{fact.distinct:,} categories", 3 if fact.distinct > 100 else 1
        )
    if whole and fact.distinct <= 50:
        return Feature(name, as_whole, "few whole numbers")
    low, high = fact.quantiles[0], fact.quantiles[4]
    if fact.low is not None and fact.low >= 0 and high >= 20:
        return Feature(name, f"round(log2(1 + {column}))::INTEGER", "a number in steps of factor 2")
    if high <= low:
        return "one value for 98 % of the rows"
    step = (high - low) / 10
    sql = f"greatest(0, least(9, floor(({column} - {low:.6g}) / {step:.6g})))::INTEGER"
    return Feature(name, sql, "a number in ten equal steps")


def select(side: Side) -> str:
    """The SELECT of ``[source]``; ``{raw}`` stands for the raw folder."""
    columns = [aliased(side.key, side.side)]
    columns += [aliased(feature.sql, feature.name) for feature in side.features]
    if side.text is not None:
        columns.append(aliased(side.text, "text"))
    if side.content is not None:
        columns.append(aliased(side.content, "content"))
    return indented(f"SELECT {wrapped(columns)}\nFROM {side.source}")
