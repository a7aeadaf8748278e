"""Parquet files: how they are written and opened, and whether they have the columns wanted.

Every page carries a checksum of its bytes, which is compared when the page is read, so a file
tells when a bit of it is no longer what was written. Files of others, without checksums, are
read all the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hisac_rec.errors import UserError, did_you_mean

WRITING: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
"""Options of every ``ParquetWriter`` and ``write_table``."""

READING: dict[str, Any] = {"page_checksum_verification": True}
"""Options of every ``ParquetFile`` and ``read_table``."""

DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)
"""What a damaged file raises on reading."""


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open one Parquet file.

    Raises:
        UserError: it is absent, cut short or not Parquet; names the file.
    """
    try:
        return pq.ParquetFile(path, memory_map=True, **READING)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run 'hisac-rec prepare' again") from None
    except DAMAGED as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> UserError:
    """The error for a Parquet file that cannot be read."""
    return UserError(f"{path}: damaged Parquet file ({error}); prepare the data again")


def check_columns(path: Path, found: Iterable[str], required: Iterable[str]) -> None:
    """Check that a file has all columns that are needed.

    Args:
        path: the file, for the message.
        found: its columns.
        required: the columns that are needed.

    Raises:
        UserError: a column is missing; names file and column, and the nearest one there is.
    """
    names = list(found)
    for name in required:
        if name not in names:
            raise UserError(f"{path}: column '{name}' is missing{did_you_mean(name, names)}")


def check_schema(path: Path, found: pa.Schema, expected: pa.Schema) -> None:
    """Check columns and types of a file; more columns than expected are fine.

    Types are equal when they are apart from nullability and the names of list elements.

    Raises:
        UserError: a column is missing or of another type; names file, column, the expected
            and the found type.
    """
    check_columns(path, found.names, expected.names)
    for field in expected:
        there = found.field(field.name).type
        if _plain(there) != _plain(field.type):
            raise UserError(
                f"{path}: column '{field.name}' is {there}, expected {field.type}; "
                "prepare the data again"
            )


def _plain(kind: pa.DataType) -> str:
    """A type's name without element names and nullability."""
    if pa.types.is_list(kind):
        return f"list<{_plain(kind.value_type)}>"
    if pa.types.is_fixed_size_list(kind):
        return f"list<{_plain(kind.value_type)}>[{kind.list_size}]"
    if pa.types.is_struct(kind):
        return "struct<" + ", ".join(f"{f.name}: {_plain(f.type)}" for f in kind) + ">"
    return str(kind)
