"""One cell in a process of its own: train, predict, score, count, write the file.

``hisac-rec compare`` starts it for each cell anew (:mod:`hisac_rec.compare.children`), so
that a cell that fails or runs out of memory ends neither the grid nor its neighbours::

    python -m hisac_rec.compare.cell RUN/task.json
    torchrun --nproc_per_node 2 -m hisac_rec.compare.cell RUN/task.json
"""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import torch

from hisac_rec.checkpoints.saving import read_manifest
from hisac_rec.compare.cells import (
    Cell,
    Cost,
    Identity,
    Parameters,
    Reference,
    Rows,
    Training,
    identity_of,
    read,
    write,
)
from hisac_rec.compare.cost import history_costs
from hisac_rec.compare.score import describe_rows, score_model, score_reference
from hisac_rec.config import Strict
from hisac_rec.data.contract import PreparedData, Split
from hisac_rec.errors import UserError
from hisac_rec.evaluation.metrics import defined_metrics
from hisac_rec.evaluation.predictions import Predictions, read_predictions
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.ranker.config import ModelConfig
from hisac_rec.train.distributed import Ranks, process_group
from hisac_rec.train.evaluate import TRAINING_SAMPLE, write_predictions
from hisac_rec.train.job import Job, open_job
from hisac_rec.train.run import RunFolder, stack_versions
from hisac_rec.train.training import train

log = logging.getLogger(__name__)


class Task(Strict):
    """``task.json`` in the run's folder: everything that a cell's process has to know."""

    data_name: str
    """Name of the data set in the comparison."""
    data: Path
    """Folder of the prepared data set."""
    model: str
    """Stem of the model file."""
    config: ModelConfig
    """Resolved, with the seed."""
    split: Split
    draws: int
    planner: PlannerConfig | None
    run: Path
    """Folder of the run."""
    cell: Path
    """File to write."""
    reference: Path
    """File of the predictors without training; written where absent."""

    @property
    def name(self) -> str:
        """``data/model/seed0``, as in messages."""
        return f"{self.data_name}/{self.model}/seed{self.config.train.seed}"


def identity(task: Task, job: Job) -> Identity:
    """What the cell's numbers depend on."""
    return identity_of(
        job.config,
        job.data.manifest.fingerprint,
        job.semantics.fingerprint if job.semantics else "",
        split=task.split,
        draws=task.draws,
    )


def run_cell(task: Task) -> None:
    """Train and score one cell; every rank calls it, rank 0 writes the file.

    Raises:
        UserError: what training, prediction or evaluation refuse.
    """
    folder = RunFolder(task.run)
    job = open_job(task.config, PreparedData(task.data))
    with process_group() as ranks:
        started = time.perf_counter()
        train(job, ranks, task.run, plan=task.planner)
        seconds = time.perf_counter() - started
        write_predictions(folder, job.data, ranks, split=task.split, planner=task.planner)
    if ranks.first:
        _finish(task, job, folder, ranks, seconds)


def _finish(task: Task, job: Job, folder: RunFolder, ranks: Ranks, seconds: float) -> None:
    predictions = read_predictions(folder.predictions(task.split))
    rows = describe_rows(predictions, job.data)
    method = job.unsharded().head.dense.method
    content = Cell(
        data=task.data_name,
        model=task.model,
        name=job.config.name,
        seed=job.config.train.seed,
        identity=identity(task, job),
        method=job.config.method,
        uses_history=method.uses_history,
        candidate_independent=method.compresses,
        rows=rows,
        scores=score_model(predictions, job.data, task.draws),
        on_training=_on_training(folder),
        training=_training(job, folder, seconds, ranks.world_size),
        candidates_per_second=_logged(folder, "predict")[-1]["candidates_per_second"],
        parameters=count_parameters(job),
        costs=_costs(task, job),
        versions=stack_versions(),
        host=_host(ranks),
        date=datetime.now(UTC).date().isoformat(),
    )
    _write_reference(task, job, predictions, rows)
    write(task.cell, content)
    log.info("%s: done", task.name)


def _on_training(folder: RunFolder) -> dict[str, float]:
    """Metrics on the sample of training rows that was predicted beside the split."""
    rows = read_predictions(folder.predictions(TRAINING_SAMPLE))
    return defined_metrics(rows.label, rows.logit, rows.user)


def _costs(task: Task, job: Job) -> list[Cost]:
    """Counted once for all seeds of a model: a count knows no seed."""
    mine = identity(task, job)
    for path in sorted(task.cell.parent.glob("seed*.json")):
        with suppress(UserError):  # of another release
            other = read(path, Cell)
            if other.identity == mine:
                return other.costs
    return history_costs(job)


def _write_reference(task: Task, job: Job, predictions: Predictions, rows: Rows) -> None:
    if task.reference.is_file():
        found = read(task.reference, Reference)
        if (found.rows, found.draws) == (rows, task.draws):
            return
    reference = score_reference(
        predictions, job.data, name=task.data_name, split=task.split, draws=task.draws
    )
    write(task.reference, reference)


def count_parameters(job: Job) -> Parameters:
    """Numbers in the tables, outside them, and in the history method."""
    ranker = job.unsharded()

    def count(module: torch.nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    dense = ranker.head.dense
    return Parameters(
        tables=sum(map(count, ranker.trained_collections())),
        dense=count(dense),
        method=count(dense.method),
        frozen=count(ranker.vectors) if ranker.has_vectors else 0,
    )


def _training(job: Job, folder: RunFolder, seconds: float, ranks: int) -> Training:
    checkpoints = folder.checkpoints()
    at = read_manifest(checkpoints.find("last")).position
    whole = job.data.manifest.splits["train"].candidates
    curve = {  # the last line of a step counts
        line["step"]: {
            "step": line["step"],
            **{
                metric: round(line[metric], 5)
                for metric in ("auc", "gauc", "logloss")
                if line.get(metric) is not None
            },
        }
        for line in _logged(folder, "valid")
    }
    return Training(
        seconds=round(seconds, 1),
        epochs=round(at.epoch + at.candidates / max(1, whole), 2),
        best_step=read_manifest(checkpoints.find("best")).position.step,
        curve=list(curve.values()),
        ranks=ranks,
    )


def _logged(folder: RunFolder, group: str) -> list[dict[str, float]]:
    """Lines of one group in ``metrics.jsonl``, in order."""
    lines = (folder.root / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [line for line in found if line["group"] == group]


def _host(ranks: Ranks) -> str:
    cores = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if ranks.device.type == "cuda":
        return f"{cores}, {torch.cuda.get_device_name(ranks.device)}"
    return cores


def main() -> None:
    """Run the task that is named on the command line."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname).1s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )
    try:
        run_cell(read(Path(sys.argv[1]), Task))
    except UserError as error:
        log.error("%s", error)
        sys.exit(2)


if __name__ == "__main__":
    main()
