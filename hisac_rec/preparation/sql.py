"""DuckDB as preparation uses it: on disk, resumable, errors under the definition's key."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from hisac_rec.errors import UserError
from hisac_rec.preparation.journal import Journal
from hisac_rec.preparation.work import OutOfResourceError, WorkFolder
from hisac_rec.progress import progress

if TYPE_CHECKING:
    from hisac_rec.preparation.locate import Locator

SIGNED_TYPES = frozenset(("TINYINT", "SMALLINT", "INTEGER", "BIGINT"))
INTEGER_TYPES = SIGNED_TYPES | {f"U{width}" for width in SIGNED_TYPES}
POLL_SECONDS = 0.1
FAULTS_OF_SQL = (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException)
"""DuckDB's errors that no raw row can be to blame for."""


def open_database(
    path: Path, spill: Path, memory_limit: str, threads: int | None
) -> duckdb.DuckDBPyConnection:
    """Open a database file, or make it.

    Args:
        path: the file.
        spill: folder for what does not fit into memory.
        memory_limit: for example "4GB".
        threads: None: one per core.

    Raises:
        UserError: ``memory_limit`` is no amount of memory.
        duckdb.Error: the file cannot be opened.
    """
    settings: dict[str, str | bool | int | float | list[str]] = {"temp_directory": str(spill)}
    if threads is not None:
        settings["threads"] = threads
    database = duckdb.connect(str(path), config=settings)
    try:
        database.execute(f"SET memory_limit = {text(memory_limit)}")
    except duckdb.Error as error:
        database.close()
        raise UserError(
            f"--memory-limit {memory_limit!r}: expected an amount such as 4GB ({error})"
        ) from None
    return database


class Engine:
    """A DuckDB database in a work folder; what an earlier start has done is not done again.

    Args:
        work: the folder; its scratch holds the database and what does not fit into memory.
        origin: the definition's file, for messages.
        memory_limit: for example "4GB".
        threads: None: one per core.

    Raises:
        UserError: ``memory_limit`` is no amount of memory; the database cannot be opened.
    """

    def __init__(
        self, work: WorkFolder, origin: str, memory_limit: str, threads: int | None
    ) -> None:
        self.origin, self._stages = origin, work.stages
        self._locator: Locator | None = None
        spill, database = work.scratch / "spill", work.scratch / "prepare.duckdb"
        shutil.rmtree(spill, ignore_errors=True)  # of a start that was killed
        try:
            self._database = open_database(database, spill, memory_limit, threads)
        except duckdb.Error as error:
            raise OutOfResourceError(
                f"{database}: cannot be opened ({error}); throw it away with --fresh"
            ) from None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="duckdb")
        self._database.execute("SET enable_progress_bar = true")
        self._database.execute("SET enable_progress_bar_print = false")
        self._database.execute("CREATE SCHEMA IF NOT EXISTS prepared")
        self._journal = Journal(self._database, origin)

    def close(self) -> None:
        """Close the database; its files stay for the owner of the scratch folder."""
        self._thread.shutdown()
        if self._locator is not None:
            self._locator.close()
        self._database.close()

    def run(self, statement: str, title: str, key: str) -> None:
        """Run a statement, with progress, unless an earlier start has.

        Args:
            statement: SQL.
            title: what it does, for the progress line.
            key: the key of the definition whose SQL it contains, for messages.

        Raises:
            UserError: DuckDB refuses; shows the key and DuckDB's message.
        """
        if self._journal.has_run(statement):
            return
        done = 0
        with self._stages.measure(title), progress(title, total=100, unit="%") as advance:
            future: Future[Any] = self._thread.submit(self._carry_out, statement)
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

    def _carry_out(self, statement: str) -> None:
        """Run a statement and write it down, both or neither."""
        self._database.begin()
        try:
            self._database.execute(statement)
            self._journal.ran(statement)
        except BaseException:
            self._database.rollback()
            raise
        self._database.commit()
        self._journal.step()

    def rows(self, query: str, key: str = "") -> list[tuple[Any, ...]]:
        """The few rows of a small query: numbers and texts.

        Raises:
            UserError: as :meth:`run`.
        """
        known = self._journal.answer(query)
        if known is not None:
            return known
        try:
            found = self._database.execute(query).fetchall()
        except duckdb.Error as error:
            raise self.refused(key, error) from None
        self._journal.answered(query, found)
        return found

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
        self._database.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM taken_in")
        self._database.unregister("taken_in")

    def append(self, name: str, table: pa.Table) -> None:
        """Add an Arrow table to a table of the database that has the same columns."""
        self._database.register("taken_in", table)
        self._database.execute(f"INSERT INTO {name} SELECT * FROM taken_in")
        self._database.unregister("taken_in")

    def columns(self, table: str) -> dict[str, str]:
        """Column -> DuckDB type of a table."""
        return {row[0]: row[1] for row in self.rows(f"DESCRIBE SELECT * FROM {table}")}

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the same database."""
        return self._database.cursor()

    def locate_with(self, locator: Locator) -> None:
        """Name raw rows in messages from now on."""
        self._locator = locator

    def refused(self, key: str, error: duckdb.Error) -> UserError:
        """The error for SQL of the definition that DuckDB does not run."""
        from hisac_rec.preparation.locate import ANY_ERROR
        from hisac_rec.preparation.rawerrors import explained

        if isinstance(error, duckdb.OutOfMemoryException) or "No space left" in str(error):
            return OutOfResourceError(
                f"{self.origin}: memory or disk ran out; give more with --memory-limit, or free "
                f"space beside --out, and run the same command again:\n{error}"
            )
        if not key:
            raise error
        of_file = explained(error)
        if of_file is not None:
            return UserError(f"{self.origin}: key '{key}': {of_file}")
        place, columns = "", []
        if self._locator is not None and isinstance(error, duckdb.BinderException):
            columns = self._locator.columns(key)
        elif self._locator is not None and not isinstance(error, FAULTS_OF_SQL):
            place = self._locator.place(key, ANY_ERROR)
        at = f"{place}: " if place else ""
        said = [f"{self.origin}: key '{key}': {at}the SQL does not run:", str(error), *columns]
        return UserError("\n".join(said))

    def wrong(self, key: str, message: str, finding: str = "", select: str = "") -> UserError:
        """An error about the value of one key of the definition.

        Args:
            key: the key.
            message: what is wrong, what was expected, what to do.
            finding: a SELECT over the table ``found`` that has a row where this is wrong; the
                message then names the raw row.
            select: the key of the SELECT that makes ``found``, where it is not ``key``.
        """
        place = ""
        if finding and self._locator is not None:
            place = self._locator.place(select or key, finding)
        at = f"{place}: " if place else ""
        return UserError(f"{self.origin}: key '{key}': {at}{message}")


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
