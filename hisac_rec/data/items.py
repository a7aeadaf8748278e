"""Item side features and semantic-ID codes as flat arrays, ready to be taken by item id.

Semantic IDs may have several *views* (:mod:`hisac_rec.semantic.views`): an item has other codes for
other groups of users. So an item has an id, and besides a row of codes, which depends on who asks.

Legend: I items (row 0 unknown), D levels, C_l codes of level l, V views, U users.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hisac_rec.data.contract import PreparedData
from hisac_rec.data.inputs import InputSpec, Lookup
from hisac_rec.data.jagged import Ints, take_ranges
from hisac_rec.data.vocabulary import rows_of_ids
from hisac_rec.errors import UserError
from hisac_rec.semantic.store import prefix_ids


@dataclass(frozen=True)
class Ragged:
    """A list column: row i holds ``values[offsets[i]:offsets[i+1]]``."""

    offsets: Ints
    values: NDArray[np.int32]

    def take(self, rows: NDArray[np.integer]) -> tuple[NDArray[np.int32], Ints]:
        """The values of ``rows`` joined, and how many each row has. O(values taken)."""
        starts = self.offsets[rows]
        lengths = self.offsets[np.asarray(rows) + 1] - starts
        return self.values[take_ranges(starts, lengths)], lengths


class ItemRows(NamedTuple):
    """Items of some events or candidates, [n] each."""

    ids: Ints
    """Item ids."""
    coded: Ints
    """Rows of the store's codes: the id in the view of whom asks."""

    def take(self, rows: Ints) -> ItemRows:
        """Some of them. O(n)."""
        ids = self.ids[rows]
        return ItemRows(ids, ids if self.coded is self.ids else self.coded[rows])


@dataclass(frozen=True)
class ItemStore:
    """What the loader adds to an item id.

    Args:
        items: I.
        single: feature -> [I] int32.
        multi: feature -> ragged values.
        codes: [V I, D] int32 semantic-ID codes, of view after view; D = 0 without semantic ids.
        code_counts: C_1..C_D.
        placed: [V I] bool, items whose codes come from a semantic vector of their own; the codes
            of the others, of whom nothing is known, are those of the mean item.
        view_of_user: [U] the view that the requests of a user read; None: there is one alone.
        rows: table -> [ids] or [ids, k] what an id reads there, for the tables whose ids are not
            their rows (:mod:`hisac_rec.data.vocabulary`).
    """

    items: int
    single: dict[str, NDArray[np.int32]]
    multi: dict[str, Ragged]
    codes: NDArray[np.int32]
    code_counts: tuple[int, ...]
    placed: NDArray[np.bool_]
    rows: dict[str, NDArray[np.integer]] = field(default_factory=dict)
    view_of_user: NDArray[np.int64] | None = None

    def seen_by(self, users: NDArray[np.integer], ids: Ints) -> ItemRows:
        """Items [n] as the requests of ``users`` [n] see them. O(n), nothing where V = 1."""
        if self.view_of_user is None:
            return ItemRows(ids, ids)
        return ItemRows(ids, ids + self.view_of_user[users] * self.items)

    def of_coded(self, coded: Ints) -> ItemRows:
        """The items of rows of ``codes`` [n]. O(n), nothing where V = 1."""
        return ItemRows(coded if self.view_of_user is None else coded % self.items, coded)

    def rows_of(
        self, table: str, ids: NDArray[np.integer], owner: Ints | None = None
    ) -> tuple[NDArray[np.integer], Ints | None]:
        """What ids read in a table, and the owner of each: None where every id is its own.

        Args:
            table: its name.
            ids: [n].
            owner: [n] of the ids; None: id i belongs to i.
        """
        found = self.rows.get(table)
        if found is None:
            return ids, owner
        if found.ndim == 1:
            return found[ids], owner
        owner = np.arange(len(ids)) if owner is None else owner
        return found[ids].ravel(), np.repeat(owner, found.shape[1])

    def column(self, name: str, rows: ItemRows) -> NDArray[np.integer]:
        """[n] values of one single-valued column (``item``, a feature, ``sid<l>``, ``prefix<l>``).

        Items without a place in the tree read a row of their own there, the last one: C_l of a
        level, and C_1 ... C_l of the paths down to it.
        """
        if name == "item":
            return rows.ids
        if name in self.single:
            return self.single[name][rows.ids]
        placed, codes = self.placed[rows.coded], self.codes[rows.coded]
        if name.startswith("sid"):
            level = int(name.removeprefix("sid"))
            return np.where(placed, codes[:, level - 1], self.code_counts[level - 1])
        level = int(name.removeprefix("prefix"))
        nodes = prefix_ids(codes[:, :level], self.code_counts)[:, -1]
        return np.where(placed, nodes, prod(self.code_counts[:level]))


