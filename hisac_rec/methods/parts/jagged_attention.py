"""Attention of jagged queries over the jagged keys of the same request, in block pairs.

Queries and keys are cut into blocks, and every query block meets the key blocks of its own
request that hold something it may see: nothing is padded beyond a block. Each query
attends to the keys at positions *before* its own, and to its own key, which need not be
among them: so tokens that nobody may see (candidates) and tokens of the sequence itself
take one way.

Legend: A queries, T keys, R requests, H heads, e width of a head, P pairs of a query block
with a key block, n blocks of B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hisac_rec.methods.parts.blocks import Blocks, block_size, make_blocks

CHUNK_ELEMENTS = 1 << 24
"""At most about this many scores exist at a time (64 MiB in fp32); where there are more, the
backward pass computes them again."""

LARGEST_BLOCK = {"cpu": 32}
"""Rows a block, at most, by type of device; smaller blocks pad less, larger ones launch less."""
_LARGEST_ELSEWHERE = 64
_NEVER = 1 << 30
"""A position that no query reaches."""
HIDDEN = -1e4
"""What a bias adds to hide a key: SiLU of this is zero, and so is its slope."""


@dataclass(frozen=True)
class Rows:
    """Jagged rows with positions.

    Args:
        offsets: [R+1] int64.
        position: [T] int64, below 2^30; keys are seen by queries of a higher position.
    """

    offsets: Tensor
    position: Tensor


@dataclass(frozen=True)
class Pairs:
    """Which query block meets which key block.

    Args:
        queries: blocks of A rows.
        keys: blocks of T rows.
        query: [P] int64 query block of each pair.
        key: [P] int64 key block of each pair.
        query_position: [n, B] int32.
        key_position: [n, B] int32; beyond every query where a place holds no key.
    """

    queries: Blocks
    keys: Blocks
    query: Tensor
    key: Tensor
    query_position: Tensor
    key_position: Tensor

    def distance(self) -> Tensor:
        """[P, B, B] int32: query position minus key position; above zero where visible."""
        keys = self.key_position[self.key].unsqueeze(1)
        return self.query_position[self.query].unsqueeze(2) - keys

    def chunks(self, heads: int) -> Iterator[Pairs]:
        """The pairs in groups of at most about CHUNK_ELEMENTS scores.

        One group where there are none: what depends on no data must still have a gradient,
        of zeros, or data-parallel training waits for it.
        """
        size = heads * self.query_position.shape[1] * self.key_position.shape[1]
        step = max(1, CHUNK_ELEMENTS // size)
        for begin in range(0, max(1, len(self.query)), step):
            part = slice(begin, begin + step)
            yield replace(self, query=self.query[part], key=self.key[part])


@dataclass(frozen=True)
class Attending:
    """What attends to what.

    Args:
        query: [A, H, e].
        own_key: [A, H, e], seen by its query alone.
        own_value: [A, H, e].
        key: [T, H, e].
        value: [T, H, e].
    """

    query: Tensor
    own_key: Tensor
    own_value: Tensor
    key: Tensor
    value: Tensor

    def own_scores(self) -> Tensor:
        """[A, H]: each query with its own key."""
        return _exact(torch.linalg.vecdot(self.query, self.own_key))


Bias = Callable[[Pairs, Tensor], Tensor]
"""Of pairs and their :meth:`Pairs.distance`: what is added to the scores of all heads,
[P, B, B]; HIDDEN where the distance is not above zero. Hidden by the bias, which all heads
share: cheaper than by masking the weights."""


def make_pairs(queries: Rows, keys: Rows) -> Pairs:
    """Pair the blocks of each request; pairs where nothing is visible are left out.

    Args:
        queries: of R requests.
        keys: of the same R requests.

    Returns:
        O(sum over requests of query blocks times key blocks) pairs.
    """
    device = queries.offsets.device
    query_blocks, key_blocks = _cut(queries), _cut(keys)
    requests = len(queries.offsets) - 1
    count = torch.bincount(key_blocks.request, minlength=requests)
    first = (count.cumsum(0) - count)[query_blocks.request]
    count = count[query_blocks.request]
    query = torch.repeat_interleave(torch.arange(len(count), device=device), count)
    within = torch.arange(len(query), device=device) - (count.cumsum(0) - count)[query]
    key = first[query] + within
    query_position = query_blocks.gather(queries.position.to(torch.int32))
    key_position = key_blocks.gather(keys.position.to(torch.int32))
    key_position = key_position.masked_fill(~key_blocks.mask, _NEVER)
    seen = key_position.amin(1)[key] < query_position.amax(1)[query]
    return Pairs(query_blocks, key_blocks, query[seen], key[seen], query_position, key_position)


def softmax_attention(given: Attending, pairs: Pairs) -> Tensor:
    """softmax(q k / sqrt(e)) v over the visible keys and the own one.

    Returns:
        [A, H, e] in the queries' type. O(P B^2 H e).
    """
    scale = given.query.shape[-1] ** -0.5
    given = replace(given, query=given.query * scale)
    own = given.own_scores()

    def scores(query: Tensor, key: Tensor, part: Pairs) -> Tensor:
        hidden = (part.distance() <= 0).unsqueeze(1)
        return _products(query, key, part).masked_fill_(hidden, float("-inf"))

    def mix(query: Tensor, key: Tensor, value: Tensor, top: Tensor, part: Pairs) -> Tensor:
        weights = scores(query, key, part).sub_(top[part.query].unsqueeze(-1)).exp_()
        mixed = _mixed(weights, value, part)
        return torch.cat([mixed, weights.sum(-1, keepdim=True)], dim=-1)

    query, key, value = _blocked(given, pairs)
    # The softmax does not change when a number is taken from all scores of a query, so the
    # highest one needs no gradient.
    with torch.no_grad():
        highest = _block(own, pairs.queries)
        for part in pairs.chunks(query.shape[1]):
            top = scores(query, key, part).amax(-1)
            at = part.query[:, None, None].expand_as(top)
            highest = highest.scatter_reduce(0, at, top, "amax")
    sums = _sum(mix, (query, key, value, highest), pairs, given.own_value.shape[-1] + 1)
    weight = (own - _unblock(highest, pairs.queries)).exp().unsqueeze(-1)
    mixed, total = _unblock(sums, pairs.queries).split([sums.shape[-1] - 1, 1], dim=-1)
    return ((mixed + weight * given.own_value) / (total + weight)).to(given.query.dtype)


def pointwise_attention(given: Attending, pairs: Pairs, bias: Bias, own_bias: Tensor) -> Tensor:
    """Sum of SiLU(q k + bias) v over the visible keys and the own one: HSTU, without its 1/n.

    Args:
        given: queries, keys and values.
        pairs: of :func:`make_pairs`.
        bias: of the pairs.
        own_bias: [] for each query with itself.

    Returns:
        [A, H, e] in fp32 or the queries' type. O(P B^2 H e).
    """

    def mix(query: Tensor, key: Tensor, value: Tensor, part: Pairs) -> Tensor:
        added = bias(part, part.distance())
        scores = _products(query, key, part).add_(added.unsqueeze(1))
        return _mixed(nn.functional.silu(scores), value, part)

    sums = _sum(mix, _blocked(given, pairs), pairs, given.own_value.shape[-1])
    own = nn.functional.silu(given.own_scores() + own_bias)
    return _unblock(sums, pairs.queries) + own.unsqueeze(-1) * given.own_value


def crop(offsets: Tensor, count: int, end: Literal["first", "last"]) -> tuple[Tensor, Tensor]:
    """At most ``count`` rows of each request, at one end.

    Returns:
        (rows [A] int64, ascending; their offsets [R+1]). O(A + R).
    """
    lengths = offsets.diff().clamp_max(count)
    kept = nn.functional.pad(lengths.cumsum(0), (1, 0))
    start = offsets[:-1] if end == "first" else offsets[1:] - lengths
    shift = torch.repeat_interleave(start - kept[:-1], lengths)
    return torch.arange(len(shift), device=offsets.device) + shift, kept


def places(offsets: Tensor, rows: int) -> Tensor:
    """[rows] int64: the number of each row within its request. O(rows)."""
    start = torch.repeat_interleave(offsets[:-1], offsets.diff(), output_size=rows)
    return torch.arange(rows, device=offsets.device) - start


def _sum(
    mix: Callable[..., Tensor], tensors: tuple[Tensor, ...], pairs: Pairs, width: int
) -> Tensor:
    """[n, H, B, width]: what ``mix`` gives for pairs, summed for each query block."""
    query = tensors[0]
    parts = list(pairs.chunks(query.shape[1]))
    result = _exact(query).new_zeros((*query.shape[:-1], width))
    for part in parts:
        if len(parts) == 1:
            mixed = mix(*tensors, part)
        else:
            mixed = checkpoint(mix, *tensors, part, use_reentrant=False, preserve_rng_state=False)
        result = result.index_add(0, part.query, mixed)
    return result


def _products(query: Tensor, key: Tensor, part: Pairs) -> Tensor:
    """[P, H, B, B] scores of these pairs."""
    queries, keys = query.index_select(0, part.query), key.index_select(0, part.key)
    return _exact(queries @ keys.transpose(-1, -2))


def _mixed(weights: Tensor, value: Tensor, part: Pairs) -> Tensor:
    """[P, H, B, e] weighted sums of each pair's values."""
    return _exact(weights.to(value.dtype) @ value.index_select(0, part.key))


def _cut(rows: Rows) -> Blocks:
    largest = LARGEST_BLOCK.get(rows.offsets.device.type, _LARGEST_ELSEWHERE)
    size = block_size(len(rows.position), len(rows.offsets) - 1, smallest=4, largest=largest)
    return make_blocks(rows.offsets, size)


def _blocked(given: Attending, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
    """[n, H, B, e] of queries, keys and values."""
    return (
        _block(given.query, pairs.queries),
        _block(given.key, pairs.keys),
        _block(given.value, pairs.keys),
    )


def _block(rows: Tensor, blocks: Blocks) -> Tensor:
    """[A, H, ...] -> [n, H, B, ...]."""
    return blocks.gather(rows).transpose(1, 2).contiguous()  # once here, not for every pair


def _unblock(blocked: Tensor, blocks: Blocks) -> Tensor:
    """[n, H, B, ...] -> [A, H, ...]."""
    return blocks.rows(blocked.transpose(1, 2))


def _exact(values: Tensor) -> Tensor:
    """At least fp32: sums of thousands of weights need it under autocast."""
    return values if values.dtype == torch.float64 else values.float()
