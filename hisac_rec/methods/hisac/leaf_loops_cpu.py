"""Loops over the (agent, leaf) pairs of many requests on a CPU, in one call.

Legend: R requests, U occupied leaves, A agents, P (agent, leaf) pairs of the same request,
D levels, C code words of all levels, d value width.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hisac_rec.ops.compiled import Floats, Ints, compiled

Doubles: TypeAlias = NDArray[np.float64]


@compiled
def score_pairs(
    words: Ints,
    agents: Ints,
    agent_offsets: Ints,
    leaf_offsets: Ints,
    gram: Doubles,
    scale: float,
    squared: bool,
    scores: Floats,
) -> None:
    """Fill ``scores`` [P] with ``scale`` times the distance, request by request: agents in
    order, and for each the leaves in order. O(P D + A (C + D^2) + U D^2).

    Args:
        words: [U, D] row of each leaf's code words in ``gram``.
        agents: [A] leaf of each agent.
        agent_offsets: [R+1] over A, the requests that are asked for alone.
        leaf_offsets: [R+1] over U.
        gram: [C, C] products of code words.
        scale: of a distance.
        squared: take the squared distance.
        scores: written.
    """
    levels = words.shape[1]
    first, last = leaf_offsets[0], leaf_offsets[-1]
    squares = np.zeros(last - first)
    by_level = np.empty((levels, last - first), np.uint32)
    for leaf in range(first, last):
        for one in range(levels):
            by_level[one, leaf - first] = words[leaf, one]
            for other in range(levels):
                squares[leaf - first] += gram[words[leaf, one], words[leaf, other]]
    products, branch = np.empty(len(gram)), np.empty(len(gram))
    before = np.int64(-1)
    distances = np.empty(last - first)
    factor = np.full(1, scale, scores.dtype)  # of the scores' type, so that roots are, too
    pair = 0
    for request in range(len(leaf_offsets) - 1):
        begin, end = leaf_offsets[request] - first, leaf_offsets[request + 1] - first
        count = end - begin
        for agent in range(agent_offsets[request], agent_offsets[request + 1]):
            # ||x - y||^2 = x.x + y.y - 2 sum over the levels of y of (x . word), level by
            # level, so that each is a loop of look-ups side by side. Agents are in the order of
            # their paths: what those of a branch share is added up once.
            own = agents[agent]
            if not _same_branch(words, own, before):
                branch[:] = 0.0
                for level in range(levels - 1):
                    row = gram[words[own, level]]
                    for word in range(len(row)):
                        branch[word] += row[word]
            before = own
            row = gram[words[own, levels - 1]]
            for word in range(len(row)):
                products[word] = -2.0 * (branch[word] + row[word])
            length, at = squares[own - first], by_level[0, begin:end]
            for leaf in range(count):
                distances[leaf] = length + squares[begin + leaf] + products[at[leaf]]
            for level in range(1, levels):
                at = by_level[level, begin:end]
                for leaf in range(count):
                    distances[leaf] += products[at[leaf]]
            row_scores = scores[pair : pair + count]
            for leaf in range(count):
                row_scores[leaf] = max(distances[leaf], 0.0)
            if squared:
                for leaf in range(count):
                    row_scores[leaf] *= factor[0]
            else:
                for leaf in range(count):
                    row_scores[leaf] = np.sqrt(row_scores[leaf]) * factor[0]
            pair += count


@compiled
def _same_branch(words: Ints, leaf: np.int64, other: np.int64) -> np.bool_:
    """Whether two leaves differ in their last level alone; ``other`` < 0: there is none."""
    same = np.bool_(other >= 0)
    for level in range(words.shape[1] - 1):
        same = same and words[leaf, level] == words[other, level]
    return same


@compiled
def sum_leaves(
    weights: Floats, agent_offsets: Ints, leaf_offsets: Ints, rows: Floats, sums: Floats
) -> None:
    """Fill the agents' rows of ``sums`` with the weighted sums of their leaves'. O(P d).

    Args:
        weights: [P] in the order of :func:`score_pairs`.
        agent_offsets: [R+1] over A.
        leaf_offsets: [R+1] over U.
        rows: [U, d].
        sums: [A, d] written.
    """
    width = rows.shape[1]
    pair = 0
    for request in range(len(leaf_offsets) - 1):
        for agent in range(agent_offsets[request], agent_offsets[request + 1]):
            total = sums[agent]
            total[:] = 0.0
            leaf, last = leaf_offsets[request], leaf_offsets[request + 1]
            while leaf + 4 <= last:  # four rows for each time the sum is loaded and stored
                a, b, c, d = weights[pair], weights[pair + 1], weights[pair + 2], weights[pair + 3]
                one, two, three, four = rows[leaf], rows[leaf + 1], rows[leaf + 2], rows[leaf + 3]
                for at in range(width):
                    total[at] += (a * one[at] + b * two[at]) + (c * three[at] + d * four[at])
                leaf += 4
                pair += 4
            while leaf < last:
                a, one = weights[pair], rows[leaf]
                for at in range(width):
                    total[at] += a * one[at]
                leaf += 1
                pair += 1


@compiled
def sum_agents(
    weights: Floats, agent_offsets: Ints, leaf_offsets: Ints, rows: Floats, sums: Floats
) -> None:
    """Fill the leaves' rows of ``sums`` with the weighted sums of their agents': the transpose
    of :func:`sum_leaves`, with ``rows`` [A, d] and ``sums`` [U, d]. O(P d).
    """
    width = rows.shape[1]
    pair = 0
    for request in range(len(leaf_offsets) - 1):
        first, count = leaf_offsets[request], leaf_offsets[request + 1] - leaf_offsets[request]
        sums[first : first + count] = 0.0
        agent, last = agent_offsets[request], agent_offsets[request + 1]
        while agent + 4 <= last:
            one, two, three, four = rows[agent], rows[agent + 1], rows[agent + 2], rows[agent + 3]
            for leaf in range(count):
                a, b = weights[pair + leaf], weights[pair + count + leaf]
                c, d = weights[pair + 2 * count + leaf], weights[pair + 3 * count + leaf]
                total = sums[first + leaf]
                for at in range(width):
                    total[at] += (a * one[at] + b * two[at]) + (c * three[at] + d * four[at])
            agent += 4
            pair += 4 * count
        while agent < last:
            one = rows[agent]
            for leaf in range(count):
                a, total = weights[pair + leaf], sums[first + leaf]
                for at in range(width):
                    total[at] += a * one[at]
            agent += 1
            pair += count
