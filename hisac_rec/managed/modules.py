"""The collection of managed tables, unsharded: TorchRec's modules as the model file asks for them.

A table of X rows on W ranks is W blocks of rows. A rank owns a range of keys and maps those that it
keeps to rows of its block; the last row of the block is shared by all its other keys. Keys are
hashes of raw ids, so every rank owns about as many.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHEvictionPolicy,
    MCHManagedCollisionModule,
    average_threshold_filter,
    dynamic_threshold_filter,
    probabilistic_threshold_filter,
)
from torchrec.sparse.jagged_tensor import JaggedTensor

from hisac_rec.data.vocabulary import KEYS, VocabularyConfig

Filter = Callable[[Tensor], tuple[Tensor, Tensor]]

LEAST_ROOM = 1_024
"""Ids between two rounds that a rank has room for from the start."""


class CollisionModule(MCHManagedCollisionModule):
    """TorchRec's module with room for every id between two rounds.

    The original sizes its buffer by the first batch and passes over what does not fit: after an
    empty first batch, everything.
    """

    _input_history_buffer_size: int

    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Count the ids of a batch; admit and evict when a round is due. No-op in evaluation."""
        if self.training:
            self._make_room(sum(feature.values().numel() for feature in features.values()))
        found: dict[str, JaggedTensor] = super().profile(features)
        return found

    def forget_round(self) -> None:
        """Begin a round anew, with the state that was loaded."""
        self._current_iter = self._last_eviction_iter = -1
        self._current_history_buffer_offset = 0

    def _make_room(self, incoming: int) -> None:
        held = self._current_history_buffer_offset
        if held + incoming <= self._input_history_buffer_size:
            return
        room = max(2 * self._input_history_buffer_size, held + incoming, LEAST_ROOM)

        def grown(old: Tensor | None) -> Tensor:
            new = torch.zeros(room, dtype=torch.int64, device=self.device)
            if old is not None:
                new[:held] = old[:held]
            return new

        self._history_accumulator = grown(getattr(self, "_history_accumulator", None))
        for name, _, is_of_history in self._eviction_policy.metadata_info:
            if is_of_history:
                buffer = grown(self._history_metadata.get(name))
                self.register_buffer(f"_history_{name}", buffer, persistent=False)
                self._history_metadata[name] = buffer
        self._input_history_buffer_size = room


def managed_collection(
    tables: list[EmbeddingConfig], vocabularies: dict[str, VocabularyConfig], device: torch.device
) -> ManagedCollisionEmbeddingCollection:
    """The collection of managed tables.

    Args:
        tables: of the model.
        vocabularies: table -> how it is managed.
        device: "meta" allocates nothing.
    """
    modules = {
        table.name: CollisionModule(
            zch_size=table.num_embeddings,
            device=device,
            eviction_policy=_policy(vocabularies[table.name]),
            eviction_interval=vocabularies[table.name].eviction_every,
            input_hash_size=KEYS,
            name=table.name,
        )
        for table in tables
    }
    return ManagedCollisionEmbeddingCollection(
        EmbeddingCollection(tables=tables, device=device),
        ManagedCollisionCollection(modules, tables, need_preprocess=False),
    )


def mapping_bytes(collection: ManagedCollisionEmbeddingCollection, table: str, rows: int) -> int:
    """Bytes of the mapping from keys to ``rows`` rows of a table: its keys, rows and counts."""
    module = collection._managed_collision_collection._managed_collision_modules[table]
    assert isinstance(module, MCHManagedCollisionModule)
    return 8 * rows * (2 + len(module._mch_metadata))


def _policy(vocabulary: VocabularyConfig) -> MCHEvictionPolicy:
    admitted = _filter(vocabulary)
    if vocabulary.eviction == "lfu":
        return LFU_EvictionPolicy(threshold_filtering_func=admitted)
    policy = {"lru": LRU_EvictionPolicy, "distance_lfu": DistanceLFU_EvictionPolicy}
    return policy[vocabulary.eviction](vocabulary.decay, threshold_filtering_func=admitted)


def _filter(vocabulary: VocabularyConfig) -> Filter | None:
    value = vocabulary.admission_value
    found: dict[str, Filter] = {
        "average": average_threshold_filter,
        "dynamic": partial(dynamic_threshold_filter, threshold_skew_multiplier=value or 10.0),
        "probabilistic": partial(probabilistic_threshold_filter, per_id_probability=value or 0.01),
    }
    chosen = found.get(vocabulary.admission)
    return None if chosen is None else partial(_none_of_none, chosen)


def _none_of_none(chosen: Filter, counts: Tensor) -> tuple[Tensor, Tensor]:
    """A round without ids: TorchRec's filters divide by their number."""
    if not counts.numel():
        return counts.bool(), counts.new_zeros(())
    return chosen(counts)
