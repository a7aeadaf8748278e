"""Learned aggregator: a compressor whose agents are learned queries over the history.

Source: the learned-aggregator baseline of HiSAC (arXiv 2602.21009); the inducing points of
the Set Transformer (arXiv 1810.00825, ISAB) and the latents of Perceiver (arXiv 2103.03206)
are the same thing. Queries, the same for all users, cross-attend to the events; gradients
reach queries, projections and events.

Left out: feed-forward layers and self-attention among the agents, and adding the query to
what it read. An agent stays a weighted mean of (projected) events, in the space of the
candidates, as with the other compressors.

Legend: R requests, T events, K agents, H heads, d width, c = d / H, n blocks of B events.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hisac_rec.methods.base import History, MethodShape
from hisac_rec.methods.parts.agents import AgentMemory
from hisac_rec.methods.parts.blocks import block_size, make_blocks
from hisac_rec.methods.parts.compressor import Compressor, CompressorConfig

CHUNK_ELEMENTS = 1 << 24
"""At most about this many attention weights are kept for the backward pass (64 MiB in fp32)."""

PART_ELEMENTS = 1 << 20
"""About this many attention weights are worked on at a time: they stay in a core's cache."""


class Method(Compressor):
    """``agents`` learned queries read every history; all agents of a request weigh the same.

    The keys are normalised (Perceiver does so too): trained rows start small, and queries
    whose scores were all near 0 would start, and stay for long, as the same mean.
    """

    # Weights are equal: their power changes nothing.
    search: ClassVar[dict[str, list[Any]]] = {"heads": [1, 2, 4]}

    def __init__(self, config: CompressorConfig, shape: MethodShape) -> None:
        super().__init__(config, shape)
        self.queries = nn.Parameter(torch.randn(config.agents, shape.dim))
        self.norm = nn.LayerNorm(shape.dim)
        self.key = nn.Linear(shape.dim, shape.dim, bias=False)
        self.value = nn.Linear(shape.dim, shape.dim, bias=False)
        # As in the candidate attention: the agents start in the space of the candidates.
        for layer in (self.key, self.value):
            nn.init.eye_(layer.weight)

    def compress(self, history: History) -> AgentMemory:
        """K agents a request with events, each counting L / K events. O(T K d + T d^2)."""
        vectors = cross_attend(
            self.queries,
            self.key(self.norm(history.values)),
            self.value(history.values),
            history.offsets,
            self.config.heads,
        )
        lengths = history.offsets.diff().unsqueeze(1).expand(-1, len(self.queries))
        return AgentMemory(vectors, lengths > 0, lengths.to(torch.float32) / len(self.queries))


def cross_attend(
    queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, heads: int
) -> Tensor:
    """Softmax over a request's events of (q k / sqrt(c)), times v; all heads joined.

    Each block of events has a softmax of its own; the blocks of a request are then joined by
    their highest scores and sums, so no history is padded and none has to fit at once. Beyond
    CHUNK_ELEMENTS, attention weights are computed anew in the backward pass; what is kept is
    events, and one [K, d] result a block (as much as the events where B = K).

    Args:
        queries: [K, d], shared by all requests.
        keys: [T, d].
        values: [T, d].
        offsets: [R+1] int64 over T.
        heads: H, a divisor of d.

    Returns:
        [R, K, d], float32 at least; zeros for a request without events. O(T K d).
    """
    requests, count = len(offsets) - 1, len(queries)
    # Half a mean history: the padding of last blocks costs more than joining more of them.
    size = max(16, block_size(len(keys), requests) // 2)
    blocks = make_blocks(offsets, size)
    found = []
    weights = heads * count * size * len(blocks.request)
    step = max(1, min(PART_ELEMENTS, CHUNK_ELEMENTS) // (heads * count * size))
    query = (queries * (queries.shape[1] // heads) ** -0.5).unflatten(-1, (heads, -1))
    query = query.transpose(0, 1)
    # Gathered once and split: the gradient of a part is then as small as the part. There is
    # one part at least: without events the weights still need a gradient, of zeros, or
    # data-parallel training waits for it.
    blocked = (_take(rows, blocks.index, heads).split(step, 1) for rows in (keys, values))
    for key, value, mask in zip(*blocked, blocks.mask.split(step), strict=True):
        if weights <= CHUNK_ELEMENTS:
            found.append(_attend_blocks(query, key, value, mask))
        else:
            found.append(
                checkpoint(
                    _attend_blocks,
                    *(query, key, value, mask),
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
            )
    sums, tops = (torch.cat(parts, dim=1).transpose(0, 1) for parts in zip(*found, strict=True))
    at = blocks.request
    highest = tops.new_full((requests, heads, count), float("-inf"))
    highest.scatter_reduce_(0, at[:, None, None].expand_as(tops), tops, "amax")
    scale = (tops - highest.index_select(0, at)).exp()
    joined = sums.new_zeros((requests, *sums.shape[1:]))
    joined = joined.index_add(0, at, sums * scale.unsqueeze(2))
    # A request with events has a weight of 1 at its highest score.
    result = joined[:, :, :-1] / joined[:, :, -1:].clamp_min(1)
    return result.permute(0, 3, 1, 2).flatten(2)


def _attend_blocks(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Unnormalised attention within each block.

    Args:
        query: [H, K, c], scaled.
        key: [H, n, B, c]; repeats a row of the same block where masked.
        value: [H, n, B, c].
        mask: [n, B], True where a place holds a row.

    Returns:
        [H, n, c+1, K] weighted sums, then the sum of weights; [H, n, K] highest scores.
    """
    exact = torch.promote_types(value.dtype, torch.float32)
    # One product a head: the queries are the same for all blocks.
    scores = (key.flatten(1, 2) @ query.transpose(1, 2)).to(exact).unflatten(1, mask.shape)
    # The result does not depend on what is subtracted, so neither does its gradient. Masked
    # places repeat a row, so need no mask here: their values are zeros, and so is their count.
    top = scores.detach().amax(2)
    # Not in place: autograd copies the gradient of what was written through a view.
    weights = (scores - top.unsqueeze(2)).exp_()
    ones = mask.to(value.dtype).expand(len(value), -1, -1).unsqueeze(-1)
    read = torch.cat([value * mask.unsqueeze(-1), ones], dim=-1)
    # This way round, no product of the backward pass has to turn the weights.
    return (read.transpose(2, 3) @ weights.to(read.dtype)).to(exact), top


def _take(rows: Tensor, index: Tensor, heads: int) -> Tensor:
    """[T, d] at [n, B] -> [H, n, B, c]."""
    taken = rows.index_select(0, index.flatten()).unflatten(1, (heads, -1))
    return taken.transpose(0, 1).contiguous().unflatten(1, index.shape)
