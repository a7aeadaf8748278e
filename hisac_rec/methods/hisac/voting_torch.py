"""Voting and activation by torch operators: any device, no loop over requests.

Legend: R requests, T events, D levels, C_l codes, U occupied leaves, A agents (all requests).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from hisac_rec.methods.base import request_of_rows
from hisac_rec.methods.hisac.leaves import Leaves, path_numbers

DENSE_BINS_PER_EVENT = 8
"""Leaves are counted in a dense table while it has at most this many bins an event."""


def count_leaves(codes: Tensor, offsets: Tensor, code_counts: Sequence[int]) -> Leaves:
    """O(T + R C) where the dense table of R x C leaves is small, else O(T log T) by sorting."""
    width, requests = prod(code_counts), len(offsets) - 1
    request = request_of_rows(offsets, len(codes))
    key = request * width + path_numbers(codes, code_counts)
    if requests * width <= DENSE_BINS_PER_EVENT * max(1, len(key)):
        table = torch.bincount(key, minlength=requests * width)
        occupied = table.nonzero().squeeze(1)
        events = table[occupied]
        position = torch.cumsum(table > 0, 0) - 1
        of_event = position[key]
    else:
        occupied, of_event, events = torch.unique(key, return_inverse=True, return_counts=True)
    return Leaves(occupied // width, occupied % width, events, events, of_event)


def surviving(leaves: Leaves, keep: Sequence[int], code_counts: Sequence[int], tail: int) -> Tensor:
    """O(D U log U)."""
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
    if survives is None:
        return torch.zeros(0, dtype=torch.int64, device=leaves.path.device)
    return (survives & (leaves.votes > 0)).nonzero().squeeze(1)


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
