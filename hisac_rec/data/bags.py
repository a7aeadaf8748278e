"""Bags of ids: what is summed where the rows are, instead of sent row by row.

Where a method's first use of events is a weighted sum that no trained number decides, the rank
that owns the rows can do it: sums cross the network, not events. The bags of a batch are, in
order, the method's groups of events, single events that are read one by one, and candidates.

Legend: R requests, T events, E entries (an event in a group), G groups, S single events, N
candidates, B = G + S + N bags, D semantic-ID levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from hisac_rec.data.items import ItemRows, ItemStore
from hisac_rec.data.jagged import Ints, distinct, take_ranges


@dataclass(frozen=True)
class Groups:
    """Weighted sums of events, each within one request.

    Args:
        count: G.
        group: [E] int64 group of each entry.
        event: [E] int64 event of each entry; None: entry i is event i, and E = T.
        weight: [E] float32; None: all are 1.
    """

    count: int
    group: Tensor
    event: Tensor | None = None
    weight: Tensor | None = None


class FrozenEvents(NamedTuple):
    """What no training changes of the events of R requests.

    Args:
        offsets: [R+1] int64 over T.
        codes: [T, D] int64 semantic-ID codes.
        type: [T] int64 event types; None: of one type.
        placed: [T] bool, whether the codes come from something known of the item; None: all do.
    """

    offsets: Tensor
    codes: Tensor
    type: Tensor | None = None
    placed: Tensor | None = None


Grouping: TypeAlias = Callable[[FrozenEvents], Groups]
"""The events of a batch -> its groups. Picklable and without trained numbers: the loader calls it.
Groups come in an order that the method can tell again from the same."""


@dataclass(frozen=True)
class BagLookup:
    """One table that is read by bags.

    Args:
        table: its name, and the key of the bags.
        history: column of the events that is looked up there, and whether it holds lists.
        candidate: the same of the candidates; None where they do not read the table.
    """

    table: str
    history: tuple[str, bool]
    candidate: tuple[str, bool] | None


@dataclass(frozen=True)
class _Entries:
    """Ids of some bags, in the order of the bags."""

    ids: NDArray[np.integer]
    weights: NDArray[np.float32]
    lengths: Ints


def fill_bags(
    lookups: tuple[BagLookup, ...],
    items: ItemStore,
    history: ItemRows,
    groups: Groups,
    singles: Ints,
    candidates: ItemRows,
) -> KeyedJaggedTensor:
    """The ids and weights of all bags. O(E + U log U) a table for U distinct
    ids of a group.

    Args:
        lookups: the tables, in the order of the keys; at least one.
        items: features and codes.
        history: [T] item of each event.
        groups: of the events.
        singles: [S] events that are read one by one.
        candidates: [N].

    Returns:
        One key a table, stride B. An id that is met several times in a group is there once,
        with the sum of its weights.
    """
    group = groups.group.numpy()
    entries = history if groups.event is None else history.take(groups.event.numpy())
    weight = None if groups.weight is None else groups.weight.numpy()
    parts: list[_Entries] = []
    for lookup in lookups:
        values, owner, weights = _values(items, lookup.table, lookup.history, entries)
        if weight is not None:
            weights = weights * weight[owner]
        parts.append(_merged(values, group[owner], weights, groups.count))
        parts.append(_each(items, lookup.table, lookup.history, history.take(singles)))
        if lookup.candidate is None:
            parts.append(_nothing(len(candidates.ids)))
        else:
            parts.append(_each(items, lookup.table, lookup.candidate, candidates))
    return KeyedJaggedTensor(
        keys=[lookup.table for lookup in lookups],
        values=torch.from_numpy(np.concatenate([part.ids for part in parts]).astype(np.int64)),
        weights=torch.from_numpy(np.concatenate([part.weights for part in parts])),
        lengths=torch.from_numpy(np.concatenate([part.lengths for part in parts])),
    )


def newest_rows(offsets: Ints, count: int) -> Ints:
    """[S] the last ``count`` rows of each request, ascending. O(S)."""
    lengths = np.minimum(np.diff(offsets), count)
    return take_ranges(offsets[1:] - lengths, lengths)


def _values(
    items: ItemStore, table: str, column: tuple[str, bool], of: ItemRows
) -> tuple[NDArray[np.integer], Ints, NDArray[np.float32]]:
    """What a column reads in a table, which of the rows each is of, and its share of the row's
    mean.
    """
    name, multi = column
    ids = of.ids
    values: NDArray[np.integer]
    owner: Ints | None = None
    if multi:
        values, counts = items.multi[name].take(ids)
        owner = np.repeat(np.arange(len(ids)), counts)
    else:
        values = items.column(name, of)
    values, owner = items.rows_of(table, values, owner)
    if owner is None:
        return values, np.arange(len(ids)), np.ones(len(ids), np.float32)
    counts = np.bincount(owner, minlength=len(ids))
    shares = (1.0 / np.maximum(counts, 1)).astype(np.float32)
    return values, owner, shares[owner]


def _merged(
    values: NDArray[np.integer], group: Ints, weights: NDArray[np.float32], count: int
) -> _Entries:
    """Ids by group, each once."""
    width = int(values.max()) + 1 if len(values) else 1
    keys, place = distinct(group * width + values)
    sums = np.bincount(place, weights=weights, minlength=len(keys)).astype(np.float32)
    return _Entries(keys % width, sums, np.bincount(keys // width, minlength=count))


def _each(items: ItemStore, table: str, column: tuple[str, bool], of: ItemRows) -> _Entries:
    """A bag for every row: its value, or the mean of its values."""
    values, owner, weights = _values(items, table, column, of)
    return _Entries(values, weights, np.bincount(owner, minlength=len(of.ids)))


def _nothing(count: int) -> _Entries:
    none = np.zeros(0, dtype=np.int64)
    return _Entries(none, none.astype(np.float32), np.zeros(count, dtype=np.int64))
