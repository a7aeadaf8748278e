"""MUSE: frozen content embeddings retrieve, tell how similar the history is, and attend.

Legend: R requests, T events, N candidates, B tiers, k retrieved events, H heads, d width,
s width of content embeddings.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from hisac_rec.config import Strict
from hisac_rec.data.inputs import Side
from hisac_rec.methods.base import Candidates, History, HistoryMethod, MethodShape
from hisac_rec.methods.parts.nearest import IndexedEvents, nearest_events
from hisac_rec.methods.parts.retrieved import RetrievedAttention, take_events
from hisac_rec.methods.parts.tiers import count_all, count_taken, taken_products


class MUSEConfig(Strict):
    """``[history]`` keys of ``method = "muse"``."""

    top_k: int = Field(default=64, gt=0)
    """Events retrieved for each candidate by content."""
    heads: int = Field(default=2, gt=0)
    """Heads of the attention over the retrieved events; a divisor of tables.dim."""
    tiers: int = Field(default=20, gt=1, le=1000)
    """Tiers of equal width that SimTier cuts the cosine's range -1..1 into. The paper's code
    has tiers of 0.1."""
    tier_events: Literal["retrieved", "all"] = "retrieved"
    """Whose similarities SimTier counts: the retrieved events as in the paper, or the whole
    history's, which also tells how much of it is unlike the candidate."""
    temperature: float = Field(default=0.1, gt=0)
    """The content score is cosine / temperature, before its learned weight g2."""


class Method(HistoryMethod):
    """Multimodal search-based framework: semantics in both stages.

    1. Search: the k events whose frozen content embedding has the largest cosine with the
       candidate's.
    2. SimTier: how many similarities fall into each tier; log(1 + count) through an MLP is a
       second interest vector.
    3. Semantic-aware target attention over the retrieved: with s_id the scaled dot product of
       a head and s_c = cosine / temperature, the score is ``g1 s_id + g2 s_c + g3 s_id s_c``
       with learned scalars for each head, starting at (1, 1, 0). Values are ranking
       embeddings.

    Content embeddings are the data set's semantic vectors; no gradient reaches them. An item
    without one (zeros) has cosine 0 with everything.

    Source: MUSE, arXiv 2512.07216; SimTier is from arXiv 2407.19467. Left out: training the
    content encoder (semantic-aware contrastive learning), and the same machinery over the
    short sequence, which the ranker has in a form of its own for every method.
    """

    Config: ClassVar[type[Strict]] = MUSEConfig
    search: ClassVar[dict[str, list[Any]]] = {
        "top_k": [32, 64, 128],
        "heads": [1, 2, 4],
        "tier_events": ["retrieved", "all"],
        "temperature": [0.05, 0.1, 0.3, 1.0],
    }

    def __init__(self, config: MUSEConfig, shape: MethodShape) -> None:
        super().__init__(config, shape)
        self.config = config
        self.interests = 2
        self.attention = RetrievedAttention(shape.dim, config.heads)
        self.mixture = nn.Parameter(torch.tensor([1.0, 1.0, 0.0]).repeat(config.heads, 1))
        self.similarity = nn.Sequential(
            nn.Linear(config.tiers, shape.dim), nn.ReLU(), nn.Linear(shape.dim, shape.dim)
        )

    @classmethod
    def vector_sides(cls, config: MUSEConfig) -> tuple[Side, ...]:
        return ("history", "candidate")

    def compress(self, history: History) -> IndexedEvents:
        """The events beside their content embeddings at unit length. O(T s)."""
        return IndexedEvents(history.offsets, history.values, _unit(history.vectors, history))

    def read(self, memory: IndexedEvents, candidates: Candidates) -> Tensor:
        """[N, 2, d]: the attended vector, then the vector of the tiers.

        O(N L s) for the search, O(N (d^2 + k (s + d))) for the rest.
        """
        queries = _unit(candidates.vectors, candidates)
        rows, filled = nearest_events(queries, candidates.offsets, memory, self.config.top_k)
        cosine = taken_products(queries, memory.keys, rows, filled)
        events = take_events(memory.values, rows, filled)
        scores = self._scores(self.attention.scores(candidates.values, events), cosine)
        attended = self.attention(candidates.values, events, filled, scores)
        if self.config.tier_events == "all":
            counts = count_all(queries, candidates.offsets, memory, self.config.tiers)
        else:
            counts = count_taken(cosine, filled, self.config.tiers)
        return torch.stack([attended, self.similarity(counts.to(attended.dtype).log1p())], dim=1)

    def _scores(self, by_id: Tensor, cosine: Tensor) -> Tensor:
        """[N, H, k] of both kinds of similarity: [N, H, k] and [N, k]."""
        content = (cosine / self.config.temperature).unsqueeze(1)
        g1, g2, g3 = self.mixture.unsqueeze(-1).unbind(1)
        return g1 * by_id + g2 * content + g3 * by_id * content


def _unit(vectors: Tensor | None, rows: History | Candidates) -> Tensor:
    """[x, s] at unit length, in the type of the embeddings; zeros stay zeros."""
    if vectors is None:
        raise ValueError("muse needs the semantic vectors of both sides")
    return functional.normalize(vectors.to(rows.values.dtype), dim=1)
