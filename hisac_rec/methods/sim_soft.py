"""SIM with soft search: a trained inner product retrieves, then target attention.

Legend: R requests, T events, N candidates, k retrieved events, d width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from hisac_rec.config import Strict
from hisac_rec.methods.base import Candidates, History, HistoryMethod, MethodShape
from hisac_rec.methods.parts.blocks import block_size, make_blocks
from hisac_rec.methods.parts.nearest import IndexedEvents, nearest_events
from hisac_rec.methods.parts.retrieved import RetrievedAttention, take_events


class SIMSoftConfig(Strict):
    """``[history]`` keys of ``method = "sim_soft"``."""

    top_k: int = Field(default=64, gt=0)
    """Events retrieved for each candidate."""
    heads: int = Field(default=2, gt=0)
    """Heads of the attention over the retrieved events; a divisor of tables.dim."""
    auxiliary_weight: float = Field(default=1.0, gt=0)
    """Weight of the search unit's own loss beside the ranker's (alpha / beta in the paper,
    which has both 1). It is all that trains the retrieval, so it cannot be 0."""


class Method(HistoryMethod):
    """Search-based interest model with the soft general search unit.

    Search: ``r_i = (W_a q) (W_b e_i)``; the k events of the largest r_i, without gradient.
    Attention: multi-head over those. Auxiliary loss, which trains W_a and W_b:
    ``U_r = 1/L sum over i of r_i e_i`` over all events, then an MLP of [U_r, q] to a logit
    against the same labels. The 1/L is not in the paper: sums over ten and ten thousand
    events would not fit one MLP.

    r_i is linear in q, so ``U_r = M W_a q`` with ``M = 1/L sum e_i (W_b e_i)^T``, a d x d
    matrix computed once per request: the auxiliary loss sees every event at O(T d^2 + N d^2)
    and not O(N L d). The paper samples a part of the history instead.

    Source: Search-based User Interest Modeling with Lifelong Sequential Behavior Data for
    Click-Through Rate Prediction, arXiv 2006.05639. Left out: the
    approximate index (retrieval is exact here) and the embeddings of the search unit kept
    apart from the ranker's; time intervals are part of every event e' already.
    """

    Config: ClassVar[type[Strict]] = SIMSoftConfig
    search: ClassVar[dict[str, list[Any]]] = {
        "top_k": [32, 64, 128],
        "heads": [1, 2, 4],
        "auxiliary_weight": [0.1, 0.3, 1.0],
    }

    def __init__(self, config: SIMSoftConfig, shape: MethodShape) -> None:
        super().__init__(config, shape)
        dim = shape.dim
        self.top_k = config.top_k
        self.auxiliary_weight = config.auxiliary_weight
        self.search_query = nn.Linear(dim, dim, bias=False)
        self.search_key = nn.Linear(dim, dim, bias=False)
        # As in the attention: similarity of rows is meaningful from the first step.
        for layer in (self.search_query, self.search_key):
            nn.init.eye_(layer.weight)
        self.attention = RetrievedAttention(dim, config.heads)
        self.judge = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, 1))

    def compress(self, history: History) -> IndexedEvents:
        """The events beside their search keys W_b e_i. O(T d^2)."""
        return IndexedEvents(history.offsets, history.values, self.search_key(history.values))

    def read(self, memory: IndexedEvents, candidates: Candidates) -> Tensor:
        """[N, 1, d]. O(N L d) for the search and O(N (d^2 + k d)) for the attention."""
        queries = self.search_query(candidates.values)
        rows, filled = nearest_events(queries, candidates.offsets, memory, self.top_k)
        events = take_events(memory.values, rows, filled)
        return self.attention(candidates.values, events, filled).unsqueeze(1)

    def auxiliary(self, memory: IndexedEvents, candidates: Candidates) -> Tensor:
        """[N] logits of the search unit. O(T d^2 + N d^2)."""
        interest = self.search_interest(memory, candidates)
        return self.judge(torch.cat([interest, candidates.values], dim=1)).squeeze(1)

    def search_interest(self, memory: IndexedEvents, candidates: Candidates) -> Tensor:
        """[N, d] of U_r: all events, each weighted by r_i / L. O(T d^2 + N d^2)."""
        requests = len(memory.offsets) - 1
        size = block_size(len(memory.values), requests)
        blocks = make_blocks(memory.offsets, size)
        keys = blocks.gather(memory.keys) * blocks.mask.unsqueeze(-1)
        parts = blocks.gather(memory.values).to(keys.dtype).transpose(1, 2) @ keys
        # A GPU would add in the parts' own type, and a bf16 sum of many parts stops growing.
        wide = torch.promote_types(parts.dtype, torch.float32)
        products = parts.new_zeros((requests, self.dim, self.dim), dtype=wide)
        products = products.index_add(0, blocks.request, parts.to(wide))
        products = products / memory.offsets.diff().clamp_min(1).view(-1, 1, 1)
        size = block_size(len(candidates.values), requests, smallest=1, largest=64)
        wanted = make_blocks(candidates.offsets, size)
        queries = wanted.gather(self.search_query(candidates.values)).to(wide)
        interest = queries @ products.transpose(1, 2)[wanted.request]
        return wanted.rows(interest).to(candidates.values.dtype)
