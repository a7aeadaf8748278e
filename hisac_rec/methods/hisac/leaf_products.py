"""Leaf routing on a CPU: the weights of all pairs in one piece, then loops or matrix products.

A product is the faster way for a request of many (agent, leaf) pairs, and costs some
microseconds before it begins; a loop over all requests begins once.

Legend: R requests, U occupied leaves, A agents, P (agent, leaf) pairs, D levels, C code words of
all levels, s semantic width, d value width.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hisac_rec.methods.hisac.leaf_geometry import LeafGeometry
from hisac_rec.ops.threads import even_runs, in_threads

LEAST_PAIRS = 6_000
"""Mean pairs a request from which products are used."""


PAIRS_A_THREAD = 1 << 17
"""A thread more is worth its start from so many pairs, some hundreds of microseconds."""


class Part(NamedTuple):
    """One request: which agents and leaves are its own, and [A_r, U_r] weights of its pairs."""

    agents: slice
    leaves: slice
    weights: Tensor


def forward(sums: Tensor, geometry: LeafGeometry) -> tuple[Tensor, Tensor, list[Tensor] | None]:
    """Weighted sums, and what the backward pass may use again. O(P (D + d)).

    Args:
        sums: [U, d] of the events of each leaf.
        geometry: of the batch, on a CPU.

    Returns:
        [A, d] weighted sums, [A, 1] mass, and the weights where they are few enough to be kept.
    """
    from hisac_rec.methods.hisac.leaf_loops_cpu import sum_leaves  # needs Numba

    # One more column, of ones summed over events, gives the mass beside the sums.
    counted = torch.cat([sums, geometry.counts.to(sums.dtype).unsqueeze(1)], dim=1)
    routed = sums.new_empty((len(geometry.agents), counted.shape[1]))
    parts, kept, by_products = geometry.parts(), [], _are_many(geometry)
    for part in parts:
        weights = look_up_weights(geometry, part, sums.dtype)
        if by_products:
            for own in _requests(geometry, part, weights):
                torch.mm(own.weights, counted[own.leaves], out=routed[own.agents])
        else:
            agents, leaves = (of.numpy() for of in _bounds(geometry, part))
            sum_leaves(weights.numpy(), agents, leaves, counted.numpy(), routed.numpy())
        kept.append(weights)
    return routed[:, :-1], routed[:, -1:], kept if len(parts) == 1 else None


def backward(scaled: Tensor, geometry: LeafGeometry, kept: list[Tensor] | None) -> Tensor:
    """[U, d] gradient of the sums; ``scaled`` [A, d] is the agents' gradient by their mass."""
    from hisac_rec.methods.hisac.leaf_loops_cpu import sum_agents  # needs Numba

    found = scaled.new_empty((len(geometry.words), scaled.shape[1]))
    by_products = _are_many(geometry)
    for number, part in enumerate(geometry.parts()):
        weights = look_up_weights(geometry, part, scaled.dtype) if kept is None else kept[number]
        if by_products:
            for own in _requests(geometry, part, weights):
                torch.mm(own.weights.T, scaled[own.agents], out=found[own.leaves])
        else:
            agents, leaves = (of.numpy() for of in _bounds(geometry, part))
            sum_agents(weights.numpy(), agents, leaves, scaled.numpy(), found.numpy())
    return found


def request_parts(geometry: LeafGeometry, dtype: torch.dtype) -> Iterator[Part]:
    """All pairs of each request that has events, as dense weights exp(-distance / tau).

    O(P D + A C) on a CPU, else O(P s); O(P) memory, at most CHUNK_PAIRS but for one request.
    """
    for part in geometry.parts():
        if geometry.words.device.type == "cpu":
            yield from _requests(geometry, part, look_up_weights(geometry, part, dtype))
        else:
            yield from multiply_weights(geometry, part, dtype)


def look_up_weights(geometry: LeafGeometry, part: slice, dtype: torch.dtype) -> Tensor:
    """[P] weights of some requests, request by request, agent by agent, by a loop over pairs."""
    from hisac_rec.methods.hisac.leaf_loops_cpu import score_pairs  # needs Numba

    agents, leaves = _bounds(geometry, part)
    ends = functional.pad((agents.diff() * leaves.diff()).cumsum(0), (1, 0))
    weights = torch.empty(int(ends[-1]), dtype=dtype)
    words, own, gram = geometry.words.numpy(), geometry.agents.numpy(), geometry.gram.numpy()
    scale = -1.0 / geometry.tau

    def score(run: slice) -> None:
        first, last = run.start, run.stop
        scores = weights[ends[first] : ends[last]].numpy()
        bounds = slice(first, last + 1)
        at = agents[bounds].numpy(), leaves[bounds].numpy()
        score_pairs(words, own, *at, gram, scale, geometry.squared, scores)

    in_threads(score, even_runs(ends, PAIRS_A_THREAD))
    return weights.exp_()


def _are_many(geometry: LeafGeometry) -> bool:
    """Whether products are the faster way. O(R)."""
    return geometry.pairs() >= LEAST_PAIRS * max(1, len(geometry.leaf_offsets) - 1)


def _bounds(geometry: LeafGeometry, part: slice) -> tuple[Tensor, Tensor]:
    """Where the agents and the leaves of some requests begin and end."""
    which = slice(part.start, part.stop + 1)
    return geometry.agent_offsets[which], geometry.leaf_offsets[which]


def _requests(geometry: LeafGeometry, part: slice, weights: Tensor) -> Iterator[Part]:
    """Cut the weights of some requests into those of each."""
    begin = 0
    for own, occupied in _slices(*_bounds(geometry, part)):
        shape = own.stop - own.start, occupied.stop - occupied.start
        end = begin + shape[0] * shape[1]
        yield Part(own, occupied, weights[begin:end].view(shape))
        begin = end


def multiply_weights(geometry: LeafGeometry, part: slice, dtype: torch.dtype) -> Iterator[Part]:
    """The weights of some requests, each by a matrix product."""
    agents, leaves = _bounds(geometry, part)
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
