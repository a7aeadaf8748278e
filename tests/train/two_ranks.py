"""Started by torchrun on two ranks: what ``test_two_ranks.py`` then looks at.

One launch for all of it, because starting two interpreters with torch costs more than the
rest. Arguments: prepared data, prepared data of one user, prepared data of several tasks, folder
for results.
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

from hisac_rec.data.assemble import BatchAssembler
from hisac_rec.data.contract import PreparedData
from hisac_rec.data.loader import RequestBatches
from hisac_rec.train.distributed import Ranks, process_group
from hisac_rec.train.evaluate import write_predictions
from hisac_rec.train.feed import Feeder
from hisac_rec.train.job import Job, open_job, resolve_plan, shard
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.pipeline import Batches, make_pipeline, steps
from hisac_rec.train.run import RunFolder
from hisac_rec.train.tables import fill_tables
from hisac_rec.train.training import train

SHARDINGS = ("row_wise", "column_wise", "table_wise")
POOLED = ("tables.pool=true", "tables.pool_min_rows=1")
MANAGED = ('tables.vocabulary.item={kind="managed",rows=100,eviction_every=4}', "train.epochs=2")
"""Fewer rows than there are items, given out and taken back."""
POOLED_SHARDINGS = ("column_wise", "table_wise")
"""TorchRec's bags have no row-wise form on CPU."""


def feed_unequal_ranks(job: Job, ranks: Ranks) -> list[list[float]]:
    """(own candidates, candidates of all, loss scale) of each step; rank 0 has two batches
    and rank 1 four."""
    all_batches = list(RequestBatches(job.data, "train", job.spec, job.items, job.config.loader))
    mine = all_batches[: 2 + 2 * ranks.rank]
    feeder = Feeder(mine, BatchAssembler(job.spec, job.items).empty, 2, dist.new_group())
    steps = []
    for batch in feeder:
        fed = feeder.finished()
        steps.append([batch.num_candidates, fed.candidates, float(batch.loss_scale)])
    return steps


def shards_equal_the_whole(job: Job, ranks: Ranks, sharding: str) -> dict[str, Any]:
    """How many shards this rank holds in this plan, and whether all hold their piece."""
    model = shard(job, resolve_plan(job, ranks, planner_of(2, sharding)), ranks)
    held, equal = 0, True
    for key, value in model.state_dict().items():
        if not isinstance(value, ShardedTensor):
            continue
        table = key[key.index(".embeddings.") :]
        whole = torch.empty(tuple(value.size()), dtype=value.dtype)
        assert job.semantics is not None
        fill_tables(
            {f"tables{table}": whole},
            seed=job.config.train.seed,
            scale=job.config.tables.init_scale,
            vectors=job.semantics.vectors,
        )
        for piece in value.local_shards():
            (row, column), (rows, columns) = (
                piece.metadata.shard_offsets,
                piece.metadata.shard_sizes,
            )
            held += 1
            wanted = whole[row : row + rows, column : column + columns]
            equal = equal and torch.equal(piece.tensor, wanted)
    return {"held": held, "equal": equal}


def one_epoch_of_groups(job: Job, ranks: Ranks) -> dict[str, Any]:
    """This rank's dense weights after an epoch, and how many batches it had."""
    model = shard(job, resolve_plan(job, ranks, planner_of(2, "table_wise")), ranks)
    optimizers = Optimizers(model, job.config.train)
    optimizers.set_progress(5, 0.0)
    pipeline = make_pipeline(model, optimizers, ranks, job.config.train.accumulate)
    batches = sum(1 for _ in steps(pipeline, Batches(job, ranks).train(0)))
    weights = {name: weight.tolist() for name, weight in optimizers.dense.params.items()}
    return {"batches": batches, "weights": weights}


def main(data: PreparedData, lonely: PreparedData, planted: PreparedData, out: Path) -> None:
    with process_group() as ranks:
        config = small_config("history.semantics=vectors", "train.epochs=2")
        job = open_job(config, data)
        mine: dict[str, Any] = {"fed": feed_unequal_ranks(job, ranks), "shards": {}}
        for sharding in SHARDINGS:
            mine["shards"][sharding] = shards_equal_the_whole(job, ranks, sharding)
            run = out / sharding
            planner = planner_of(2, sharding)
            train(open_job(config, data), ranks, run, plan=planner)
            write_predictions(RunFolder(run), data, ranks, planner=planner, checkpoint="last")
            run = out / f"whole_{sharding}"
            train(open_job(small_config(*WHOLE_EPOCH_A_STEP), data), ranks, run, plan=planner)
            write_predictions(RunFolder(run), data, ranks, planner=planner, checkpoint="last")
        for sharding in POOLED_SHARDINGS:
            pooled = small_config(*WHOLE_EPOCH_A_STEP, *POOLED)
            run, planner = out / f"pooled_{sharding}", planner_of(2, sharding)
            train(open_job(pooled, data), ranks, run, plan=planner)
            write_predictions(RunFolder(run), data, ranks, planner=planner, checkpoint="last")
        managed, planner = small_config(*MANAGED), planner_of(2, "row_wise")
        train(open_job(managed, data), ranks, out / "managed", plan=planner)
        write_predictions(RunFolder(out / "managed"), data, ranks, planner=planner)
        # Ends in the midst of an epoch.
        part = small_config("train.max_candidates=1500", "train.early_stop=0")
        train(open_job(part, data), ranks, out / "part", plan=planner_of(2, "table_wise"))
        several = small_config(*WHOLE_EPOCH_A_STEP, 'tasks.train=["*"]')
        train(open_job(several, planted), ranks, out / "tasks", plan=planner_of(2, "table_wise"))
        write_predictions(RunFolder(out / "tasks"), planted, ranks, checkpoint="last")
        halved = small_config(*WHOLE_EPOCH_A_STEP, "train.communication=fp16")
        train(open_job(halved, data), ranks, out / "fp16", plan=planner_of(2, "row_wise"))
        # 28 batches or so in groups of three: the last one is cut short.
        grouped = small_config("train.accumulate=3")
        mine["grouped"] = one_epoch_of_groups(open_job(grouped, data), ranks)
        # One user: rank 1 never sees a request, neither in training nor in evaluation.
        plain = small_config('history={method="mean"}', *WITHOUT_CODES)
        elsewhere = (out / "checkpoints_of_lonely").as_uri()  # a URL like any other
        train(open_job(plain, lonely), ranks, out / "lonely", checkpoints=elsewhere)
        write_predictions(RunFolder(out / "lonely"), lonely, ranks)
        (out / f"rank{ranks.rank}.json").write_text(json.dumps(mine))
        dist.barrier()


WITHOUT_CODES = ('inputs.history=["id"]', 'inputs.candidate=["id"]')

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*map(PreparedData, sys.argv[1:4]), Path(sys.argv[4]))
