"""Put a ranker together from a model file and a prepared data set."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hisac_rec.data.contract import PreparedData
from hisac_rec.data.inputs import InputSpec, build_input_spec
from hisac_rec.data.tasks import resolve_tasks, training_rate
from hisac_rec.errors import UserError
from hisac_rec.methods.base import MethodShape, find_method
from hisac_rec.ranker.config import ModelConfig
from hisac_rec.ranker.dense import DenseRanker
from hisac_rec.ranker.ranker import Ranker
from hisac_rec.ranker.sparse import (
    frozen_vectors,
    managed_tables,
    pooled_tables,
    trained_tables,
)
from hisac_rec.semantic.store import Semantics, load_semantics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankerSchema:
    """What of the data a ranker is built on.

    Args:
        spec: lookups and table sizes.
        codebook: D tensors [C_l, s]; empty without semantic ids.
        rates: mean training label of each task, which an untrained model predicts.
        event_types: names, in the order of their numbers.
        votes: event type -> vote, as the definition says.
    """

    spec: InputSpec
    codebook: tuple[Tensor, ...]
    rates: tuple[float, ...] = ()
    event_types: tuple[str, ...] = ()
    votes: Mapping[str, float] | None = None

    def method_shape(self, dim: int) -> MethodShape:
        """What a history method of width ``dim`` is built on."""
        known = self.event_types, self.votes
        return MethodShape(dim, self.codebook, self.spec.vector_dim, *known)


def optional_semantics(data: PreparedData) -> Semantics | None:
    """The data set's semantic ids, or None before ``hisac-rec semantic-ids``."""
    return load_semantics(data) if data.has_semantic_ids else None


def ranker_schema(
    config: ModelConfig, data: PreparedData, semantics: Semantics | None
) -> RankerSchema:
    """Resolve what the model looks up in this data set.

    Raises:
        UserError: the model asks for a feature or semantic ids that the data set lacks.
    """
    method = find_method(config.method)
    own = config.method_config()
    sides = method.vector_sides(own)
    if sides and semantics is None:
        raise UserError(
            f"{data.root}: the history method reads semantic vectors, but the data set has no "
            "semantic ids; run 'hisac-rec semantic-ids' first"
        )
    codebook = (
        tuple(torch.from_numpy(words.copy()) for words in semantics.codebook) if semantics else ()
    )
    vector_dim = semantics.vectors.shape[1] if semantics else 0
    grouping = None
    if config.tables.pool:
        known = tuple(data.manifest.event_types), data.manifest.votes
        shape = MethodShape(config.tables.dim, codebook, vector_dim, *known)
        grouping = method.grouping(own, shape)
        if grouping is None or not method.uses_history:
            raise UserError(
                f"tables.pool = true: history.method = '{config.method}' as configured reads "
                "events one by one, so their rows cannot be summed where they are; leave "
                "tables.pool out"
            )
    spec = build_input_spec(
        config.inputs,
        data.manifest,
        tuple(semantics.code_counts) if semantics else (),
        vector_sides=sides,
        vector_dim=vector_dim,
        item_features=method.item_features(own),
        grouping=grouping,
        singles=max(config.ranker.recent, method.newest(own)),
        pool_min_rows=config.tables.pool_min_rows,
        tasks=resolve_tasks(config.tasks, data.manifest),
        vocabularies=config.tables.vocabulary,
        views=semantics.views if semantics else 1,
    )
    return RankerSchema(
        spec,
        codebook,
        tuple(training_rate(task, data.manifest) for task in spec.tasks),
        tuple(data.manifest.event_types),
        data.manifest.votes,
    )


def build_ranker(
    config: ModelConfig, schema: RankerSchema, device: torch.device | str = "cpu"
) -> Ranker:
    """Build the unsharded ranker.

    Args:
        config: the resolved model file.
        schema: of :func:`ranker_schema`.
        device: of the tables; "meta" allocates nothing for them. The dense part is on the CPU.
    """
    spec, pooled, managed = schema.spec, schema.spec.pooled(), schema.spec.managed()
    table_device = torch.device(device)
    shape = schema.method_shape(config.tables.dim)
    method = find_method(config.method)(config.method_config(), shape)
    dense = DenseRanker(config.ranker, spec, method, config.tables.dim)
    for tower, rate in zip(dense.towers(), schema.rates, strict=False):
        tower.start_at(rate)
    if config.train.compile:
        _require_compiler()
        dense.compile_arches()
    return Ranker(
        trained_tables(spec, config.tables, table_device)
        if spec.tables().keys() - pooled - managed
        else None,
        managed_tables(spec, config.tables, table_device) if managed else None,
        pooled_tables(spec, config.tables, table_device) if pooled else None,
        frozen_vectors(spec, table_device) if spec.vector_sides else None,
        dense,
        config.train,
        spec.tasks,
    )


def _require_compiler() -> None:
    from torch.utils.cpp_extension import get_cxx_compiler  # half a second of imports

    if torch.cuda.is_available() or shutil.which(get_cxx_compiler()):
        return
    raise UserError(
        f"train.compile = true: this machine has no C++ compiler '{get_cxx_compiler()}'; install "
        "one (g++ or clang++), or leave train.compile out"
    )
