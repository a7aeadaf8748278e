"""HSTU: pointwise attention over the newest events, candidates appended one by one.

Legend: R requests, T events, E newest events kept, N candidates, d width, H heads, M layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from hisac_rec.config import Strict
from hisac_rec.errors import UserError
from hisac_rec.methods.base import Candidates, History, HistoryMethod, MethodShape
from hisac_rec.methods.parts.jagged_attention import (
    HIDDEN,
    Attending,
    Pairs,
    Rows,
    crop,
    make_pairs,
    places,
    pointwise_attention,
)

TIME_BUCKETS = 128
"""Buckets of time differences, as published: floor(log(difference) / 0.301), from e^0 on."""

_BUCKET_WIDTH = 0.301


class HSTUConfig(Strict):
    """``[history]`` keys of ``method = "hstu"``."""

    max_events: int = Field(default=256, gt=0)
    """Only this many newest events are read. Cost per request grows with its square, what a
    cache holds and the cost of a candidate grow with it."""
    layers: int = Field(default=2, gt=0)
    """Layers; the last one costs nothing on the history's side but its keys and values."""
    heads: int = Field(default=2, gt=0)
    """Heads of the attention; a divisor of tables.dim."""


@dataclass
class SequenceMemory:
    """What candidates read of the events: their keys and values in every layer.

    A cache that outlives the request needs event times instead of ages, nothing else.

    Args:
        offsets: [R+1] int64 over E.
        age: [E] float32.
        keys: [M, E, d].
        values: [M, E, d].
    """

    offsets: Tensor
    age: Tensor
    keys: Tensor
    values: Tensor


class Method(HistoryMethod):
    """Hierarchical sequential transduction units, read by target-aware candidates.

    Source: HSTU, arXiv 2402.17152. A layer on a sequence X (section 3.2, equations 1 to 3):

    - ``U, V, Q, K = split(SiLU(W1 LN(X) + b1))``,
    - ``A_ij = SiLU(Q_i K_j + p[i - j] + t[bucket(time_i - time_j)]) / n`` for ``j <= i``,
    - ``Y = X + W2 (LN(A V) * U) + b2``.

    ``n`` is the number of events that i sees; the paper divides by the longest sequence. The
    norm that follows takes the factor out again, so only its epsilon tells them apart.

    A candidate is the last token of ``[history, candidate]``: of age zero, right after the
    newest event; its last state is the interest. As in the paper's M-FALCON, all candidates
    are queries against the events' keys and values of each layer, computed once, and do not
    see each other: exactly what one sequence per candidate gives.

    ``compresses``: keys and values of ``max_events`` events in ``layers`` layers are bounded.

    Left out: actions as tokens between items (an event's embedding already sums item, type
    and age), stochastic length (the newest ``max_events`` are kept instead), dropout, and the
    generative loss over all positions.

    Weights start at random, except that queries and keys start with the same ones, so that
    events like the candidate score high from the first step, and W2 as the identity.

    Parameters: M (5 d^2 + 9 d + max_events + 1 + 128), with d = 32 and the defaults 11,586.

    Cost: R layers x events x (5 d^2 + events d) a request, O(M (d^2 + E d)) a candidate.

    Raises:
        UserError: ``heads`` is no divisor of the width.
    """

    Config: ClassVar[type[Strict]] = HSTUConfig
    compresses = True
    search: ClassVar[dict[str, list[Any]]] = {
        "max_events": [64, 256, 512],
        "layers": [1, 2],
        "heads": [1, 2, 4],
    }

    def __init__(self, config: HSTUConfig, shape: MethodShape) -> None:
        super().__init__(config, shape)
        if shape.dim % config.heads:
            raise UserError(
                f"history.heads = {config.heads} does not divide tables.dim = {shape.dim}; "
                "choose a divisor of tables.dim"
            )
        self.config = config
        self.layers = nn.ModuleList(
            Unit(shape.dim, config.heads, config.max_events) for _ in range(config.layers)
        )

    @property
    def _units(self) -> list[Unit]:
        return cast("list[Unit]", list(self.layers))

    def compress(self, history: History) -> SequenceMemory:
        """Run the newest events through the layers; keep each layer's keys and values."""
        rows, offsets = crop(history.offsets, self.config.max_events, "last")
        events, age = history.take(rows), history.age[rows]
        sequence = Rows(offsets, places(offsets, len(rows)))
        pairs = make_pairs(sequence, sequence)
        bias = TimedPairs(age, age, pairs)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        *others, last = self._units
        for layer in others:
            gate, value, query, key = layer.split(events)
            keys.append(key)
            values.append(value)
            given = Attending(query, key, value, key, value)
            events = layer.finish(events, gate, given, bias, sequence.position)
        # Nobody reads the events' last states.
        value, key = last.values_keys(events)
        keys.append(key)
        values.append(value)
        return SequenceMemory(
            offsets, age, torch.stack(keys).flatten(2), torch.stack(values).flatten(2)
        )

    def read(self, memory: SequenceMemory, candidates: Candidates) -> Tensor:
        """[N, 1, d]: the last state of every candidate behind its request's events."""
        age = memory.age.new_zeros(len(candidates.request))
        events = Rows(memory.offsets, places(memory.offsets, len(memory.age)))
        queries = Rows(candidates.offsets, memory.offsets.diff()[candidates.request])
        bias = TimedPairs(age, memory.age, make_pairs(queries, events))
        tokens = candidates.values
        for layer, key, value in zip(self._units, memory.keys, memory.values, strict=True):
            gate, own_value, query, own_key = layer.split(tokens)
            heads = query.shape[1:]
            given = Attending(
                query, own_key, own_value, key.unflatten(1, heads), value.unflatten(1, heads)
            )
            tokens = layer.finish(tokens, gate, given, bias, queries.position)
        return tokens.unsqueeze(1)


