"""Who consumed what in the training period, factorised to item vectors.

Reads the files of the training split and no others: the events that training requests may
see and the candidates with a positive label. So the embedding knows nothing of the valid or
test period. It does know the training labels, which a content embedding never does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy import sparse

from hisac_rec.data.contract import PreparedData
from hisac_rec.data.parquet import DAMAGED, READING
from hisac_rec.errors import UserError
from hisac_rec.progress import progress
from hisac_rec.semantic.config import CollaborativeConfig
from hisac_rec.semantic.reduction import truncated_svd

log = logging.getLogger(__name__)

BATCH_USERS = 8_192
COLUMNS = ["history_item", "requests"]


class Interactions(NamedTuple):
    """(user row, item) pairs of one batch of users, repeats included."""

    users: NDArray[np.int64]
    items: NDArray[np.int64]


def collaborative_vectors(
    data: PreparedData, dim: int, config: CollaborativeConfig, seed: int
) -> tuple[NDArray[np.float32], dict[str, NDArray]]:
    """Item factors of the training split; a row of zeros where an item was never seen there.

    The user x item matrix of log(1 + count) is scaled by ``D_user^-1/2 A D_item^-1/2`` and
    factorised; the first direction, which is popularity alone, is dropped. This is the
    correspondence analysis of the matrix: its factors are those of pointwise mutual
    information to first order, without a dense items x items matrix. O(pairs dim).

    Args:
        data: the prepared data.
        dim: width wanted; fewer where there are fewer users or items.
        config: see :class:`~hisac_rec.semantic.config.CollaborativeConfig`.
        seed: of the user sample and of the SVD.

    Returns:
        [I, dim], and what :func:`fold_in` needs to place further items.

    Raises:
        UserError: the training split holds too little to factorise.
    """
    matrix = _matrix(data, config.max_users, seed)
    users, items = (np.asarray(matrix.sum(axis)).ravel() for axis in (1, 0))
    if min((users > 0).sum(), (items > 0).sum()) < 3:
        raise UserError(
            f"{data.root / 'train'}: fewer than 3 users or items with an event or a positive "
            "label: too little for source = 'collaborative'; choose another 'source'"
        )
    scale = [sparse.diags_array(_inverse_root(degree)) for degree in (users, items)]
    svd = truncated_svd((scale[0] @ matrix @ scale[1]).tocsr(), dim + 1, seed)
    factors = svd.components_.T[:, 1:] * svd.singular_values_[1:] ** config.spectrum
    factors *= _inverse_root(items)[:, None]  # undo popularity in the length of a row
    log.info("collaborative: %d pairs, %d users, %d items", matrix.nnz, *matrix.shape)
    vectors = np.ascontiguousarray(factors, dtype=np.float32)
    strengths = svd.singular_values_[1:].astype(np.float32)
    # A copy: who combines the sources changes the vectors in place.
    return vectors, {"factors": vectors.copy(), "strengths": strengths}


def fold_in(
    data: PreparedData,
    old: NDArray[np.int64],
    stored: dict[str, NDArray],
    config: CollaborativeConfig,
    seed: int,
) -> NDArray[np.float32]:
    """Vectors of all items in the space of an earlier factorisation, without a new one.

    By the transition formulas of correspondence analysis: a user stands at the mean of the known
    items that he consumed, divided by the squared singular values; a new item stands at the mean
    of its users. So no user has to be known from before, and none is stored. Known items keep
    their factors. O(pairs dim).

    Args:
        data: the data with the new items; its training split is read and no other.
        old: [I] row of each item there, -1 where it is new.
        stored: from :func:`collaborative_vectors` there.
        config: as there.
        seed: of the user sample.

    Returns:
        [I, dim]; a row of zeros where a new item was consumed by nobody who can be placed.
    """
    factors, strengths = stored["factors"], stored["strengths"]
    vectors = np.where(old[:, None] >= 0, factors[old.clip(0)], np.float32(0))
    placed = np.asarray(vectors.any(axis=1), dtype=bool)
    if placed[1:].all():
        return vectors
    matrix = _matrix(data, config.max_users, seed)
    inverse = np.divide(1, strengths**2, out=np.zeros_like(strengths), where=strengths > 0)
    users = _means(matrix[:, placed], vectors[placed]) * inverse
    there = np.asarray(users.any(axis=1), dtype=bool)
    vectors[~placed] = _means(matrix[there][:, ~placed].T.tocsr(), users[there])
    return vectors


def _means(weights: sparse.csr_array, vectors: NDArray) -> NDArray:
    """[n, dim] weighted means of vectors [m, dim] by non-negative weights [n, m]."""
    total = np.asarray(weights.sum(axis=1)).ravel()[:, None]
    sums = weights @ vectors
    return np.divide(sums, total, out=np.zeros_like(sums), where=total > 0)


def _inverse_root(degree: NDArray) -> NDArray:
    return np.divide(1.0, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)


def _matrix(data: PreparedData, max_users: int, seed: int) -> sparse.csr_array:
    """[users of the training split, I] of log(1 + count); row 0 and column 0 are unknown."""
    total = data.manifest.splits["train"].users
    keep = np.ones(total, bool)
    if total > max_users:
        keep[:] = False
        keep[np.random.default_rng(seed).choice(total, max_users, replace=False)] = True
    users, items = [], []
    with progress("read training split", total, "users") as advance:
        for rows, part in _batches(data):
            chosen = keep[part.users] & (part.items > 0)
            users.append(part.users[chosen])
            items.append(part.items[chosen])
            advance(rows)
    pairs = (np.concatenate(users), np.concatenate(items))
    ones = np.ones(len(pairs[0]), np.float32)
    matrix = sparse.coo_array((ones, pairs), shape=(total, data.manifest.items)).tocsr()
    matrix.data = np.log1p(matrix.data)
    return matrix


def _batches(data: PreparedData) -> Iterator[tuple[int, Interactions]]:
    """Batches of users of the training split: (rows, their interactions)."""
    first = 0
    for path in data.split_files("train"):
        try:
            file = pq.ParquetFile(path, memory_map=True, **READING)
            for batch in file.iter_batches(BATCH_USERS, columns=COLUMNS):
                part = _interactions(batch)
                _check(part.items, data.manifest.items, path)
                yield batch.num_rows, Interactions(part.users + first, part.items)
                first += batch.num_rows
        except DAMAGED as error:
            raise UserError(f"{path}: damaged Parquet file ({error}); prepare it again") from None


def _interactions(batch: pa.RecordBatch) -> Interactions:
    """History events that some request may see, and positive candidates; no Python loop."""
    rows = batch.num_rows
    requests = batch.column("requests")
    per_user = _lengths(requests)
    request_user = np.repeat(np.arange(rows), per_user)
    flat = requests.flatten()
    visible = np.zeros(rows, np.int64)
    np.maximum.at(visible, request_user, flat.field("history_end").to_numpy())

    history = batch.column("history_item")
    lengths = _lengths(history)
    event_user = np.repeat(np.arange(rows), lengths)
    position = np.arange(len(event_user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    event = position < visible[event_user]

    labels = flat.field("labels")
    candidate_user = np.repeat(request_user, _lengths(labels))
    positive = labels.flatten().to_numpy() > 0
    return Interactions(
        np.concatenate([event_user[event], candidate_user[positive]]),
        np.concatenate(
            [
                history.flatten().to_numpy()[event].astype(np.int64),
                flat.field("items").flatten().to_numpy()[positive].astype(np.int64),
            ]
        ),
    )


def _lengths(lists: pa.ListArray) -> NDArray[np.int64]:
    return lists.value_lengths().fill_null(0).to_numpy().astype(np.int64)


def _check(items: NDArray[np.int64], count: int, path: Path) -> None:
    wrong = items[(items < 0) | (items >= count)]
    if len(wrong):
        raise UserError(
            f"{path}: item {wrong[0]} is outside the item table (0 to {count - 1}); "
            "run 'hisac-rec prepare' again"
        )
