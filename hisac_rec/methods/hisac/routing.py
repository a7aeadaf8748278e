"""Soft-routing attention as one operator (docs/method.md).

``alpha[a, i] = softmax over i of (-||e_i - z_a|| / tau)`` and ``zhat_a = sum_i alpha e'_i``
is the paper's form; two rivals of it share the operator: a softmax over the agents (every
event is shared out among them) and its limit, hard routing (every event to one agent).
Queries and keys are frozen: no gradient flows through alpha, so the backward pass is
``d e' = alpha^T d zhat`` and alpha is recomputed there instead of being stored.

Legend: R requests, K slots, T rows (events, or leaves standing for several events),
s semantic width, d value width, n blocks of B rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hisac_rec.methods.parts.blocks import Blocks, block_size, make_blocks

Routing: TypeAlias = Literal["events", "agents", "hard"]

CHUNK_ELEMENTS = 1 << 24
"""At most about this many elements of alpha exist at a time (64 MiB in fp32)."""


@dataclass(frozen=True)
class Frozen:
    """What alpha depends on.

    Args:
        queries: [R, K, s] agent vectors z_a (anything in unfilled slots).
        keys: [T, s] vectors e_i.
        counts: [T] events that each row stands for, or None for one each.
        offsets: [R+1] int64 over T.
        tau: temperature, > 0.
        squared: use the squared distance.
        routing: "events": alpha is a softmax over events, each agent reads the whole history;
            "agents": over agents, each event is shared out among the agents; "hard": each
            event goes to its nearest agent alone, the first of equals.
        filled: [R, K] bool, slots that take part in "agents" and "hard"; None: all.
    """

    queries: Tensor
    keys: Tensor
    counts: Tensor | None
    offsets: Tensor
    tau: float
    squared: bool
    routing: Routing = "events"
    filled: Tensor | None = None


def soft_route(values: Tensor, frozen: Frozen) -> Tensor:
    """Route rows to agents: the vectors of :func:`route_with_mass`."""
    return route_with_mass(values, frozen)[0]


def route_with_mass(values: Tensor, frozen: Frozen) -> tuple[Tensor, Tensor]:
    """Route rows to agents.

    With ``counts``, a row stands for that many events with one shared key, and its value is
    the *sum* of theirs: the result equals routing the events one by one.

    Args:
        values: [T, d].
        frozen: queries, keys and temperature.

    Returns:
        vectors [R, K, d], weighted means of the values, zeros where nothing arrived; and
        mass [R, K], the sum of each agent's weights (with "agents" and "hard": its events).
        O(T K (s + d)) multiplications, O(min(T K, CHUNK_ELEMENTS)) extra memory.
    """
    # Distances of 8 significant bits would change which events an agent reads, so autocast
    # stops here; the result has the type of the values.
    with torch.autocast(values.device.type, enabled=False):
        result: tuple[Tensor, Tensor] = _SoftRoute.apply(values, frozen)
    return result


class _SoftRoute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        frozen: Frozen,
    ) -> tuple[Tensor, Tensor]:
        queries = frozen.queries
        requests, slots, _ = queries.shape
        highest = queries.new_full((requests, slots), float("-inf"))
        mass = queries.new_zeros((requests, slots))
        result = values.new_zeros((requests, slots, values.shape[1]))
        for blocks in _chunks(frozen):
            at = blocks.request
            scores = _scores(frozen, blocks)
            if frozen.routing == "events":
                # A chunk holds whole requests, so its maximum is the request's.
                top = scores.amax(-1)
                highest.scatter_reduce_(0, at.unsqueeze(1).expand_as(top), top, "amax")
            weights = _weights(frozen, blocks, scores, highest)
            mass.index_add_(0, at, _mass(weights, blocks, frozen.counts))
            result.index_add_(0, at, torch.bmm(weights.to(values.dtype), blocks.gather(values)))
        divisor = mass.clamp_min(torch.finfo(mass.dtype).tiny)
        result /= divisor.unsqueeze(-1)
        # Queries, keys and counts get no gradient, so nothing needs save_for_backward's checks.
        ctx.frozen, ctx.highest, ctx.divisor, ctx.rows = frozen, highest, divisor, len(values)
        ctx.mark_non_differentiable(mass)
        return result, mass

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None]:
        frozen: Frozen = ctx.frozen
        scaled = gradient / ctx.divisor.unsqueeze(-1)
        result = gradient.new_zeros((ctx.rows, gradient.shape[-1]))
        for blocks in _chunks(frozen):
            at = blocks.request
            weights = _weights(frozen, blocks, _scores(frozen, blocks), ctx.highest)
            part = torch.bmm(weights.transpose(1, 2).to(gradient.dtype), scaled[at])
            first = int(blocks.index[0, 0])
            result[first : first + len(blocks.place)] = blocks.rows(part)
        return result, None


def _chunks(frozen: Frozen) -> Iterator[Blocks]:
    """Blocks in groups of whole requests whose alpha stays below CHUNK_ELEMENTS."""
    requests, slots, _ = frozen.queries.shape
    rows = frozen.keys.shape[0]
    if not rows:
        return
    size = block_size(rows, requests)
    blocks = make_blocks(frozen.offsets, size)
    limit = max(1, CHUNK_ELEMENTS // (slots * size))
    if len(blocks.request) <= limit:
        yield blocks
        return
    # The first block of each request is where a cut may lie.
    per_request = torch.bincount(blocks.request, minlength=requests)
    ends = per_request.cumsum(0).cpu()
    begin = 0
    while begin < len(blocks.request):
        request = int(torch.searchsorted(ends, begin + limit, right=True))
        end = int(ends[request - 1]) if request else 0
        if end <= begin:  # a single request beyond the limit goes alone
            end = int(ends[int(torch.searchsorted(ends, begin, right=True))])
        part = slice(begin, end)
        mask = blocks.mask[part]
        place = mask.flatten().nonzero().squeeze(1)
        yield Blocks(blocks.request[part], blocks.index[part], mask, place)
        begin = end


def _scores(frozen: Frozen, blocks: Blocks) -> Tensor:
    """[n, K, B]: -distance / tau, -inf at masked places."""
    keys = blocks.gather(frozen.keys)
    queries = frozen.queries[blocks.request]
    key_norms = torch.linalg.vecdot(frozen.keys, frozen.keys)
    query_norms = torch.linalg.vecdot(frozen.queries, frozen.queries)
    squares = blocks.gather(key_norms).unsqueeze(1) + query_norms[blocks.request].unsqueeze(2)
    distance = torch.baddbmm(squares, queries, keys.transpose(1, 2), alpha=-2.0).clamp_min_(0.0)
    if not frozen.squared:
        distance.sqrt_()
    distance.mul_(-1.0 / frozen.tau)
    return distance.masked_fill_(~blocks.mask.unsqueeze(1), float("-inf"))


def _weights(frozen: Frozen, blocks: Blocks, scores: Tensor, highest: Tensor) -> Tensor:
    """[n, K, B]: what each place gives each agent, 0 at masked places; reuses ``scores``."""
    if frozen.routing == "events":
        return (scores - highest[blocks.request].unsqueeze(-1)).exp_()
    if frozen.filled is not None:
        unfilled = ~frozen.filled[blocks.request].unsqueeze(-1)
        scores = scores.masked_fill_(unfilled, float("-inf"))
    if frozen.routing == "agents":
        weights = scores.softmax(1)
    else:
        nearest = scores.argmax(1, keepdim=True)
        weights = torch.zeros_like(scores).scatter_(1, nearest, 1.0)
    return weights.masked_fill_(~blocks.mask.unsqueeze(1), 0.0)


def _mass(weights: Tensor, blocks: Blocks, counts: Tensor | None) -> Tensor:
    """[n, K]: sum of weights over the events of each block."""
    if counts is None:
        return weights.sum(-1)
    return torch.bmm(weights, blocks.gather(counts).to(weights.dtype).unsqueeze(-1)).squeeze(-1)
