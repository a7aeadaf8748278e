"""What takes a role (user, item, time, label, request) in a log, and what an option sets."""

from __future__ import annotations

import re
from dataclasses import dataclass

import duckdb

from hisac_rec.errors import UserError, did_you_mean
from hisac_rec.propose.database import Database
from hisac_rec.propose.facts import Facts
from hisac_rec.propose.files import RawTable
from hisac_rec.propose.sqltext import quoted

CLEAR = 2.0
"""A name's score from which it decides alone."""
NEAR = 0.6
"""A rival within this score of the best is told."""


@dataclass(frozen=True)
class Choice:
    """What takes a role, and why."""

    role: str
    sql: str
    """Expression over the columns of the raw table."""
    columns: tuple[str, ...]
    """Columns it reads."""
    reason: str
    given: bool = False
    rivals: tuple[str, ...] = ()
    """Other columns that would do about as well."""

    @property
    def is_column(self) -> bool:
        """A column as it is, no expression."""
        return len(self.columns) == 1 and self.sql == quoted(self.columns[0])


def given(
    db: Database, table: str, raw: RawTable, role: str, value: str, facts: dict[str, Facts]
) -> Choice:
    """A role that an option sets: a column, or an SQL expression over columns.

    Raises:
        UserError: neither; names the columns there are.
    """
    folded = {name.lower(): name for name in facts}
    if value.lower() in folded:
        name = folded[value.lower()]
        return Choice(role, quoted(name), (name,), f"--{role} says so", given=True)
    try:
        db.rows(f"SELECT ({value}\n) FROM {table} LIMIT 1")
    except duckdb.Error as error:
        if re.fullmatch(r"\w+", value):
            hint = did_you_mean(value, facts)
            raise UserError(f"{raw.title}: --{role} {value}: no such column{hint}") from None
        raise UserError(
            f"{raw.title}: --{role} {value!r}: neither a column nor an SQL expression over the "
            f"columns {', '.join(facts)}:\n{error}"
        ) from None
    used = tuple(name for name in facts if re.search(rf"(?i)\b{re.escape(name)}\b", value))
    return Choice(role, value, used, f"--{role} says so", given=True)


def named(raw: RawTable, option: str, value: str, facts: dict[str, Facts]) -> str:
    """The column that an option names, in whatever case.

    Raises:
        UserError: there is none; names the nearest.
    """
    folded = {name.lower(): name for name in facts}
    if value.lower() not in folded:
        hint = did_you_mean(value, facts)
        raise UserError(f"{raw.title}: {option} {value}: no such column{hint}")
    return folded[value.lower()]


def id_sql(facts: Facts) -> str:
    """An id column in SQL: numbers with a fraction of 0 become whole ones."""
    column = quoted(facts.name)
    return (
        f"{column}::BIGINT" if facts.kind in ("FLOAT", "DOUBLE") or "DEC" in facts.kind else column
    )
