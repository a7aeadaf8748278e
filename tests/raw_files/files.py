"""A small raw file, and where it can be broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = tuple[Any, ...]


@dataclass(frozen=True)
class RawFile:
    """One raw file: delimited text, or Parquet where it has a schema."""

    name: str
    rows: list[Row]
    delimiter: str = ","
    header: Sequence[str] = ()
    """The first line of a text file that has one."""
    schema: pa.Schema | None = None
    encoding: str = "utf-8"
    required: bool = True
    """False: the definition does without it."""
    detected: bool = False
    """The definition lets DuckDB find the delimiter: another one is no error."""
    quoted: bool = False
    """Values that hold the delimiter or a quote are quoted, as in CSV."""
    unique: bool = False
    """The first column is an id: a second row of it is an error."""
    time: int | None = None
    """Column of times, where the data set has a clock."""
    early: Any = None
    """A time before 1970 in the form of that column."""
    text: int | None = None
    """Column of text that the definition reads: broken UTF-8 in it is an error."""
    vector: int | None = None
    """Column of content embeddings; a shorter one is an error."""
    tail: str = field(default="", repr=False)
    """What ends each line, before the line feed."""

    def place(self, row: int) -> str:
        """How a message names a row, counted from 0."""
        if self.schema is not None:
            return f"{self.name}, row {row + 1}"
        return f"{self.name}, line {row + 1 + bool(self.header)}"

    def write(self, folder: Path) -> None:
        """Write it under the folder of raw files."""
        path = folder / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.schema is None:
            lines = [self._line(row) for row in [tuple(self.header), *self.rows] if row]
            path.write_bytes(b"".join(lines))
            return
        columns = list(zip(*self.rows, strict=True))
        arrays = [
            _array(list(column), kind) for column, kind in zip(columns, self.schema, strict=True)
        ]
        pq.write_table(pa.table(arrays, schema=self.schema), path)

    def _line(self, row: Row) -> bytes:
        values = [b"" if value is None else _encoded(value, self.encoding) for value in row]
        if self.quoted:
            values = [self._quoted(value) for value in values]
        return self.delimiter.encode().join(values) + self.tail.encode() + b"\n"

    def _quoted(self, value: bytes) -> bytes:
        if self.delimiter.encode() not in value and b'"' not in value:
            return value
        return b'"' + value.replace(b'"', b'""') + b'"'

    def changed(self, row: int, column: int, value: Any) -> RawFile:
        """The same file with one value replaced."""
        cells = list(self.rows[row])
        cells[column] = value
        return replace(self, rows=[*self.rows[:row], tuple(cells), *self.rows[row + 1 :]])


def _encoded(value: Any, encoding: str) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(encoding)


def _array(values: list[Any], kind: pa.Field) -> pa.Array:
    """Text may be given as bytes that are no text: what a broken file holds."""
    if not pa.types.is_string(kind.type):
        return pa.array(values, kind.type)
    raw = [value.encode() if isinstance(value, str) else value for value in values]
    return pa.array(raw, pa.binary()).view(pa.string())


def names(words: str) -> list[str]:
    """Column names, parted by white space."""
    return words.split()


def schema(words: str) -> pa.Schema:
    """A schema of words such as ``user_id:uint32`` or ``topics:[string]``."""
    fields = []
    for word in names(words):
        name, _, kind = word.partition(":")
        inner = pa.timestamp("us") if kind.strip("[]") == "timestamp" else kind.strip("[]")
        item = pa.type_for_alias(inner) if isinstance(inner, str) else inner
        fields.append((name, pa.list_(item) if kind.startswith("[") else item))
    return pa.schema(fields)
