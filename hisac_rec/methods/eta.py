"""ETA: the events whose sign hashes differ least from the candidate's, then attention.

Legend: R requests, T events, N candidates, m hash bits, k retrieved events, d width.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from hisac_rec.config import Strict
from hisac_rec.methods.base import Candidates, History, HistoryMethod, MethodShape
from hisac_rec.methods.parts.hashing import hyperplanes, sign_bits
from hisac_rec.methods.parts.nearest import IndexedEvents, nearest_events
from hisac_rec.methods.parts.retrieved import RetrievedAttention, take_events


class ETAConfig(Strict):
    """``[history]`` keys of ``method = "eta"``."""

    top_k: int = Field(default=64, gt=0)
    """Events retrieved for each candidate."""
    bits: int = Field(default=64, gt=0)
    """Length m of a fingerprint. The distance has a resolution of m steps, so few bits leave
    many events equally far (the newest of them are taken)."""
    heads: int = Field(default=2, gt=0)
    """Heads of the attention over the retrieved events; a divisor of tables.dim."""
    hash_seed: int = Field(default=0, ge=0)
    """Seed of the random hyperplanes, which are frozen."""


class Method(HistoryMethod):
    """End-to-end target attention: hashing replaces a trained retrieval.

    Fingerprints ``h(e) = sign(e H)`` of m bits with a frozen random H; the k events of the
    smallest Hamming distance to the candidate's fingerprint; multi-head target attention
    over them. The fingerprints follow the embeddings as they are trained, so both stages
    look for the same similarity without an auxiliary loss. No gradient flows through the
    retrieval.

    Source: End-to-End User Behavior Retrieval in Click-Through Rate Prediction Model,
    arXiv 2108.04468. Left out: fingerprints packed into machine words and compared by
    popcount, which torch does not have (here m - 2 * distance is a product of signs, exact in
    fp32, so O(m) and not O(1) for each candidate and event); the second attention over the
    short sequence, which the ranker has in a form of its own for every method.
    """

    Config: ClassVar[type[Strict]] = ETAConfig
    search: ClassVar[dict[str, list[Any]]] = {
        "top_k": [32, 64, 128],
        "bits": [32, 64, 128],
        "heads": [1, 2, 4],
    }

    planes: Tensor

    def __init__(self, config: ETAConfig, shape: MethodShape) -> None:
        super().__init__(config, shape)
        self.top_k = config.top_k
        self.register_buffer("planes", hyperplanes(shape.dim, config.bits, config.hash_seed))
        self.attention = RetrievedAttention(shape.dim, config.heads)

    def fingerprints(self, rows: Tensor) -> Tensor:
        """[x, d] -> [x, m] signs, -1 or 1. O(x d m)."""
        return sign_bits(rows, self.planes).to(self.planes.dtype) * 2 - 1

    def compress(self, history: History) -> IndexedEvents:
        """The events beside their fingerprints. O(T d m)."""
        return IndexedEvents(history.offsets, history.values, self.fingerprints(history.values))

    def read(self, memory: IndexedEvents, candidates: Candidates) -> Tensor:
        """[N, 1, d]. O(N L m) for the distances and O(N (d^2 + k d)) for the attention."""
        queries = self.fingerprints(candidates.values)
        rows, filled = nearest_events(queries, candidates.offsets, memory, self.top_k)
        events = take_events(memory.values, rows, filled)
        return self.attention(candidates.values, events, filled).unsqueeze(1)
