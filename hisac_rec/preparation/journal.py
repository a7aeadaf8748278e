"""What a database has run so far, kept in the database itself.

A preparation is a fixed series of statements. Each is written down in the transaction that
carries it out, so after a kill both are there or neither. The next start runs the same series:
statements that are written down are passed over, and small queries between them are answered
from the journal, also when a table that they asked has been dropped since.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import duckdb

from hisac_rec.errors import UserError

TABLE = "prepared.journal"


class Journal:
    """Reads on construction what was done before.

    Args:
        database: of the work folder.
        origin: the definition's file, for messages.
    """

    def __init__(self, database: duckdb.DuckDBPyConnection, origin: str) -> None:
        self._database, self._origin = database, origin
        database.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} (place INT, query TEXT, answer TEXT)")
        entries = database.execute(f"SELECT place, query, answer FROM {TABLE}").fetchall()
        self._statements = {p: query for p, query, answer in entries if answer is None}
        self._answers = {(p, query): answer for p, query, answer in entries if answer is not None}
        self._place = 0  # statements carried out or passed over since the start

    def has_run(self, statement: str) -> bool:
        """True where an earlier start has carried out this statement of the series.

        Raises:
            UserError: it carried out another one at this place.
        """
        known = self._statements.get(self._place)
        if known is not None and known != _digest(statement):
            raise UserError(
                f"{self._origin}: what an earlier start has done does not fit to this release; "
                "throw it away with --fresh"
            )
        self._place += known is not None
        return known is not None

    def ran(self, statement: str) -> None:
        """Write down a statement, in the transaction that carried it out."""
        self._write(_digest(statement), None)

    def step(self) -> None:
        """Go on to the next statement, after the transaction."""
        self._place += 1

    def answer(self, query: str) -> list[Any] | None:
        """Rows of a query that was asked at this place of the series before, or None."""
        known = self._answers.get((self._place, _digest(query)))
        return None if known is None else [tuple(row) for row in json.loads(known)]

    def answered(self, query: str, rows: list[tuple[Any, ...]]) -> None:
        """Write down the rows of a small query."""
        self._write(_digest(query), json.dumps(rows, default=str))

    def _write(self, query: str, answer: str | None) -> None:
        values = [self._place, query, answer]
        self._database.execute(f"INSERT INTO {TABLE} VALUES (?, ?, ?)", values)


def _digest(query: str) -> str:
    return sha256(query.encode()).hexdigest()