def load_items(
    data: PreparedData,
    spec: InputSpec,
    codes: NDArray[np.int32] | None,
    placed: NDArray[np.bool_] | None = None,
    view_of_user: NDArray[np.int64] | None = None,
) -> ItemStore:
    """Read what ``spec`` needs of ``items.parquet``.

    Args:
        data: the prepared data set.
        spec: what the model looks up.
        codes: [V I, D] of the data set's semantic ids, None where there are none.
        placed: [V I] of the semantic ids; None: all are.
        view_of_user: [U] of the semantic ids; None: there is one view.

    Raises:
        UserError: a column is absent, or holds an id beyond its table, or the raw values of a
            table with a vocabulary are.
    """
    single: dict[str, NDArray[np.int32]] = {}
    multi: dict[str, Ragged] = {}
    derived = ("item", "sid", "prefix")
    for lookup in (*spec.lookups, *spec.item_features):
        if lookup.side == "user" or lookup.column.startswith(derived):
            continue
        column = _items_column(data, lookup.column)
        if lookup.multi:
            offsets = column.offsets.to_numpy().astype(np.int64)
            ids = _checked(data, spec, lookup, column.values, offsets)
            multi[lookup.column] = Ragged(offsets, ids)
        else:
            single[lookup.column] = _checked(data, spec, lookup, column, np.arange(len(column) + 1))
    if codes is None:
        codes = np.zeros((data.manifest.items, 0), dtype=np.int32)
    if placed is None:
        placed = np.ones(len(codes), dtype=bool)
    rows = {
        table: rows_of_ids(data, table, first.ids, first.vocabulary)
        for table, (first, *_) in spec.tables().items()
        if first.vocabulary is not None
    }
    return ItemStore(
        data.manifest.items,
        single,
        multi,
        codes,
        tuple(spec.code_counts),
        placed,
        rows,
        view_of_user,
    )


def _checked(
    data: PreparedData, spec: InputSpec, lookup: Lookup, column: pa.Array, offsets: Ints
) -> NDArray[np.int32]:
    """The ids of a column; those beyond the table as ``out_of_range`` says."""
    ids = column.fill_null(-1).to_numpy(zero_copy_only=False)
    bad = (ids < 0) | (ids >= lookup.ids)
    if not bad.any():
        return ids
    if spec.out_of_range == "error":
        at = int(np.argmax(bad))
        row = int(np.searchsorted(offsets, at, side="right")) - 1
        raise UserError(
            f"{data.root / 'items.parquet'}: row {row}: {lookup.column} = {column[at]} is outside "
            f"its table of {lookup.ids:,} rows; prepare the data again, or set "
            "inputs.out_of_range=unknown to send such ids to the unknown row"
        )
    return np.where(bad, 0, ids).astype(ids.dtype)


def _items_column(data: PreparedData, name: str) -> pa.Array:
    if name not in data.items.column_names:
        raise UserError(
            f"{data.root / 'items.parquet'}: column '{name}' is missing; "
            "run 'hisac-rec prepare' again"
        )
    return data.items[name].combine_chunks()
