"""Compressed histories on disk: what a request's candidates read instead of its events.

``manifest.json`` and ``part-*.arrow``, Arrow files that are read in place (memory-mapped), one row
for each history and moment. A part appears under its name when it is complete; later parts add to
earlier ones, so a cache grows and a run that was killed is gone on with.

Legend: n rows, A agents of all of them, d width, S newest events.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from hisac_rec.config import Strict
from hisac_rec.data.jagged import Ints, offsets_of
from hisac_rec.errors import UserError
from hisac_rec.serving.precision import STORED, Precision, decode, encode

MANIFEST = "manifest.json"
At = Literal["first", "last", "requests"]
"""Moments that a history is compressed at: of the user's first or last request of a split, or of
each request."""
NEWEST = {"newest_item": pa.int32(), "newest_type": pa.int8(), "newest_time": pa.int64()}
"""The newest events as they are, oldest first: what new ones are added to while serving."""
AGAINST, AGAINST_PATH = "against", "against_path"
"""Votes against leaves, and which leaves: of those that a history rejects, agents or not."""


class CacheManifest(Strict):
    """``manifest.json``: what the cache is of; parts of another one are never mixed in."""

    run: str
    """Digest of the checkpoint's files."""
    method: str
    """History method."""
    data_fingerprint: str
    """Of the prepared data."""
    semantics_fingerprint: str
    """Of the codebook."""
    dim: int
    """d."""
    fields: dict[str, str]
    """What of an agent is kept beside its vector: name -> Arrow type."""
    rejected: dict[str, str] = {}
    """What is kept of each rejected leaf, where events vote against some: name -> Arrow type."""
    precision: Precision
    """Of the vectors."""
    at: At
    """Which moments."""
    age: int
    """So long before them."""
    newest: int
    """S: how many of the newest events are kept as they are."""
    user_features: list[str]
    """User-side lookups beside the user's own row, kept by name."""


@dataclass(frozen=True)
class Keys:
    """Which histories, seen when. All [n].

    Args:
        user: dense id.
        time: the moment.
        number: of the request.
        seen: events of the history until then.
        name: raw id of the user, of rows to be written; a cache that is read leaves them where
            they are.
    """

    user: Ints
    time: Ints
    number: Ints
    seen: Ints
    name: pa.Array | None = None


def schema(manifest: CacheManifest) -> pa.Schema:
    """Columns of a part; the numbers of all its agents' vectors lie one after the other."""
    number = pa.from_numpy_dtype(np.dtype(STORED[manifest.precision]))
    lists = manifest.fields | manifest.rejected
    agents = [(name, pa.list_(_kind(of))) for name, of in lists.items()]
    return pa.schema(
        [
            ("user", pa.int32()),
            ("time", pa.int64()),
            ("number", pa.int64()),
            ("seen", pa.int32()),
            ("name", pa.string()),
            *((f"user_{name}", pa.int32()) for name in manifest.user_features),
            *((name, pa.list_(kind)) for name, kind in NEWEST.items()),
            *agents,
            ("scale", pa.list_(pa.float32())),
            ("vectors", pa.list_(pa.list_(number, manifest.dim))),
        ]
    )


def pack(
    keys: Keys, held: dict[str, Tensor], manifest: CacheManifest, plain: dict[str, pa.Array]
) -> pa.RecordBatch:
    """Rows of a cache.

    Args:
        keys: of the n rows.
        plain: the columns ``user_*`` and those of :data:`NEWEST`.
        held: ``filled`` [n, K], ``vectors`` [n, K, d] and the manifest's ``fields`` [n, K]; of
            rejected leaves its ``rejected`` [n, J].
        manifest: of the cache.
    """
    filled = held["filled"].numpy()
    bounds = pa.array(offsets_of(filled.sum(1)), pa.int32())
    stored, scale = encode(held["vectors"].numpy()[filled], manifest.precision)
    if manifest.precision != "int8":
        scale = scale[:0]
    columns = schema(manifest)
    lists = _lists(held, filled, manifest.fields)
    if manifest.rejected:
        lists |= _lists(held, held[AGAINST_PATH].numpy() >= 0, manifest.rejected)
    flat = pa.FixedSizeListArray.from_arrays(
        pa.array(stored.ravel()), type=columns.field("vectors").type.value_type
    )
    none = pa.array(np.zeros(len(filled) + 1), pa.int32())
    arrays = {
        "user": pa.array(keys.user, pa.int32()),
        "time": pa.array(keys.time),
        "number": pa.array(keys.number),
        "seen": pa.array(keys.seen, pa.int32()),
        "name": keys.name,
        **plain,
        **lists,
        "scale": pa.ListArray.from_arrays(bounds if len(scale) else none, pa.array(scale)),
        "vectors": pa.ListArray.from_arrays(bounds, flat),
    }
    return pa.record_batch([arrays[name] for name in columns.names], schema=columns)


