"""Two ranks on two cores against one rank on one, on histories of Zipf-like lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.speed.measure import Topic, figure
from benchmarks.speed.runs import LARGE_STEP, prepared, train
from hisac_rec.data.contract import PreparedData
from hisac_rec.data.loader import RequestBatches, Shard
from hisac_rec.ranker.config import load_model_config
from hisac_rec.train.job import Job, open_job

TURNS = 5
STEPS = {
    "65,536": ("train.epochs=2",),
    "262,144": ("train.epochs=4", *LARGE_STEP),
}
"""Tokens a step -> the settings."""


def measure() -> Topic:
    """All figures."""
    data = prepared(
        "skewed",
        "users=3000",
        "candidates=10",
        "length_min=20",
        "length_median=150",
        "length_max=5000",
    )
    ratios: dict[str, list[float]] = {name: [] for name in STEPS}
    for _ in range(TURNS):
        for name, step in STEPS.items():
            run = ("train.log_every=4", "train.early_stop=0", *step)
            one = train("hisac", data, *run, threads=1, pinned=True).candidates_per_second()
            two = train(
                "hisac", data, *run, ranks=2, threads=1, pinned=True
            ).candidates_per_second()
            ratios[name].append(two / one)
    job = open_job(load_model_config(Path("models/hisac.toml")), PreparedData(data))
    figures = [
        *(
            figure(
                f"two ranks over one, candidates/s, a core each, {name} tokens", of, goal=">= 1.7"
            )
            for name, of in ratios.items()
        ),
        figure(
            "imbalance: tokens of the fuller rank over the mean of a step",
            _imbalance(job),
            "%",
            "<= 0.1",
        ),
    ]
    text = (
        "`torchrun --nproc_per_node 2` against one process, each process with all its threads on a "
        "core of its own, the same batches cut by the loader's budget over all ranks: the default "
        "65,536 tokens a step, and four times that. Lengths are log-normal between 20 and 5,000 "
        "events. What is missing to twice: by `--profile` some 15 ms a step that do not shrink "
        "with a rank's share of the batch, which are TorchRec's and torch's calls, exchanges over "
        "gloo and waiting for the other rank in them. A larger step outweighs them."
    )
    return Topic("Two ranks", text, figures, {})


def _imbalance(job: Job) -> list[float]:
    """For each step, how far the fuller of two ranks is above their mean."""
    cost = job.config.loader.candidate_cost
    tokens = [
        [
            batch.num_events + cost * batch.num_candidates
            for batch in RequestBatches(
                job.data,
                "train",
                job.spec,
                job.items,
                job.config.loader,
                rank=Shard(rank, 2),
                seed=0,
            )
        ]
        for rank in range(2)
    ]
    steps = min(map(len, tokens)) - 1  # the last batches are what is left
    both = np.array([one[:steps] for one in tokens], dtype=np.float64)
    return list(both.max(0) / both.mean(0) - 1)
