"""DuckDB as proposals use it: on disk, within a limit of memory, small answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from hisac_rec.preparation.sql import open_database, text


class Database:
    """A DuckDB database in a folder; DuckDB's own errors come through. A context manager.

    Args:
        folder: for the database and what does not fit into memory.
        memory_limit: for example "4GB".
        threads: None: one per core.

    Raises:
        UserError: ``memory_limit`` is no amount of memory.
    """

    def __init__(self, folder: Path, memory_limit: str, threads: int | None) -> None:
        self._duckdb = open_database(
            folder / "look.duckdb", folder / "spill", memory_limit, threads
        )
        self._duckdb.execute("CREATE SCHEMA looked")

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self._duckdb.close()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Run a statement; the few rows that it gives."""
        return self._duckdb.execute(query).fetchall()

    def arrow(self, query: str) -> pa.Table:
        """The result of a query as one Arrow table."""
        return self._duckdb.sql(query).to_arrow_table()

    def replace(self, table: str, select: str) -> None:
        """Put the result of a SELECT, which may read it, in the place of a table or view."""
        schema, _, name = table.partition(".")
        self.rows(f"CREATE TABLE {schema}.fresh AS {select}")
        views = f"SELECT 1 FROM duckdb_views() WHERE schema_name = {text(schema)}"
        kind = "VIEW" if self.rows(f"{views} AND view_name = {text(name)}") else "TABLE"
        self.rows(f"DROP {kind} {table}")
        self.rows(f"ALTER TABLE {schema}.fresh RENAME TO {name}")

    def columns(self, table: str) -> dict[str, str]:
        """Column -> DuckDB type of a table."""
        described = self._duckdb.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()
        return {row[0]: row[1] for row in described}
