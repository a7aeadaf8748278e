"""Which side feature a column of items or users becomes: categories, steps of numbers, lists."""

from __future__ import annotations

from dataclasses import dataclass

from hisac_rec.preparation.features import RESERVED
from hisac_rec.preparation.sql import text
from hisac_rec.propose import names
from hisac_rec.propose.database import Database
from hisac_rec.propose.facts import NUMBERS, Facts
from hisac_rec.propose.sqltext import quoted

NEARLY = 0.9
"""Share of rows with a value of their own from which a column is an id."""
SEPARATORS = ("|", ";", ",")


@dataclass(frozen=True)
class Feature:
    """One column of the SELECT of items or users."""

    name: str
    sql: str
    reason: str
    min_count: int = 1


def list_separator(fact: Facts) -> str | None:
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


def feature_of(db: Database, table: str, side: str, fact: Facts, used: set[str]) -> Feature | str:
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
    separator = list_separator(fact)
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
