"""Voting and activation on a CPU: a pass over the events, a pass over the leaves.

Legend: R requests, T events, D levels, U occupied leaves, A agents (all requests).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hisac_rec.methods.hisac.leaves import Leaves
from hisac_rec.ops.compiled import Ints, compiled
from hisac_rec.ops.distinct_cpu import distinct_of_groups


def count_leaves(codes: Tensor, offsets: Tensor, code_counts: Sequence[int]) -> Leaves:
    """O(T D + U), and a few words of scratch an event."""
    path = _number_paths(codes.contiguous().numpy(), np.array(code_counts, np.int64))
    fields = distinct_of_groups(path, offsets.numpy())
    request, leaf_path, events, of_event = map(torch.from_numpy, fields)
    return Leaves(request, leaf_path, events, events, of_event)


def surviving(leaves: Leaves, keep: Sequence[int], code_counts: Sequence[int], tail: int) -> Tensor:
    """O(D U), and a partial sort of the families that are pruned."""
    leaf = _survive(
        leaves.request.numpy(),
        leaves.path.numpy(),
        leaves.votes.numpy(),
        np.array(keep, np.int64),
        np.array(code_counts, np.int64),
        tail,
    )
    return torch.from_numpy(leaf)


@compiled
def _number_paths(codes: Ints, code_counts: Ints) -> Ints:
    """``path_numbers`` in one pass."""
    paths = np.empty(len(codes), np.int64)
    for event in range(len(codes)):
        path = codes[event, 0]
        for level in range(1, len(code_counts)):
            path = path * code_counts[level] + codes[event, level]
        paths[event] = path
    return paths


@compiled
def _survive(
    request: Ints, path: Ints, votes: Ints, keep: Ints, code_counts: Ints, tail: int
) -> Ints:
    """[A] leaves that survive and have votes, of leaves [U] in the order of :class:`Leaves`."""
    levels, leaves = len(keep), len(path)
    # Row l: the nodes of level l in the order of their leaves, the leaves themselves last.
    node_votes, parent = np.zeros((levels, leaves), np.int64), np.empty((levels, leaves), np.int64)
    nodes = np.empty(levels, np.int64)
    above = np.empty(leaves, np.int64)  # path of each node of the level being built
    own_request, own_path = request.copy(), path.copy()
    node_votes[levels - 1] = votes
    nodes[levels - 1] = leaves
    for level in range(levels - 1, 0, -1):
        found = 0
        for node in range(nodes[level]):
            prefix = own_path[node] // code_counts[level]
            fresh = found == 0 or prefix != above[found - 1]
            if fresh or own_request[node] != own_request[found - 1]:
                above[found] = prefix
                own_request[found] = own_request[node]  # found <= node: read before
                found += 1
            parent[level, node] = found - 1
            node_votes[level - 1, found - 1] += node_votes[level, node]
        nodes[level - 1] = found
        own_path[:found] = above[:found]
    for node in range(nodes[0]):
        parent[0, node] = own_request[node]
    alive = np.ones(0, np.bool_)
    for level in range(levels):
        count = nodes[level]
        kept = _best_of_each(node_votes[level, :count], parent[level, :count], keep[level])
        if level:
            for node in range(count):
                kept[node] = kept[node] and alive[parent[level, node]]
        alive = kept
    if tail:
        pruned = votes.copy()
        for leaf in range(leaves):
            if alive[leaf]:
                pruned[leaf] = 0
        for leaf, kept_too in enumerate(_best_of_each(pruned, request, tail)):
            alive[leaf] = alive[leaf] or kept_too
    return np.nonzero(alive & (votes > 0))[0]


@compiled
def _best_of_each(votes: Ints, parent: Ints, keep: int) -> NDArray[np.bool_]:
    """[n] whether a node is among the ``keep`` of its parent with most votes, the earlier of
    equals; ``parent`` ascends.
    """
    kept = np.ones(len(votes), np.bool_)
    begin = 0
    while begin < len(votes):
        end = begin + 1
        while end < len(votes) and parent[end] == parent[begin]:
            end += 1
        if end - begin > keep:
            least = np.partition(votes[begin:end], end - begin - keep)[end - begin - keep]
            room = keep
            for node in range(begin, end):
                if votes[node] > least:
                    room -= 1
            for node in range(begin, end):
                equal = votes[node] == least
                kept[node] = votes[node] > least or (equal and room > 0)
                if equal:
                    room -= 1
        begin = end
    return kept