class TimedPairs:
    """Pairs of blocks with the time between their rows.

    Args:
        query_age: [A].
        key_age: [T].
        pairs: of A queries and T keys.
    """

    def __init__(self, query_age: Tensor, key_age: Tensor, pairs: Pairs) -> None:
        self.pairs = pairs
        self._query = pairs.queries.gather(query_age)
        self._key = pairs.keys.gather(key_age)

    def passed(self, part: Pairs) -> Tensor:
        """[P, B, B]: time from key to query, a new tensor."""
        return self._key[part.key].unsqueeze(1) - self._query[part.query].unsqueeze(2)


class Unit(nn.Module):
    """One layer.

    Args:
        dim: d.
        heads: H.
        max_events: longest distance of positions.
    """

    def __init__(self, dim: int, heads: int, max_events: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.split_in_four = nn.Linear(dim, 4 * dim)
        self.norm_attended = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim)
        self.position_bias = nn.Parameter(torch.zeros(max_events + 1))
        self.time_bias = nn.Parameter(torch.zeros(TIME_BUCKETS))
        with torch.no_grad():
            query, key = self.split_in_four.weight[2 * dim :].chunk(2)
            key.copy_(query)
        nn.init.eye_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gate [A, d], and value, query, key, each [A, H, d/H]."""
        parts = nn.functional.silu(self.split_in_four(self.norm(tokens)))
        gate, *rest = parts.chunk(4, dim=-1)
        value, query, key = (part.unflatten(-1, (self.heads, -1)) for part in rest)
        return gate, value, query, key

    def values_keys(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Value and key of :meth:`split` alone, in half the time."""
        normed = self.norm(tokens)
        _, value, _, key = zip(
            self.split_in_four.weight.chunk(4), self.split_in_four.bias.chunk(4), strict=True
        )
        weight, bias = (torch.cat(pair) for pair in zip(value, key, strict=True))
        parts = nn.functional.silu(nn.functional.linear(normed, weight, bias))
        first, second = parts.unflatten(-1, (2, self.heads, -1)).unbind(-3)
        return first, second

    def finish(
        self, tokens: Tensor, gate: Tensor, given: Attending, timed: TimedPairs, position: Tensor
    ) -> Tensor:
        """[A, d]: attend, norm, gate, project, and add to the tokens."""
        attended = pointwise_attention(
            given,
            timed.pairs,
            lambda part, distance: self.bias(distance, timed.passed(part)),
            self.position_bias[0] + self.time_bias[0],
        )
        seen = (position + 1).unsqueeze(1)
        updated: Tensor = tokens + self.out(self.norm_attended(attended.flatten(1) / seen) * gate)
        return updated

    def bias(self, distance: Tensor, passed: Tensor) -> Tensor:
        """[P, B, B] of distances in positions and time; HIDDEN where the former are below 1."""
        largest = len(self.position_bias) - 1
        with torch.no_grad():
            bucket = passed.clamp_min_(1).log_().div_(_BUCKET_WIDTH).clamp_max_(TIME_BUCKETS - 1)
            row = distance.clamp(0, largest).mul_(TIME_BUCKETS).add_(bucket.to(torch.int32))
        # One look-up in a table of all sums. index_select, because its gradient is one
        # index_add; that of indexing sorts.
        seen = self.position_bias[1:].unsqueeze(1) + self.time_bias
        both = torch.cat([torch.full_like(self.time_bias, HIDDEN).unsqueeze(0), seen])
        return both.flatten().index_select(0, row.flatten()).view(distance.shape)
