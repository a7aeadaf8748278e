"""Started by torchrun on any number of ranks: what ``test_matrix.py`` then looks at.

TorchRec offers table-row-wise sharding for bags alone, and on GPUs alone: going back, gloo cannot
gather gradients of bags that differ in number between ranks. So every rank trains on the same
batches here, which is the same training as on one rank, and the layout runs on CPU too.

``save`` trains a few steps in each layout and leaves a checkpoint, what the live model predicts
and holds, and the same after one more step. ``load`` loads every checkpoint that is there in
each layout and measures how far it is from what was left. One model a layout, so a cell of the
matrix costs a load, two predictions and a step.

Arguments: prepared data, folder for results, then ``save`` or ``load`` or both.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from checkpoints.whole_state import whole_state
from torch import Tensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from training import small_config

from hisac_rec.checkpoints.saving import load_checkpoint, read_manifest
from hisac_rec.data.contract import PreparedData
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.train.distributed import Ranks, process_group
from hisac_rec.train.job import Job, open_job, resolve_plan, shard
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.pipeline import Batches, make_pipeline, predict, steps
from hisac_rec.train.run import RunFolder
from hisac_rec.train.trainer import Trainer

LAYOUTS = ("row_wise", "table_wise", "column_wise", "table_row_wise")
HOSTS = {1: 1, 2: 1, 3: 1, 4: 2}
"""Ranks -> hosts that they stand for; table_row_wise keeps a table within a host."""
NARROWEST = {1: 4, 2: 8, 3: 4, 4: 8}
"""Ranks -> least width of a column shard: rows of 12 are cut into 4, 4, 4 or 8, 4."""
CONFIG = (
    'inputs.user=["id"]',
    "tables.dim=12",
    # Bags have a table-row-wise form.
    "tables.pool=true",
    "tables.pool_min_rows=1",
    "loader.batch_tokens=100000000",
    "loader.max_candidates=1000000",
    "train.epochs=3",
    "train.warmup_steps=0",
    "train.decay=none",
    "train.early_stop=0",
    "train.sparse_lr=0.1",
)


def planner_of_layout(job: Job, ranks: Ranks, layout: str) -> PlannerConfig:
    """Every table in one layout; what has no table-row-wise form is row-wise beside it."""
    rest = "row_wise" if layout == "table_row_wise" else layout
    hosts = HOSTS[ranks.world_size]
    return PlannerConfig.model_validate(
        {
            "topology": {
                "hosts": hosts,
                "devices_per_host": ranks.world_size // hosts,
                "device": "cpu",
                "ddr_gib": 8,
            },
            "defaults": {"sharding_types": [rest], "min_partition": NARROWEST[ranks.world_size]},
            "tables": {name: {"sharding_types": [layout]} for name in job.spec.pooled()},
        }
    )


def predictions(trainer: Trainer) -> Tensor:
    """[N] probabilities of the test split, by user, request and item."""
    feeder = trainer.batches.in_order("test")
    rows = []
    for batch, logits in predict(trainer.model, trainer.optimizers, trainer.ranks, feeder):
        of_request = batch.request_rows.repeat_interleave(batch.candidate_offsets.diff(), dim=0)
        rows.append(
            torch.stack(
                [
                    of_request[:, 0].double(),
                    of_request[:, 2].double(),
                    batch.candidate_items.double(),
                    torch.sigmoid(logits.double()),
                ],
                dim=1,
            )
        )
    return torch.tensor(sorted(torch.cat(rows).tolist()), dtype=torch.float64)[:, 3]


def one_more_step(trainer: Trainer) -> None:
    """Train on the whole epoch as one step."""
    trainer.optimizers.set_progress(3, 0.0)
    pipeline = make_pipeline(trainer.model, trainer.optimizers, trainer.ranks)
    assert len(list(steps(pipeline, trainer.batches.train(3)))) == 1
    pipeline.detach()


def trainer_of(job: Job, ranks: Ranks, layout: str, out: Path) -> Trainer:
    sharding = resolve_plan(job, ranks, planner_of_layout(job, ranks, layout))
    used = {t.sharding_type for path, name, t in sharding.tables() if name in job.spec.pooled()}
    assert used == {layout}, used
    model = shard(job, sharding, ranks)
    trainer = Trainer(job, ranks, RunFolder(out), model, Optimizers(model, job.config.train))
    trainer.batches = Batches(job, replace(ranks, rank=0, world_size=1))
    return trainer


def offer_row_wise_bags() -> None:
    """Let the planner shard bags by rows, as on GPUs."""
    offered = EmbeddingBagCollectionSharder.sharding_types
    EmbeddingBagCollectionSharder.sharding_types = lambda self, _: offered(self, "cuda")


def observed(trainer: Trainer) -> dict[str, Any]:
    """What a model predicts and holds, now and after one more step."""
    found: dict[str, Any] = {"predictions": predictions(trainer)}
    found["state"] = whole_state(trainer.model, trainer.optimizers)
    one_more_step(trainer)
    found["after"] = predictions(trainer)
    return found


def difference(found: Any, wanted: Any) -> float:
    """Between two tensors, against the largest value; of two tables of tensors the largest.

    Infinite where they do not match.
    """
    if isinstance(wanted, dict):
        if found.keys() != wanted.keys():
            return float("inf")
        return max(difference(found[key], wanted[key]) for key in wanted)
    if found.shape != wanted.shape or not found.isfinite().all():
        return float("inf")
    largest = float(wanted.abs().max())
    return float((found.double() - wanted.double()).abs().max()) / (largest or 1.0)


def save(job: Job, ranks: Ranks, out: Path) -> None:
    for layout in LAYOUTS:
        folder = out / f"{ranks.world_size}-{layout}"
        trainer = trainer_of(job, ranks, layout, folder)
        trainer.run()
        trainer.close()
        found = observed(trainer)
        if ranks.first:
            torch.save(found, folder / "observed.pt")
        dist.barrier()


def load(
    job: Job, ranks: Ranks, out: Path, layouts: Sequence[str] = LAYOUTS
) -> dict[str, dict[str, float]]:
    """``"<ranks>-<layout> to <ranks>-<layout>"`` -> largest differences."""
    cells = {}
    sources = sorted(path.parent for path in out.glob("*/observed.pt"))
    for layout in layouts:
        trainer = trainer_of(job, ranks, layout, out / "unused")
        for source in sources:
            path = RunFolder(source).checkpoints().find("last")
            load_checkpoint(path, trainer.model, trainer.optimizers, read_manifest(path))
            found = observed(trainer)
            wanted = torch.load(source / "observed.pt")
            cells[f"{source.name} to {ranks.world_size}-{layout}"] = {
                **{what: difference(found[what], wanted[what]) for what in wanted},
                "step": difference(wanted["after"], wanted["predictions"]),
            }
    return cells


def main(data: PreparedData, out: Path, phases: list[str]) -> None:
    hosts = HOSTS[int(os.environ["WORLD_SIZE"])]
    # What torchrun sets on each of several hosts.
    os.environ["LOCAL_WORLD_SIZE"] = str(int(os.environ["WORLD_SIZE"]) // hosts)
    offer_row_wise_bags()
    with process_group() as ranks:
        job = open_job(small_config(*CONFIG), data)
        if "save" in phases:
            save(job, ranks, out)
        if "load" in phases:
            cells = load(job, ranks, out)
            if ranks.first:
                (out / f"cells-{ranks.world_size}.json").write_text(json.dumps(cells, indent=1))
        dist.barrier()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(PreparedData(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
