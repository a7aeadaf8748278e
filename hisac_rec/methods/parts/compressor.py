"""What the rival compressors share: a budget of agents, the reading, means of parts.

A compressor gives at most ``agents`` agents a request; candidates read them as they read
HiSAC's (:mod:`hisac_rec.methods.parts.agents`), so that only the compression differs.

Legend: R requests, T events, K agent slots, N candidates, V interest vectors, d width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from hisac_rec.config import Strict
from hisac_rec.methods.base import Candidates, History, HistoryMethod, MethodShape, request_of_rows
from hisac_rec.methods.parts.agents import AgentMemory, AgentReader, ReaderConfig


class CompressorConfig(ReaderConfig):
    """``[history]`` keys of every rival compressor."""

    agents: int = Field(default=128, gt=0)
    """The budget: at most this many agents a request. 128 is what HiSAC's default
    ``keep = [16, 8]`` allows."""


class Compressor(HistoryMethod):
    """A method whose ``compress`` gives an :class:`AgentMemory`, read as HiSAC's is."""

    Config: ClassVar[type[Strict]] = CompressorConfig
    compresses: bool = True
    memory = AgentMemory
    search: ClassVar[dict[str, list[Any]]] = {"heads": [1, 2, 4], "weight_power": [0.0, 0.5, 1.0]}

    def __init__(self, config: CompressorConfig, shape: MethodShape) -> None:
        super().__init__(config, shape)
        self.config = config
        self.reader = AgentReader(config, shape.dim)
        self.interests = self.reader.interests

    def read(self, memory: AgentMemory, candidates: Candidates) -> Tensor:
        """[N, V, d]: target attention over the agents; their mean beside it."""
        interests: Tensor = self.reader(memory, candidates)
        return interests


def mean_agents(history: History, slot: Tensor) -> AgentMemory:
    """One agent for each part of a partition of the events: their mean, weighted by their count.

    Gradients reach the events through the means; the partition itself is given.

    Args:
        history: its values are read.
        slot: [T] int64 part of each event within its request, from 0.

    Returns:
        K is the largest slot in use plus 1; slots without events are unfilled.
        O(T d + R K d).
    """
    requests = history.num_requests
    slots = int(slot.max()) + 1 if len(slot) else 1
    place = request_of_rows(history.offsets, len(slot)) * slots + slot
    events = torch.bincount(place, minlength=requests * slots).view(requests, slots)
    sums = history.sums(place, requests * slots).unflatten(0, (requests, slots))
    return AgentMemory(
        vectors=sums / events.clamp_min(1).unsqueeze(-1),
        filled=events > 0,
        events=events.to(torch.float32),
    )
