"""Logs with a row for each page: one list of what was shown, one of what was taken from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

from hisac_rec.propose.database import Database
from hisac_rec.propose.files import RawTable
from hisac_rec.propose.sqltext import indented, quoted

SHOWN, TAKEN = "shown_item", "taken"
"""Columns that stand in for the two lists."""
WITHIN = 0.99
"""Share of rows in which everything taken was shown."""


@dataclass(frozen=True)
class Slate:
    """Two columns of lists."""

    shown: str
    taken: str

    @property
    def note(self) -> str:
        """What was made of them."""
        return (
            f"{self.shown} lists what was shown and {self.taken} what was taken from it: every "
            "shown item becomes an event"
        )


def find_slate(db: Database, table: str) -> Slate | None:
    """Find two lists of ids of which one is always part of the other, and smaller."""
    types = db.columns(table)
    lists = [
        name
        for name, kind in types.items()
        if kind.endswith("[]") and kind.partition("[")[0] not in ("FLOAT", "DOUBLE", "TIMESTAMP")
    ]
    for shown, taken in permutations(lists, 2):
        if types[shown] != types[taken]:
            continue
        a, b = quoted(shown), quoted(taken)
        within, many, few = db.rows(
            f"SELECT avg(list_has_all({a}, {b})::INTEGER), avg(len({a})), avg(len({b})) "
            f"FROM {table} WHERE {a} IS NOT NULL AND {b} IS NOT NULL"
        )[0]
        if within is not None and within >= WITHIN and many > 1.5 and 0 < few < 0.9 * many:
            return Slate(shown, taken)
    return None


def unnested(db: Database, table: str, raw: RawTable, slate: Slate) -> RawTable:
    """Give every shown item a row of its own, in the database and in what the SQL reads.

    Args:
        db: the database.
        table: the raw table; replaced.
        raw: how it is read.
        slate: the two lists.
    """

    def select(source: str) -> str:
        a, b = quoted(slate.shown), quoted(slate.taken)
        inner = f"SELECT *, unnest({a}) AS {SHOWN}\nFROM {source}"
        return (
            f"SELECT * EXCLUDE ({a}, {b}), list_contains({b}, {SHOWN}) AS {TAKEN}\n"
            f"FROM (\n{indented(inner)}\n)"
        )

    db.replace(table, select(table))
    relation = f"(\n{indented(select(raw.relation))}\n)"
    notes = (*raw.notes, slate.note)
    return replace(raw, relation=relation, columns=db.columns(table), notes=notes)
