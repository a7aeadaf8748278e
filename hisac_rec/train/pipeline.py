"""TorchRec's training pipeline around one model, for training and for prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.distributed.train_pipeline.gradient_accumulation import (
    GradientAccumulationConfig,
    GradientAccumulationWrapper,
)
from torchrec.distributed.types import ShardedModule

from hisac_rec.data.assemble import BatchAssembler
from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.consumed import Consumed
from hisac_rec.data.contract import PreparedData, Split
from hisac_rec.data.exposure import Forgetting, forgetting
from hisac_rec.data.loader import RequestBatches, Shard, View, at_most, make_loader
from hisac_rec.errors import AskedToEndError
from hisac_rec.train.distributed import MARGIN, Ranks
from hisac_rec.train.feed import Fed, Feeder, in_background
from hisac_rec.train.job import Job
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.replicas import sync_interval
from hisac_rec.train.watch import Bystander

Pipeline: TypeAlias = (
    TrainPipelineSparseDist[RequestBatch, tuple[Tensor, Tensor]]
    | GradientAccumulationWrapper[RequestBatch, tuple[Tensor, Tensor]]
)


def make_pipeline(
    model: DistributedModelParallel, optimizers: Optimizers, ranks: Ranks, accumulate: int = 1
) -> Pipeline:
    """A pipeline over the model; ``detach`` it before another one takes the model.

    Args:
        model: sharded.
        optimizers: both of them.
        ranks: this process.
        accumulate: batches to a step of the dense optimiser; ranks exchange dense gradients
            with the last one alone.
    """
    pipeline: TrainPipelineSparseDist[RequestBatch, tuple[Tensor, Tensor]]
    pipeline = TrainPipelineSparseDist(
        model,
        optimizers.combined,
        ranks.device,
        dmp_collection_sync_interval_batches=sync_interval(model),
    )
    if accumulate == 1:
        return pipeline
    config = GradientAccumulationConfig(num_steps=accumulate)
    return GradientAccumulationWrapper(pipeline, optimizers.combined, model, config)


def steps(pipeline: Pipeline, feeder: Feeder) -> Iterator[tuple[Fed, Tensor, Tensor]]:
    """Run the pipeline to the end of the data: (batch, loss [], logits [N]) of each step.

    The feeder is closed at the end, whichever way it is reached, unless it has only paused: then
    call again, with another pipeline.

    Raises:
        RuntimeError: a sharded module is not pipelined; that would silently cost the overlap
            of communication with computation.
    """
    checked = False
    with ExitStack() as stack:
        stack.callback(feeder.close)
        while True:
            try:
                loss, logits = _progress(pipeline, feeder)
            except StopIteration:
                if feeder.paused:
                    stack.pop_all()
                return
            if not checked:
                require_pipelined(pipeline)
                checked = True
            yield feeder.finished(), loss, logits


def _progress(pipeline: Pipeline, feeder: Feeder) -> tuple[Tensor, Tensor]:
    if isinstance(pipeline, GradientAccumulationWrapper):
        # Told in advance, the ranks add up what a group cut short has gathered; left to find out,
        # each would take its own gradients for those of all.
        return pipeline.progress(feeder, is_last_batch=feeder.at_last)
    return pipeline.progress(feeder)


def require_pipelined(pipeline: Pipeline) -> None:
    """Fail where the pipeline left a sharded module out."""
    sharded: list[str] = []
    for name, module in pipeline._model.named_modules():
        # A sharded module may be made of others, which it calls itself.
        inner = any(name.startswith(f"{outer}.") for outer in sharded)
        if isinstance(module, ShardedModule) and not inner:
            sharded.append(name)
    if len(pipeline._pipelined_modules) != len(sharded):
        raise RuntimeError(
            f"only {len(pipeline._pipelined_modules)} of the sharded modules {sharded} are "
            "pipelined: the model's forward transforms their input before they are called"
        )


SAMPLE_SEED = 1
"""Of the rows that are looked at again and again."""
LARGEST_SAMPLE = 20_000
"""Training candidates that are predicted beside a split, at most."""


def training_sample(data: PreparedData) -> int:
    """Training candidates to predict beside unseen rows: as many as the validation split has."""
    counts = data.manifest.splits
    wanted = counts["valid"].candidates or LARGEST_SAMPLE
    return min(wanted, counts["train"].candidates, LARGEST_SAMPLE)


class Batches:
    """Makes feeders for the splits of one job on one rank.

    Args:
        job: data and model.
        ranks: this process.
        watch: told what this rank does, and asked whether it is to end.
    """

    def __init__(self, job: Job, ranks: Ranks, watch: Bystander | None = None) -> None:
        self._job = job
        self._ranks = ranks
        self._watch = watch
        self._group: dist.ProcessGroup | None = None
        if ranks.world_size > 1:
            timeout = timedelta(minutes=job.config.train.timeout_minutes) + MARGIN
            self._group = dist.new_group(backend="gloo", timeout=timeout)
        self._empty = BatchAssembler(job.spec, job.items).empty
        self._forget: Forgetting | None = None

    def train(
        self,
        epoch: int,
        skip: int = 0,
        without: Consumed | None = None,
        pause: Callable[[int, int], bool] | None = None,
    ) -> Feeder:
        """The training split in the order of ``epoch``: of the requests that are not ``without``,
        all but the first ``skip`` batches. For ``pause`` see :class:`~hisac_rec.train.feed.Feeder`.
        """
        job = self._job
        rate = job.config.train.unknown_rate
        if self._forget is None and rate:
            self._forget = forgetting(job.data, job.spec, job.items, rate)
        return self._feeder(
            "train",
            seed=job.config.train.seed,
            epoch=epoch,
            skip=skip,
            without=without,
            forget=self._forget,
            pause=pause,
        )

    def in_order(
        self,
        split: Split,
        view: View | None = None,
        each: Callable[[RequestBatch], RequestBatch] | None = None,
        *,
        name_events: bool = False,
    ) -> Feeder:
        """A split in file order, for prediction.

        Args:
            split: which.
            view: what to make of its requests.
            each: what to make of every batch.
            name_events: see :class:`~hisac_rec.data.assemble.BatchAssembler`.
        """
        return self._feeder(split, each, view=view, name_events=name_events)

    def sample(self, split: Split, candidates: int) -> Feeder:
        """About so many candidates of a split over all ranks, at random, the same each time: of as
        many requests as the loader shuffles at once.
        """
        share = -(-candidates // self._ranks.world_size)
        return self._feeder(split, seed=SAMPLE_SEED, most=share)

    def _feeder(
        self,
        split: Split,
        each: Callable[[RequestBatch], RequestBatch] | None = None,
        most: int | None = None,
        pause: Callable[[int, int], bool] | None = None,
        **how: Any,
    ) -> Feeder:
        """``most``: candidates of this rank; ``how``: keywords of :class:`RequestBatches`."""
        job, ranks = self._job, self._ranks
        shard = Shard(ranks.rank, ranks.world_size)
        batches = RequestBatches(
            job.data, split, job.spec, job.items, job.config.loader, rank=shard, **how
        )
        loader = make_loader(batches, job.config.loader.workers)
        if most is not None:
            loader = at_most(loader, most)
        if each is not None:
            loader = map(each, loader)
        return Feeder(
            in_background(loader), self._empty, ranks.world_size, self._group, self._watch, pause
        )


def predict(
    model: DistributedModelParallel, optimizers: Optimizers, ranks: Ranks, feeder: Feeder
) -> Iterator[tuple[RequestBatch, Tensor]]:
    """(batch, logits [N] on the host) for every batch; the model is left in training mode.

    Raises:
        RuntimeError: see :func:`steps`.
        AskedToEndError: on all ranks after the same step.
    """
    for batch, logits in outputs(model, optimizers, ranks, feeder):
        if batch.num_candidates:
            yield batch, logits.cpu()


def outputs(
    model: DistributedModelParallel, optimizers: Optimizers, ranks: Ranks, feeder: Feeder
) -> Iterator[tuple[RequestBatch, Any]]:
    """(batch on the host, what the head gives of it) for every batch, without gradients; the
    model is left in training mode.

    Raises:
        RuntimeError: see :func:`steps`.
    """
    pipeline = make_pipeline(model, optimizers, ranks)
    model.eval()
    try:
        with torch.no_grad():
            for fed, _, output in steps(pipeline, feeder):
                yield fed.batch, output
                if feeder.stopping:
                    raise AskedToEndError("asked to end during an evaluation")
    finally:
        model.train()
        pipeline.detach()
