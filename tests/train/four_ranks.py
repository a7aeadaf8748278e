"""Started by torchrun on four ranks: tables in two groups of two, and in one of four.

Arguments: prepared data, folder for results.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import ShardedTensor
from training import WHOLE_EPOCH_A_STEP, planner_of, small_config

from hisac_rec.data.contract import PreparedData
from hisac_rec.planning.config import PlannerConfig, TableConstraints
from hisac_rec.train.distributed import Ranks, process_group
from hisac_rec.train.evaluate import write_predictions
from hisac_rec.train.job import open_job, resolve_plan, shard
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.pipeline import Batches, make_pipeline, steps
from hisac_rec.train.replicas import sync_replicas
from hisac_rec.train.run import RunFolder
from hisac_rec.train.training import train

SHARDINGS = ("row_wise", "column_wise")
FEW = (*WHOLE_EPOCH_A_STEP, "train.epochs=4")
SGD = (*FEW, "train.sparse_optimizer=sgd", "train.sparse_lr=100.0")


def two_by_two(sharding: str, sync_every: int = 1) -> PlannerConfig:
    """Two groups of two ranks."""
    config = planner_of(4, sharding)
    topology = config.topology.model_copy(update={"sharding_group": 2, "sync_every": sync_every})
    return config.model_copy(update={"topology": topology})


def two_hosts() -> PlannerConfig:
    """Two hosts of two ranks; the columns of the item table over those of one host."""
    config = planner_of(2, "table_wise")
    topology = config.topology.model_copy(update={"hosts": 2})
    item = TableConstraints(sharding_types=["table_column_wise"])
    return config.model_copy(update={"topology": topology, "tables": {"item": item}})


def same_on_replicas(model: torch.nn.Module) -> tuple[bool, bool]:
    """Whether the shards of (trained, frozen) tables are those of the rank two further on."""
    same = {True: True, False: True}
    for key, value in sorted(model.state_dict().items()):
        if not isinstance(value, ShardedTensor):
            continue
        mine = [shard.tensor.tolist() for shard in value.local_shards()]
        every: list[Any] = [None] * 4
        dist.all_gather_object(every, mine)
        same["vector" in key] &= every[:2] == every[2:]
    return same[False], same[True]


def drift(data: PreparedData, ranks: Ranks) -> dict[str, Any]:
    """Whether replicas are equal before and after a step, one without and one with an average."""
    config = small_config("history.semantics=vectors", "train.warmup_steps=0")
    job = open_job(config, data)
    model = shard(job, resolve_plan(job, ranks, two_by_two("row_wise", 3)), ranks)
    start = {k: v.clone() for k, v in frozen(model).items()}
    pipeline = make_pipeline(model, Optimizers(model, config.train), ranks)
    seen = [same_on_replicas(model)]
    for step, _ in enumerate(steps(pipeline, Batches(job, ranks).train(0))):
        seen.append(same_on_replicas(model))
        if step == 4:
            break
    pipeline.detach()
    sync_replicas(model)
    seen.append(same_on_replicas(model))
    untouched = all(torch.equal(start[key], value) for key, value in frozen(model).items())
    return {"equal": [trained for trained, _ in seen], "frozen": untouched}


def frozen(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """This rank's frozen rows."""
    return {
        key: shard.tensor
        for key, value in model.state_dict().items()
        if isinstance(value, ShardedTensor) and "vector" in key
        for shard in value.local_shards()
    }


def main(data: PreparedData, out: Path) -> None:
    with process_group() as ranks:
        mine = {"drift": drift(data, ranks)}
        flat = planner_of(4, "row_wise")
        for name, planner, keys in (
            ("flat_sgd", flat, SGD),
            ("flat", flat, FEW),
            *((f"{kind}_sgd", two_by_two(kind), SGD) for kind in SHARDINGS),
            ("row_wise", two_by_two("row_wise", 2), FEW),
        ):
            train(open_job(small_config(*keys), data), ranks, out / name, plan=planner)
            write_predictions(
                RunFolder(out / name), data, ranks, planner=planner, checkpoint="last"
            )
        pooled = small_config(*SGD, "tables.pool=true", "tables.pool_min_rows=100")
        train(open_job(pooled, data), ranks, out / "over_hosts", plan=two_hosts())
        longer = small_config(*WHOLE_EPOCH_A_STEP, "train.epochs=5")
        train(
            open_job(longer, data),
            ranks,
            out / "row_wise",
            plan=two_by_two("table_wise"),
            resume=True,
        )
        (out / f"rank{ranks.rank}.json").write_text(json.dumps(mine))
        dist.barrier()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(PreparedData(sys.argv[1]), Path(sys.argv[2]))
