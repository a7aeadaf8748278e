"""TWIN: one score finds the events and weighs them.

Legend: R requests, T events, N candidates, k retrieved events, H heads, d width; N L is the
number of (candidate, event) pairs of the same request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from hisac_rec.config import Strict
from hisac_rec.methods.base import Candidates, History, HistoryMethod, MethodShape
from hisac_rec.methods.parts.pairs import Pairs, dot_scores, make_pairs
from hisac_rec.methods.parts.retrieved import RetrievedAttention, take_events
from hisac_rec.methods.parts.top import top_events


class TWINConfig(Strict):
    """``[history]`` keys of ``method = "twin"``."""

    top_k: int = Field(default=64, gt=0)
    """How many events each head of a candidate attends to: its best-scored ones."""
    heads: int = Field(default=2, gt=0)
    """Heads of the attention; a divisor of tables.dim."""
    age_buckets: int = Field(default=32, ge=0)
    """Logarithmic buckets of the event's age, each with a trained number that is added to the
    scores of both stages; 0 leaves the cross features out."""


@dataclass
class ProjectedHistory:
    """What is the same for all candidates of a request.

    Args:
        offsets: [R+1] int64.
        values: [T, d] events.
        keys: [T, H, d/H] projected keys K_h W_h, without gradient: they only find events.
        bias: [T, H] what the cross features add to the scores, or None.
    """

    offsets: Tensor
    values: Tensor
    keys: Tensor
    bias: Tensor | None


class Method(HistoryMethod):
    """``score = (q W_q) (K_h W_h)^T / sqrt(d/H) + (K_c W_c) beta`` in both stages.

    Source: TWIN, arXiv 2302.02352, equations 2 to 6. The general search keeps the k events
    of the highest score, the exact search is a softmax of the same scores over them; each
    head has its own scores and so its own events. Scores are computed twice, once for all
    events without gradient and once for those found, so that memory does not grow with N L.

    K_h, the item's inherent features, is the event embedding, projected once per request
    (the paper's caching of inherent features across users is a matter of serving). Of K_c,
    the features of user and item crossed, there is the event's age, in buckets; the paper
    projects each cross feature to one number and weighs these by beta, which for a bucket is
    one number a head. Age and event type are in the event embedding as well
    (ranker.age_buckets), and so in K_h. The attention has a learned null slot, which the
    paper has not: it defines the result for an empty history.

    O(T d^2) once per request, then O(N L (d + H log k) + N k H d).
    """

    Config: ClassVar[type[Strict]] = TWINConfig
    search: ClassVar[dict[str, list[Any]]] = {
        "top_k": [32, 64, 128],
        "heads": [1, 2, 4],
        "age_buckets": [0, 32],
    }

    def __init__(self, config: TWINConfig, shape: MethodShape) -> None:
        super().__init__(config, shape)
        self.top_k = config.top_k
        self.attention = RetrievedAttention(shape.dim, config.heads)
        self.ages = nn.Embedding(config.age_buckets, config.heads) if config.age_buckets else None
        if self.ages is not None:
            nn.init.zeros_(self.ages.weight)

    def compress(self, history: History) -> ProjectedHistory:
        """Project the keys, look up the cross features. O(T d^2)."""
        with torch.no_grad():
            keys = self.attention.keys(history.values)
        bias = None
        if self.ages is not None:
            bucket = history.age.clamp_min(0).add(1).log2().long()
            bias = self.ages(bucket.clamp_max(self.ages.num_embeddings - 1))
        return ProjectedHistory(history.offsets, history.values, keys, bias)

    def read(self, memory: ProjectedHistory, candidates: Candidates) -> Tensor:
        """[N, 1, d]: find by score, attend by score."""
        rows, filled = self.retrieve(memory, candidates)
        events = take_events(memory.values, rows, filled)
        scores = self.attention.scores(candidates.values, events)
        if memory.bias is not None:
            scores = scores + _of_heads(memory.bias, rows, filled)
        interest = self.attention(candidates.values, events, filled, scores)
        return interest.unsqueeze(1)

    @torch.no_grad()
    def retrieve(self, memory: ProjectedHistory, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """[N, H, k] rows of the best-scored events of each head, and which are filled."""
        queries = self.attention.queries(candidates.values)
        count, total = len(candidates.values), len(memory.values)
        pairs = make_pairs(candidates.offsets, memory.offsets, count, total)

        def score(part: Pairs) -> Tensor:
            scores = dot_scores(part, queries, memory.keys)
            if memory.bias is not None:
                scores = scores + part.of_events(memory.bias).transpose(1, 2).unsqueeze(2)
            return scores

        _, candidate_size, event_size = pairs.shape
        per_pair = 2 * self.attention.heads * candidate_size * event_size
        return top_events(pairs, score, self.top_k, elements_per_pair=per_pair)


def _of_heads(table: Tensor, rows: Tensor, filled: Tensor) -> Tensor:
    """[T, H] at [N, H, k] rows -> [N, H, k], each head its own column."""
    first = torch.arange(table.shape[1], device=rows.device) * table.shape[0]
    return take_events(table.t().flatten(), rows + first.unsqueeze(1), filled)
