"""Started by torchrun on two ranks: what every plan says and what its ranks hold.

Arguments: prepared data, folder for results.
"""

from __future__ import annotations

import json
import sys
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

from training import planner_of, small_config

from hisac_rec.data.contract import PreparedData
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.planning.model_tables import model_tables, tables_digest
from hisac_rec.ranker.config import ModelConfig, load_model_config
from hisac_rec.shipped import find_config, shipped_names
from hisac_rec.train.distributed import Ranks, process_group
from hisac_rec.train.job import open_job, resolve_plan, shard
from hisac_rec.train.kernels import held_bytes, planned_bytes
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.pipeline import Batches, make_pipeline, steps

SHARDINGS = ("row_wise", "column_wise", "table_wise")
LESS = PlannerConfig.model_validate(
    {
        "topology": {
            "hosts": 2,
            "device": "cpu",
            "ddr_gib": 8,
            "other_hosts": [{"hosts": [1], "ddr_gib": 2}],
        },
        "defaults": {"sharding_types": ["row_wise"]},
    }
)
"""Rank 1 has a quarter of the memory of rank 0."""


def configs() -> dict[str, ModelConfig]:
    """Every shipped model, and the forms of tables and optimiser that none of them has."""
    found = {
        name: load_model_config(find_config("models", name)) for name in shipped_names("models")
    }
    small = ("history.semantics=vectors",)
    return found | {
        "adagrad": small_config(*small, "train.sparse_optimizer=adagrad"),
        "sgd": small_config(*small, "train.sparse_optimizer=sgd"),
        "fp16": small_config(*small, "tables.dtype=fp16"),
        "pooled": small_config("tables.pool=true", "tables.pool_min_rows=1"),
    }


def losses(data: PreparedData, ranks: Ranks, planner: PlannerConfig) -> list[float]:
    """Of five steps."""
    job = open_job(small_config(), data)
    model = shard(job, resolve_plan(job, ranks, planner), ranks)
    pipeline = make_pipeline(model, Optimizers(model, job.config.train), ranks)
    fed = islice(steps(pipeline, Batches(job, ranks).train(0)), 5)
    found = [float(loss) for _, loss, _ in fed]
    pipeline.detach()
    return found


def main(data: PreparedData, out: Path) -> None:
    with process_group() as ranks:
        mine: dict[str, Any] = {"held": {}}
        seen: set[str] = set()
        for name, config in configs().items():
            job = open_job(config, data)
            kind = f"{config.train.sparse_optimizer} {tables_digest(model_tables(job.unsharded()))}"
            if kind in seen:  # a model that has the same tables
                continue
            seen.add(kind)
            for sharding in SHARDINGS if name != "pooled" else SHARDINGS[1:]:
                plan = resolve_plan(job, ranks, planner_of(2, sharding))
                model = shard(job, plan, ranks)
                planned = planned_bytes(plan, ranks.rank)
                mine["held"][f"{name} {sharding}"] = (planned, held_bytes(model))
        mine["less"] = losses(data, ranks, LESS)
        mine["alike"] = losses(data, ranks, planner_of(2, "row_wise"))
        (out / f"rank{ranks.rank}.json").write_text(json.dumps(mine))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(PreparedData(sys.argv[1]), Path(sys.argv[2]))
