"""SIM with hard search: target attention over the newest events of the candidate's category.

Legend: R requests, T events, N candidates, k retrieved events, H heads, D levels, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hisac_rec.config import Strict
from hisac_rec.errors import UserError
from hisac_rec.methods.base import Candidates, History, HistoryMethod, MethodShape, request_of_rows
from hisac_rec.methods.hisac.leaves import path_numbers
from hisac_rec.methods.parts.retrieved import RetrievedAttention, take_events

SEMANTIC = "sid"
MAX_CATEGORIES = 2**31


class SIMHardConfig(Strict):
    """``[history]`` keys of ``method = "sim_hard"``."""

    category: str = "sid"
    """What a category is: the name of a single-valued item feature, or "sid": the first
    ``levels`` codes of the semantic id."""
    levels: int = Field(default=1, gt=0)
    """How many codes are the category where ``category = "sid"``."""
    top_k: int = Field(default=64, gt=0)
    """How many events a candidate attends to: the newest of its category."""
    heads: int = Field(default=2, gt=0)
    """Heads of the attention; a divisor of tables.dim."""


@dataclass
class CategoryIndex:
    """A history sorted by (request, category), newest last.

    Args:
        keys: [T] int64 ascending: request and category in one number.
        values: [T, d] events in that order.
    """

    keys: Tensor
    values: Tensor


class Method(HistoryMethod):
    """General search by category (hard), exact search by multi-head target attention.

    Source: Search-based Interest Model, arXiv 2006.05639, sections 3.1 (hard-search) and
    3.2. The time interval that the paper concatenates to each event is in the event
    embedding already (ranker.age_buckets). The attention has a learned null slot, which the
    paper has not: it defines the result for a category without events. Left out: the
    auxiliary loss of the search unit, which has no parameters with hard search.

    The index is sorted once per request and does not depend on the candidate; a candidate
    finds its range by bisection. O(T log T + N log T + N k H d), no pair is scored in vain.

    Raises:
        UserError: ``category = "sid"`` without a codebook, or with fewer levels than asked.
    """

    Config: ClassVar[type[Strict]] = SIMHardConfig
    search: ClassVar[dict[str, list[Any]]] = {"levels": [1, 2], "top_k": [32, 64, 128]}

    def __init__(self, config: SIMHardConfig, shape: MethodShape) -> None:
        super().__init__(config, shape)
        self.category = config.category
        self.top_k = config.top_k
        self.code_counts: tuple[int, ...] = ()
        if config.category == SEMANTIC:
            self.code_counts = _first_levels(shape, config.levels)
        self.attention = RetrievedAttention(shape.dim, config.heads)

    @classmethod
    def item_features(cls, config: SIMHardConfig) -> tuple[str, ...]:
        return () if config.category == SEMANTIC else (config.category,)

    def compress(self, history: History) -> CategoryIndex:
        """Sort the events. O(T log T + T d)."""
        request = request_of_rows(history.offsets, history.num_events)
        keys = self._keys(request, history.codes, history.features)
        # Stable: events of a category stay oldest first.
        keys, order = keys.sort(stable=True)
        return CategoryIndex(keys, history.take(order))

    def read(self, memory: CategoryIndex, candidates: Candidates) -> Tensor:
        """[N, 1, d]: attention over the newest k events of the same key."""
        wanted = self._keys(candidates.request, candidates.codes, candidates.features)
        first = torch.searchsorted(memory.keys, wanted).unsqueeze(1)
        end = torch.searchsorted(memory.keys, wanted, right=True).unsqueeze(1)
        rows = end - 1 - torch.arange(self.top_k, device=end.device)
        filled = rows >= first
        events = take_events(memory.values, rows, filled)
        return self.attention(candidates.values, events, filled).unsqueeze(1)

    def _keys(self, request: Tensor, codes: Tensor, features: dict[str, Tensor]) -> Tensor:
        """[x] int64: equal for equal requests and categories, ascending with the request."""
        category = (
            path_numbers(codes, self.code_counts) if self.code_counts else features[self.category]
        )
        return request * MAX_CATEGORIES + category


def _first_levels(shape: MethodShape, levels: int) -> tuple[int, ...]:
    """Codes of the first levels, checked."""
    if not shape.codebook:
        raise UserError(
            "history.category = 'sid' needs semantic ids; run 'hisac-rec semantic-ids' first, "
            "or name an item feature in history.category"
        )
    if levels > len(shape.codebook):
        raise UserError(
            f"history.levels = {levels}: the codebook has {len(shape.codebook)} levels; "
            "choose at most as many"
        )
    counts = tuple(len(words) for words in shape.codebook[:levels])
    if prod(counts) > MAX_CATEGORIES:
        raise UserError(
            f"history.levels = {levels}: {prod(counts):,} categories; choose fewer levels"
        )
    return counts
