"""Mean pooling: one vector per request, the same for every candidate.

Legend: R requests, T events, N candidates, d width.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hisac_rec.config import Strict
from hisac_rec.data.bags import FrozenEvents, Grouping, Groups
from hisac_rec.methods.base import (
    Candidates,
    History,
    HistoryMethod,
    MethodShape,
    request_of_rows,
)


class MeanConfig(Strict):
    """``[history]`` keys of ``method = "mean"``: there are none."""


class Method(HistoryMethod):
    """The mean of all event embeddings (YouTube DNN's pooling); zeros without events."""

    Config: ClassVar[type[Strict]] = MeanConfig
    compresses = True

    @classmethod
    def grouping(cls, config: MeanConfig, shape: MethodShape) -> Grouping:
        return by_request

    def compress(self, history: History) -> Tensor:
        """[R, d] mean of the events. O(T d)."""
        request = request_of_rows(history.offsets, history.num_events)
        sums = history.sums(request, history.num_requests)
        return sums / history.offsets.diff().clamp_min(1).unsqueeze(1)

    def read(self, memory: Tensor, candidates: Candidates) -> Tensor:
        """[N, 1, d]: the request's mean. O(N d)."""
        return memory[candidates.request].unsqueeze(1)


def by_request(events: FrozenEvents) -> Groups:
    """One group a request: all its events. O(T)."""
    return Groups(len(events.offsets) - 1, request_of_rows(events.offsets, len(events.codes)))
