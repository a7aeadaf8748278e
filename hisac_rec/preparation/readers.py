"""Where a SELECT of a definition reads raw files, found by DuckDB's own parser.

A reader is a place such as ``read_csv('{raw}/ratings.csv', ...)`` or ``'{raw}/goods.parquet'``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from hisac_rec.preparation.definition import SourceConfig
from hisac_rec.preparation.sql import identifier, subquery


@dataclass(frozen=True, slots=True)
class Reader:
    """One place that reads raw files."""

    query: str
    """The key of the SELECT that it stands in."""
    start: int
    """Byte at which it begins in that SELECT, as :func:`subquery` writes it."""
    stop: int
    """Byte after it, its alias included."""
    source: str
    """Its text: what can stand after FROM."""
    alias: str
    """The name it goes by in the SELECT; empty where it has none."""
    options: dict[str, Any] = field(compare=False)
    """Named options whose values are constants or structs of constants."""

    @property
    def is_text(self) -> bool:
        """True for CSV, JSON and plain text; False for Parquet."""
        head = self.source.lower().partition("(")[0]
        if head.startswith(("read_parquet", "parquet_scan")):
            return False
        return head.startswith("read_") or ".parquet" not in self.source.lower()

    @property
    def is_csv(self) -> bool:
        """True for ``read_csv`` and for files named like a CSV file."""
        head = self.source.lower().partition("(")[0]
        return head.startswith("read_csv") or (
            not head.startswith("read_") and any(e in head for e in (".csv", ".tsv"))
        )


def readers_of(query: str, sql: str) -> tuple[list[Reader], set[str]]:
    """The readers of a SELECT, in the order of its text, and the tables it names.

    Args:
        query: its key, for the readers.
        sql: the SELECT with ``{raw}`` filled in; empty lists where DuckDB does not parse it.
    """
    with duckdb.connect() as database:
        answer = database.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()[0][0]
    tree, body = json.loads(answer), sql.encode()
    readers, tables = [], set()
    for node in _nodes(tree):
        start = node["query_location"]
        stop = start + node["query_location_length"]
        name = node.get("table_name", "")
        if node["type"] == "BASE_TABLE" and "/" not in name and "\\" not in name:
            tables.add(name)
            continue
        function = node.get("function", {})
        if function and not function["function_name"].lower().startswith(("read_", "parquet_")):
            continue
        text = body[start:stop].decode()
        options = dict(_options(function.get("arguments", [])))
        readers.append(Reader(query, start, stop, text, node["alias"], options))
    return sorted(readers, key=lambda reader: reader.start), tables


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if tree.get("type") in ("TABLE_FUNCTION", "BASE_TABLE"):
            yield tree
        for child in tree.values():
            yield from _nodes(child)
    elif isinstance(tree, list):
        for child in tree:
            yield from _nodes(child)


def _options(arguments: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    for argument in arguments:
        expression = argument["expression"]
        if argument["name"]:
            yield argument["name"], _constant(expression)
        elif expression["type"] == "COMPARE_EQUAL" and "column_names" in expression["left"]:
            yield expression["left"]["column_names"][0], _constant(expression["right"])


def _constant(node: dict[str, Any]) -> Any:
    """The value of a constant, a dict of a struct's; None where it is neither."""
    if "literal" in node:
        return node["literal"].get("text", node["literal"].get("value"))
    if node.get("function_name") == "struct_pack":
        return dict(_options_of_struct(node))
    if node.get("type") == "OPERATOR_CAST":
        return _constant(node["child"])
    return node.get("value")


def _options_of_struct(node: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for argument in node.get("arguments", node.get("children", [])):
        yield (
            argument.get("name") or argument.get("alias", ""),
            _constant(argument.get("expression", argument)),
        )


@dataclass(frozen=True, slots=True)
class Query:
    """A SELECT of the definition and the named tables that it reads, as one statement."""

    selects: dict[str, tuple[str, str]]
    """Key -> the name that its result goes by and its text; the SELECT itself, called
    "found", is the last."""
    readers: list[Reader]
    """Those of the SELECT first, then those of the named tables."""

    def asking(
        self, finding: str, limits: dict[Reader, int], copies: dict[Reader, str] | None = None
    ) -> str:
        """The statement that asks for a finding when readers stop after some rows.

        Args:
            finding: a SELECT over the table ``found``.
            limits: reader -> rows that it may read; the others read all.
            copies: reader -> a table with its rows, which is read in its place.
        """
        tables = []
        for key, (name, select) in self.selects.items():
            body = select.encode()
            mine = [reader for reader in limits if reader.query == key]
            for reader in sorted(mine, key=lambda reader: -reader.start):
                source = (copies or {}).get(reader, reader.source)
                few = f"(SELECT * FROM {source} LIMIT {limits[reader]})"
                few += f" AS {identifier(reader.alias)}" if reader.alias else ""
                body = body[: reader.start] + few.encode() + body[reader.stop :]
            tables.append(f"{identifier(name)} AS {body.decode()}")
        return f"WITH {', '.join(tables)} {finding}"


def query_of(key: str, source: SourceConfig, raw: Path, tables: dict[str, str]) -> Query:
    """What a SELECT reads, also through named tables.

    Args:
        key: "source.events", "source.items", "source.users", or "source.tables.<name>.select".
        source: of the definition.
        raw: folder of raw files.
        tables: named table -> the SELECT that was run for it, in order.
    """
    parts = key.split(".")
    if parts[1] == "tables":
        main = tables[parts[2]]
        tables = dict(list(tables.items())[: list(tables).index(parts[2])])
    else:
        main = getattr(source, parts[1])
    selects: dict[str, tuple[str, str]] = {}
    readers: list[Reader] = []
    named: set[str] = set()
    # A table may read those before it: from the SELECT backwards.
    for own, name, select in [
        (key, "found", main),
        *((f"source.tables.{name}.select", name, tables[name]) for name in reversed(tables)),
    ]:
        if own == key or name.lower() in named:
            body = subquery(select, raw)
            mine, others = readers_of(own, body)
            readers += mine
            named |= {other.lower() for other in others}
            selects = {own: (name, body), **selects}
    return Query(selects, readers)
