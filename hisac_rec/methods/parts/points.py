"""Compressors that partition a history by frozen points: where the points come from.

A point is what events are told apart by. Rebuilt from semantic IDs, all events of a leaf are
one point that weighs as many events, so clustering costs as many points as leaves.

Legend: R requests, T events, P points, s width of a point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from hisac_rec.config import Strict
from hisac_rec.data.inputs import Side
from hisac_rec.errors import UserError
from hisac_rec.methods.base import History, MethodShape, offsets_of_rows, request_of_rows
from hisac_rec.methods.hisac.leaves import path_vectors
from hisac_rec.methods.hisac.voting import count_leaves
from hisac_rec.methods.parts.agents import AgentMemory
from hisac_rec.methods.parts.compressor import Compressor, CompressorConfig, mean_agents


class PointsConfig(CompressorConfig):
    """``[history]`` keys of every compressor that partitions by points."""

    semantics: Literal["codes", "vectors", "values"] = "codes"
    """What events are told apart by: "codes" rebuilds a frozen vector from the semantic ID,
    as HiSAC does; "vectors" looks up the item's own frozen vector; "values" takes the trained
    event embedding as it is at this step."""


@dataclass
class Points:
    """The points of R requests, joined.

    Args:
        vectors: [P, s] float32 or float64, without gradient.
        weights: [P] events that each point stands for, in the type of ``vectors``.
        offsets: [R+1] int64 over P.
        of_event: [T] int64, the point of each event.
    """

    vectors: Tensor
    weights: Tensor
    offsets: Tensor
    of_event: Tensor

    @property
    def request(self) -> Tensor:
        """[P] int64 request of each point."""
        return request_of_rows(self.offsets, len(self.vectors))


class PartitionCompressor(Compressor):
    """Every event belongs to one part, every part becomes its mean; :meth:`assign` decides.

    Raises:
        UserError: the data set lacks the semantic ids that ``semantics`` asks for.
    """

    Config: ClassVar[type[Strict]] = PointsConfig
    search: ClassVar[dict[str, list[Any]]] = {
        **Compressor.search,
        "semantics": ["codes", "vectors", "values"],
    }

    def __init__(self, config: PointsConfig, shape: MethodShape) -> None:
        super().__init__(config, shape)
        self.semantics = config.semantics
        widths = {"values": shape.dim, "vectors": shape.vector_dim, "codes": 0}
        self.point_dim = widths[config.semantics]
        """s."""
        self.code_counts: tuple[int, ...] = ()
        if config.semantics == "codes" and shape.codebook:
            self.code_counts = tuple(len(words) for words in shape.codebook)
            self.point_dim = shape.codebook[0].shape[1]
            for level, words in enumerate(shape.codebook):
                self.register_buffer(f"codebook_{level}", words.detach().clone())
        if not self.point_dim:
            raise UserError(
                f"history.semantics = '{config.semantics}' needs semantic ids; run "
                "'hisac-rec semantic-ids' first, or choose 'values'"
            )

    @classmethod
    def vector_sides(cls, config: PointsConfig) -> tuple[Side, ...]:
        return ("history",) if config.semantics == "vectors" else ()

    def compress(self, history: History) -> AgentMemory:
        """Partition the events, then take means: no gradient flows through the partition."""
        # In 8 significant bits, near points would fall together: autocast stops here.
        with torch.no_grad(), torch.autocast(history.offsets.device.type, enabled=False):
            points = self.points(history)
            slot = self.assign(points)[points.of_event]
        return mean_agents(history, slot)

    def assign(self, points: Points) -> Tensor:
        """[P] int64 part of each point within its request: 0 to ``agents`` - 1."""
        raise NotImplementedError

    def points(self, history: History) -> Points:
        """The points that ``semantics`` asks for. O(T s), or O(T + P s) with codes."""
        if self.semantics == "codes":
            return self._leaves(history)
        rows = history.values if self.semantics == "values" else history.vectors
        if rows is None:
            raise ValueError("semantics = 'vectors' needs History.vectors")
        vectors = rows.detach().to(torch.promote_types(rows.dtype, torch.float32))
        events = torch.arange(len(rows), device=rows.device)
        return Points(vectors, vectors.new_ones(len(rows)), history.offsets, events)

    def _leaves(self, history: History) -> Points:
        requests = history.num_requests
        leaves = count_leaves(history.codes, history.offsets, self.code_counts)
        codebook = [getattr(self, f"codebook_{level}") for level in range(len(self.code_counts))]
        vectors = path_vectors(leaves.path, codebook)
        offsets = offsets_of_rows(leaves.request, requests)
        return Points(vectors, leaves.votes.to(vectors.dtype), offsets, leaves.of_event)
