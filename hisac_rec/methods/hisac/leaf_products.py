"""Leaf routing on a CPU: two matrix products for each request instead of a list of pairs.

A pair costs some nanoseconds in a product and tens in a list, a request some tens of
microseconds of calls: products win from about a thousand (agent, leaf) pairs a request.
Legend: U occupied leaves, A agents, P (agent, leaf) pairs, s semantic width, d value width.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hisac_rec.methods.hisac.leaf_routing import LeafGeometry

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


def forward(
    sums: Tensor, geometry: LeafGeometry, keep: bool
) -> tuple[Tensor, Tensor, list[Part] | None]:
    """Weighted sums, and what the backward pass may use again. O(P (s + d)).

    Args:
        sums: [U, d] of the events of each leaf.
        geometry: of the batch.
        keep: hold all P weights.

    Returns:
        [A, d] weighted sums, [A, 1] mass, and the weights if they are to be kept.
    """
    counts = geometry.counts.to(sums.dtype).unsqueeze(1)
    routed = sums.new_empty((len(geometry.agents), sums.shape[1]))
    mass = sums.new_empty((len(geometry.agents), 1))
    kept: list[Part] = []
    for part in request_parts(geometry, sums.dtype):
        torch.mm(part.weights, sums[part.leaves], out=routed[part.agents])
        torch.mm(part.weights, counts[part.leaves], out=mass[part.agents])
        if keep:
            kept.append(part)
    return routed, mass, kept if keep else None


def backward(scaled: Tensor, geometry: LeafGeometry, kept: list[Part] | None) -> Tensor:
    """[U, d] gradient of the sums; ``scaled`` [A, d] is the agents' gradient by their mass."""
    found = scaled.new_empty((len(geometry.words), scaled.shape[1]))
    for part in request_parts(geometry, scaled.dtype) if kept is None else kept:
        torch.mm(part.weights.T, scaled[part.agents], out=found[part.leaves])
    return found


def request_parts(geometry: LeafGeometry, dtype: torch.dtype) -> Iterator[Part]:
    """All pairs of each request that has events, as dense weights exp(-distance / tau)."""
    # ||x - y||^2 = [-2 x, x.x, 1] . [y, 1, y.y]; in float64, as in the list of pairs.
    vectors = geometry.codebook.index_select(0, geometry.words.flatten())
    vectors = vectors.unflatten(0, geometry.words.shape).sum(1)
    squares = torch.linalg.vecdot(vectors, vectors).unsqueeze(1)
    ones = torch.ones_like(squares)
    leaves = torch.cat([vectors, ones, squares], dim=1)
    agents = torch.cat([-2 * vectors, squares, ones], dim=1).index_select(0, geometry.agents)
    bounds = torch.stack([geometry.agent_offsets, geometry.leaf_offsets], dim=1).tolist()
    for (agent, leaf), (next_agent, next_leaf) in pairwise(bounds):
        if leaf == next_leaf:
            continue
        own, occupied = slice(agent, next_agent), slice(leaf, next_leaf)
        scores = torch.mm(agents[own], leaves[occupied].T).clamp_min_(0.0).to(dtype)
        if not geometry.squared:
            scores.sqrt_()
        yield Part(own, occupied, scores.mul_(-1.0 / geometry.tau).exp_())
