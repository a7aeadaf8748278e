"""SparseArch: the sharded tables, and how looked-up rows become feature vectors.

Four embedding collections: ``tables`` is trained (item, user, features, codes, prefixes;
history and candidates share tables), and so are ``managed``, whose rows are given to the ids that
are met most, and ``bags``, where what events read goes if it is to be summed where the rows are;
``vectors`` is frozen fp16 (semantic vectors e_i).

Legend: R requests, T events, U distinct items among them, N candidates, G groups of events, S
single events, B bags, d width of trained rows, s semantic width.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor

from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.inputs import InputSpec, Lookup, Side
from hisac_rec.managed.modules import managed_collection
from hisac_rec.methods.events import EventRows, PooledEvents
from hisac_rec.ops.rows import take_rows
from hisac_rec.ranker.config import TableConfig

VECTOR_TABLE = "semantic_vector"
_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16}


def trained_tables(
    spec: InputSpec, config: TableConfig, device: torch.device
) -> EmbeddingCollection:
    """The collection of all trained tables; one lookup key may be one of several of a table."""
    elsewhere = spec.pooled() | spec.managed()
    return EmbeddingCollection(
        tables=[
            EmbeddingConfig(
                name=name,
                num_embeddings=lookups[0].rows,
                feature_names=[lookup.key for lookup in lookups],
                **_alike(config),
            )
            for name, lookups in spec.tables().items()
            if name not in elsewhere
        ],
        device=device,
    )


def managed_tables(
    spec: InputSpec, config: TableConfig, device: torch.device
) -> ManagedCollisionEmbeddingCollection:
    """The collection of the trained tables whose rows a managed collision module gives out."""
    managed = spec.managed()
    tables = [
        EmbeddingConfig(
            name=name,
            num_embeddings=lookups[0].rows,
            feature_names=[lookup.key for lookup in lookups],
            **_alike(config),
        )
        for name, lookups in spec.tables().items()
        if name in managed
    ]
    return managed_collection(tables, config.vocabulary, device)


def pooled_tables(
    spec: InputSpec, config: TableConfig, device: torch.device
) -> EmbeddingBagCollection:
    """The collection of the trained tables that are read by bags; a table's one key is its name."""
    pooled = spec.pooled()
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=name,
                num_embeddings=lookups[0].rows,
                feature_names=[name],
                **_alike(config),
            )
            for name, lookups in spec.tables().items()
            if name in pooled
        ],
        is_weighted=True,
        device=device,
    )


def _alike(config: TableConfig) -> dict[str, Any]:
    """What all trained tables have in common."""
    return {
        "embedding_dim": config.dim,
        "data_type": _TYPES[config.dtype],
        "weight_init_min": -config.init_scale,
        "weight_init_max": config.init_scale,
    }


def frozen_vectors(spec: InputSpec, device: torch.device) -> EmbeddingCollection:
    """The frozen fp16 table of semantic vectors, read by the sides that the method names."""
    collection = EmbeddingCollection(
        tables=[
            EmbeddingConfig(
                name=VECTOR_TABLE,
                num_embeddings=spec.coded,
                embedding_dim=spec.vector_dim,
                feature_names=[f"{side}.vector" for side in spec.vector_sides],
                data_type=DataType.FP16,
            )
        ],
        device=device,
    )
    return collection


class LookedUp:
    """The rows of one batch as feature vectors, whichever collection they came from.

    Args:
        batch: what was looked up.
        rows: looked-up rows per key.
        bags: [B, d] sums per table that is read by bags.
    """

    def __init__(
        self, batch: RequestBatch, rows: dict[str, JaggedTensor], bags: dict[str, Tensor]
    ) -> None:
        self._rows, self._bags, self._batch = rows, bags, batch
        self._counts: dict[Side, int] = {
            "user": batch.num_requests,
            "history": len(batch.history_items),
            "candidate": batch.num_candidates,
        }
        self._singles = len(batch.single_events)

    def of(self, lookup: Lookup) -> Tensor:
        """[R, d], [U, d] or [N, d] vectors of one key; several rows give their mean."""
        if lookup.table not in self._bags:
            return self._of_rows(lookup)
        bags = self._bags[lookup.table]
        return bags[len(bags) - self._counts["candidate"] :].float()

    def _of_rows(self, lookup: Lookup) -> Tensor:
        values = self._rows[lookup.key].values().float()
        place = self._batch.places.get(lookup.key)
        if place is not None:
            values = take_rows(values, place)
        if not lookup.several:
            return values
        owner, count = self._batch.owners[lookup.key], self._counts[lookup.side]
        sums = values.new_zeros((count, values.shape[1])).index_add(0, owner, values)
        return sums / torch.bincount(owner, minlength=count).clamp_min(1).unsqueeze(1)

    def groups_and_singles(self, lookup: Lookup) -> tuple[Tensor, Tensor]:
        """[G, d] and [S, d] of a key of the history that is read by bags."""
        bags = self._bags[lookup.table].float()
        singles = len(bags) - self._counts["candidate"] - self._singles
        return bags[:singles], bags[singles : singles + self._singles]


class EventEncoder(nn.Module):
    """Event embedding e': looked-up rows plus event type plus age bucket, all summed.

    A plain sum, so that any weighted aggregation of events commutes with it.

    Args:
        spec: the history's keys are summed.
        dim: d.
        age_buckets: size of the age table; 0 leaves age out.
    """

    def __init__(self, spec: InputSpec, dim: int, age_buckets: int) -> None:
        super().__init__()
        history, pooled = spec.of_side("history"), spec.pooled()
        self.by_row = tuple(lookup for lookup in history if lookup.table not in pooled)
        self.by_bag = tuple(lookup for lookup in history if lookup.table in pooled)
        self.dim = dim
        self.types = nn.Embedding(spec.event_types, dim) if spec.event_types > 1 else None
        self.ages = nn.Embedding(age_buckets, dim) if age_buckets else None
        for table in (self.types, self.ages):
            if table is not None:
                nn.init.zeros_(table.weight)

    def forward(self, found: LookedUp, batch: RequestBatch) -> EventRows | PooledEvents:
        """[T, d] events as sums of rows that are built when they are asked for. O(U d) or, summed
        at the shard, O(G d), a key.
        """
        own = self._own(batch.history_type, batch.history_age)
        if self.by_row:
            own = [(reduce(torch.add, map(found.of, self.by_row)), batch.history_rows), *own]
        if not own:
            zeros = torch.zeros((1, self.dim), device=batch.history_age.device)
            own = [(zeros, torch.zeros_like(batch.history_type))]
        if not self.by_bag:
            return EventRows(own)
        groups, single = zip(*map(found.groups_and_singles, self.by_bag), strict=True)
        return PooledEvents(
            reduce(torch.add, groups),
            reduce(torch.add, single),
            batch.single_events,
            EventRows(own),
        )

    def _own(self, event_type: Tensor, age: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Type and age as one table of all pairs of them: events are passed over once for both."""
        if self.ages is None:
            return [] if self.types is None else [(self.types.weight, event_type)]
        buckets = self.ages.num_embeddings
        bucket = age.clamp_min(0).add(1).log2().long().clamp_max(buckets - 1)
        if self.types is None:
            return [(self.ages.weight, bucket)]
        pairs = self.types.weight.unsqueeze(1) + self.ages.weight
        return [(pairs.flatten(0, 1), event_type * buckets + bucket)]
