"""LSH buckets: a compressor that gives every occupied sign-hash bucket one agent.

Source: the "LSH + MHA" baseline of HiSAC (arXiv 2602.21009), which names the algorithm and
the budget alone; the hash is SimHash (Charikar, STOC 2002): the signs of random projections,
so that vectors fall together with a probability that grows with their cosine.

There are floor(log2 agents) bits, so the buckets never exceed the budget and none has to be
dropped or merged; a budget that is no power of two is not used up. Left out: several hash
tables, and the lookup of the candidate's own bucket (that is SDIM, a method of its own).

Legend: R requests, P points, b bits, s width of a point.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from hisac_rec.config import Strict
from hisac_rec.methods.base import MethodShape
from hisac_rec.methods.parts.points import PartitionCompressor, Points, PointsConfig


class LSHConfig(PointsConfig):
    """``[history]`` keys of ``method = "lsh"``."""

    centred: bool = True
    """Subtract the mean of the request's own events before hashing. Off, the hash is one for
    all users, and histories whose vectors share a direction fill few buckets."""
    hash_seed: int = 0
    """Seed of the random hyperplanes; they are stored in checkpoints."""


class Method(PartitionCompressor):
    """At most 2 ** floor(log2 agents) buckets a request; agent = mean of a bucket's events."""

    Config: ClassVar[type[Strict]] = LSHConfig
    search: ClassVar[dict[str, list[Any]]] = {
        **PartitionCompressor.search,
        "centred": [True, False],
    }

    planes: Tensor

    def __init__(self, config: LSHConfig, shape: MethodShape) -> None:
        super().__init__(config, shape)
        self.centred = config.centred
        bits = config.agents.bit_length() - 1
        generator = torch.Generator().manual_seed(config.hash_seed)
        self.register_buffer("planes", torch.randn(self.point_dim, bits, generator=generator))

    def assign(self, points: Points) -> Tensor:
        """[P] bucket of each point. O(P s b)."""
        vectors = points.vectors
        if self.centred:
            request, weights = points.request, points.weights.unsqueeze(1)
            requests = len(points.offsets) - 1
            sums = vectors.new_zeros((requests, vectors.shape[1]))
            sums.index_add_(0, request, vectors * weights)
            mass = weights.new_zeros((requests, 1)).index_add_(0, request, weights)
            vectors = vectors - (sums / mass.clamp_min(1))[request]
        signs = (vectors @ self.planes.to(vectors.dtype)) >= 0
        values = 1 << torch.arange(signs.shape[1], device=signs.device)
        return (signs * values).sum(1)
