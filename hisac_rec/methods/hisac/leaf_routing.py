"""Soft routing where keys are rebuilt from semantic IDs: leaf sums to agents, pair by pair.

All events of a leaf share one key, so a request's history is its U_r occupied leaves, and its
A_r agents are some of them. Every (agent, leaf) pair of a request is one number of a jagged
list: no slot and no row is padded. Distances come from the Gram matrix of the code words, so
a pair costs D look-ups instead of a product of s numbers, and the weighted sums are weighted
embedding bags. On a CPU no list is made (:mod:`hisac_rec.methods.hisac.leaf_products`).
:func:`hisac_rec.ops.soft_route.soft_route` is the general form, for keys of each event's own.

Legend: R requests, U occupied leaves, A agents, P (agent, leaf) pairs of the same request,
D levels, C code words of all levels, s semantic width, d value width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hisac_rec.methods.hisac import leaf_products
from hisac_rec.methods.hisac.leaf_geometry import LeafGeometry


def route_leaves(sums: Tensor, geometry: LeafGeometry) -> Tensor:
    """``zhat_a = sum_u w(a,u) S_u / sum_u w(a,u) n_u`` with ``w = exp(-dist(z_u, z_a) / tau)``.

    The paper's soft routing, exactly: S_u is the sum of the values of the n_u events of leaf u.
    Agents are leaves of the same history, so their largest score is 0 and needs no search.
    No gradient flows through w: the backward pass is ``d S = w^T (d zhat / mass)``.

    Args:
        sums: [U, d] S_u.
        geometry: of the batch.

    Returns:
        [A, d]. O(P (D + d)) operations or, by products, O(P (s + d));
        O(min(P, CHUNK_PAIRS)) memory.
    """
    with torch.autocast(sums.device.type, enabled=False):
        routed: Tensor = _RouteLeaves.apply(sums, geometry)
    return routed


def are_listed(geometry: LeafGeometry) -> bool:
    """Whether pairs are put into a list: everywhere but on a CPU."""
    return geometry.words.device.type != "cpu"


class _RouteLeaves(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: Tensor, geometry: LeafGeometry) -> Tensor:
        ctx.geometry, ctx.listed = geometry, are_listed(geometry)
        if not ctx.listed:
            summed, ctx.divisor, ctx.kept = leaf_products.forward(sums, geometry)
            return summed / ctx.divisor
        counts = geometry.counts.to(sums.dtype).unsqueeze(1)
        routed, mass, kept = [], [], []
        parts = geometry.parts()
        for part in parts:
            pairs = _pairs_of_agents(geometry, part)
            weights = _weights(geometry, part, pairs, sums.dtype)
            routed.append(_bags(sums, pairs, weights))
            mass.append(_bags(counts, pairs, weights))
            kept.append(weights)
        divisor = torch.cat(mass)
        # One part is small enough to be kept; more of them are computed again.
        ctx.kept = kept if len(parts) == 1 else [None] * len(parts)
        ctx.divisor = divisor
        return torch.cat(routed) / divisor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        geometry: LeafGeometry = ctx.geometry
        scaled = gradient / ctx.divisor
        if not ctx.listed:
            return leaf_products.backward(scaled, geometry, ctx.kept), None
        found = []
        for part, kept in zip(geometry.parts(), ctx.kept, strict=True):
            pairs = _pairs_of_agents(geometry, part)
            weights = _weights(geometry, part, pairs, scaled.dtype) if kept is None else kept
            turned, at = _pairs_of_leaves(geometry, part, pairs)
            found.append(_bags(scaled, turned, weights.index_select(0, at)))
        return torch.cat(found), None


@dataclass(frozen=True)
class Pairs:
    """All (agent, leaf) pairs of some requests, listed by one end.

    Args:
        owner: [P] number of the row that each pair is listed by, from the part's first.
        at: [P] number of the other end among all of the batch.
        bounds: [X+1] where each row's pairs begin.
    """

    owner: Tensor
    at: Tensor
    bounds: Tensor


def _pairs_of_agents(geometry: LeafGeometry, part: slice) -> Pairs:
    return _list_pairs(geometry.agent_offsets, geometry.leaf_offsets, part)


def _pairs_of_leaves(geometry: LeafGeometry, part: slice, known: Pairs) -> tuple[Pairs, Tensor]:
    """The same pairs listed by leaf, and the place of each in the list by agent. O(P)."""
    pairs = _list_pairs(geometry.leaf_offsets, geometry.agent_offsets, part)
    leaves = geometry.leaf_offsets[part.start : part.stop + 1]
    first = leaves[:-1].repeat_interleave(leaves.diff())
    within = torch.arange(len(first), device=first.device) + leaves[0] - first
    at = within.to(pairs.at.dtype).index_select(0, pairs.owner)
    at += known.bounds.index_select(0, pairs.at - int(geometry.agent_offsets[part.start]))
    return pairs, at


def _list_pairs(own: Tensor, other: Tensor, part: slice) -> Pairs:
    """Pair the rows that ``own`` [R+1] bounds with those of ``other`` of the same request."""
    own, other = own[part.start : part.stop + 1], other[part.start : part.stop + 1]
    lengths = other.diff().repeat_interleave(own.diff())  # [X] pairs of each row
    begin = other[:-1].repeat_interleave(own.diff())
    bounds = functional.pad(lengths.cumsum(0), (1, 0))
    pairs = int(bounds[-1])
    # Half as wide where it fits: making the list is most of what routing costs.
    index = torch.int32 if pairs < 1 << 31 else torch.int64
    owner = torch.arange(len(lengths), device=lengths.device, dtype=index)
    owner = owner.repeat_interleave(lengths, output_size=pairs)
    at = torch.arange(pairs, device=lengths.device, dtype=index)
    at += (begin - bounds[:-1]).to(index).index_select(0, owner)
    return Pairs(owner, at, bounds.to(index))


def _weights(geometry: LeafGeometry, part: slice, pairs: Pairs, dtype: torch.dtype) -> Tensor:
    """[P] exp(-distance / tau) of pairs that are listed by agent. O(P D + A C)."""
    # ||x - y||^2 = x.x + y.y - 2 sum over the levels of y of (x . word): one row of products
    # with all code words for each agent, D look-ups for each pair.
    first, end = geometry.agent_offsets[[part.start, part.stop]].tolist()
    words, gram = geometry.words, geometry.gram
    own = words[geometry.agents[first:end]]
    products = gram.new_zeros((len(own), gram.shape[0]))
    for level in own.unbind(1):
        products += gram.index_select(0, level)
    products.mul_(-2.0).add_((_squares(own, gram) / own.shape[1]).unsqueeze(1))
    flat = products.flatten()
    wide = torch.int64 if len(flat) >= 1 << 31 else pairs.owner.dtype
    base = pairs.owner.to(wide) * gram.shape[0]
    distance = _squares(words, gram).index_select(0, pairs.at)
    for level in words.to(wide).unbind(1):
        distance += flat.index_select(0, level.index_select(0, pairs.at).add_(base))
    scores = distance.clamp_min_(0.0).to(dtype)
    if not geometry.squared:
        scores.sqrt_()
    return scores.mul_(-1.0 / geometry.tau).exp_()


def _squares(words: Tensor, gram: Tensor) -> Tensor:
    """[X, D] rows of code words -> [X] squared length of their sum. O(X D^2)."""
    flat, size = gram.flatten(), gram.shape[0]
    every = (words.unsqueeze(2) * size + words.unsqueeze(1)).flatten()
    return flat.index_select(0, every).view(-1, words.shape[1] ** 2).sum(1)


def _bags(rows: Tensor, pairs: Pairs, weights: Tensor) -> Tensor:
    """[X, d] weighted sums of the other ends' rows."""
    if not len(pairs.at):  # embedding_bag refuses tables without rows
        return rows.new_zeros((len(pairs.bounds) - 1, rows.shape[1]))
    return functional.embedding_bag(
        pairs.at,
        rows,
        pairs.bounds,
        mode="sum",
        per_sample_weights=weights,
        include_last_offset=True,
    )
