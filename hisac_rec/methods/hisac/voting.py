"""Hierarchical voting and sparse activation (HiSAC, arXiv 2602.21009; docs/method.md).

Per request, bottom-up: a leaf's votes are its events, an inner node's the sum over its
children. Top-down: under each surviving parent only its top-k children by votes survive;
ties go to the smaller code. The surviving leaves are the interest-agents.

Legend: R requests, T events, D levels, C_l codes, U occupied leaves, A agents (all requests).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

VOTE_UNIT = 1 << 16
"""What one vote of the newest event is worth where votes fade."""

DENSE_BINS_PER_EVENT = 8
"""Leaves are counted in a dense table while it has at most this many bins an event."""


@dataclass
class Leaves:
    """Occupied leaves of every request, ordered by request, then by path.

    Args:
        request: [U] int64.
        path: [U] int64, the path of codes as one number (``prefix<D>``).
        events: [U] int64, how many events lie on each leaf.
        votes: [U] int64, the sum of their votes: the same number where each has one vote.
        of_event: [T] int64, the leaf of each event.
    """

    request: Tensor
    path: Tensor
    events: Tensor
    votes: Tensor
    of_event: Tensor


@dataclass
class Agents:
    """Surviving leaves, ordered by request, then by path.

    Args:
        leaf: [A] int64 into ``Leaves``.
        request: [A] int64.
        path: [A] int64.
        votes: [A] int64.
    """

    leaf: Tensor
    request: Tensor
    path: Tensor
    votes: Tensor


def path_numbers(codes: Tensor, code_counts: Sequence[int]) -> Tensor:
    """[T, D] codes -> [T] int64 paths in mixed radix; raises nothing. O(T D)."""
    path = torch.zeros(codes.shape[0], dtype=torch.int64, device=codes.device)
    for level, count in enumerate(code_counts):
        path = path * count + codes[:, level]
    return path


def recent_votes(offsets: Tensor, request: Tensor, half_life: float) -> Tensor:
    """[T] int64 votes that halve every ``half_life`` events into the past.

    In units of 1 / VOTE_UNIT, so that sums are exact and ties the same on every machine;
    the oldest event keeps one unit. O(T).

    Args:
        offsets: [R+1] int64 over T; a request's events are in time order.
        request: [T] int64, the request of each event.
        half_life: in events, > 0.
    """
    row = torch.arange(len(request), device=request.device)
    age = (offsets[1:][request] - 1 - row).to(torch.float64)
    return torch.exp2(-age / half_life).mul_(VOTE_UNIT).round_().long().clamp_min_(1)


def count_leaves(
    codes: Tensor,
    request: Tensor,
    requests: int,
    code_counts: Sequence[int],
    votes: Tensor | None = None,
) -> Leaves:
    """Occupied leaves with their votes.

    O(T + R C) where the dense table of R x C leaves is small, else O(T log T) by sorting.

    Args:
        codes: [T, D] int64.
        request: [T] int64, ascending.
        requests: R.
        code_counts: C_1..C_D.
        votes: [T] int64 of each event; None: one each.
    """
    width = prod(code_counts)
    key = request * width + path_numbers(codes, code_counts)
    if requests * width <= DENSE_BINS_PER_EVENT * max(1, len(key)):
        table = torch.bincount(key, minlength=requests * width)
        occupied = table.nonzero().squeeze(1)
        events = table[occupied]
        position = torch.cumsum(table > 0, 0) - 1
        of_event = position[key]
    else:
        occupied, of_event, events = torch.unique(key, return_inverse=True, return_counts=True)
    total = events
    if votes is not None:
        total = torch.zeros_like(events).index_add_(0, of_event, votes)
    return Leaves(occupied // width, occupied % width, events, total, of_event)


def activate(
    leaves: Leaves, keep: Sequence[int], code_counts: Sequence[int], tail: int = 0
) -> Agents:
    """Keep the top ``keep[l]`` children under each surviving parent, level by level.

    O(D U log U).

    Args:
        leaves: of :func:`count_leaves`.
        keep: k^(1)..k^(D).
        code_counts: C_1..C_D.
        tail: so many of a request's pruned leaves survive all the same, most votes first.
    """
    # Bottom-up: nodes of each level, in the same order as the leaves, with summed votes.
    nodes, votes = leaves.path, leaves.votes
    request = leaves.request
    levels: list[tuple[Tensor, Tensor]] = []  # (votes, parent index), leaves first
    for level in range(len(code_counts) - 1, 0, -1):
        above = nodes // code_counts[level]
        width = prod(code_counts[:level])
        unique, parent = torch.unique_consecutive(request * width + above, return_inverse=True)
        levels.append((votes, parent))
        votes = torch.zeros_like(unique).index_add_(0, parent, votes)
        nodes, request = unique % width, unique // width
    levels.append((votes, request))
    # Top-down: a node survives when its parent does and it ranks below k among siblings.
    survives: Tensor | None = None
    for k, (votes, parent) in zip(keep, reversed(levels), strict=True):
        kept = _rank_among_siblings(votes, parent) < k
        survives = kept if survives is None else kept & survives[parent]
    if tail and survives is not None:
        # Survivors count as without votes, which puts them behind every pruned leaf.
        pruned = torch.where(survives, 0, leaves.votes)
        survives = survives | (_rank_among_siblings(pruned, leaves.request) < tail)
    leaf = (
        survives.nonzero().squeeze(1)
        if survives is not None
        else torch.zeros(0, dtype=torch.int64, device=leaves.path.device)
    )
    return Agents(leaf, leaves.request[leaf], leaves.path[leaf], leaves.votes[leaf])


def _rank_among_siblings(votes: Tensor, parent: Tensor) -> Tensor:
    """[n] rank of each node under its parent: most votes first, ties in order of position.

    ``parent`` ascends. One stable sort: O(n log n).
    """
    if not len(votes):
        return votes
    most = votes.max()
    order = torch.argsort(parent * (most + 1) + (most - votes), stable=True)
    position = torch.arange(len(votes), device=votes.device)
    first = torch.searchsorted(parent, parent)
    rank = torch.empty_like(order)
    rank[order] = position
    # The sort keeps each parent's children together and parents in order, so a node's rank
    # is its place minus the place where its siblings begin.
    return rank - first


def path_vectors(path: Tensor, codebook: Sequence[Tensor]) -> Tensor:
    """[n] paths -> [n, s]: the sum of the code words on each path (z_a). O(n D s)."""
    total: Tensor | None = None
    rest = path
    for words in reversed(codebook):
        word = words[rest % len(words)]
        rest = rest // len(words)
        total = word if total is None else total + word
    if total is None:
        raise ValueError("a codebook needs at least one level")
    return total


def path_words(path: Tensor, code_counts: Sequence[int]) -> Tensor:
    """[...] paths -> [..., D] rows of the code words on each path in the codebook's levels
    joined. O(n D).
    """
    below = sum(code_counts)
    rest, words = path, []
    for count in reversed(code_counts):
        below -= count
        words.append(below + rest % count)
        rest = rest // count
    return torch.stack(words[::-1], dim=-1)


def to_slots(agents: Agents, requests: int) -> tuple[Tensor, Tensor]:
    """Dense places of the agents: slot [A] within the request, and filled [R, K] bool."""
    counts = torch.bincount(agents.request, minlength=requests)
    first = counts.cumsum(0) - counts
    slot = torch.arange(len(agents.request), device=agents.request.device) - first[agents.request]
    most = int(counts.max()) if len(counts) else 0
    filled = torch.arange(max(1, most), device=counts.device) < counts[:, None]
    return slot, filled
