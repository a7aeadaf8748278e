"""LONGER: neighbours merged, global and newest tokens attend to all, then to each other.

Legend: R requests, T events, G merged tokens, m learned global tokens, K events a merged
token, S = R m + G tokens, A tokens kept (the first m + ``recent`` of each request),
N candidates, H heads, M self-attention layers, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hisac_rec.config import Strict
from hisac_rec.errors import UserError
from hisac_rec.methods.base import Candidates, History, HistoryMethod, MethodShape
from hisac_rec.methods.parts.jagged_attention import (
    Attending,
    Pairs,
    Rows,
    crop,
    make_pairs,
    places,
    softmax_attention,
)

RECENCY_BUCKETS = 64
"""Buckets of how many events came after: floor(4 log2(1 + number)), up to 64,000 apart."""


class LongerConfig(Strict):
    """``[history]`` keys of ``method = "longer"``."""

    merge: int = Field(default=4, gt=0)
    """K: neighbouring events that become one token."""
    inner: bool = True
    """Let the events of a merged token attend to each other first (InnerTrans)."""
    recent: int = Field(default=60, gt=0)
    """Newest merged tokens that attend to the whole sequence and are kept."""
    global_tokens: int = Field(default=1, ge=0)
    """m: learned tokens that attend to the whole sequence; each is an interest vector."""
    layers: int = Field(default=1, gt=0)
    """M: self-attention layers over the kept tokens, after the cross attention."""
    heads: int = Field(default=2, gt=0)
    """Heads of every attention; a divisor of tables.dim."""
    candidate: Literal["memory", "sequence"] = "memory"
    """Where the candidate comes in. "memory": in the self-attention layers, so that what is
    kept per user is bounded. "sequence": in the cross attention too, as published; then all
    merged tokens are kept, and the cost of a candidate grows with the history."""


@dataclass
class LayerMemory:
    """The tokens of one layer, as candidates read them.

    Args:
        offsets: [R+1] int64 over the tokens.
        keys: [tokens, d].
        values: [tokens, d].
    """

    offsets: Tensor
    keys: Tensor
    values: Tensor


@dataclass
class TokenMemory:
    """What a request's history is compressed to.

    Args:
        layers: for each layer that candidates pass: "sequence" puts the cross attention first.
        profile: [R, m, d] last states of the learned global tokens.
    """

    layers: list[LayerMemory]
    profile: Tensor


class Method(HistoryMethod):
    """Token merge, cross-causal attention, self-causal attention; the candidate is global.

    Source: LONGER, arXiv 2505.04421, section 3:

    - merge: K neighbouring events, counted from the newest, pass an inner transformer block;
      their concatenation is projected to d (the paper keeps the width K d), at first to the
      mean.
    - tokens ``[globals, merged tokens newest first]``; token i sees tokens j >= i. So globals
      see everything, events see what came before them, and nobody sees the first globals.
    - cross-causal layer: the globals and the newest ``recent`` merged tokens are queries, all
      tokens are keys; then M self-causal layers among those queries; all of them pre-norm
      transformer blocks: ``x + W_o softmax(Q K / sqrt(d/H)) V``, then ``x + FFN(LN(x))``. All
      four projections start as the identity, the last layer of the FFN at zero.

    The candidate is one more global token, before all others: it sees them and is seen by
    nobody, which is how the paper serves it from cached keys and values. Its last state is the
    first interest, those of the learned globals are the others. With ``candidate = "memory"``
    it skips the cross attention (its own choice, not the paper's), so that at most
    m + ``recent`` tokens in M layers are kept.

    Positions: a trained vector per logarithmic bucket of the number of later events, added
    before the merge; the paper has one per absolute position. The time before the request is
    in the events already (``ranker.age_buckets``); without buckets it is left out.

    Left out: the user's and cross features as global tokens (a method sees no user; the ranker
    has them beside it), uniformly sampled or learned queries (the paper found the newest best).

    Parameters, d = 32 and the defaults: 43,936. A transformer block has
    12 d^2 + 9 d, there are 1 + M, and one more with ``inner``; K d^2 + d of the projection,
    (64 + m) d of positions and globals.

    Cost: O(T (d^2 + K d) + A (L / K) d + M A (m + recent) d) for compression, and
    O(M (d^2 + (m + recent) d)) a candidate, in "sequence" also O(L / K d).

    Raises:
        UserError: ``heads`` is no divisor of the width.
    """

    Config: ClassVar[type[Strict]] = LongerConfig
    compresses = True
    search: ClassVar[dict[str, list[Any]]] = {
        "merge": [2, 4, 8],
        "recent": [30, 60, 120],
        "layers": [1, 2],
        "heads": [1, 2, 4],
    }

    def __init__(self, config: LongerConfig, shape: MethodShape) -> None:
        super().__init__(config, shape)
        if shape.dim % config.heads:
            raise UserError(
                f"history.heads = {config.heads} does not divide tables.dim = {shape.dim}; "
                "choose a divisor of tables.dim"
            )
        self.config = config
        self.interests = 1 + config.global_tokens
        # Only an instance knows: the flag of the class is that of the defaults.
        self.compresses = config.candidate == "memory"
        self.merge = Merge(shape.dim, config)
        self.global_tokens = nn.Parameter(0.02 * torch.randn(config.global_tokens, shape.dim))
        self.cross = Block(shape.dim, config.heads)
        self.layers = nn.ModuleList(Block(shape.dim, config.heads) for _ in range(config.layers))

    def compress(self, history: History) -> TokenMemory:
        """Merge; the kept tokens attend to all, then to each other."""
        tokens, offsets = self._with_globals(*self.merge(history))
        count = self.config.global_tokens
        # Nobody reads the last states of the merged tokens: the last layer is the globals' own.
        keep = [count + self.config.recent] * len(self.layers) + [count]
        layers: list[LayerMemory] = []
        for block, size in zip([self.cross, *self.layers], keep, strict=True):
            memory = LayerMemory(offsets, *block.keys_values(tokens))
            layers.append(memory)
            rows, of_kept = crop(offsets, size, "first")
            pairs = make_pairs(backwards(of_kept, len(rows)), backwards(offsets, len(tokens)))
            tokens, offsets = block(tokens[rows], memory, pairs), of_kept
        if self.config.candidate == "memory":
            layers = layers[1:]
        return TokenMemory(layers, tokens.view(history.num_requests, count, self.dim))

    def read(self, memory: TokenMemory, candidates: Candidates) -> Tensor:
        """[N, 1 + m, d]: the candidate's last state, then those of the learned globals."""
        tokens = candidates.values
        # Position 1: in front of all tokens, whose positions fall from 0.
        first = Rows(candidates.offsets, torch.ones_like(candidates.request))
        blocks = [self.cross, *self.layers][-len(memory.layers) :]
        for block, layer in zip(blocks, memory.layers, strict=True):
            pairs = make_pairs(first, backwards(layer.offsets, len(layer.keys)))
            tokens = block(tokens, layer, pairs)
        return torch.cat([tokens.unsqueeze(1), memory.profile[candidates.request]], dim=1)

    def _with_globals(self, merged: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """([S, d] globals, then merged tokens, of each request; [R+1])."""
        count, requests = len(self.global_tokens), len(offsets) - 1
        number = torch.arange(requests + 1, device=offsets.device)
        offsets = offsets + count * number
        rows = torch.arange(int(offsets[-1]) if requests else 0, device=offsets.device)
        is_global = places(offsets, len(rows)) < count
        tokens = self.global_tokens.new_zeros((len(rows), self.dim))
        tokens = tokens.index_copy(0, rows[~is_global], merged.to(tokens.dtype))
        repeated = self.global_tokens.repeat(requests, 1)
        return tokens.index_copy(0, rows[is_global], repeated), offsets


def backwards(offsets: Tensor, rows: int) -> Rows:
    """Tokens of falling positions: each sees those behind it."""
    return Rows(offsets, -places(offsets, rows))


class Merge(nn.Module):
    """K neighbouring events to one token.

    Args:
        dim: d.
        config: ``merge``, ``inner``, ``heads``.
    """

    def __init__(self, dim: int, config: LongerConfig) -> None:
        super().__init__()
        self.size = config.merge
        self.recency = nn.Parameter(torch.zeros(RECENCY_BUCKETS, dim))
        self.inner = Block(dim, config.heads) if config.inner else None
        self.project = nn.Linear(self.size * dim, dim)
        with torch.no_grad():
            self.project.weight.copy_(torch.eye(dim).repeat(1, self.size) / self.size)
            self.project.bias.zero_()

    def forward(self, history: History) -> tuple[Tensor, Tensor]:
        """([G, d] tokens, newest first in each request; [R+1] offsets). O(T (d^2 + K d))."""
        start, end = history.offsets[:-1], history.offsets[1:]
        counts = (end - start + self.size - 1) // self.size
        offsets = nn.functional.pad(counts.cumsum(0), (1, 0))
        request = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        slot = torch.arange(self.size, device=counts.device)
        later = places(offsets, len(request)).unsqueeze(1) * self.size + slot
        row = end[request].unsqueeze(1) - 1 - later
        filled = row >= start[request].unsqueeze(1)
        row = torch.maximum(row, start[request].unsqueeze(1))
        bucket = (4 * (1 + later).to(torch.float32).log2()).long()
        bucket = bucket.clamp_max(RECENCY_BUCKETS - 1).flatten()
        events = history.take(row.flatten())
        events = events + self.recency.index_select(0, bucket)
        groups = events.unflatten(0, row.shape)
        if self.inner is not None:
            groups = self.inner.dense(groups, filled)
        groups = groups * filled.unsqueeze(-1)
        tokens: Tensor = self.project(groups.flatten(1))
        return tokens, offsets


class Block(nn.Module):
    """Pre-norm transformer block.

    Args:
        dim: d.
        heads: H.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.query, self.key, self.value, self.out = (
            nn.Linear(dim, dim, bias=False) for _ in range(4)
        )
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )
        # As in the candidate attention: similarity of rows is meaningful from the first step.
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.eye_(layer.weight)
        for parameter in self.feed_forward[-1].parameters():
            nn.init.zeros_(parameter)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[A, d] each."""
        normed = self.norm(tokens)
        return self.key(normed), self.value(normed)

    def forward(self, tokens: Tensor, memory: LayerMemory, pairs: Pairs) -> Tensor:
        """[A, d]: attend to the memory as the pairs say, and to oneself."""
        query = self._split(self.query(self.norm(tokens)))
        own_key, own_value = map(self._split, self.keys_values(tokens))
        keys, values = self._split(memory.keys), self._split(memory.values)
        given = Attending(query, own_key, own_value, keys, values)
        return self._finish(tokens, softmax_attention(given, pairs).flatten(1))

    def dense(self, tokens: Tensor, filled: Tensor) -> Tensor:
        """[G, K, d] of [G, K, d]: all filled places attend to all filled places of a group."""
        weight = torch.cat([layer.weight for layer in (self.query, self.key, self.value)])
        projected = nn.functional.linear(self.norm(tokens), weight)
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=filled[:, None, None, :]
        )
        return self._finish(tokens, attended.transpose(1, 2).flatten(2))

    def _split(self, rows: Tensor) -> Tensor:
        """[..., d] -> [..., H, d/H]."""
        return rows.unflatten(-1, (self.heads, -1))

    def _finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        tokens = tokens + self.out(attended)
        updated: Tensor = tokens + self.feed_forward(tokens)
        return updated
