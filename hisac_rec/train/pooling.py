"""Whether events are summed where their rows are, where the model file does not say.

Legend: d width of trained rows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from hisac_rec.data.contract import PreparedData
from hisac_rec.data.inputs import InputSpec
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
    data: PreparedData,
    semantics: Semantics | None,
    load: Callable[[InputSpec], ItemStore],
) -> ModelConfig:
    """The model file with ``tables.pool`` set.

    What is sent depends on the data: a long history meets the same leaves again and few items
    twice. So the first batch of the training split is counted, which is the same on every rank
    and any number of them. Costs nothing where no table is large enough.

    Args:
        config: of the model; returned as it is where it says.
        data: prepared.
        semantics: of the data, or None.
        load: the items that a model's lookups need.
    """
    if config.tables.pool is not None:
        return config
    wanted = _with_pool(config, True)
    try:
        schema = ranker_schema(wanted, data, semantics)
    except UserError:  # reads events one by one, or what is wrong is wrong without pool, too
        return _with_pool(config, False)
    if not schema.spec.pooled():
        return _with_pool(config, False)
    gain = bytes_saved(wanted, schema, data, load(schema.spec))
    if gain < LEAST_GAIN:
        return _with_pool(config, False)
    log.info("tables.pool: sums of events are %.1f times fewer bytes than their rows", gain)
    return wanted


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
