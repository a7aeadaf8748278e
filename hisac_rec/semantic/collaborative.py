"""Who consumed what in the training period, factorised to item vectors.

Reads the files of the training split and no others: the events that training requests may
see and the candidates with a positive label. So the embedding knows nothing of the valid or
test period. What a user reads of it was made without the users of his group, so it does not know
his training labels either (:mod:`hisac_rec.semantic.views`).

Legend: V views, I items.
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
from hisac_rec.semantic.views import views_of_users

log = logging.getLogger(__name__)

BATCH_USERS = 8_192
COLUMNS = ["user", "history_item", "requests"]


class Interactions(NamedTuple):
    """(row of the split, item) pairs of one batch of users, repeats included."""

    users: NDArray[np.int64]
    items: NDArray[np.int64]


def collaborative_vectors(
    data: PreparedData, dim: int, config: CollaborativeConfig, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], dict[str, NDArray]]:
    """Item factors of the training split in every view; zeros where an item has no support there.

    The user x item matrix of log(1 + count) is scaled by ``D_user^-1/2 A D_item^-1/2`` and
    factorised; the first direction, which is popularity alone, is dropped. This is the
    correspondence analysis of the matrix: its factors are those of pointwise mutual
    information to first order, without a dense items x items matrix. O(V pairs dim).
    Later views are turned onto the first by an orthogonal Procrustes rotation.

    Args:
        data: the prepared data.
        dim: width wanted; fewer where there are fewer users or items.
        config: see :class:`~hisac_rec.semantic.config.CollaborativeConfig`.
        seed: of the user sample and of the SVD.

    Returns:
        [V, I, dim] vectors; [V, I] users behind each; and what :func:`fold_in` needs to place
        further items.

    Raises:
        UserError: the training split holds too little to factorise.
    """
    matrix, view = _matrix(data, config, seed)
    found = []
    for held_out in range(config.views):
        part = _supported(matrix[view != held_out] if config.views > 1 else matrix, config)
        support = np.bincount(part.indices, minlength=part.shape[1]).astype(np.float32)
        found.append((*_factors(part, dim, config, seed, data), support))
    width = min(factors.shape[1] for factors, _, _ in found)
    first = found[0][0][:, :width]
    turned = [first]
    for factors, _, _ in found[1:]:
        turned.append(_turned(factors[:, :width], first))
    vectors = np.ascontiguousarray(turned, dtype=np.float32)
    strengths = np.stack([values[:width] for _, values, _ in found]).astype(np.float32)
    log.info("collaborative: %d pairs, %d users, %d items", matrix.nnz, *matrix.shape)
    # A copy: who combines the sources changes the vectors in place.
    made_by = {"factors": vectors.copy(), "strengths": strengths}
    return vectors, np.stack([support for _, _, support in found]), made_by


def _supported(matrix: sparse.csr_array, config: CollaborativeConfig) -> sparse.csr_array:
    """The matrix without the items that too few users consumed."""
    support = np.bincount(matrix.indices, minlength=matrix.shape[1])
    keep = sparse.diags_array((support >= config.min_support).astype(np.float32))
    kept = (matrix @ keep).tocsr()
    kept.eliminate_zeros()
    return kept


def _factors(
    matrix: sparse.csr_array, dim: int, config: CollaborativeConfig, seed: int, data: PreparedData
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """[I, dim] item factors of a user x item matrix, and their singular values."""
    users, items = (np.asarray(matrix.sum(axis)).ravel() for axis in (1, 0))
    if min((users > 0).sum(), (items > 0).sum()) < 3:
        raise UserError(
            f"{data.root / 'train'}: fewer than 3 users or items with an event or a positive "
            "label and the support that semantic_ids.collaborative.min_support = "
            f"{config.min_support} asks for: too little for source = 'collaborative'; choose "
            "another 'source', or lower min_support or views"
        )
    scale = [sparse.diags_array(_inverse_root(degree)) for degree in (users, items)]
    svd = truncated_svd((scale[0] @ matrix @ scale[1]).tocsr(), dim + 1, seed)
    factors = svd.components_.T[:, 1:] * svd.singular_values_[1:] ** config.spectrum
    factors *= _inverse_root(items)[:, None]  # undo popularity in the length of a row
    return factors, svd.singular_values_[1:]


def _turned(factors: NDArray[np.float64], onto: NDArray[np.float64]) -> NDArray[np.float64]:
    """The factors rotated onto those of another view, by the items that both place. Directions
    alone count, so that rare items, whose rows are long, do not decide.
    """
    from scipy.linalg import orthogonal_procrustes

    both = factors.any(axis=1) & onto.any(axis=1)
    if not both.any():
        return factors
    ours, theirs = (
        f[both] / np.linalg.norm(f[both], axis=1, keepdims=True) for f in (factors, onto)
    )
    return factors @ orthogonal_procrustes(ours, theirs)[0]


def fold_in(
    data: PreparedData,
    old: NDArray[np.int64],
    stored: dict[str, NDArray],
    config: CollaborativeConfig,
    seed: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors of all items in the space of an earlier factorisation, without a new one.

    By the transition formulas of correspondence analysis: a user stands at the mean of the known
    items that he consumed, divided by the squared singular values; a new item stands at the mean
    of its users. So no user has to be known from before, and none is stored. Known items keep
    their factors. A new item's place in a view comes from the users of the other groups. O(V pairs
    dim).

    Args:
        data: the data with the new items; its training split is read and no other.
        old: [I] row of each item there, -1 where it is new.
        stored: from :func:`collaborative_vectors` there.
        config: as there.
        seed: of the user sample.

    Returns:
        [V, I, dim], zeros where a new item was consumed by too few who can be placed; and [V, I]
        users behind each.
    """
    matrix, view = _matrix(data, config, seed)
    found, support = [], []
    for held_out in range(config.views):
        part = _supported(matrix[view != held_out] if config.views > 1 else matrix, config)
        factors, strengths = stored["factors"][held_out], stored["strengths"][held_out]
        found.append(_folded(part, np.where(old[:, None] >= 0, factors[old.clip(0)], 0), strengths))
        support.append(np.bincount(part.indices, minlength=part.shape[1]))
    return np.stack(found).astype(np.float32), np.stack(support).astype(np.float32)


