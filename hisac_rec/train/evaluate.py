"""Predict a split with a trained run, on any number of ranks, and evaluate it exactly."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel

from hisac_rec.checkpoints.saving import Position, load_checkpoint, read_manifest
from hisac_rec.data.contract import PreparedData, Split
from hisac_rec.data.tasks import are_plain
from hisac_rec.evaluation.health import concerns
from hisac_rec.evaluation.metrics import defined_metrics
from hisac_rec.evaluation.predictions import PredictionWriter, predicted_tasks, read_predictions
from hisac_rec.evaluation.report import evaluate_predictions
from hisac_rec.evaluation.results import Report
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.progress import progress
from hisac_rec.ranker.config import ModelConfig
from hisac_rec.train.distributed import Ranks
from hisac_rec.train.feed import Feeder
from hisac_rec.train.job import Job, open_job, resolve_plan, shard
from hisac_rec.train.metrics_log import MetricsLog
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.pipeline import Batches, predict, training_sample
from hisac_rec.train.run import RunFolder, checkpoint_manifest

log = logging.getLogger(__name__)

TRAINING_SAMPLE = "train-sample"
"""Name of the predictions of a sample of the training rows."""


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
    path = run.checkpoints().find(checkpoint)
    model = load_ranker(job, path, ranks, planner)
    folder = run.predictions(split)
    total = data.manifest.splits[split].candidates
    batches = Batches(job, ranks)
    seconds = predict_into(
        folder,
        job,
        model,
        ranks,
        batches.in_order(split),
        title=(f"predict {split}", total),
        name=path.name,
    )
    if split != "train":
        sample = training_sample(data)
        predict_into(
            run.predictions(TRAINING_SAMPLE),
            job,
            model,
            ranks,
            batches.sample("train", sample),
            title=("predict a sample of the training rows", sample),
            name=path.name,
        )
    written = MetricsLog(run.root, ranks.first)
    step = read_manifest(path).position.step
    written.write(step, "predict", {"candidates_per_second": round(total / seconds, 1)})
    written.close()
    return folder


def load_ranker(
    job: Job, checkpoint: Path, ranks: Ranks, planner: PlannerConfig | None = None
) -> DistributedModelParallel:
    """The sharded model with the weights of a checkpoint. Called on every rank.

    Raises:
        UserError: the checkpoint is for another model or other data, or is damaged.
    """
    model = shard(job, resolve_plan(job, ranks, planner), ranks)
    expected = checkpoint_manifest(job, ranks.world_size, Position(), {}, {})
    load_checkpoint(checkpoint, model, None, expected)
    return model


def predict_into(
    folder: Path,
    job: Job,
    model: DistributedModelParallel,
    ranks: Ranks,
    feeder: Feeder,
    *,
    title: tuple[str, int],
    name: str,
    oracle: bool = True,
) -> float:
    """Predict what a feeder gives and write this rank's part of it. Called on every rank.

    Args:
        folder: of the parts.
        job: model and data.
        model: sharded.
        ranks: this process.
        feeder: of requests with candidates.
        title: of the progress bar, and how many candidates there are.
        name: of what is predicted with; parts of different ones are never read together.
        oracle: write the true probabilities too, where the data set has them.

    Returns:
        Seconds it took.
    """
    data = job.data
    tasks = job.spec.tasks
    # The truth is of the data set's main task.
    oracle = oracle and data.manifest.has_oracle and tasks[0].name == data.manifest.task
    writer = PredictionWriter(
        folder,
        rank=ranks.rank,
        world_size=ranks.world_size,
        oracle=oracle,
        fingerprint=data.manifest.fingerprint,
        run=name,
        tasks=() if are_plain(tasks, data.manifest) else tuple(task.name for task in tasks),
    )
    if ranks.first:
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    started = time.perf_counter()
    with writer, progress(*title, "candidates") as advance:
        for batch, logits in predict(model, Optimizers(model, job.config.train), ranks, feeder):
            counts = batch.candidate_offsets.diff()
            rows = batch.request_rows.repeat_interleave(counts, dim=0)
            of_tasks = logits.view(batch.num_candidates, len(tasks)).unbind(1)
            writer.write(
                user=rows[:, 0],
                time=rows[:, 1],
                request=rows[:, 2],
                item=batch.candidate_items,
                label=batch.labels,
                logit=of_tasks[0],
                history_length=rows[:, 3],
                probability=batch.oracle if oracle else None,
                further={
                    task.name: (batch.tasks[task.name], logit)
                    for task, logit in zip(tasks[1:], of_tasks[1:], strict=True)
                },
            )
            advance(batch.num_candidates * ranks.world_size)
    dist.barrier()
    return time.perf_counter() - started


def evaluate_run(
    run: RunFolder,
    data: PreparedData,
    *,
    split: Split = "test",
    against: dict[str, RunFolder] | None = None,
    draws: int = 200,
    task: str | None = None,
) -> Report:
    """Evaluate written predictions beside the trivial predictors and other runs; save it.

    Args:
        run: whose predictions of the split are there.
        data: that was predicted.
        split: which.
        against: name -> other runs that have predicted it.
        draws: bootstrap draws over users.
        task: what is evaluated; None: the model's main task.

    Raises:
        UserError: predictions are absent or of other rows, or there are none of the task.
    """
    tasks = predicted_tasks(run.predictions(split))
    report = evaluate_predictions(
        run.predictions(split),
        data,
        name=run.config().name,
        baseline_predictions={
            name: other.predictions(split) for name, other in (against or {}).items()
        },
        draws=draws,
        task=task,
    )
    report = _with_training(report, run, data, split, task)
    _, text = report.save(run.root, split, "" if task in (None, *tasks[:1]) else str(task))
    log.info("written to %s", text)
    return report


def _with_training(
    report: Report, run: RunFolder, data: PreparedData, split: Split, task: str | None
) -> Report:
    """The report with the metrics of the sample of training rows, and what is wrong, in words."""
    of_model, *others = report.predictors
    unseen = {name: found.value for name, found in of_model.metrics.items()}
    trivial = {
        other.name: other.metrics["logloss"].value for other in others if other.kind == "trivial"
    }
    training = {}
    folder = run.predictions(TRAINING_SAMPLE)
    if split != "train" and folder.is_dir():
        task = task or next(iter(predicted_tasks(folder)), data.manifest.task)
        rows = read_predictions(folder, task)
        training = defined_metrics(rows.label, rows.logit.astype(np.float64), rows.user)
    found = concerns(_defined(unseen), training or None, _defined(trivial), split=split)
    for text in found:
        log.warning("%s", text)
    return report.model_copy(update={"training": training, "concerns": found})


def _defined(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def evaluate_tasks(
    run: RunFolder,
    data: PreparedData,
    *,
    split: Split = "test",
    against: dict[str, RunFolder] | None = None,
    draws: int = 200,
) -> list[Report]:
    """:func:`evaluate_run` for each task of the model, the main one first.

    Other runs are shown beside the tasks that they have learned.
    """
    tasks: list[str | None] = list(predicted_tasks(run.predictions(split))) or [None]
    reports = []
    for task in tasks:
        known = {
            name: other
            for name, other in (against or {}).items()
            if task is tasks[0] or _has_learned(other, data, split, task)
        }
        reports.append(evaluate_run(run, data, split=split, against=known, draws=draws, task=task))
    return reports


def _has_learned(run: RunFolder, data: PreparedData, split: Split, task: str | None) -> bool:
    return task in (predicted_tasks(run.predictions(split)) or (data.manifest.task,))
