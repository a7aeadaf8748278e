"""Leaf routing on a CPU: a matrix product for each request instead of a list of pairs.

A pair costs some nanoseconds in a product and tens in a list, a request some microseconds of
calls: products win from about a thousand (agent, leaf) pairs a request.

Legend: U occupied leaves, A agents, P (agent, leaf) pairs, D levels, C code words of all levels,
s semantic width, d value width.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from hisac_rec.methods.hisac.leaf_geometry import LeafGeometry

LEAST_PAIRS = 1_000
"""Mean pairs a request from which products are used."""


class Part(NamedTuple):
    """One request: which agents and leaves are its own, and [A_r, U_r] weights of its pairs."""

    agents: slice
    leaves: slice
    weights: Tensor


def suits(geometry: LeafGeometry) -> bool:
    """Whether products are the faster way here. O(R)."""
    if geometry.words.device.type != "cpu":
        return False
    return geometry.pairs() >= LEAST_PAIRS * max(1, len(geometry.leaf_offsets) - 1)


def forward(sums: Tensor, geometry: LeafGeometry) -> tuple[Tensor, Tensor, list[Part] | None]:
    """Weighted sums, and what the backward pass may use again. O(P (D + d)).

    Args:
        sums: [U, d] of the events of each leaf.
        geometry: of the batch.

    Returns:
        [A, d] weighted sums, [A, 1] mass, and the weights where they are few enough to be kept.
    """
    # One more column, of ones summed over events, gives the mass beside the sums.
    counted = torch.cat([sums, geometry.counts.to(sums.dtype).unsqueeze(1)], dim=1)
    routed = sums.new_empty((len(geometry.agents), counted.shape[1]))
    few = len(geometry.parts()) == 1
    kept: list[Part] = []
    for part in request_parts(geometry, sums.dtype):
        torch.mm(part.weights, counted[part.leaves], out=routed[part.agents])
        if few:
            kept.append(part)
    return routed[:, :-1], routed[:, -1:], kept if few else None


def backward(scaled: Tensor, geometry: LeafGeometry, kept: list[Part] | None) -> Tensor:
    """[U, d] gradient of the sums; ``scaled`` [A, d] is the agents' gradient by their mass."""
    found = scaled.new_empty((len(geometry.words), scaled.shape[1]))
    for part in request_parts(geometry, scaled.dtype) if kept is None else kept:
        torch.mm(part.weights.T, scaled[part.agents], out=found[part.leaves])
    return found


def request_parts(geometry: LeafGeometry, dtype: torch.dtype) -> Iterator[Part]:
    """All pairs of each request that has events, as dense weights exp(-distance / tau).

    O(P D + A C) on a CPU, else O(P s); O(P) memory, at most CHUNK_PAIRS but for one request.
    """
    cpu = geometry.words.device.type == "cpu"
    for part in geometry.parts():
        weights_of = weights_by_look_ups if cpu else weights_by_products
        yield from weights_of(geometry, part, dtype)


def weights_by_look_ups(geometry: LeafGeometry, part: slice, dtype: torch.dtype) -> Iterator[Part]:
    """The weights of some requests in one piece of memory, made by a loop over their pairs."""
    from hisac_rec.methods.hisac.leaf_scores_cpu import score_pairs  # needs Numba

    agents = geometry.agent_offsets[part.start : part.stop + 1]
    leaves = geometry.leaf_offsets[part.start : part.stop + 1]
    weights = torch.empty(int((agents.diff() * leaves.diff()).sum()), dtype=dtype)
    gram = geometry.codebook @ geometry.codebook.T
    score_pairs(
        geometry.words.numpy(),
        geometry.agents.numpy(),
        agents.numpy(),
        leaves.numpy(),
        gram.numpy(),
        -1.0 / geometry.tau,
        geometry.squared,
        weights.numpy(),
    )
    weights.exp_()
    begin = 0
    for own, occupied in _slices(agents, leaves):
        shape = own.stop - own.start, occupied.stop - occupied.start
        end = begin + shape[0] * shape[1]
        yield Part(own, occupied, weights[begin:end].view(shape))
        begin = end


def weights_by_products(geometry: LeafGeometry, part: slice, dtype: torch.dtype) -> Iterator[Part]:
    """The weights of some requests, request by request."""
    agents = geometry.agent_offsets[part.start : part.stop + 1]
    leaves = geometry.leaf_offsets[part.start : part.stop + 1]
    first_agent, first_leaf = int(agents[0]), int(leaves[0])
    own = geometry.agents[first_agent : int(agents[-1])] - first_leaf
    # ||x - y||^2 = [-2 x, x.x, 1] . [y, 1, y.y]; in float64, as in the list of pairs.
    vectors = geometry.codebook[geometry.words[first_leaf : int(leaves[-1])]].sum(1)
    squares = torch.linalg.vecdot(vectors, vectors).unsqueeze(1)
    ones = torch.ones_like(squares)
    left = torch.cat([-2 * vectors, squares, ones], dim=1).index_select(0, own)
    right = torch.cat([vectors, ones, squares], dim=1)
    for at, occupied in _slices(agents, leaves):
        rows = left[at.start - first_agent : at.stop - first_agent]
        columns = right[occupied.start - first_leaf : occupied.stop - first_leaf]
        scores = torch.mm(rows, columns.T).clamp_min_(0.0).to(dtype)
        if not geometry.squared:
            scores.sqrt_()
        yield Part(at, occupied, scores.mul_(-1.0 / geometry.tau).exp_())


def _slices(agents: Tensor, leaves: Tensor) -> Iterator[tuple[slice, slice]]:
    """(agents, leaves) of each request that has events."""
    bounds = torch.stack([agents, leaves], dim=1).tolist()
    for (agent, leaf), (next_agent, next_leaf) in pairwise(bounds):
        if leaf < next_leaf:
            yield slice(agent, next_agent), slice(leaf, next_leaf)
