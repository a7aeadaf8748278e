"""Every sharded module must be pipelined; one that is not stops the run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec.distributed.types import ShardedModule
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from training import one_process, small_config

from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.contract import PreparedData
from hisac_rec.ranker.ranker import Ranker
from hisac_rec.train.job import Job, open_job, resolve_plan, shard
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.pipeline import Batches, make_pipeline, steps


@torch.fx.wrap
def shifted(features: KeyedJaggedTensor) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        features.keys(), values=features.values() * 1, lengths=features.lengths()
    )


class TransformingRanker(Ranker):
    """Its forward changes the ids before the sharded tables see them."""

    def forward(self, batch: RequestBatch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        return self.head(batch, self.tables(shifted(batch.features)), None, None)


def run_one_step(job: Job, **options: Any) -> tuple[int, int]:
    """(pipelined, sharded) modules after the first step."""
    with one_process() as ranks:
        model = shard(job, resolve_plan(job, ranks, None), ranks)
        pipeline = make_pipeline(model, Optimizers(model, job.config.train), ranks)
        next(steps(pipeline, Batches(job, ranks).train(0)))
        sharded = [m for m in model.modules() if isinstance(m, ShardedModule)]
        return len(pipeline._pipelined_modules), len(sharded)


@pytest.mark.parametrize(
    ("overrides", "modules"),
    [((), 1), (("history.semantics=vectors",), 2), (('history={method="mean"}',), 1)],
    ids=str,
)
def test_all_sharded_modules_are_pipelined(
    small_data: PreparedData, overrides: Any, modules: int
) -> None:
    assert run_one_step(open_job(small_config(*overrides), small_data)) == (modules, modules)


def test_a_module_that_is_not_pipelined_stops_the_run(
    small_data: PreparedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsharded = Job.unsharded

    def transforming(self: Job) -> Ranker:
        ranker = unsharded(self)
        ranker.__class__ = TransformingRanker
        return ranker

    monkeypatch.setattr(Job, "unsharded", transforming)
    with pytest.raises(RuntimeError, match=r"only 0 of the sharded modules \[.*tables.*\] are"):
        run_one_step(open_job(small_config(), small_data))
