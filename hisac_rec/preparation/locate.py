"""Which raw row is to blame for what a SELECT of the definition gives.

Any SQL may lie between a raw file and a finding such as "item 17 has several rows". So the
SELECT is asked again, with its readers stopped after k rows: the smallest k at which the
finding shows is the row to blame. Halving finds k in about log2(rows) questions, out of core,
and only once something is wrong. Text is parsed into a table first, not once a question.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import duckdb

from hisac_rec.preparation.definition import SourceConfig
from hisac_rec.preparation.readers import Query, Reader, query_of
from hisac_rec.preparation.sql import text

ANY_ERROR = "SELECT count(COLUMNS(*)) FROM found"
"""The finding that the SELECT does not run through: every value is made."""
PATIENCE_SECONDS = 120.0
"""On files so large that this is not enough, the message gives a range of rows."""

Ask = Callable[[str], bool]


class Locator:
    """Finds raw rows behind findings.

    Args:
        database: a connection of its own.
        source: of the definition.
        raw: folder of raw files.
        tables: named table -> the SELECT that was run for it, in order.
        patience: seconds after which a range of rows must do.
    """

    def __init__(
        self,
        database: duckdb.DuckDBPyConnection,
        source: SourceConfig,
        raw: Path,
        tables: dict[str, str],
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._database, self._source, self._raw, self._tables = database, source, raw, tables
        self._patience = patience

    def close(self) -> None:
        """Close the connection."""
        self._database.close()

    def place(self, key: str, finding: str) -> str:
        """Where the first row lies without which the finding would not be.

        Args:
            key: of the SELECT, for example "source.items".
            finding: a SELECT over the table ``found``, its result: true where it has a row. Of
                :data:`ANY_ERROR`: true where it fails.

        Returns:
            For example "raw/ratings.csv, line 17"; several joined with "and" where rows of
            several files meet; empty where no row is to blame.
        """
        if not key.startswith("source."):
            return ""  # an expression over events, not a SELECT over files
        fails = finding == ANY_ERROR

        def ask(statement: str) -> bool:
            try:
                rows = self._database.execute(statement).fetchall()
            except duckdb.Error:
                return fails
            return not fails and bool(rows)

        try:
            query = query_of(key, self._source, self._raw, self._tables)
            return self._search(query, finding, ask)
        except (duckdb.Error, OSError, ValueError):
            return ""  # the finding itself is still told

    def columns(self, key: str) -> list[str]:
        """What a SELECT could have named: each of its readers with the columns that it gives."""
        if not key.startswith("source."):
            return []
        said = []
        for reader in query_of(key, self._source, self._raw, self._tables).readers:
            try:
                rows = self._database.execute(f"DESCRIBE SELECT * FROM {reader.source}").fetchall()
            except duckdb.Error:
                continue  # told of by itself, when it is its turn
            files = reader.source.replace(f"{self._raw}/", "").partition("'")[2].partition("'")[0]
            said.append(f"{files} has the columns {', '.join(row[0] for row in rows)}")
        return list(dict.fromkeys(said))

    def _search(self, query: Query, finding: str, ask: Ask) -> str:
        """Stop readers that have no part in it, then halve those that have."""
        ends = time.monotonic() + self._patience
        limits: dict[Reader, int] = {}
        copies: dict[Reader, str] = {}

        def shows(reader: Reader, rows: int) -> bool:
            return ask(query.asking(finding, {**limits, reader: rows}, copies))

        if not ask(query.asking(finding, {})) or ask(
            query.asking(finding, dict.fromkeys(query.readers, 0))
        ):
            return ""
        to_blame: list[Reader] = []
        for reader in reversed(query.readers):
            if shows(reader, 0):
                limits[reader] = 0
            else:
                to_blame.insert(0, reader)
        places = []
        for number, reader in enumerate(to_blame):
            source = reader.source
            if reader.is_text:  # parsed once, not once a question
                source = copies[reader] = f"located_{number}"
                self._database.execute(
                    f"CREATE OR REPLACE TEMP TABLE located_{number} AS FROM {reader.source}"
                )
            rows = self._database.execute(f"SELECT count(*) FROM {source}").fetchall()
            low, high = 0, int(rows[0][0])  # does not show, shows
            while high - low > 1 and time.monotonic() < ends:
                middle = (low + high) // 2
                low, high = (low, middle) if shows(reader, middle) else (middle, high)
            limits[reader] = high
            places.append(self._name(reader, low + 1, high))
        return " and ".join(dict.fromkeys(places))

    def _name(self, reader: Reader, first: int, last: int) -> str:
        """Name the rows ``first`` to ``last`` of a reader, counted from 1 over all its files."""
        path, row = self._row_of_file(reader, last)
        if reader.source.lower().startswith("read_text"):
            return str(path)
        if first < last:
            begin = max(1, row - (last - first))
            return f"{path}, one of the rows {begin:,} to {row:,}"
        if not reader.is_text:
            return f"{path}, row {row}"
        try:
            line = line_of(path, row, self._has_header(reader, path), _quote(reader))
        except ValueError:  # its quotes are not those of CSV
            return f"{path}, record {row}"
        return f"{path}, line {line}"

    def _row_of_file(self, reader: Reader, row: int) -> tuple[Path, int]:
        """The file that holds a row of a reader, and which row of the file it is."""
        ask = self._database.execute
        name = ask(f"SELECT filename FROM {reader.source} LIMIT 1 OFFSET {row - 1}").fetchall()[0][
            0
        ]
        here = ask(
            f"SELECT count(*) FROM (SELECT filename FROM {reader.source} LIMIT {row}) "
            f"WHERE filename = {text(name)}"
        ).fetchall()
        return Path(name), int(here[0][0])

    def _has_header(self, reader: Reader, path: Path) -> bool:
        if not reader.is_csv:
            return False
        given = reader.options.get("header")
        if given is not None:
            return str(given).lower() in ("true", "1")
        options = ", ".join(
            f"{name} = {text(reader.options[name])}"
            for name in ("delim", "sep", "quote")
            if isinstance(reader.options.get(name), str)
        )
        sniff = f"sniff_csv({text(str(path))}{', ' if options else ''}{options})"
        return bool(self._database.execute(f"SELECT HasHeader FROM {sniff}").fetchall()[0][0])


def _quote(reader: Reader) -> bytes:
    """The quote character under which a line feed belongs to a value."""
    return str(reader.options.get("quote", '"') if reader.is_csv else "").encode()


def line_of(path: Path, record: int, header: bool, quote: bytes = b'"') -> int:
    """The line on which a record of a text file begins.

    Args:
        path: the file, gzipped or not.
        record: counted from 1, the header not counted, empty lines neither.
        header: the first record is a header.
        quote: between two of these, a line feed is part of a value.
    """
    wanted, seen, inside = record + header, 0, False
    with open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            if not inside and line.strip(b"\r\n"):
                seen += 1
                if seen == wanted:
                    return number
            if quote and line.count(quote) % 2:
                inside = not inside
    raise ValueError(f"{path} has {seen} records, asked for {wanted}")


def open_bytes(path: Path) -> BinaryIO:
    """A raw file as bytes, unpacked where its name ends in ``.gz``."""
    if path.suffix == ".gz":
        return cast("BinaryIO", gzip.open(path, "rb"))
    return path.open("rb")
