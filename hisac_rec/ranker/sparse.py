"""SparseArch: the sharded tables, and how looked-up rows become feature vectors.

Two embedding collections: ``tables`` is trained (item, user, features, codes, prefixes;
history and candidates share tables), ``vectors`` is frozen fp16 (semantic vectors e_i).

Legend: R requests, T events, U distinct items among them, N candidates, d width of trained
rows, s semantic width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor

from hisac_rec.data.inputs import InputSpec, Lookup
from hisac_rec.methods.events import EventRows
from hisac_rec.ranker.config import TableConfig

VECTOR_TABLE = "semantic_vector"
_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}


def trained_tables(
    spec: InputSpec, config: TableConfig, device: torch.device
) -> EmbeddingCollection:
    """The collection of all trained tables; one lookup key may be one of several of a table."""
    scale = config.init_scale
    return EmbeddingCollection(
        tables=[
            EmbeddingConfig(
                name=name,
                num_embeddings=lookups[0].rows,
                embedding_dim=config.dim,
                feature_names=[lookup.key for lookup in lookups],
                data_type=_TYPES[config.dtype],
                weight_init_min=-scale,
                weight_init_max=scale,
            )
            for name, lookups in spec.tables().items()
        ],
        device=device,
    )


def frozen_vectors(spec: InputSpec, device: torch.device) -> EmbeddingCollection:
    """The frozen fp16 table of semantic vectors, read by the sides that the method names."""
    collection = EmbeddingCollection(
        tables=[
            EmbeddingConfig(
                name=VECTOR_TABLE,
                num_embeddings=spec.items,
                embedding_dim=spec.vector_dim,
                feature_names=[f"{side}.vector" for side in spec.vector_sides],
                data_type=DataType.FP16,
            )
        ],
        device=device,
    )
    return collection


class EventEncoder(nn.Module):
    """Event embedding e': looked-up rows plus event type plus age bucket, all summed.

    A plain sum, so that any weighted aggregation of events commutes with it.

    Args:
        lookups: the history's (or candidates') keys to sum.
        dim: d.
        event_types: size of the event-type table; 0 leaves type out.
        age_buckets: size of the age table; 0 leaves age out.
    """

    def __init__(
        self, lookups: tuple[Lookup, ...], dim: int, event_types: int, age_buckets: int
    ) -> None:
        super().__init__()
        self.lookups = lookups
        self.dim = dim
        self.types = nn.Embedding(event_types, dim) if event_types > 1 else None
        self.ages = nn.Embedding(age_buckets, dim) if age_buckets else None
        for table in (self.types, self.ages):
            if table is not None:
                nn.init.zeros_(table.weight)

    def forward(
        self,
        rows: dict[str, JaggedTensor],
        owners: dict[str, Tensor],
        event_type: Tensor,
        age: Tensor,
        distinct: tuple[Tensor, Tensor] | None = None,
    ) -> EventRows:
        """Embed events.

        Args:
            rows: looked-up rows per key: of the T events, or of the U distinct items.
            owners: of multi-valued keys.
            event_type: [T] int64.
            age: [T] float32.
            distinct: the items [U] that were looked up and the one of each event [T]; None
                where each event was looked up.

        Returns:
            [T, d] as sums of rows that are built when they are asked for. O(U d) per lookup.
        """
        count = len(event_type) if distinct is None else len(distinct[0])
        total: Tensor | None = None
        for lookup in self.lookups:
            part = pooled_rows(rows, owners, lookup, count)
            total = part if total is None else total + part
        if total is None:
            total = torch.zeros((count, self.dim), device=age.device)
        each = torch.arange(count, device=age.device) if distinct is None else distinct[1]
        parts = [(total, each)]
        if self.types is not None:
            parts.append((self.types.weight, event_type))
        if self.ages is not None:
            bucket = age.clamp_min(0).add(1).log2().long()
            parts.append((self.ages.weight, bucket.clamp_max(self.ages.num_embeddings - 1)))
        return EventRows(parts)


def pooled_rows(
    rows: dict[str, JaggedTensor], owners: dict[str, Tensor], lookup: Lookup, count: int
) -> Tensor:
    """[count, d] rows of one key; a multi-valued key gives the mean of its values."""
    values = rows[lookup.key].values().float()
    if not lookup.multi:
        return values
    owner = owners[lookup.key]
    sums = values.new_zeros((count, values.shape[1])).index_add(0, owner, values)
    return sums / torch.bincount(owner, minlength=count).clamp_min(1).unsqueeze(1)
