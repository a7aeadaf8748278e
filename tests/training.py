"""Small models and runs for tests of training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from hisac_rec.config import apply_overrides, validate
from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.contract import PreparedData
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.ranker.config import ModelConfig
from hisac_rec.train.distributed import Ranks, process_group
from hisac_rec.train.evaluate import write_predictions
from hisac_rec.train.job import open_job
from hisac_rec.train.reading import Reading
from hisac_rec.train.run import RunFolder
from hisac_rec.train.training import train

SMALL: dict[str, Any] = {
    "name": "small",
    "tables": {"dim": 8, "init_scale": 0.1},
    "history": {"method": "hisac", "keep": [3, 2]},
    "ranker": {"over_layers": [16], "dense_layers": [8], "dropout": 0.0},
    "loader": {"batch_tokens": 6000, "max_candidates": 400},
    "train": {
        "epochs": 1,
        "warmup_steps": 2,
        "log_every": 1,
        # Faster than the defaults, which are for runs of many more steps.
        "sparse_lr": 0.3,
        "dense_lr": 0.003,
        "sparse_caution": 0.0,
        # Nothing drawn at random, one evaluation an epoch: what most tests are about.
        "unknown_rate": 0.0,
        "evaluations": 1,
        "metric": "auc",
    },
}
"""About 28 steps an epoch on the ``small_data`` fixture."""

WHOLE_EPOCH_A_STEP = (
    "loader.batch_tokens=100000000",
    "loader.max_candidates=1000000",
    "train.epochs=8",
    "train.warmup_steps=0",
    "train.early_stop=0",
)
"""Every step sees all the data: what it learns cannot depend on how data is dealt out."""


def small_config(*overrides: str) -> ModelConfig:
    """The small model with ``key.path=value`` overrides, resolved as a model file is."""
    config = validate(ModelConfig, apply_overrides(SMALL, overrides), "small")
    keys = config.method_config().model_dump(mode="json", exclude_none=True)
    return config.model_copy(update={"history": {"method": config.method, **keys}})


@contextmanager
def one_process() -> Iterator[Ranks]:
    """A process group of this process alone."""
    with process_group() as ranks:
        yield ranks


def train_run(
    config: ModelConfig, data: PreparedData, out: Path, **options: Any
) -> dict[str, float]:
    """Train in this process."""
    with one_process() as ranks:
        return train(open_job(config, data), ranks, out, **options)


def predict_run(out: Path, data: PreparedData, **options: Any) -> dict[str, np.ndarray]:
    """Predict the test split in this process; columns ordered by request and candidate."""
    run = RunFolder(out)
    with one_process() as ranks:
        folder = write_predictions(run, data, ranks, **options)
    return read_predictions(folder)


def record_requests(patch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the requests that this process trains on from now on, in order."""
    trained: list[int] = []
    note = Reading.note

    def record(self: Reading, batch: RequestBatch) -> None:
        note(self, batch)
        trained.extend(batch.request_rows[:, 2].tolist())

    patch.setattr(Reading, "note", record)
    return trained


def read_predictions(folder: Path) -> dict[str, np.ndarray]:
    """Columns of the predictions, in an order that does not depend on who wrote them."""
    table = pq.read_table(folder)
    columns = {name: table[name].to_numpy() for name in table.column_names}
    order = np.lexsort([columns[key] for key in ("item", "request", "user")])
    return {name: values[order] for name, values in columns.items()}


def logged(out: Path, group: str, name: str) -> dict[int, float]:
    """Step -> value of one metric of ``metrics.jsonl``; the last line of a step counts."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if line["group"] == group}


def planner_of(ranks: int, sharding: str) -> PlannerConfig:
    """A planner config of one CPU host that shards every table in one way."""
    return PlannerConfig.model_validate(
        {
            "topology": {"devices_per_host": ranks, "device": "cpu", "ddr_gib": 8},
            "defaults": {"sharding_types": [sharding], "min_partition": 4},
        }
    )


def torchrun(*arguments: str | Path, ranks: int = 2, timeout: float = 300) -> None:
    """Run ``python ARGUMENTS`` on several ranks of this machine; fails with their output."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(ranks), *map(str, arguments)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
