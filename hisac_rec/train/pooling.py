"""Whether events are summed where their rows are, where the model file does not say.

Legend: d width of trained rows.
"""

from __future__ import annotations

import logging

import numpy as np

from hisac_rec.data.contract import PreparedData
from hisac_rec.data.items import ItemStore
from hisac_rec.data.jagged import distinct
from hisac_rec.data.loader import RequestBatches
from hisac_rec.errors import UserError
from hisac_rec.ranker.build import RankerSchema, ranker_schema
from hisac_rec.ranker.config import ModelConfig
from hisac_rec.semantic.store import Semantics

log = logging.getLogger(__name__)

LEAST_GAIN = 2.0
"""Sums are chosen where rows would be this many times their bytes: they also bind the plan."""

ID_BYTES, WEIGHT_BYTES = 8, 4


def decide_pool(
    config: ModelConfig,
    schema: RankerSchema,
    data: PreparedData,
    semantics: Semantics | None,
    items: ItemStore,
) -> tuple[ModelConfig, RankerSchema]:
    """The model file with ``tables.pool`` set, and its schema.

    What is sent depends on the data: a long history meets the same leaves again and few items
    twice. So the first batch of the training split is counted, which is the same on every rank
    and any number of them. Costs nothing where no table is large enough.

    Args:
        config: of the model; returned as it is where it says.
        schema: of it.
        data: prepared.
        semantics: of the data, or None.
        items: of the model's lookups.
    """
    if config.tables.pool is not None:
        return config, schema
    by_rows, by_sums = _with_pool(config, False), _with_pool(config, True)
    try:
        pooled = ranker_schema(by_sums, data, semantics)
    except UserError:  # it reads events one by one, or tables whose rows are managed
        return by_rows, schema
    gain = bytes_saved(by_sums, pooled, data, items) if pooled.spec.pooled() else 0.0
    if gain < LEAST_GAIN:
        return by_rows, schema
    log.info("tables.pool: sums of events are %.1f times fewer bytes than their rows", gain)
    return by_sums, pooled


def bytes_saved(
    config: ModelConfig, schema: RankerSchema, data: PreparedData, items: ItemStore
) -> float:
    """Bytes of the events' distinct rows over those of their sums, there and back, on the first
    batch of the training split; 0 without events.

    Args:
        config: with ``tables.pool``.
        schema: of it.
        data: prepared.
        items: of the schema.
    """
    batch = next(iter(RequestBatches(data, "train", schema.spec, items, config.loader)), None)
    if batch is None or not batch.num_events:
        return 0.0
    there_and_back = 2 * 4 * config.tables.dim
    others = len(batch.single_events) + batch.num_candidates  # the same in both forms
    groups = batch.bags.stride() - others
    rows = sums = 0
    for key in list(batch.bags.keys()):
        bags = batch.bags[key]
        ids = bags.values()[: int(bags.offsets()[groups])].numpy()
        rows += len(distinct(ids)[0]) * (ID_BYTES + there_and_back)
        sums += len(ids) * (ID_BYTES + WEIGHT_BYTES) + groups * there_and_back
    return float(np.divide(rows, max(1, sums)))


def _with_pool(config: ModelConfig, pool: bool) -> ModelConfig:
    return config.model_copy(update={"tables": config.tables.model_copy(update={"pool": pool})})
