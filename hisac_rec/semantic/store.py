"""Semantic IDs on disk: the files beside a prepared data set, written and read.

``semantic_ids.parquet`` holds, for row i = item i (row 0, the unknown item, included), the
item's path of codes, the vector that was quantised, and whether anything was known of the
item that a vector could come from, for each view one after the other
(:mod:`hisac_rec.semantic.views`; mostly there is one); ``codebook.parquet`` the code words
(level and code count from 0); ``semantic_ids.json`` the quality report; ``featuriser.npz`` what
places further items (:mod:`hisac_rec.semantic.featuriser`). All carry the
fingerprint of the fit, so that files of two fits are never read together.

Legend: I items, V views, D levels, C_l codes of level l, d width of the semantic vectors.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from operator import mul
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hisac_rec.data.contract import PreparedData
from hisac_rec.data.parquet import WRITING
from hisac_rec.errors import UserError
from hisac_rec.semantic.featuriser import FEATURISER_FILE, write_featuriser

IDS_FILE = "semantic_ids.parquet"
CODEBOOK_FILE = "codebook.parquet"
REPORT_FILE = "semantic_ids.json"

FIT_KEY = b"hisac_rec.fit"
"""Parquet metadata key: fingerprint of the fit."""
DATA_KEY = b"hisac_rec.data"
"""Parquet metadata key: fingerprint of the prepared data that was fitted."""
VIEWS_KEY = b"hisac_rec.views"
"""Parquet metadata key: number of views; absent where an earlier release wrote one."""
LINEAGE_KEY = b"hisac_rec.lineage"
"""Parquet metadata key: fingerprints of the fits whose codes this one kept, newest first."""
LINEAGE_LENGTH = 400
"""More than a year of daily refreshes."""

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Semantics:
    """What the loader and the models need to know about the items' meaning.

    The arrays may be read-only views of Arrow memory: copy before writing.
    """

    codes: NDArray[np.int32]
    """[V I, D]: the path of each item in each view, ``0 <= codes[i, l] < C_l``; row 0 of a view is
    the unknown item."""
    vectors: NDArray[np.float16] | NDArray[np.float32]
    """[V I, d]: the frozen semantic vector e_i, in the space of the code words."""
    codebook: list[NDArray[np.float32]]
    """D arrays [C_l, d]: the code words; a path stands for the sum of its code words."""
    known: NDArray[np.bool_]
    """[V I]: whether the item has a vector of its own; the others stand at the mean of all, and
    their codes mean nothing."""
    views: int = 1
    """V."""
    fingerprint: str = ""
    """Hex digest over all of this: which fit a checkpoint was made on."""
    lineage: tuple[str, ...] = ()
    """Fingerprints of the earlier fits that this one was aligned to: a code means here what it
    meant there. Newest first."""

    @property
    def code_counts(self) -> list[int]:
        """C_l of every level."""
        return [len(words) for words in self.codebook]

    @property
    def prefix_counts(self) -> list[int]:
        """Nodes of the global tree at each level: ``C_1 * ... * C_l``."""
        return list(accumulate(self.code_counts, mul))

    def in_view(self, view: int) -> slice:
        """Rows of one view."""
        items = len(self.codes) // self.views
        return slice(view * items, (view + 1) * items)

    @cached_property
    def prefix_ids(self) -> NDArray[np.int64]:
        """[V I, D]: the tree node of every item at every level; see :func:`prefix_ids`."""
        return prefix_ids(self.codes, self.code_counts)


def prefix_ids(codes: Array, code_counts: Sequence[int]) -> NDArray[np.int64]:
    """Number the prefixes of paths: the nodes of the global tree, level by level.

    Node p at level l has the children ``p * C_{l+1} + code``; O(n D).

    Args:
        codes: [n, D] paths.
        code_counts: C_l of every level.

    Returns:
        [n, D]; column l is in ``[0, C_1 * ... * C_l)``.
    """
    ids = codes.astype(np.int64)
    for level in range(1, ids.shape[1]):
        ids[:, level] += ids[:, level - 1] * code_counts[level]
    return ids


def save_semantics(
    root: Path,
    codes: NDArray[np.int32],
    vectors: Array,
    codebook: Sequence[Array],
    known: NDArray[np.bool_],
    *,
    data_fingerprint: str,
    report_json: str,
    views: int = 1,
    featuriser: Mapping[str, Array] | None = None,
    lineage: Sequence[str] = (),
) -> str:
    """Write the files: all under temporary names first, then renamed.

    Args:
        root: the folder of the prepared data.
        codes: [V I, D].
        vectors: [V I, d], float16 or float32.
        codebook: D arrays [C_l, d].
        known: [V I] items with a vector of their own.
        data_fingerprint: ``manifest.fingerprint`` of the data.
        report_json: the contents of ``semantic_ids.json``.
        views: V.
        featuriser: the arrays of ``featuriser.npz``.
        lineage: fingerprints of the fits whose codes were kept, newest first.

    Returns:
        the fingerprint of this fit.
    """
    words = [np.ascontiguousarray(level, dtype=np.float32) for level in codebook]
    fingerprint = fit_fingerprint(codes, vectors, words, known)
    metadata = {FIT_KEY: fingerprint.encode(), DATA_KEY: data_fingerprint.encode()}
    if lineage:
        metadata[LINEAGE_KEY] = " ".join(lineage[:LINEAGE_LENGTH]).encode()
    item = np.tile(np.arange(len(codes) // views, dtype=np.int32), views)
    metadata[VIEWS_KEY] = str(views).encode()
    ids = pa.table(
        {
            "item": pa.array(item),
            "codes": _fixed_size_list(codes.astype(np.int32, copy=False)),
            "vector": _fixed_size_list(vectors),
            "known": pa.array(known),
        }
    ).replace_schema_metadata(metadata)
    rows = np.concatenate(words)
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    sizes = [len(level) for level in words]
    book = pa.table(
        {
            "level": pa.array(np.repeat(np.arange(len(words), dtype=np.int32), sizes)),
            "code": pa.array(np.concatenate([np.arange(n, dtype=np.int32) for n in sizes])),
            "vector": pa.ListArray.from_arrays(pa.array(offsets), pa.array(rows.reshape(-1))),
        }
    ).replace_schema_metadata(metadata)

    names = (CODEBOOK_FILE, REPORT_FILE, FEATURISER_FILE, IDS_FILE)
    targets = [root / name for name in names]
    temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in targets]
    try:
        pq.write_table(book, temporary[0], **WRITING)
        temporary[1].write_text(report_json)
        write_featuriser(temporary[2], featuriser or {}, fingerprint)
        pq.write_table(ids, temporary[3], **WRITING)
        for path, target in zip(temporary, targets, strict=True):
            path.replace(target)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
    return fingerprint


def load_semantics(data: PreparedData) -> Semantics:
    """Read the semantic IDs of a prepared data set; no copy of codes and vectors is made.

    Raises:
        UserError: they were not fitted yet, belong to other data or to two different fits,
            or are damaged; names the file, what is wrong and what to run.
    """
    ids = data.read_parquet(IDS_FILE)
    book = data.read_parquet(CODEBOOK_FILE)
    ids_path, book_path = data.root / IDS_FILE, data.root / CODEBOOK_FILE
    mend = f"run 'hisac-rec semantic-ids {data.root} --force'"
    views = int(_metadata(ids, VIEWS_KEY) or 1)
    if ids.num_rows != views * data.manifest.items:
        raise UserError(
            f"{ids_path}: {ids.num_rows} rows, but the data has {data.manifest.items} items"
            + (f" in {views} views" if views > 1 else "")
            + f"; {mend}"
        )
    fit, made_on = (_metadata(ids, key) for key in (FIT_KEY, DATA_KEY))
    if made_on not in ("", data.manifest.fingerprint):
        raise UserError(f"{ids_path}: was fitted on another version of this data; {mend}")
    if fit != _metadata(book, FIT_KEY):
        raise UserError(f"{book_path}: comes from another fit than {IDS_FILE}; {mend}")
    codes = _matrix(ids, "codes", ids_path, mend)
    vectors = _matrix(ids, "vector", ids_path, mend)
    codebook = _read_codebook(book, vectors.shape[1], book_path, mend)
    if codes.dtype != np.int32 or codes.shape[1] != len(codebook):
        raise UserError(
            f"{ids_path}: 'codes' is {codes.dtype}[{codes.shape[1]}], the codebook has "
            f"{len(codebook)} levels (int32 expected); {mend}"
        )
    for level, words in enumerate(codebook):
        column = codes[:, level]
        wrong = np.flatnonzero((column < 0) | (column >= len(words)))
        if len(wrong):
            raise UserError(
                f"{ids_path}: row {wrong[0]}: code {column[wrong[0]]} at level {level}, "
                f"the codebook has 0 to {len(words) - 1}; {mend}"
            )
    if "known" not in ids.column_names or ids.column("known").null_count:
        raise UserError(f"{ids_path}: column 'known' is absent or has empty rows; {mend}")
    known = ids.column("known").to_numpy()
    lineage = tuple(_metadata(ids, LINEAGE_KEY).split())
    return Semantics(codes, vectors, codebook, known, views, fit, lineage)


def fit_fingerprint(
    codes: Array, vectors: Array, codebook: Sequence[Array], known: NDArray[np.bool_]
) -> str:
    """Hex digest that names one fit; O(bytes)."""
    digest = hashlib.sha256()
    for array in (codes, vectors, *codebook, known):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def _fixed_size_list(matrix: Array) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(matrix).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])


def _metadata(table: pa.Table, key: bytes) -> str:
    return (table.schema.metadata or {}).get(key, b"").decode()


def _matrix(table: pa.Table, name: str, path: Path, mend: str) -> NDArray:
    """View a fixed_size_list column as [rows, width]; zero-copy for one chunk."""
    if name not in table.column_names or not pa.types.is_fixed_size_list(
        table.schema.field(name).type
    ):
        raise UserError(f"{path}: column '{name}' must be a fixed_size_list; {mend}")
    width = table.schema.field(name).type.list_size
    column = table.column(name).combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # an empty column stays chunked
        column = pa.concat_arrays(column.chunks)
    flat = column.flatten()
    if len(flat) != table.num_rows * width or flat.null_count:
        raise UserError(f"{path}: column '{name}' has empty rows; {mend}")
    return flat.to_numpy(zero_copy_only=True).reshape(table.num_rows, width)


def _read_codebook(book: pa.Table, width: int, path: Path, mend: str) -> list[NDArray[np.float32]]:
    """D arrays [C_l, d], whatever the order of the rows."""
    missing = {"level", "code", "vector"} - set(book.column_names)
    if missing or not book.num_rows:
        raise UserError(f"{path}: lacks {', '.join(sorted(missing)) or 'rows'}; {mend}")
    book = book.sort_by([("level", "ascending"), ("code", "ascending")])
    flat = book.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if flat.size != book.num_rows * width:
        raise UserError(
            f"{path}: code words and the vectors of {IDS_FILE} (width {width}) differ in width; "
            f"{mend}"
        )
    words = np.ascontiguousarray(flat.reshape(book.num_rows, width), dtype=np.float32)
    level, code = (book.column(name).to_numpy() for name in ("level", "code"))
    counts = np.bincount(level)
    expected = np.concatenate([np.arange(n) for n in counts])
    if (counts == 0).any() or not np.array_equal(code, expected):
        raise UserError(f"{path}: levels or codes are missing or double; {mend}")
    return np.split(words, np.cumsum(counts)[:-1])
