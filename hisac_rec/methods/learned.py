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
"""At most about this many attention weights exist at a time (64 MiB in fp32)."""


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
    exact = torch.promote_types(values.dtype, torch.float32)
    total = torch.zeros((requests, heads, count), dtype=exact, device=values.device)
    result = torch.zeros(
        (*total.shape, values.shape[1] // heads), dtype=exact, device=values.device
    )
    size = block_size(len(keys), requests)
    blocks = make_blocks(offsets, size)
    chunk = max(1, CHUNK_ELEMENTS // (heads * count * size))
    query = queries.unflatten(-1, (heads, -1))
    split = (keys.unflatten(-1, (heads, -1)), values.unflatten(-1, (heads, -1)))
    found = []
    # At least one part: without events the weights still need a gradient, of zeros, or
    # data-parallel training waits for it.
    for start in range(0, max(1, len(blocks.request)), chunk):
        given = (
            query,
            *split,
            blocks.index[start : start + chunk],
            blocks.mask[start : start + chunk],
        )
        if len(blocks.request) <= chunk:
            found.append(_attend_blocks(*given))
        else:
            found.append(
                checkpoint(_attend_blocks, *given, use_reentrant=False, preserve_rng_state=False)
            )
    sums, masses, tops = (torch.cat(parts) for parts in zip(*found, strict=True))
    at = blocks.request
    highest = torch.full_like(total, float("-inf"))
    highest.scatter_reduce_(0, at[:, None, None].expand_as(tops), tops, "amax")
    scale = (tops - highest[at]).exp()
    total = total.index_add(0, at, masses * scale)
    result = result.index_add(0, at, sums * scale.unsqueeze(-1))
    # A request with events has a weight of 1 at its highest score.
    result = result / total.clamp_min(1).unsqueeze(-1)
    return result.transpose(1, 2).flatten(2)


def _attend_blocks(
    query: Tensor, keys: Tensor, values: Tensor, index: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Unnormalised attention within each block.

    Args:
        query: [K, H, c].
        keys: [T, H, c].
        values: [T, H, c].
        index: [n, B] rows.
        mask: [n, B], True where a place holds a row.

    Returns:
        [n, H, K, c] weighted sums, [n, H, K] sums of weights, [n, H, K] highest scores.
    """
    exact = torch.promote_types(values.dtype, torch.float32)
    scores = torch.einsum("khc,nbhc->nhkb", query, _take(keys, index)).to(exact)
    scores = scores * query.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
    # The result does not depend on what is subtracted, so neither does its gradient.
    top = scores.detach().amax(-1)
    weights = (scores - top.unsqueeze(-1)).exp()
    sums = torch.einsum("nhkb,nbhc->nhkc", weights.to(values.dtype), _take(values, index))
    return sums.to(exact), weights.sum(-1), top


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """[T, H, c] at [n, B] -> [n, B, H, c]."""
    return rows.index_select(0, index.flatten()).unflatten(0, index.shape)
