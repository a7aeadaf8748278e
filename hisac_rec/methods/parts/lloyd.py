"""k-means of many small groups of weighted points at once (Lloyd's iterations).

A group is whatever is clustered apart: a request's points, or one cluster that is split.
Nothing is drawn at random: the same points give the same clusters.

Legend: G groups, P points, K centres of the group with most, s width, n blocks of B points.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hisac_rec.methods.base import request_of_rows
from hisac_rec.methods.parts.blocks import block_size, make_blocks

CHUNK_ELEMENTS = 1 << 24
"""At most about this many elements of distances and gathered rows exist at a time."""


def lloyd(
    vectors: Tensor, weights: Tensor, offsets: Tensor, counts: Tensor, iterations: int
) -> Tensor:
    """Cluster the points of every group.

    1. Seeds: of m points in order, numbers floor((2 j + 1) m / (2 k)), j = 0..k-1: evenly
       spaced, all different.
    2. Every point goes to its nearest centre; ties to the smaller number.
    3. Every centre becomes the weighted mean of its points. The j-th centre without points
       becomes the group's j-th farthest point from its own centre (ties: the earlier point).
    4. Repeat 2 and 3 ``iterations`` times, and end with 2.

    Args:
        vectors: [P, s], ordered by group.
        weights: [P] > 0, in the type of ``vectors``.
        offsets: [G+1] int64 over P.
        counts: [G] int64 k of each group; at most its points.
        iterations: >= 0.

    Returns:
        [P] int64 cluster of each point within its group, below k; some may stay empty.
        O(iterations P K s), extra memory O(CHUNK_ELEMENTS + G K s).
    """
    if not len(vectors):
        return torch.zeros(0, dtype=torch.int64, device=vectors.device)
    groups, width = len(counts), int(counts.max())
    number = torch.arange(width, device=vectors.device)
    wanted = number < counts.unsqueeze(1)
    spaced = (
        (2 * number + 1) * offsets.diff().unsqueeze(1) // (2 * counts.clamp_min(1).unsqueeze(1))
    )
    centres = _take(vectors, torch.where(wanted, offsets[:-1].unsqueeze(1) + spaced, 0))
    group = request_of_rows(offsets, len(vectors))
    weighted = vectors * weights.unsqueeze(1)
    cluster, distance = nearest(vectors, offsets, centres, wanted)
    for _ in range(iterations):
        place = group * width + cluster
        mass = weights.new_zeros(groups * width).index_add_(0, place, weights).unsqueeze(1)
        sums = torch.zeros_like(centres).flatten(0, 1).index_add_(0, place, weighted)
        # mass is 0 or a weight at least: the maximum only keeps 0 / 0 away.
        means = sums / torch.where(mass > 0, mass, 1)
        centres = torch.where(mass > 0, means, centres.flatten(0, 1)).view_as(centres)
        empty = wanted & (mass == 0).view_as(wanted)
        if bool(empty.any()):
            centres[empty] = vectors[_farthest(distance, group, offsets, empty)]
        cluster, distance = nearest(vectors, offsets, centres, wanted)
    return cluster


def nearest(
    vectors: Tensor, offsets: Tensor, centres: Tensor, wanted: Tensor
) -> tuple[Tensor, Tensor]:
    """The nearest centre of each point's own group.

    Args:
        vectors: [P, s], P > 0.
        offsets: [G+1] int64 over P.
        centres: [G, K, s].
        wanted: [G, K] bool; at least one in every group with points.

    Returns:
        [P] int64 number of the centre, and [P] squared distance to it.
        O(P K s) in chunks.
    """
    groups, width, s = centres.shape
    size = block_size(len(vectors), groups)
    blocks = make_blocks(offsets, size)
    norms = torch.linalg.vecdot(centres, centres).masked_fill(~wanted, float("inf"))
    chunk = max(1, CHUNK_ELEMENTS // (size * width + (size + width) * s))
    indices, scores = [], []
    for start in range(0, len(blocks.request), chunk):
        part = slice(start, start + chunk)
        at = blocks.request[part]
        rows = _take(vectors, blocks.index[part])
        own = centres.index_select(0, at).transpose(1, 2)
        squares = torch.baddbmm(norms[at].unsqueeze(1), rows, own, alpha=-2.0)
        lowest, index = squares.min(-1)
        scores.append(lowest)
        indices.append(index)
    lowest = blocks.rows(torch.cat(scores)) + torch.linalg.vecdot(vectors, vectors)
    return blocks.rows(torch.cat(indices)), lowest.clamp_min(0)


def _farthest(distance: Tensor, group: Tensor, offsets: Tensor, empty: Tensor) -> Tensor:
    """[number of empty centres] int64: the points that become those centres, in their order."""
    order = torch.argsort(distance, descending=True, stable=True)
    order = order[torch.argsort(group[order], stable=True)]
    rank = empty.cumsum(1) - 1
    return order[(offsets[:-1].unsqueeze(1) + rank)[empty]]


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """[P, s] at [x, y] -> [x, y, s]; several times faster on a CPU than ``rows[index]``."""
    return rows.index_select(0, index.flatten()).unflatten(0, index.shape)