class Cache:
    """A cache, opened for reading; later parts are seen after opening it anew.

    Args:
        root: its folder.

    Raises:
        UserError: no cache, or a damaged part.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = read_manifest(root)
        self._table = _read_parts(root, schema(self.manifest))
        columns = [self._table[name].to_numpy() for name in ("user", "time", "number", "seen")]
        self.keys = Keys(*(np.asarray(column, np.int64) for column in columns))

    def __len__(self) -> int:
        """N."""
        return self._table.num_rows

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return int(self._table.nbytes)

    def newest(self, user: Ints, time: Ints) -> Ints:
        """[m] the row of each user's newest history not later than ``time``; -1: none."""
        order, moments, ascending = self._by_moment
        wanted = user * (len(moments) + 1) + np.searchsorted(moments, time, side="right")
        return _last(order, self.keys.user, user, np.searchsorted(ascending, wanted, side="right"))

    def of_requests(self, number: Ints) -> Ints:
        """[m] the newest row of each request; -1: none."""
        order, ascending = self._by_number
        after = np.searchsorted(ascending, number, side="right")
        return _last(order, self.keys.number, number, after)

    @cached_property
    def _by_moment(self) -> tuple[Ints, Ints, Ints]:
        """Rows by user and moment, of equal ones the later part's last; all moments; and for each
        of the rows a number that ascends: the user, then how many moments are not later.
        """
        order = np.lexsort((self.keys.time, self.keys.user))
        moments = np.unique(self.keys.time)
        until = np.searchsorted(moments, self.keys.time[order], side="right")
        return order, moments, self.keys.user[order] * (len(moments) + 1) + until

    @cached_property
    def _by_number(self) -> tuple[Ints, Ints]:
        """Rows by request number, and those numbers."""
        order = np.argsort(self.keys.number, kind="stable")
        return order, self.keys.number[order]

    def rows(self, user: Ints, time: Ints, number: Ints) -> Ints:
        """[m] the row that a request reads; -1: none."""
        if self.manifest.at == "requests":
            return self.of_requests(number)
        return self.newest(user, time)

    def memory(self, rows: Ints) -> dict[str, Tensor]:
        """What ``HistoryMethod.restore`` takes, of the rows [m]; -1 stands for no agents.
        O(bytes of the rows).
        """
        there = rows >= 0
        taken = self._table.take(pa.array(rows[there]))
        lists = self.manifest.fields | self.manifest.rejected
        column = {name: joined(taken[name]) for name in ("vectors", "scale", *lists)}
        filled = _places(column["vectors"], there)
        vectors = _values(column["vectors"])
        numbers = vectors.flatten().to_numpy().reshape(len(vectors), self.manifest.dim)
        scale = _values(column["scale"]).to_numpy()
        dense = np.zeros((*filled.shape, self.manifest.dim), np.float32)
        dense[filled] = decode(numbers, scale)
        held = {"vectors": torch.from_numpy(dense), "filled": torch.from_numpy(filled)}
        where = dict.fromkeys(self.manifest.fields, filled)
        if self.manifest.rejected:
            rejected = _places(column[AGAINST_PATH], there)
            where |= dict.fromkeys(self.manifest.rejected, rejected)
        for name, places in where.items():
            flat = _values(column[name]).to_numpy()
            kind = np.int64 if np.issubdtype(flat.dtype, np.integer) else np.float32
            spread = np.full(places.shape, EMPTY.get(name, 0), kind)
            spread[places] = flat
            held[name] = torch.from_numpy(spread)
        return held

    def record_batch(self, rows: Ints) -> pa.RecordBatch:
        """The rows [m] as they are stored."""
        (batch,) = self._table.take(pa.array(rows)).combine_chunks().to_batches()
        return batch

    def agents(self) -> Ints:
        """[n] how many agents each row has."""
        return np.diff(_offsets(joined(self._table["vectors"])))


