"""From ids to vectors: memory-mapped tables and item columns of an exported model.

Legend: I items, V views of the semantic IDs, X rows of a table, n ids, N candidates, d width, D
levels, F lookups of a side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hisac_rec.data.jagged import take_ranges
from hisac_rec.scorer.artefact import Artefact, ExportedLookup
from hisac_rec.serving.precision import decode

VIEWS = "users/views"
"""File of the view that each user reads; absent where there is one view."""

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


class Table:
    """Embedding rows on disk.

    Args:
        artefact: that holds them.
        name: of the table.
    """

    def __init__(self, artefact: Artefact, name: str) -> None:
        self._rows = artefact.array(f"tables/{name}")
        self._scale = (
            artefact.array(f"tables/{name}.scale") if self._rows.dtype == np.int8 else None
        )
        of_ids = f"tables/{name}.rows"
        self._of_ids = (
            artefact.array(of_ids) if f"{of_ids}.npy" in artefact.manifest.files else None
        )

    def __len__(self) -> int:
        """X."""
        return len(self._rows)

    def take(self, ids: Ids) -> Floats:
        """[n, d] float32; the mean where an id has several rows. O(n d); touches the pages of these
        rows alone.
        """
        if self._of_ids is not None:
            rows = self._of_ids[ids]
            if rows.ndim == 2:
                return self._read(rows.ravel()).reshape(*rows.shape, -1).mean(1)
            ids = rows
        return self._read(ids)

    def _read(self, ids: NDArray[np.integer]) -> Floats:
        scale = np.zeros(0, np.float32) if self._scale is None else self._scale[ids]
        return decode(self._rows[ids], scale)


class Items:
    """What is known of the items.

    Args:
        artefact: that holds it.
    """

    def __init__(self, artefact: Artefact) -> None:
        self.codes = artefact.array("items/codes")
        self.placed = artefact.array("items/placed")
        self._code_counts = artefact.manifest.code_counts
        self._views = artefact.array(VIEWS) if f"{VIEWS}.npy" in artefact.manifest.files else None
        self._items = len(self.codes) // artefact.manifest.views
        self._names = artefact.array("items/names")
        self._of_names = artefact.array("items/of_names")
        self._columns: dict[str, tuple[NDArray[Any], ...]] = {}
        for lookup in artefact.manifest.lookups:
            if lookup.side != "user" and not lookup.column.startswith(("item", "sid", "prefix")):
                parts = ("offsets", "values") if lookup.multi else ("values",)
                self._columns[lookup.column] = tuple(
                    artefact.array(f"items/{lookup.column}.{part}") for part in parts
                )

    def ids(self, names: Sequence[str]) -> Ids:
        """[n] dense ids of raw ids; 0, the unknown item, for others. O(n log I)."""
        raw = np.array([name.encode() for name in names], dtype=np.bytes_)
        at = np.searchsorted(self._names, raw).clip(max=len(self._names) - 1)
        found: Ids = np.where(self._names[at] == raw, self._of_names[at], 0)
        return found

    def seen_by(self, user: int, ids: Ids) -> Ids:
        """[n] rows of ``codes`` and ``placed`` of items, as a user's requests see them."""
        return ids if self._views is None else ids + int(self._views[user]) * self._items

    def vectors(self, lookup: ExportedLookup, user: int, ids: Ids, table: Table) -> Floats:
        """[n, d] of one lookup; a list of values gives the mean of their rows, 0 where empty."""
        if not lookup.multi:
            return table.take(self._single(lookup.column, user, ids))
        offsets, values = self._columns[lookup.column]
        lengths = (offsets[ids + 1] - offsets[ids]).astype(np.int64)
        owner = np.repeat(np.arange(len(ids)), lengths)
        rows = table.take(values[take_ranges(offsets[ids], lengths)].astype(np.int64))
        sums = np.zeros((len(ids), rows.shape[1]), np.float32)
        np.add.at(sums, owner, rows)
        return sums / np.maximum(lengths, 1).astype(np.float32)[:, None]

    def _single(self, column: str, user: int, ids: Ids) -> Ids:
        if column == "item":
            return ids
        if column.startswith(("sid", "prefix")):
            return self._of_codes(column, self.seen_by(user, ids))
        (values,) = self._columns[column]
        return values[ids].astype(np.int64)

    def _of_codes(self, column: str, rows: Ids) -> Ids:
        """Rows of a table of codes or paths; the last one for items without a place in the tree."""
        codes, placed = self.codes[rows].astype(np.int64), self.placed[rows]
        if column.startswith("sid"):
            level = int(column.removeprefix("sid"))
            return np.where(placed, codes[:, level - 1], self._code_counts[level - 1])
        level = int(column.removeprefix("prefix"))
        path = np.zeros(len(rows), np.int64)
        for below, count in enumerate(self._code_counts[:level]):
            path = path * count + codes[:, below]
        return np.where(placed, path, prod(self._code_counts[:level]))


class Lookups:
    """All lookups of a model.

    Args:
        artefact: the exported model.
    """

    def __init__(self, artefact: Artefact) -> None:
        manifest = artefact.manifest
        self.items = Items(artefact)
        self._of = {
            side: [lookup for lookup in manifest.lookups if lookup.side == side]
            for side in ("user", "history", "candidate")
        }
        self._tables = {lk.table: Table(artefact, lk.table) for lk in manifest.lookups}
        self._types = Table(artefact, "_types") if len(manifest.event_types) > 1 else None
        self._ages = Table(artefact, "_ages") if manifest.age_buckets else None
        self._dim = manifest.dim

    def users(self, user: int, features: Mapping[str, int]) -> Floats:
        """[F, d] of a user; unknown features are 0, the unknown value."""
        found = [
            self._tables[lk.table].take(
                np.array([user if lk.column == "user" else features.get(lk.column, 0)])
            )
            for lk in self._of["user"]
        ]
        return np.concatenate([np.zeros((0, self._dim), np.float32), *found])

    def candidates(self, user: int, ids: Ids) -> Floats:
        """[F, N, d] of a user's candidates."""
        return np.stack([self._vectors(lookup, user, ids) for lookup in self._of["candidate"]])

    def recent(self, user: int, items: Ids, types: Ids, ages: NDArray[np.integer]) -> Floats:
        """[1, d] mean of the newest events, as the ranker embeds them; zeros without any."""
        total = np.zeros((len(items), self._dim), np.float32)
        for lookup in self._of["history"]:
            total = total + self._vectors(lookup, user, items)
        if self._types is not None:
            total = total + self._types.take(types)
        if self._ages is not None:
            age = np.maximum(ages.astype(np.float32), 0) + np.float32(1)
            bucket = np.log2(age).astype(np.int64)
            total = total + self._ages.take(bucket.clip(max=len(self._ages) - 1))
        return total.sum(0, keepdims=True) / np.float32(max(1, len(items)))

    def _vectors(self, lookup: ExportedLookup, user: int, ids: Ids) -> Floats:
        return self.items.vectors(lookup, user, ids, self._tables[lookup.table])
