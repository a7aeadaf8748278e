"""Embeddings that somebody else computed: a file of raw ids and vectors, float or int8.

Parquet: one column of lists (of a fixed size or not), one of raw ids. NumPy: ``vectors.npy``, a
matrix, with ``vectors.ids.txt`` beside it, a raw id a line.

Legend: I items, n rows of the file, s width.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hisac_rec.data.contract import PreparedData
from hisac_rec.data.parquet import DAMAGED, READING
from hisac_rec.errors import UserError

DTYPES = (np.float16, np.float32, np.float64, np.int8)


@dataclass(frozen=True)
class Embeddings:
    """Vectors of a data set's items out of a file."""

    vectors: NDArray[np.float32]
    """[I, s]; zeros where the file has none."""
    digest: str
    """Of the file's bytes."""
    coverage: str
    """For people: how many items have a vector."""


def read_embeddings(path: Path, data: PreparedData) -> Embeddings:
    """Read a file of embeddings for the items of a data set. O(n s).

    int8 values are taken as they are: a scale common to a row means nothing once vectors have
    length 1, one common to a column must be multiplied in before.

    Raises:
        UserError: the file is absent, damaged or of another form; an id is empty or there twice, a
            vector has another width or is not finite, or no id is known. Names the row.
    """
    ids, vectors = _read_npy(path) if path.suffix == ".npy" else _read_parquet(path)
    _check_ids(ids, path)
    rows = pc.index_in(data.items["raw_id"].cast(pa.string()), value_set=ids, skip_nulls=True)
    rows = rows.fill_null(-1).to_numpy().astype(np.int64)
    rows[0] = -1
    found = rows >= 0
    if not found.any():
        ours = data.items["raw_id"][1].as_py() if data.manifest.items > 1 else None
        raise UserError(
            f"{path}: none of its {len(ids):,} ids is an item of this data: the file has for "
            f"example {ids[0].as_py()!r}, the data {ours!r}; raw ids are compared as text"
        )
    taken = np.zeros((len(rows), vectors.shape[1]), np.float32)
    taken[found] = vectors[rows[found]]
    wrong = np.flatnonzero(~np.isfinite(taken).all(axis=1))
    if len(wrong):
        row = int(rows[wrong[0]])
        raise UserError(
            f"{path}: row {row} (item {ids[row].as_py()!r}): its vector is not finite "
            f"({len(wrong)} such rows); mend it or leave it out"
        )
    items, known = len(rows) - 1, int(taken.any(axis=1).sum())
    coverage = (
        f"{path.name}: {vectors.dtype} x {vectors.shape[1]} for {known:,} of {items:,} items "
        f"({known / max(items, 1):.1%}); {len(ids) - int(found.sum()):,} of its {len(ids):,} rows "
        "are of items that this data does not have"
    )
    return Embeddings(taken, file_digest(path), coverage)


def file_digest(path: Path) -> str:
    """Of a file's bytes; empty where it is not there."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        return ""


def _read_npy(path: Path) -> tuple[pa.Array, NDArray]:
    names = path.with_suffix(".ids.txt")
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        lines = names.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: no such file; {path.name} needs {names.name} beside it, a raw id a "
            "line"
        ) from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not readable ({error})") from None
    if vectors.ndim != 2 or vectors.dtype not in DTYPES:
        raise UserError(
            f"{path}: is {vectors.dtype}{list(vectors.shape)}; a matrix [items, width] of floats "
            "or int8 was expected"
        )
    if len(lines) != len(vectors):
        raise UserError(f"{names}: {len(lines)} lines, {path.name} has {len(vectors)} rows")
    return pa.array([line or None for line in lines], pa.string()), vectors


def _read_parquet(path: Path) -> tuple[pa.Array, NDArray]:
    try:
        table = pq.read_table(path, memory_map=True, **READING)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of embeddings") from None
    except DAMAGED as error:
        raise UserError(f"{path}: not a readable Parquet file ({error})") from None
    lists = [field.name for field in table.schema if _is_list(field.type)]
    others = [name for name in table.column_names if name not in lists]
    ids = "item" if "item" in others else others[0] if len(others) == 1 else None
    if len(lists) != 1 or ids is None:
        raise UserError(
            f"{path}: has the columns {', '.join(table.column_names)}; expected one of lists, the "
            "vectors, and one of raw ids named 'item'"
        )
    column = pa.concat_arrays(table[lists[0]].chunks) if table.num_rows else None
    if column is None:
        raise UserError(f"{path}: has no rows")
    return table[ids].cast(pa.string()).combine_chunks(), _matrix(column, lists[0], path)


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _matrix(column: pa.Array, name: str, path: Path) -> NDArray:
    """[n, s] of a list column; rows of zeros where a row is null."""
    kind = column.type.value_type
    if kind not in [pa.from_numpy_dtype(dtype) for dtype in DTYPES]:
        raise UserError(
            f"{path}: column '{name}' holds lists of {kind}; floats or int8 were expected"
        )
    there = column.is_valid().to_numpy(zero_copy_only=False)
    lengths = np.asarray(pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False))
    if not there.any():
        raise UserError(f"{path}: column '{name}' is empty in every row")
    first = int(np.argmax(there))
    width = int(lengths[first])
    wrong = np.flatnonzero(there & (lengths != width))
    if len(wrong) or not width:
        row = int(wrong[0]) if len(wrong) else first
        raise UserError(
            f"{path}: row {row}: '{name}' has {lengths[row]} values, row {first} has {width}: all "
            "vectors need one width, not 0"
        )
    flat = column.drop_null().flatten()
    if flat.null_count:
        row = int(np.flatnonzero(there)[int(np.argmax(flat.is_null().to_numpy(False))) // width])
        raise UserError(f"{path}: row {row}: '{name}' has an empty value among its {width}")
    values = flat.to_numpy(zero_copy_only=False).reshape(-1, width)
    if there.all():
        return values
    whole = np.zeros((len(column), width), values.dtype)
    whole[there] = values
    return whole


def _check_ids(ids: pa.Array, path: Path) -> None:
    if ids.null_count:
        row = int(np.argmax(ids.is_null().to_numpy(zero_copy_only=False)))
        raise UserError(f"{path}: row {row}: has no raw id")
    first = pc.index_in(ids, value_set=ids).to_numpy()
    twice = np.flatnonzero(first != np.arange(len(ids)))
    if len(twice):
        row = int(twice[0])
        raise UserError(
            f"{path}: row {row}: item {ids[row].as_py()!r} is in row {first[row]} already "
            f"({len(twice)} such rows); leave one vector an item"
        )
