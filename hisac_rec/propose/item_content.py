"""What a column says of an item's meaning: text in words, or an embedding."""

from __future__ import annotations

import re

from hisac_rec.preparation.sql import text
from hisac_rec.propose import names
from hisac_rec.propose.database import Database
from hisac_rec.propose.facts import NUMBERS, Facts
from hisac_rec.propose.side_features import list_separator
from hisac_rec.propose.sqltext import quoted

MIN_WIDTH = 8
"""Narrowest list of numbers that is taken for an embedding."""
MANY = 1_000
"""Text with more values than this is read as words, where it has several."""
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


def embedding_in_columns(facts: dict[str, Facts]) -> tuple[str | None, str]:
    """Columns e0, e1, ... of numbers: SQL of the embedding that they make, and why.

    The reason begins with what their names begin with. (None, "") where there are none.
    """
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


def embedding_in(db: Database, table: str, fact: Facts) -> tuple[str, str] | None:
    """SQL of the embedding that one column holds, as a list or as text, and why."""
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


def is_prose(fact: Facts) -> bool:
    """Text in words that a text model can read, no category."""
    if not fact.is_text or fact.distinct < 2 or list_separator(fact) is not None:
        return False
    if any(str(value).startswith(("http://", "https://")) for value in fact.values[:20]):
        return False
    many = fact.distinct > 0.3 * fact.filled or fact.distinct > MANY
    named = names.mentions(fact.name, TEXT_NAMES)
    return many and (
        fact.mean_words >= 2.5 or (named and fact.mean_words >= 1.2) or fact.mean_length > 60
    )
