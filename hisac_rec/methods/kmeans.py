"""Per-user k-means: a compressor that gives every cluster of a history one agent.

Source: the "K-Means + MHA" baseline of HiSAC (arXiv 2602.21009), which names the algorithm
and the budget alone. Left to us: k-means of each user's history by itself, on frozen semantic
points; seeds and iterations as :func:`hisac_rec.methods.parts.lloyd.lloyd` says, without
random restarts.

Legend: R requests, P points, K agents, s width of a point.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from hisac_rec.config import Strict
from hisac_rec.methods.base import MethodShape
from hisac_rec.methods.parts.lloyd import lloyd
from hisac_rec.methods.parts.points import PartitionCompressor, Points, PointsConfig


class KMeansConfig(PointsConfig):
    """``[history]`` keys of ``method = "kmeans"``."""

    iterations: int = Field(default=5, ge=0)
    """Lloyd iterations; 0 gives every event to the nearest of the evenly spaced seeds."""


class Method(PartitionCompressor):
    """min(agents, points) clusters a request; agent = mean of a cluster's event embeddings."""

    Config: ClassVar[type[Strict]] = KMeansConfig
    search: ClassVar[dict[str, list[Any]]] = {**PartitionCompressor.search, "iterations": [1, 5]}

    def __init__(self, config: KMeansConfig, shape: MethodShape) -> None:
        super().__init__(config, shape)
        self.config: KMeansConfig = config

    def assign(self, points: Points) -> Tensor:
        """[P] cluster of each point. O(iterations P K s)."""
        counts = points.offsets.diff().clamp_max(self.config.agents)
        return lloyd(points.vectors, points.weights, points.offsets, counts, self.config.iterations)
