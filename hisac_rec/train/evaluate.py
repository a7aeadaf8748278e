"""Predict a split with a trained run, on any number of ranks, and evaluate it exactly."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch.distributed as dist

from hisac_rec.data.contract import PreparedData, Split
from hisac_rec.evaluation.predictions import PredictionWriter
from hisac_rec.evaluation.report import evaluate_predictions
from hisac_rec.evaluation.results import Report
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.progress import progress
from hisac_rec.ranker.config import ModelConfig
from hisac_rec.train.checkpoint import Position, load_checkpoint
from hisac_rec.train.distributed import Ranks
from hisac_rec.train.job import open_job, resolve_plan, shard
from hisac_rec.train.metrics_log import MetricsLog
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.pipeline import Batches, predict
from hisac_rec.train.run import RunFolder, checkpoint_manifest

log = logging.getLogger(__name__)


def write_predictions(
    run: RunFolder,
    data: PreparedData,
    ranks: Ranks,
    *,
    split: Split = "test",
    checkpoint: str = "best",
    planner: PlannerConfig | None = None,
    config: ModelConfig | None = None,
) -> Path:
    """Predict every candidate of a split. Called on every rank.

    Args:
        run: a trained run.
        data: the data it was trained on.
        ranks: this process; need not be as many as trained.
        split: what to predict.
        checkpoint: "best", "last" or a step.
        planner: where tables go; None for the devices that are there.
        config: None for the run's own; must have the same architecture.

    Returns:
        The folder of the predictions' parts.

    Raises:
        UserError: the checkpoint is for another model or other data, or is damaged.
    """
    job = open_job(config or run.config(), data)
    model = shard(job, resolve_plan(job, ranks, planner), ranks)
    path = run.checkpoints().find(checkpoint)
    expected = checkpoint_manifest(job, ranks.world_size, Position(), {}, {})
    manifest = load_checkpoint(path, model, None, expected)
    folder = run.predictions(split)
    feeder = Batches(job, ranks).in_order(split)
    total = data.manifest.splits[split].candidates
    writer = PredictionWriter(
        folder,
        rank=ranks.rank,
        world_size=ranks.world_size,
        oracle=data.manifest.has_oracle,
        fingerprint=data.manifest.fingerprint,
        run=f"{path.name} step {manifest.position.step}",
    )
    if ranks.first:
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    started = time.perf_counter()
    with writer, progress(f"predict {split}", total, "candidates") as advance:
        for batch, logits in predict(model, Optimizers(model, job.config.train), ranks, feeder):
            counts = batch.candidate_offsets.diff()
            rows = batch.request_rows.repeat_interleave(counts, dim=0)
            writer.write(
                user=rows[:, 0],
                time=rows[:, 1],
                request=rows[:, 2],
                item=batch.candidate_items,
                label=batch.labels,
                logit=logits,
                history_length=rows[:, 3],
                probability=batch.oracle if data.manifest.has_oracle else None,
            )
            advance(batch.num_candidates * ranks.world_size)
    dist.barrier()
    rate = total / (time.perf_counter() - started)
    written = MetricsLog(run.root, ranks.first)
    written.write(manifest.position.step, "predict", {"candidates_per_second": round(rate, 1)})
    written.close()
    return folder


def evaluate_run(
    run: RunFolder,
    data: PreparedData,
    *,
    split: Split = "test",
    against: dict[str, RunFolder] | None = None,
    draws: int = 200,
) -> Report:
    """Evaluate written predictions beside the trivial predictors and other runs; save it.

    Raises:
        UserError: predictions are absent or of other rows.
    """
    report = evaluate_predictions(
        run.predictions(split),
        data,
        name=run.config().name,
        baseline_predictions={
            name: other.predictions(split) for name, other in (against or {}).items()
        },
        draws=draws,
    )
    _, text = report.save(run.root, split)
    log.info("written to %s", text)
    return report
