"""What every compressor shares: a memory of weighted agents, and how candidates read it.

Compressors differ in how events become agents, never in how agents are read, so a comparison
of them at equal budget compares the compression alone.

Legend: R requests, K agent slots, N candidates, V interest vectors, d width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hisac_rec.config import Strict
from hisac_rec.methods.base import Candidates
from hisac_rec.methods.parts.attention import CandidateAttention, Kinship


class ReaderConfig(Strict):
    """``[history]`` keys of every compressor: how candidates read the agents."""

    heads: int = Field(default=2, gt=0)
    """Heads of the candidate attention; a divisor of tables.dim."""
    agent_weight: Literal["bias", "none"] = "bias"
    """Where the agents' weights w_a enter: "bias" adds log w_a to the candidate attention's
    scores, "none" leaves them out."""
    weight_power: float = Field(default=1.0, ge=0)
    """Softness of the weights: w_a is (events behind the agent) ** weight_power, normalised
    per request."""
    profile: bool = True
    """Give the ranker the mean of the agents, weighted by the events behind them, as a second
    interest vector beside the attended one. It is the same for all candidates and says what
    the attended one forgets: what the rest of the history is like."""


@dataclass
class AgentMemory:
    """What a request's history is compressed to; this is what a cache holds.

    Args:
        vectors: [R, K, d] agents; zeros where unfilled.
        filled: [R, K] bool.
        events: [R, K] float32 events behind each agent; 0 where unfilled.
    """

    vectors: Tensor
    filled: Tensor
    events: Tensor


class AgentReader(nn.Module):
    """Target attention over weighted agents, and their mean beside it.

    Args:
        config: the reader's keys.
        dim: d.
    """

    def __init__(self, config: ReaderConfig, dim: int) -> None:
        super().__init__()
        self.biased = config.agent_weight == "bias"
        self.power = config.weight_power
        self.profile = config.profile
        self.interests = 1 + int(config.profile)
        self.attention = CandidateAttention(dim, config.heads)

    def forward(
        self,
        memory: AgentMemory,
        candidates: Candidates,
        kinship: Kinship | None = None,
    ) -> Tensor:
        """[N, V, d]: the attended vector, then the profile. O(R K d^2 + N d^2 + N K d).

        Args:
            memory: the agents.
            candidates: who reads.
            kinship: see :class:`CandidateAttention`.
        """
        bias = log_weights(memory, self.power) if self.biased else None
        attended = self.attention(
            candidates.values, candidates.offsets, memory.vectors, memory.filled, bias, kinship
        )
        if not self.profile:
            return attended.unsqueeze(1)
        share = memory.events / memory.events.sum(1, keepdim=True).clamp_min(1)
        profile = torch.einsum("rk,rkd->rd", share.to(memory.vectors.dtype), memory.vectors)
        return torch.stack([attended, profile.index_select(0, candidates.request)], dim=1)


def log_weights(memory: AgentMemory, power: float) -> Tensor:
    """[R, K] log of events ** power, normalised per request; 0 where unfilled."""
    scores = power * memory.events.clamp_min(torch.finfo(memory.events.dtype).tiny).log()
    scores = scores.masked_fill(~memory.filled, float("-inf"))
    # A request without agents has only -inf: log_softmax gives nan there, masked here.
    return torch.where(memory.filled, scores.log_softmax(dim=-1), 0.0)