EMPTY = {"path": -1, AGAINST_PATH: -1}
"""What stands in slots without an agent (without a rejected leaf), where that is not 0."""


class CacheWriter:
    """Writes rows into parts of one rank, each complete before it counts.

    Args:
        root: the cache's folder; its manifest is there.
        manifest: of the cache.
        rank: of this process.
        rows: of a part.
    """

    def __init__(self, root: Path, manifest: CacheManifest, rank: int, rows: int = 4096) -> None:
        self._root, self._manifest, self._rank, self._most = root, manifest, rank, rows
        self._waiting: list[pa.RecordBatch] = []
        numbers = [int(path.name.split("-")[1]) for path in root.glob("part-*.arrow")]
        self._next = max(numbers, default=-1) + 1
        self.rows = 0
        self.bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows."""
        self._waiting.append(batch)
        self.rows += batch.num_rows
        self.bytes += batch.nbytes
        if sum(waiting.num_rows for waiting in self._waiting) >= self._most:
            self.flush()

    def flush(self) -> None:
        """Complete the part that has been begun."""
        if not self._waiting:
            return
        final = self._root / f"part-{self._next:06d}-{self._rank:05d}.arrow"
        temporary = final.with_name(f".{final.name}.partial")
        columns = schema(self._manifest)
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, columns) as writer:
            for batch in self._waiting:
                writer.write_batch(batch)
        temporary.rename(final)
        self._waiting, self._next = [], self._next + 1


def read_manifest(root: Path) -> CacheManifest:
    """Read ``manifest.json``.

    Raises:
        UserError: it is absent or not readable.
    """
    path = root / MANIFEST
    try:
        return CacheManifest.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(
            f"{root}: not a cache ({MANIFEST} is missing); make one with 'hisac-rec compress RUN "
            "--out FOLDER'"
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not readable: {error}") from None


def _read_parts(root: Path, columns: pa.Schema) -> pa.Table:
    tables = []
    for path in sorted(root.glob("part-*.arrow")):
        try:
            found = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path}: a damaged part of the cache ({error}); delete it and run 'hisac-rec "
                "compress' again, which fills the gap"
            ) from None
        if found.schema != columns:
            raise UserError(
                f"{path}: other columns than {MANIFEST} beside it says; delete the cache and make "
                "it anew"
            )
        tables.append(found)
    return pa.concat_tables(tables) if tables else columns.empty_table()


def _last(order: Ints, of_row: Ints, wanted: Ints, after: Ints) -> Ints:
    """[m] the row before place ``after`` in ``order`` where it is of ``wanted``; else -1."""
    if not len(order):
        return np.full(len(wanted), -1)
    rows = order[(after - 1).clip(min=0)]
    return np.where((after > 0) & (of_row[rows] == wanted), rows, -1)


def _lists(
    held: dict[str, Tensor], places: NDArray[np.bool_], kinds: dict[str, str]
) -> dict[str, pa.Array]:
    """What stands in the filled slots [n, K] of each tensor, as lists."""
    bounds = pa.array(offsets_of(places.sum(1)), pa.int32())
    return {
        name: pa.ListArray.from_arrays(bounds, pa.array(held[name].numpy()[places], _kind(of)))
        for name, of in kinds.items()
    }


def _places(lists: Any, there: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[m, K] slots that are filled: each list's own, from the left, none where it is not there."""
    counts = np.zeros(len(there), np.int64)
    counts[there] = np.diff(_offsets(lists))
    return np.arange(max(1, int(counts.max(initial=0)))) < counts[:, None]


def _kind(name: str) -> pa.DataType:
    return pa.type_for_alias(name)


def joined(column: pa.ChunkedArray) -> Any:
    """The column as one array."""
    joined = column.combine_chunks()
    return joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined


def _offsets(lists: Any) -> NDArray[np.int64]:
    return np.asarray(lists.offsets.to_numpy(), np.int64)


def _values(lists: Any) -> Any:
    """The values of exactly these lists."""
    first, last = lists.offsets[0].as_py(), lists.offsets[len(lists)].as_py()
    return lists.values.slice(first, last - first)
