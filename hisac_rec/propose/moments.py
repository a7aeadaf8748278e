"""Times in whatever form a log has them, as SQL that gives whole seconds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from hisac_rec.preparation.sql import text
from hisac_rec.propose.database import Database
from hisac_rec.propose.facts import Facts

YEAR_1990, YEAR_2100 = 631_152_000, 4_102_444_800
UNITS = {"seconds": 1, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
DATES = (
    "%Y-%m-%d",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d.%m.%Y",
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%Y/%m/%d",
    "%Y.%m.%d",
    "%Y%m%d",
    "%d/%m/%y",
    "%m/%d/%y",
    "%d.%m.%y",
    "%d-%b-%Y",
    "%d %b %Y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%d %B %Y",
    "%a %b %d %Y",
)
CLOCKS = (
    "",
    " %H:%M:%S",
    " %H:%M",
    " %I:%M:%S %p",
    " %I:%M %p",
    "T%H:%M:%S",
    "%H%M%S",
    " %H:%M:%S.%f",
)
FORMATS = tuple(date + clock for date in DATES for clock in CLOCKS)
OFFSET = r"(Z|[+-]\d{2}:?\d{2}|UTC|GMT)$"
STRPTIME = ("strptime", "try_strptime")
ENOUGH = 0.98
"""Share of values that a format must fit."""


@dataclass(frozen=True)
class Moment:
    """A column read as a time."""

    sql: str
    """Expression that gives whole seconds, or an order."""
    form: str
    """What the column holds, for people."""
    clock: bool = True
    """Seconds, and not an order alone."""
    naive: bool = False
    """Written as local time of an unknown zone."""
    by_day: bool = False
    """Dates without a time of day."""
    doubts: tuple[str, ...] = field(default=())
    """What is ambiguous in it."""
    lenient: str = ""
    """As ``sql``, but NULL where a value cannot be read; empty: ``sql`` reads all there is."""


def recognise(
    db: Database, table: str, facts: Facts, column: str, zone: str | None, form: str | None
) -> Moment | None:
    """Read a column as a time; None where it is none.

    Args:
        db: the database.
        table: where the column is, for a look at values.
        facts: of the column.
        column: its name in SQL.
        zone: time zone of times without one.
        form: strptime format of text; None: found out.
    """
    if facts.kind.startswith("TIMESTAMP WITH"):
        return Moment(f"floor(epoch({column}))::BIGINT", "moments with a time zone")
    if facts.is_moment:
        day = facts.kind == "DATE"
        name = "dates" if day else "timestamps without a time zone"
        name += f", taken for {zone}" if zone else ""
        inner = f"{column}::TIMESTAMP" if zone and facts.kind != "TIMESTAMP" else column
        return Moment(_zoned(inner, zone), name, naive=zone is None and not day, by_day=day)
    if facts.is_number and facts.quantiles:
        return _number(db, table, facts, column, zone)
    if facts.kind == "VARCHAR" and facts.values:
        return _text(facts, column, zone, form, db)
    return None


def _zoned(moment: str, zone: str | None) -> str:
    if zone is not None:
        moment = f"timezone({text(zone)}, {moment})"
    return f"floor(epoch({moment}))::BIGINT"


def _unit(value: float) -> str | None:
    for name, per_second in UNITS.items():
        if YEAR_1990 <= value / per_second < YEAR_2100:
            return name
    return None


def _number(db: Database, table: str, facts: Facts, column: str, zone: str | None) -> Moment | None:
    middle = facts.quantiles[2]
    compact = _compact_date(db, table, facts, column, zone)
    if compact is not None:
        return compact
    unit = _unit(middle)
    if unit is None:
        return None
    others = mixed_units(db, table, column)
    if len(others) > 1:
        cases = " ".join(
            f"WHEN {column} < {round(YEAR_2100 * UNITS[name])} THEN {column} / {UNITS[name]}"
            for name in UNITS
        )
        doubt = " and ".join(f"{share:.1%} {name}" for name, share in others.items())
        sql = f"floor(CASE {cases} END)::BIGINT"
        return Moment(sql, "Unix times in several units", doubts=(f"units are mixed: {doubt}",))
    per_second = UNITS[unit]
    if facts.whole and facts.kind not in ("FLOAT", "DOUBLE"):
        sql = f"{column} // {per_second}" if per_second > 1 else column
    else:
        sql = (
            f"floor({column} / {per_second})::BIGINT"
            if per_second > 1
            else f"floor({column})::BIGINT"
        )
    return Moment(sql, f"Unix times in {unit}")


def mixed_units(db: Database, table: str, column: str) -> dict[str, float]:
    """Unit -> share of the rows that are a moment between 1990 and 2100 in it."""
    counts = ", ".join(
        f"count(*) FILTER ({column} >= {YEAR_1990 * n} AND {column} < {YEAR_2100 * n})"
        for n in UNITS.values()
    )
    *found, all_rows = db.rows(f"SELECT {counts}, count({column}) FROM {table}")[0]
    shares = {name: n / max(all_rows, 1) for name, n in zip(UNITS, found, strict=True)}
    return {name: share for name, share in shares.items() if share > 0.0005}


def _compact_date(
    db: Database, table: str, facts: Facts, column: str, zone: str | None
) -> Moment | None:
    """Whole numbers such as 20220425 or 20220425133000."""
    if not facts.whole or facts.low is None or facts.high is None:
        return None
    for low, high, form, day in (
        (19900101, 20991231, "%Y%m%d", True),
        (19900101000000, 20991231235959, "%Y%m%d%H%M%S", False),
    ):
        if low <= facts.low and facts.high <= high:
            whole = f"{column}::BIGINT::VARCHAR"
            tried = f"count(try_strptime({whole}, {text(form)}))"
            fits, rows = db.rows(f"SELECT {tried}, count({column}) FROM {table}")[0]
            if fits == rows:
                sql = _zoned(f"strptime({whole}, {text(form)})", zone)
                name = "dates written as numbers" if day else "times written as numbers"
                return Moment(sql, f"{name} ({form})", naive=zone is None and not day, by_day=day)
    return None


def _text(
    facts: Facts, column: str, zone: str | None, form: str | None, db: Database
) -> Moment | None:
    if not any(re.search(r"\d", value) for value in facts.values[:20]):
        return None
    values = "(SELECT unnest([" + ", ".join(text(str(v)) for v in facts.values) + "]) AS v)"
    if form is not None:
        sql, lenient = (_zoned(f"{f}({column}, {text(form)})", zone) for f in STRPTIME)
        return Moment(sql, f"text ({form})", naive=zone is None, lenient=lenient)
    offsets = f"regexp_matches(v, {text(OFFSET)})"
    with_offset, iso, digits, all_values = db.rows(
        f"SELECT avg(CASE WHEN {offsets} AND try_cast(v AS TIMESTAMPTZ) IS NOT NULL THEN 1 ELSE 0 "
        "END), avg(CASE WHEN try_cast(v AS TIMESTAMP) IS NOT NULL THEN 1 ELSE 0 END), "
        "avg(CASE WHEN try_cast(v AS DOUBLE) IS NOT NULL THEN 1 ELSE 0 END), count(*) "
        f"FROM {values}"
    )[0]
    if not all_values or digits > 0.5:
        return None
    if with_offset >= ENOUGH:
        sql = f"floor(epoch({column}::TIMESTAMPTZ))::BIGINT"
        lenient = f"floor(epoch(try_cast({column} AS TIMESTAMPTZ)))::BIGINT"
        return Moment(sql, "text with offsets from UTC", lenient=lenient)
    if iso >= ENOUGH:
        doubts = () if not with_offset else ("some values have an offset from UTC, others not",)
        by_day = all(len(str(value)) <= 10 for value in facts.values)
        sql = _zoned(f"{column}::TIMESTAMP", zone)
        naive = zone is None and not by_day
        lenient = _zoned(f"try_cast({column} AS TIMESTAMP)", zone)
        form = "text as ISO 8601 has it"
        return Moment(sql, form, naive=naive, by_day=by_day, doubts=doubts, lenient=lenient)
    few = f"(SELECT * FROM {values} LIMIT 50)"
    found = _fitting(db, few, FORMATS, min(50, all_values))
    found = _fitting(db, values, found, all_values)
    if not found:
        return None
    chosen = found[0]
    doubts = ()
    others = [one for one in found[1:] if one[:2] != chosen[:2]]
    if others:
        doubts = (
            f"both {chosen!r} and {others[0]!r} fit all values: day and month may be swapped; "
            "--time-format settles it",
        )
    day = not any(clock in chosen for clock in ("%H", "%I"))
    sql, lenient = (_zoned(f"{f}({column}, {text(chosen)})", zone) for f in STRPTIME)
    naive = zone is None and not day
    form = f"text ({chosen})"
    return Moment(sql, form, naive=naive, by_day=day, doubts=doubts, lenient=lenient)


def _fitting(db: Database, values: str, formats: Sequence[str], rows: int) -> list[str]:
    """Formats that read nearly all values."""
    if not formats:
        return []
    counts = ", ".join(f"count(try_strptime(v, {text(one)}))" for one in formats)
    counted = db.rows(f"SELECT {counts} FROM {values}")[0]
    return [one for one, n in zip(formats, counted, strict=True) if n >= ENOUGH * rows]


def written(seconds: float) -> str:
    """A moment for people, UTC."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f}"
