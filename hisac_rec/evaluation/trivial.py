"""The two trivial predictors that belong in every table, fitted on the training split.

The item's mean label, and item mean plus user mean. They know nothing of histories; a
model that does not beat both has shown nothing. Legend: I items, U users, n rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hisac_rec.data.contract import PreparedData, label_field
from hisac_rec.data.parquet import DAMAGED, READING
from hisac_rec.errors import UserError
from hisac_rec.evaluation.metrics import Floats
from hisac_rec.progress import progress

SHRINKAGE = 5.0
"""Pseudo-rows at the global mean in every mean. On MovieLens-1M every value from 0 to 10
is within .0005 AUC and GAUC of the best (docs/evaluation.md); without any, an item seen
once has a mean of 0 or 1 and ruins the logloss."""

PROBABILITY_RANGE = (0.001, 0.999)
"""Where the sum of two means leaves 0..1, its probability is cut here; its rank is not."""

_USERS_PER_BATCH = 4096


@dataclass(frozen=True)
class Means:
    """Training means, shrunk towards the global mean; rows never seen hold just that."""

    item: Floats
    """[I]"""
    user: Floats
    """[U]"""
    overall: float
    """Mean label of the training candidates."""

    def item_mean(self, items: npt.ArrayLike) -> Floats:
        """Mean label of each row's item, [n]."""
        return self.item[np.asarray(items)]

    def item_and_user_mean(self, items: npt.ArrayLike, users: npt.ArrayLike) -> Floats:
        """Item mean plus user mean minus the global mean, [n]; may leave 0..1."""
        return self.item[np.asarray(items)] + self.user[np.asarray(users)] - self.overall


@dataclass
class MeanCounter:
    """Sums labels by item and by user, any number of rows at a time, in O(I + U) memory.

    Args:
        items: I.
        users: U.
    """

    items: int
    users: int
    _item: Floats = field(init=False)
    _user: Floats = field(init=False)

    def __post_init__(self) -> None:
        self._item, self._user = np.zeros((2, self.items)), np.zeros((2, self.users))

    def add(self, user: npt.ArrayLike, item: npt.ArrayLike, label: npt.ArrayLike) -> None:
        """Count n rows, O(n + I + U)."""
        weights = np.asarray(label, dtype=np.float64)
        for sums, ids in ((self._item, np.asarray(item)), (self._user, np.asarray(user))):
            sums[0] += np.bincount(ids, weights=weights, minlength=sums.shape[1])
            sums[1] += np.bincount(ids, minlength=sums.shape[1])

    def means(self, shrinkage: float = SHRINKAGE) -> Means:
        """The means so far: ``(sum + shrinkage * overall) / (count + shrinkage)``."""
        positives, rows = self._item.sum(axis=1)
        overall = float(positives / rows) if rows else 0.5

        def shrunk(sums: Floats) -> Floats:
            weight = sums[1] + shrinkage
            safe = np.where(weight > 0, weight, 1.0)
            return np.where(weight > 0, (sums[0] + shrinkage * overall) / safe, overall)

        item, user = shrunk(self._item), shrunk(self._user)
        item[0] = user[0] = overall  # id 0 is "unknown", not one item or user
        return Means(item=item, user=user, overall=overall)


def fit_means(data: PreparedData, shrinkage: float = SHRINKAGE, task: str = "") -> Means:
    """Fit both predictors on the training split alone, streaming.

    Args:
        data: the prepared data set.
        shrinkage: pseudo-rows at the global mean.
        task: whose labels; empty: the main one's. Candidates without the label do not count.

    Raises:
        UserError: the split is empty, a file is damaged, or an id is outside its table.

    Costs O(rows) time and O(I + U) memory beside one batch of users.
    """
    manifest = data.manifest
    field = label_field(task or manifest.task, manifest)
    counter = MeanCounter(items=manifest.items, users=manifest.users)
    files = data.split_files("train")
    total = manifest.splits["train"].users
    with progress("trivial predictors", total=total, unit="users") as advance:
        for path in files:
            for batch in _batches(path):
                user, item, label = flatten_candidates(batch, field)
                _check_range(path, "user", user, manifest.users)
                _check_range(path, "item", item, manifest.items)
                counter.add(user, item, label)
                advance(batch.num_rows)
    return counter.means(shrinkage)


def clip_probability(value: npt.ArrayLike) -> Floats:
    """Cut to :data:`PROBABILITY_RANGE`, [n]."""
    return np.clip(np.asarray(value, dtype=np.float64), *PROBABILITY_RANGE)


def flatten_candidates(
    batch: pa.RecordBatch, label_field: str = "labels"
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Users, items and labels of every candidate of some rows of a split, [n] each.

    Args:
        batch: with the columns ``user`` and ``requests``.
        label_field: of a request; candidates whose label is null are left out.
    """
    requests = batch.column("requests")
    struct = requests.flatten()
    items, labels = pc.struct_field(struct, "items"), pc.struct_field(struct, label_field)
    owner = np.repeat(batch.column("user").to_numpy(), _lengths(requests))
    user, item = np.repeat(owner, _lengths(items)), items.flatten().to_numpy()
    label = labels.flatten()
    if label.null_count:
        known = label.is_valid().to_numpy(zero_copy_only=False)
        user, item, label = user[known], item[known], label.drop_null()
    return user, item, label.to_numpy()


def _lengths(lists: pa.ListArray) -> npt.NDArray[np.int32]:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy()


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path, memory_map=True, **READING) as file:
            yield from file.iter_batches(_USERS_PER_BATCH, columns=["user", "requests"])
    except DAMAGED as error:
        raise UserError(f"{path}: damaged Parquet file ({error}); prepare it again") from None


def _check_range(path: Path, name: str, ids: npt.NDArray[np.int32], rows: int) -> None:
    bad = np.flatnonzero((ids < 0) | (ids >= rows))
    if bad.size:
        raise UserError(
            f"{path}: {name} {ids[bad[0]]} is outside its table of {rows} rows; "
            "run 'hisac-rec prepare' again"
        )
