"""What is measured of every column before anything is guessed, by one aggregate per table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hisac_rec.preparation.sql import INTEGER_TYPES, identifier
from hisac_rec.propose.database import Database

EXACT_ROWS = 5_000_000
"""Up to this many rows distinct values are counted; beyond, estimated (a few per cent off)."""
SAMPLE_VALUES = 2_000
YES = frozenset({"yes", "y", "true", "t", "1", "positive", "pos", "correct", "right"})
NO = frozenset({"no", "n", "false", "f", "0", "negative", "neg", "incorrect", "wrong"})
NUMBERS = INTEGER_TYPES | {"FLOAT", "DOUBLE", "DECIMAL", "HUGEINT", "UHUGEINT"}


@dataclass(frozen=True)
class Facts:
    """One column."""

    name: str
    kind: str
    """DuckDB type."""
    rows: int
    """Of the table."""
    nulls: int
    distinct: int
    """Different values, NULL not counted."""
    low: float | None = None
    """Numbers: least value; lists: least length; text: least length."""
    high: float | None = None
    quantiles: tuple[float, ...] = ()
    """Numbers: at 1, 5, 50, 95 and 99 %."""
    whole: bool = False
    """Numbers without a fraction."""
    mean_length: float = 0.0
    """Text: characters."""
    mean_words: float = 0.0
    """Text: words."""
    values: tuple[Any, ...] = ()
    """Text: up to ``SAMPLE_VALUES`` different values, in order of a hash."""

    @property
    def filled(self) -> int:
        """Rows with a value."""
        return self.rows - self.nulls

    @property
    def is_number(self) -> bool:
        return self.kind.partition("(")[0] in NUMBERS

    @property
    def is_text(self) -> bool:
        return self.kind in ("VARCHAR", "UUID") or self.kind.startswith("ENUM")

    @property
    def is_list(self) -> bool:
        return self.kind.endswith("]")

    @property
    def is_moment(self) -> bool:
        return self.kind.startswith("TIMESTAMP") or self.kind == "DATE"

    @property
    def is_flag(self) -> bool:
        """Boolean, or 0 and 1."""
        zero_one = self.is_number and self.whole and (self.low, self.high) == (0, 1)
        return self.kind == "BOOLEAN" or zero_one

    @property
    def is_yes_no(self) -> bool:
        """Text that says yes or no, both of them."""
        values = {str(value).strip().lower() for value in self.values}
        return self.is_text and bool(values & YES) and bool(values & NO) and values <= YES | NO

    @property
    def can_be_id(self) -> bool:
        """Whole numbers and short text."""
        whole = self.is_number and self.whole
        short = self.is_text and self.mean_length <= 64 and self.mean_words <= 3
        return self.distinct > 0 and (whole or short)


def measure(db: Database, table: str) -> dict[str, Facts]:
    """Measure all columns of a table.

    Args:
        db: the database.
        table: its name there.
    """
    types = db.columns(table)
    rows = db.rows(f"SELECT count(*) FROM {table}")[0][0]
    count = "count(DISTINCT {})" if rows <= EXACT_ROWS else "approx_count_distinct({})"
    wanted: list[str] = []
    for name, kind in types.items():
        column = identifier(name)
        wanted += [f"count({column})", count.format(column), *_by_kind(column, kind)]
    # Columns apart: one pass over 40 columns that all count distinct values is heavy.
    numbers: list[Any] = []
    for at in range(0, len(wanted), 6 * 8):
        numbers += db.rows(f"SELECT {', '.join(wanted[at : at + 48])} FROM {table}")[0]
    found = {}
    for at, (name, kind) in enumerate(types.items()):
        filled, distinct, low, high, quantiles, whole = numbers[6 * at : 6 * at + 6]
        column = identifier(name)
        text_values: tuple[Any, ...] = ()
        length = words = 0.0
        if _plain(kind) == "text":
            length, words, whole = float(quantiles or 0), float(whole or 0), False
            quantiles = ()
            text_values = tuple(
                row[0]
                for row in db.rows(
                    f"SELECT DISTINCT {column}::VARCHAR FROM {table} WHERE {column} IS NOT NULL "
                    f"ORDER BY hash({column}::VARCHAR) LIMIT {SAMPLE_VALUES}"
                )
            )
        found[name] = Facts(
            name=name,
            kind=kind,
            rows=rows,
            nulls=rows - filled,
            distinct=min(distinct, filled),
            low=None if low is None else float(low),
            high=None if high is None else float(high),
            quantiles=tuple(float(q) for q in quantiles or ()),
            whole=bool(whole),
            mean_length=length,
            mean_words=words,
            values=text_values,
        )
    return found


def _plain(kind: str) -> str:
    base = kind.partition("(")[0]
    if kind.endswith("]"):
        return "list"
    if base in NUMBERS:
        return "number"
    if kind in ("VARCHAR", "UUID") or base == "ENUM":
        return "text"
    if kind.startswith("TIMESTAMP") or kind == "DATE":
        return "moment"
    return "other"


def _by_kind(column: str, kind: str) -> list[str]:
    """Low, high, quantiles (text: mean length), whole (text: mean words)."""
    plain = _plain(kind)
    if plain == "number":
        number = f"CASE WHEN isfinite({column}::DOUBLE) THEN {column}::DOUBLE END"
        return [
            f"min({number})",
            f"max({number})",
            f"approx_quantile({number}, [0.01, 0.05, 0.5, 0.95, 0.99])",
            f"bool_and({column} = floor({column}))",
        ]
    if plain == "text":
        words = f"1 + length({column}::VARCHAR) - length(replace({column}::VARCHAR, ' ', ''))"
        length = f"length({column}::VARCHAR)"
        return [f"min({length})", f"max({length})", f"avg({length})", f"avg({words})"]
    if plain == "list":
        return [f"min(len({column}))", f"max(len({column}))", "NULL", "NULL"]
    if plain == "moment":
        moment = f"epoch({column})"
        return [
            f"min({moment})",
            f"max({moment})",
            f"approx_quantile({moment}, [0.01, 0.05, 0.5, 0.95, 0.99])",
            "NULL",
        ]
    return ["NULL", "NULL", "NULL", "NULL"]
