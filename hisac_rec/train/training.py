"""A training from beginning to end: :func:`train` is the whole story.

What surrounds the loop of :mod:`hisac_rec.train.trainer`: folder, plan, model, watch, summary.
"""

from __future__ import annotations

import logging
from contextlib import closing, nullcontext
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from hisac_rec.checkpoints.warm_start import WarmStart, warm_start
from hisac_rec.files import replace_text
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.train.distributed import Ranks
from hisac_rec.train.job import Job, resolve_plan, shard
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.profiling import StepProfiler
from hisac_rec.train.run import RunFolder
from hisac_rec.train.summary import Progress
from hisac_rec.train.trainer import Trainer, Watcher
from hisac_rec.train.watch import Watch

log = logging.getLogger(__name__)


def train(
    job: Job,
    ranks: Ranks,
    out: Path,
    *,
    plan: Path | PlannerConfig | None = None,
    resume: bool = False,
    watcher: Watcher | None = None,
    profiled: bool = False,
    checkpoints: str | None = None,
    warm: WarmStart | None = None,
) -> dict[str, float]:
    """Train a model and leave a run folder behind. Called on every rank.

    Args:
        job: model file and data.
        ranks: this process.
        out: the run folder; must not hold a run unless ``resume``.
        plan: a saved plan, a planner config, or None for the devices that are there.
        resume: go on from the last checkpoint of ``out``, or start again where the run died
            before its first.
        watcher: called on every rank after each evaluation and its checkpoint; what it raises,
            on all ranks alike, ends the training there.
        profiled: record some steps, see :mod:`hisac_rec.train.profiling`.
        checkpoints: path or URL where checkpoints lie; None: in ``out``.
        warm: start from the weights of another run; a run that is resumed has done so.

    Returns:
        The best validation metrics.

    Raises:
        UserError: ``out`` is taken, nothing to resume, plan or checkpoint do not fit, or the
            loss is no longer finite (naming step and rows).
        AskedToEndError: after a signal, when the step is finished and a checkpoint saved.
        LostRankError: another rank failed, was killed or did not arrive.
    """
    folder = RunFolder(out, checkpoints)
    story = folder.story()
    resume = resume or story.is_restarted(ranks)
    folder.require(job, resume=resume)
    trainer: Trainer | None = None
    with (
        story.told(lambda: trainer.progress() if trainer else Progress()),
        Watch(out, ranks, timedelta(minutes=job.config.train.timeout_minutes), story.lost) as watch,
    ):
        sharding = resolve_plan(job, ranks, plan)
        model = shard(job, sharding, ranks)
        optimizers = Optimizers(model, job.config.train)
        trainer = Trainer(job, ranks, folder, model, optimizers, watcher, watch)
        trainer.plan = sharding
        # A job that died before its first checkpoint left none: it starts again.
        goes_on = resume and bool(trainer.checkpoints.steps())
        if goes_on:
            trainer.resume()
        if ranks.first and not (goes_on and folder.exists()):
            folder.create(job, sharding, world_size=ranks.world_size, device=ranks.device.type)
        if warm is not None and not goes_on:
            report = warm_start(warm, job, model, optimizers).markdown()
            log.info("%s", report)
            if ranks.first:
                replace_text(folder.warm_start, report)
        if ranks.first:
            story.begin(ranks, resumed_from=trainer.position.step if goes_on else None)
        dist.barrier()
        watch.show()
        recorder = StepProfiler(folder.root, ranks) if profiled else None
        with closing(trainer), trainer.checkpoints, recorder or nullcontext():
            trainer.after_step = recorder.step if recorder else trainer.after_step
            return trainer.run()
