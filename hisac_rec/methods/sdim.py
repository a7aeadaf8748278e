"""SDIM: events are summed by hash bucket; a candidate reads the buckets that it falls in.

Legend: R requests, T events, N candidates, m hash groups of tau bits, d width.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from hisac_rec.config import Strict
from hisac_rec.methods.base import Candidates, History, HistoryMethod, MethodShape, request_of_rows
from hisac_rec.methods.parts.hashing import bit_groups, hyperplanes, sign_bits

NORM_FLOOR = 1e-6
"""Sums shorter than this are not stretched to unit length: their direction is rounding."""


class SDIMConfig(Strict):
    """``[history]`` keys of ``method = "sdim"``."""

    groups: int = Field(default=16, gt=0)
    """m: hash signatures of an event. More of them estimate the attention with less noise.
    The paper hashes 48 times and joins 3 at a time: 16 signatures."""
    bits: int = Field(default=3, gt=0, le=12)
    """tau: bits of a signature, so each group has 2^tau buckets. More bits, sharper attention:
    an event at angle a to the candidate counts (1 - a / pi)^tau."""
    hash_seed: int = Field(default=0, ge=0)
    """Seed of the random hyperplanes, which are frozen."""


class Method(HistoryMethod):
    """The mean over m hash groups of the l2-normalised sum of the candidate's bucket.

    ``interest(q) = 1/m sum_g l2(sum over i with h_g(e_i) = h_g(q) of e_i)``, where h_g joins
    tau signs of random projections; a bucket without events counts as zeros. In expectation
    an attention with the weights ``(1 - arccos(q e_i) / pi)^tau``. All buckets are summed
    once per request, so the memory is m * 2^tau vectors (16 * 8 = 128 by default) whatever
    the history's length: the server of the paper stores the same.

    No gradient flows through the hashes; the sums pass theirs on to every event. Hashed is
    the whole event e', whose event type and age a candidate has not (they start at zero).

    Source: Sampling Is All You Need on Modeling Long-Term User Behaviors for CTR Prediction,
    arXiv 2205.10249. Left out: the approximate random projection by a fast
    Hadamard transform (at these widths the product is cheap), and the target attention over
    the short sequence, which the ranker has in a form of its own for every method.
    """

    Config: ClassVar[type[Strict]] = SDIMConfig
    compresses: bool = True
    search: ClassVar[dict[str, list[Any]]] = {"groups": [8, 16, 32], "bits": [2, 3, 4, 5]}

    planes: Tensor

    def __init__(self, config: SDIMConfig, shape: MethodShape) -> None:
        super().__init__(config, shape)
        self.groups = config.groups
        self.buckets = 2**config.bits
        planes = hyperplanes(shape.dim, config.groups * config.bits, config.hash_seed)
        self.register_buffer("planes", planes)

    def signatures(self, rows: Tensor) -> Tensor:
        """[x, d] -> [x, m] int64 buckets in [0, 2^tau). O(x m tau d)."""
        return bit_groups(sign_bits(rows, self.planes), self.groups)

    def compress(self, history: History) -> Tensor:
        """[R, m, 2^tau, d] unit vectors; zeros in empty buckets. O(T m (tau d + d)).

        The events are added group by group: nothing of size T * m * d exists.
        """
        requests = history.num_requests
        first = self.buckets * request_of_rows(history.offsets, history.num_events)
        places = first.unsqueeze(1) + self.signatures(history.values)
        empty = history.values.new_zeros((requests * self.buckets, self.dim))
        sums = [empty.index_add(0, place, history.values) for place in places.unbind(1)]
        joined = torch.stack(sums, dim=1).view(requests, self.buckets, self.groups, self.dim)
        return functional.normalize(joined.transpose(1, 2), dim=-1, eps=NORM_FLOOR)

    def read(self, memory: Tensor, candidates: Candidates) -> Tensor:
        """[N, 1, d]: the mean over groups of the candidate's buckets. O(N m (tau d + d))."""
        group = torch.arange(self.groups, device=memory.device)
        place = (candidates.request.unsqueeze(1) * self.groups + group) * self.buckets
        place = place + self.signatures(candidates.values)
        interest = functional.embedding_bag(place, memory.flatten(0, 2), mode="mean")
        return interest.unsqueeze(1)
