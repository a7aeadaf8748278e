"""Target attention over the newest events alone: what truncating a history leaves.

Legend: R requests, T events, S newest events kept, N candidates, d width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hisac_rec.config import Strict
from hisac_rec.methods.base import Candidates, History, HistoryMethod, MethodShape
from hisac_rec.methods.parts.attention import CandidateAttention


class RecentConfig(Strict):
    """``[history]`` keys of ``method = "recent"``."""

    events: int = Field(default=50, gt=0)
    """How many newest events a candidate attends to."""
    heads: int = Field(default=2, gt=0)
    """Heads of the candidate attention; a divisor of tables.dim."""


class Method(HistoryMethod):
    """The same candidate attention as HiSAC's, over the S newest events instead of agents."""

    Config: ClassVar[type[Strict]] = RecentConfig
    compresses = True
    search: ClassVar[dict[str, list[Any]]] = {"events": [10, 20, 50], "heads": [1, 2, 4]}

    def __init__(self, config: RecentConfig, shape: MethodShape) -> None:
        super().__init__(config, shape)
        self.events = config.events
        self.attention = CandidateAttention(shape.dim, config.heads)

    def compress(self, history: History) -> tuple[Tensor, Tensor]:
        """([R, S, d] newest events, newest first; [R, S] filled). O(R S d)."""
        return newest_events(history, self.events)

    def read(self, memory: tuple[Tensor, Tensor], candidates: Candidates) -> Tensor:
        """[N, 1, d]."""
        events, filled = memory
        interest = self.attention(candidates.values, candidates.offsets, events, filled, None)
        return interest.unsqueeze(1)


def newest_events(history: History, count: int) -> tuple[Tensor, Tensor]:
    """The newest ``count`` events of each request as a dense tensor.

    Padding is bounded by ``count``, whatever the longest history is.

    Returns:
        events [R, S, d], newest first, zeros where a history is shorter; filled [R, S] bool.
    """
    ends = history.offsets[1:].unsqueeze(1)
    rows = ends - 1 - torch.arange(count, device=ends.device)
    filled = rows >= history.offsets[:-1].unsqueeze(1)
    if not history.num_events:
        # The sum of nothing keeps the zeros in the graph: what made the (absent) events gets
        # a gradient on a rank without data too, or data-parallel training waits for it.
        none = history.take(rows.new_zeros(0))
        return none.new_zeros((*filled.shape, none.shape[1])) + none.sum(), filled
    events = history.take(rows.clamp_min(0).flatten()).unflatten(0, rows.shape)
    return events * filled.unsqueeze(-1), filled
