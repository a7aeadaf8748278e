"""DuckDB as preparation uses it: on disk, with progress, errors under the definition's key."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from hisac_rec.errors import UserError
from hisac_rec.progress import progress

INTEGER_TYPES = frozenset(
    f"{sign}{width}" for width in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT") for sign in ("", "U")
)
POLL_SECONDS = 0.1


class Engine:
    """A DuckDB database in a scratch folder.

    Args:
        scratch: folder for the database and what does not fit into memory.
        origin: the definition's file, for messages.
        memory_limit: for example "4GB".
        threads: None: one per core.

    Raises:
        UserError: ``memory_limit`` is no amount of memory.
    """

    def __init__(self, scratch: Path, origin: str, memory_limit: str, threads: int | None) -> None:
        self.origin = origin
        settings: dict[str, str | bool | int | float | list[str]] = {
            "temp_directory": str(scratch / "spill")
        }
        if threads is not None:
            settings["threads"] = threads
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="duckdb")
        self._database = duckdb.connect(str(scratch / "prepare.duckdb"), config=settings)
        try:
            self._database.execute(f"SET memory_limit = {text(memory_limit)}")
        except duckdb.Error as error:
            self.close()
            raise UserError(
                f"--memory-limit {memory_limit!r}: expected an amount such as 4GB ({error})"
            ) from None
        self._database.execute("SET enable_progress_bar = true")
        self._database.execute("SET enable_progress_bar_print = false")
        self._database.execute("CREATE SCHEMA prepared")

    def close(self) -> None:
        """Close the database; its files stay for the owner of the scratch folder."""
        self._thread.shutdown()
        self._database.close()

    def run(self, statement: str, title: str, key: str) -> None:
        """Run a statement, with progress.

        Args:
            statement: SQL.
            title: what it does, for the progress line.
            key: the key of the definition whose SQL it contains, for messages.

        Raises:
            UserError: DuckDB refuses; shows the key and DuckDB's message.
        """
        done = 0
        with progress(title, total=100, unit="%") as advance:
            future: Future[Any] = self._thread.submit(self._database.execute, statement)
            try:
                while not wait([future], POLL_SECONDS).done:
                    reached = int(self._database.query_progress())
                    advance(max(0, reached - done))
                    done = max(done, reached)
            except BaseException:
                self._database.interrupt()
                raise
        try:
            future.result()
        except duckdb.Error as error:
            raise self.refused(key, error) from None

    def rows(self, query: str, key: str = "") -> list[tuple[Any, ...]]:
        """The few rows of a small query.

        Raises:
            UserError: as :meth:`run`.
        """
        try:
            return self._database.execute(query).fetchall()
        except duckdb.Error as error:
            raise self.refused(key, error) from None

    def arrow(self, query: str) -> pa.Table:
        """The result of a query of ours, as one Arrow table."""
        return self._database.sql(query).to_arrow_table()

    def arrow_batches(self, query: str, rows: int) -> Iterator[pa.Table]:
        """The result of a query of ours, ``rows`` at a time."""
        for batch in self._database.sql(query).to_arrow_reader(rows):
            yield pa.Table.from_batches([batch])

    def take_in(self, name: str, table: pa.Table) -> None:
        """Make an Arrow table a table of the database."""
        self._database.register("taken_in", table)
        self._database.execute(f"CREATE TABLE {name} AS SELECT * FROM taken_in")
        self._database.unregister("taken_in")

    def columns(self, table: str) -> dict[str, str]:
        """Column -> DuckDB type of a table."""
        described = self._database.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()
        return {row[0]: row[1] for row in described}

    def refused(self, key: str, error: Exception) -> UserError:
        """The error for SQL of the definition that DuckDB does not run."""
        if not key:
            raise error
        return UserError(f"{self.origin}: key '{key}': the SQL does not run:\n{error}")

    def wrong(self, key: str, message: str) -> UserError:
        """An error about the value of one key of the definition."""
        return UserError(f"{self.origin}: key '{key}': {message}")


def identifier(name: str) -> str:
    """Quote a column or table name."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """Quote a text value."""
    return "'" + value.replace("'", "''") + "'"


def subquery(select: str, raw: Path) -> str:
    """A SELECT of a definition in brackets, ``{raw}`` filled in."""
    body = select.strip().rstrip(";").replace("{raw}", str(raw).replace("'", "''"))
    return f"({body}\n)"