def _folded(matrix: sparse.csr_array, vectors: NDArray, strengths: NDArray) -> NDArray:
    """[I, dim] vectors where the rows of zeros are placed by their users."""
    placed = np.asarray(vectors.any(axis=1), dtype=bool)
    if placed[1:].all():
        return vectors
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


def _matrix(
    data: PreparedData, config: CollaborativeConfig, seed: int
) -> tuple[sparse.csr_array, NDArray[np.int64]]:
    """[rows of the training split, I] of log(1 + count), and the view that each row reads.

    Column 0, the unknown item, is empty.
    """
    total, max_users = data.manifest.splits["train"].users, config.max_users
    keep = np.ones(total, bool)
    if total > max_users:
        keep[:] = False
        keep[np.random.default_rng(seed).choice(total, max_users, replace=False)] = True
    rows, items, who = [], [], []
    with progress("read training split", total, "users") as advance:
        for users, part in _batches(data):
            chosen = keep[part.users] & (part.items > 0)
            rows.append(part.users[chosen])
            items.append(part.items[chosen])
            who.append(users)
            advance(len(users))
    pairs = (np.concatenate(rows), np.concatenate(items))
    ones = np.ones(len(pairs[0]), np.float32)
    matrix = sparse.coo_array((ones, pairs), shape=(total, data.manifest.items)).tocsr()
    matrix.data = np.log1p(matrix.data)
    views = views_of_users(data, config.views)
    return matrix, views[np.concatenate(who)]


def _batches(data: PreparedData) -> Iterator[tuple[NDArray[np.int32], Interactions]]:
    """Batches of rows of the training split: (their users, their interactions)."""
    first = 0
    for path in data.split_files("train"):
        try:
            file = pq.ParquetFile(path, memory_map=True, **READING)
            for batch in file.iter_batches(BATCH_USERS, columns=COLUMNS):
                part = _interactions(batch)
                _check(part.items, data.manifest.items, path)
                yield batch.column("user").to_numpy(), Interactions(part.users + first, part.items)
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
