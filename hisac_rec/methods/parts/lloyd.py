"""k-means of many small groups of weighted points at once (Lloyd's iterations).

A group is whatever is clustered apart: a request's points, or one cluster that is split.
Nothing is drawn at random: the same points give the same clusters.

Legend: G groups, P points, V vectors, K centres of the group with most, s width, n blocks of
B points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hisac_rec.methods.base import request_of_rows
from hisac_rec.methods.parts.blocks import Blocks, block_size, make_blocks

CHUNK_ELEMENTS = 1 << 24
"""At most about this many elements of distances and gathered rows exist at a time."""

_GOLDEN_RATIO = -7046029254386353131
"""2^64 / 1.618, as a signed number."""


def lloyd(
    vectors: Tensor,
    weights: Tensor,
    offsets: Tensor,
    counts: Tensor,
    iterations: int,
    rows: Tensor | None = None,
    alike: Tensor | None = None,
) -> Tensor:
    """Cluster the points of every group.

    1. Seeds: of m points in order, numbers floor((2 j + 1) m / (2 k)), j = 0..k-1: evenly
       spaced, all different.
    2. Every point goes to its nearest centre; ties to the smaller number.
    3. Every centre becomes the weighted mean of its points. The j-th centre without points
       becomes the group's j-th farthest point from its own centre (ties: the earlier point).
    4. Repeat 2 and 3 ``iterations`` times, and end with 2.

    Groups with as many centres as points need none of this, and groups that have come to rest
    leave the iterations.

    Args:
        vectors: [V, s]; without ``rows`` those of the points, ordered by group.
        weights: [V] > 0, in the type of ``vectors``.
        offsets: [G+1] int64 over P.
        counts: [G] int64 k of each group; at most its points.
        iterations: >= 0.
        rows: [P] int64 vector of each point, ordered by group.
        alike: [V] int64 of :func:`first_alike`, where a caller has it already.

    Returns:
        [P] int64 cluster of each point within its group, below k; some may stay empty.
        O(iterations P K s), extra memory O(CHUNK_ELEMENTS + P s + G K s).
    """
    if rows is None:
        rows = torch.arange(len(vectors), device=vectors.device)
    if not len(rows):
        return rows
    group, members = request_of_rows(offsets, len(rows)), offsets.diff()
    if alike is None:
        alike = first_alike(vectors, group)
    # Every point is a seed, and nearest to the first seed that is like it.
    settled = ((counts == members) & (counts > 1)).index_select(0, group)
    cluster = torch.where(settled, _first_places(alike.index_select(0, rows), group, offsets), 0)
    running = (counts > 1) & (counts < members)
    at = running.index_select(0, group).nonzero().squeeze(1)
    if len(at):
        own = rows.index_select(0, at)
        points = Groups(
            vectors.index_select(0, own),
            weights.index_select(0, own),
            functional.pad(members[running].cumsum(0), (1, 0)),
            counts[running],
        )
        cluster.index_copy_(0, at, _iterate(points, iterations))
    return cluster


def first_alike(vectors: Tensor, group: Tensor) -> Tensor:
    """For each vector the first of its group that equals it.

    Args:
        vectors: [V, s] floats.
        group: [V] int64.

    Returns:
        [V] int64, below V. Where 64-bit hashes of different vectors collide, equal ones may
        be told apart, but never the other way round. O(V (s + log V)).
    """
    count, width = vectors.shape
    alike = torch.arange(count, device=vectors.device)
    if count < 2:
        return alike
    # Equal numbers have equal bits, once -0.0 is 0.0.
    bits = functional.pad(vectors, (0, width * vectors.element_size() // 4 % 2)) + 0.0
    mixed = bits.view(torch.int64)
    # Odd multiples of the golden ratio's bits. Products keep what differs in the highest bit
    # there, so it is carried down, or signs that differ in two places would cancel out.
    factor = torch.arange(1, mixed.shape[1] + 1, device=bits.device) * _GOLDEN_RATIO
    mixed = mixed * factor.bitwise_or_(1)
    mixed.bitwise_xor_(mixed >> 32)
    key, order = (mixed.sum(1) + group * _GOLDEN_RATIO).sort(stable=True)
    repeats = key.diff() == 0
    if not bool(repeats.any()):
        return alike
    begins = functional.pad(~repeats, (1, 0), value=True)
    first = order[begins].index_select(0, begins.cumsum(0) - 1)
    later, first = order[~begins], first[~begins]
    same = (vectors[later] == vectors[first]).all(1) & (group[later] == group[first])
    alike[later] = torch.where(same, first, later)
    return alike


@dataclass
class Groups:
    """Groups of points that are clustered, each with more points than centres.

    Args:
        vectors: [P, s], ordered by group.
        weights: [P].
        offsets: [G+1] int64.
        counts: [G] int64.
    """

    vectors: Tensor
    weights: Tensor
    offsets: Tensor
    counts: Tensor

    def __post_init__(self) -> None:
        points, groups = len(self.vectors), len(self.counts)
        self.group = request_of_rows(self.offsets, points)
        size = block_size(points, groups, smallest=4)
        self.blocks = make_blocks(self.offsets, size)
        self.blocked: Tensor | None = None
        if self.blocks.index.numel() * self.vectors.shape[1] <= CHUNK_ELEMENTS:
            self.blocked = self.blocks.gather(self.vectors)

    def only(self, chosen: Tensor) -> tuple[Groups, Tensor]:
        """The groups where ``chosen`` [G], and [P'] their points."""
        at = chosen.index_select(0, self.group).nonzero().squeeze(1)
        part = Groups(
            self.vectors.index_select(0, at),
            self.weights.index_select(0, at),
            functional.pad(self.offsets.diff()[chosen].cumsum(0), (1, 0)),
            self.counts[chosen],
        )
        return part, at


def _iterate(points: Groups, iterations: int) -> Tensor:
    """[P] cluster of each point, as :func:`lloyd` says."""
    width = int(points.counts.max())
    number = torch.arange(width, device=points.counts.device)
    counts = points.counts.unsqueeze(1)
    spaced = (2 * number + 1) * points.offsets.diff().unsqueeze(1) // (2 * counts)
    seeds = torch.where(number < counts, points.offsets[:-1].unsqueeze(1) + spaced, 0)
    centres = points.vectors.index_select(0, seeds.flatten()).unflatten(0, seeds.shape)
    cluster, lowest = _nearest(points, centres)
    # What is still moving, as numbers of all points.
    result, moving = cluster.clone(), torch.arange(len(cluster), device=cluster.device)
    for _ in range(iterations):
        place = points.group * width + cluster
        mass = points.weights.new_zeros(centres.shape[0] * width)
        mass = mass.index_add_(0, place, points.weights).unsqueeze(1)
        weighted = points.vectors * points.weights.unsqueeze(1)
        sums = torch.zeros_like(centres).flatten(0, 1).index_add_(0, place, weighted)
        # mass is 0 or a weight at least: the maximum only keeps 0 / 0 away.
        means = sums.div_(torch.where(mass > 0, mass, 1)).view_as(centres)
        empty = (number < points.counts.unsqueeze(1)) & (mass == 0).view(-1, width)
        some_empty = empty.any(1)
        if bool(some_empty.any()):
            # Squared distances to the centres that the points have chosen.
            distance = 2 * lowest + torch.linalg.vecdot(points.vectors, points.vectors)
            far = _farthest(distance.clamp_min_(0), points, empty)
            means[empty] = points.vectors.index_select(0, far)
        centres = means
        before, (cluster, lowest) = cluster, _nearest(points, centres)
        result[moving] = cluster
        # Without empty centres, the same clusters have the same means for ever.
        restless = some_empty.index_fill_(0, points.group[cluster != before], value=True)
        if not bool(restless.any()):
            break
        if not bool(restless.all()):
            points, at = points.only(restless)
            moving, cluster, lowest = moving[at], cluster[at], lowest[at]
            centres = centres[restless]
    return result


def _nearest(points: Groups, centres: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each point's own group.

    Args:
        points: of G groups.
        centres: [G, K, s]; anything beyond a group's count.

    Returns:
        [P] int64 number of the centre, and [P] half of (its squared distance less the
        point's squared length). O(P K s) in chunks.
    """
    _, width, s = centres.shape
    blocks = points.blocks
    size = blocks.index.shape[1]
    unwanted = torch.arange(width, device=centres.device) >= points.counts.unsqueeze(1)
    halves = torch.linalg.vecdot(centres, centres).div_(2).masked_fill_(unwanted, float("inf"))
    chunk = max(1, CHUNK_ELEMENTS // (size * width + (size + width) * s))
    indices, scores = [], []
    for start in range(0, len(blocks.request), chunk):
        part = slice(start, start + chunk)
        at = blocks.request[part]
        if points.blocked is None:
            index = blocks.index[part]
            rows = points.vectors.index_select(0, index.flatten()).unflatten(0, index.shape)
        else:
            rows = points.blocked[part]
        own = centres.index_select(0, at).transpose(1, 2)
        half = torch.baddbmm(halves.index_select(0, at).unsqueeze(1), rows, own, alpha=-1.0)
        lowest, index = half.min(-1)
        scores.append(lowest)
        indices.append(index)
    return _joined(blocks, indices), _joined(blocks, scores)


def _joined(blocks: Blocks, parts: list[Tensor]) -> Tensor:
    """[P] of parts [.., B] of the blocks."""
    return blocks.rows(parts[0] if len(parts) == 1 else torch.cat(parts))


def _farthest(distance: Tensor, points: Groups, empty: Tensor) -> Tensor:
    """[number of empty centres] int64: the points that become those centres, in their order."""
    order = torch.argsort(distance, descending=True, stable=True)
    order = order[torch.argsort(points.group[order], stable=True)]
    rank = empty.cumsum(1) - 1
    return order[(points.offsets[:-1].unsqueeze(1) + rank)[empty]]


def _first_places(alike: Tensor, group: Tensor, offsets: Tensor) -> Tensor:
    """[P] int64: within its group, the place of the first point alike. O(P)."""
    number = torch.arange(len(group), device=group.device)
    first = torch.full((int(alike.max()) + 1,), len(group), device=group.device)
    first = first.scatter_reduce_(0, alike, number, "amin").index_select(0, alike)
    first = torch.where(group.index_select(0, first) == group, first, number)
    return first - offsets.index_select(0, group)
