"""Soft routing over padded blocks: plain torch, on any device, for any routing.

A request's rows are cut into blocks of a power of two near the mean length, so that many short
requests are few matrix products. Legend: R requests, K slots, T rows, d value width, n blocks
of B rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hisac_rec.methods.parts.blocks import Blocks, block_size, make_blocks
from hisac_rec.ops.soft_route.problem import Frozen, Routed

CHUNK_ELEMENTS = 1 << 24
"""At most about this many elements of alpha exist at a time (64 MiB in fp32)."""


def forward(values: Tensor, frozen: Frozen) -> Routed:
    """Route. O(T K (s + d)) multiplications, O(min(T K, CHUNK_ELEMENTS)) extra memory."""
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
    result /= mass.clamp_min(torch.finfo(mass.dtype).tiny).unsqueeze(-1)
    return Routed(result, mass, highest)


def backward(scaled: Tensor, highest: Tensor, frozen: Frozen) -> Tensor:
    """The gradient of the values; alpha is computed again. Costs as the forward pass."""
    result = scaled.new_zeros((frozen.keys.shape[0], scaled.shape[-1]))
    for blocks in _chunks(frozen):
        weights = _weights(frozen, blocks, _scores(frozen, blocks), highest)
        part = torch.bmm(weights.transpose(1, 2).to(scaled.dtype), scaled[blocks.request])
        first = int(blocks.index[0, 0])
        result[first : first + len(blocks.place)] = blocks.rows(part)
    return result


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
