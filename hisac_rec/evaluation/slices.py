"""Where a model is good: metrics by history length, item popularity and item age.

Every slicing is a partition: each row is in exactly one bucket, empty buckets are left
out. Legend: n rows, I items, K buckets of a slicing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.evaluation.metrics import Ints, auc, auc_per_group, logloss
from hisac_rec.evaluation.predictions import Predictions

HISTORY_EDGES = (1, 11, 51, 201, 1001)
"""Buckets 0, 1-10, 11-50, 51-200, 201-1000 and 1001+ events."""

COUNT_EDGES = (1, 10, 100)
"""Buckets of training impressions where the data has no clock: unseen, 1-9, 10-99, 100+."""

DAY = 86_400
AGE_EDGES = (DAY, 7 * DAY, 30 * DAY, 180 * DAY)
"""Buckets of item age in seconds where the data has a clock."""

_AGE_NAMES = ("not seen before", "under 1 day", "1-7 days", "7-30 days", "30-180 days", "180+ days")


@dataclass(frozen=True)
class Slicing:
    """One way to cut the rows."""

    axis: str
    """What is cut by: ``history_length``, ``item_popularity`` or ``item_age``."""
    names: tuple[str, ...]
    """K bucket names, in order."""
    bucket: Ints
    """[n], the bucket of each row, in 0..K-1."""


@dataclass(frozen=True)
class SliceMetrics:
    """One predictor on one bucket; nan where the bucket holds one class."""

    auc: float
    gauc: float
    logloss: float


def standard_slicings(
    rows: Predictions, data: PreparedData, history_quantiles: int | None = None
) -> list[Slicing]:
    """The three slicings of a report. O(n log n).

    Args:
        rows: the predictions to cut.
        data: the prepared data that was predicted.
        history_quantiles: cut history length into this many buckets of about equal row
            count; None: at :data:`HISTORY_EDGES`.

    Raises:
        UserError: an item of the predictions is not in the data's item table.
    """
    check_ids("item", rows.item, data.manifest.items, data)
    return [
        by_history_length(rows.history_length, history_quantiles),
        by_popularity(rows.item, _train_count(data)),
        by_age(rows, data) if data.manifest.has_clock else by_count(rows.item, _train_count(data)),
    ]


def by_history_length(length: npt.ArrayLike, quantiles: int | None = None) -> Slicing:
    """By the number of events the request could see ([n]); see :func:`standard_slicings`."""
    of = np.asarray(length, dtype=np.int64)
    edges = np.array(HISTORY_EDGES)
    if quantiles is not None:
        cuts = np.quantile(of, np.arange(1, quantiles) / quantiles, method="higher")
        edges = np.unique(cuts[cuts > of.min()])
        names = _range_names(np.concatenate(([of.min()], edges)), int(of.max()))
    else:
        names = _range_names(np.concatenate(([0], edges)), None)
    return Slicing("history_length", names, np.searchsorted(edges, of, side="right"))


def by_popularity(item: npt.ArrayLike, train_count: npt.ArrayLike, parts: int = 10) -> Slicing:
    """By deciles of the *items* seen in training, in order of their training impressions.

    Decile 10 is the head: the tenth of the items with most impressions, and usually most
    of the rows. Items with equal counts share a bucket, so a decile may be absent. Items
    never seen in training, and the unknown item 0, have a bucket of their own.

    Args:
        item: [n].
        train_count: [I], row 0 is the unknown item.
        parts: 10 for deciles.
    """
    counts = np.asarray(train_count, dtype=np.int64).copy()
    counts[0] = 0
    seen = np.sort(counts[counts > 0])
    if not seen.size:
        return Slicing("item_popularity", ("unseen",), np.zeros(np.size(item), dtype=np.int64))
    starts = seen[(np.arange(parts) * seen.size) // parts]  # least count of each decile
    edges, decile = np.unique(starts, return_index=True)
    last = np.append(edges[1:] - 1, seen[-1])
    names = ["unseen"]
    for number, low, high in zip(decile + 1, edges, last, strict=True):
        names.append(f"decile {number} ({_range(int(low), int(high))})")
    bucket = np.searchsorted(edges, counts[np.asarray(item)], side="right")
    return Slicing("item_popularity", tuple(names), bucket)


def by_count(item: npt.ArrayLike, train_count: npt.ArrayLike) -> Slicing:
    """Item age where the data has no clock: by the item's training impressions."""
    names = ("unseen", "1-9 impressions", "10-99 impressions", "100+ impressions")
    counts = np.asarray(train_count, dtype=np.int64).copy()
    counts[0] = 0
    bucket = np.searchsorted(COUNT_EDGES, counts[np.asarray(item)], side="right")
    return Slicing("item_age", names, bucket)


def by_age(rows: Predictions, data: PreparedData) -> Slicing:
    """By the time from the item's first sight in the training period to the request."""
    first = data.items["first_time"]
    known = pc.is_valid(first).to_numpy()
    age = rows.time - pc.fill_null(first, 0).to_numpy()[rows.item]
    seen = known[rows.item] & (age >= 0)
    bucket = np.where(seen, 1 + np.searchsorted(AGE_EDGES, age, side="right"), 0)
    return Slicing("item_age", _AGE_NAMES, bucket)


def buckets(slicing: Slicing) -> Iterator[tuple[str, Ints]]:
    """The name and the row numbers of each bucket that holds rows. O(n log n) in all."""
    order = np.argsort(slicing.bucket, kind="stable")
    ends = np.cumsum(np.bincount(slicing.bucket, minlength=len(slicing.names)))
    for name, rows in zip(slicing.names, np.split(order, ends[:-1]), strict=True):
        if rows.size:
            yield name, rows


def slice_metrics(
    label: npt.ArrayLike, rank: npt.ArrayLike, probability: npt.ArrayLike, user: npt.ArrayLike
) -> SliceMetrics:
    """AUC, GAUC and logloss of one predictor on the rows of one bucket. O(n log n)."""
    group = np.unique(user, return_inverse=True)[1]
    return SliceMetrics(
        auc=auc(label, rank),
        gauc=auc_per_group(label, rank, group).weighted(),
        logloss=logloss(label, probability),
    )


def check_ids(name: str, ids: npt.NDArray[np.int32], rows: int, data: PreparedData) -> None:
    """Refuse ids outside a table of ``rows`` rows.

    Raises:
        UserError: names the id, the row and the data.
    """
    bad = np.flatnonzero((ids < 0) | (ids >= rows))
    if bad.size:
        raise UserError(
            f"predictions: {name} {ids[bad[0]]} (row {bad[0]} in order of user and time) is not "
            f"in {data.root}, whose ids are 0 to {rows - 1}; were other data predicted?"
        )


def _train_count(data: PreparedData) -> Ints:
    return data.items["train_count"].to_numpy().astype(np.int64)


def _range_names(lows: npt.NDArray[np.integer], highest: int | None) -> tuple[str, ...]:
    """Names of the ranges that begin at ``lows``; the last ends at ``highest`` or is open."""
    names = [_range(int(a), int(b) - 1) for a, b in pairwise(lows)]
    last = f"{lows[-1]}+" if highest is None else _range(int(lows[-1]), highest)
    return (*names, last)


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"
