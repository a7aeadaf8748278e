"""Two ranks on two cores against one rank on one, on histories of Zipf-like lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.speed.measure import Topic, figure
from benchmarks.speed.runs import prepared, train
from hisac_rec.data.contract import PreparedData
from hisac_rec.data.loader import RequestBatches, Shard
from hisac_rec.ranker.config import load_model_config
from hisac_rec.train.job import Job, open_job

TURNS = 3


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
    run = ("train.log_every=4", "train.epochs=1", "train.max_candidates=60000")
    ratios = []
    for _ in range(TURNS):
        one = train("hisac", data, *run, threads=1).candidates_per_second()
        two = train("hisac", data, *run, ranks=2, threads=1).candidates_per_second()
        ratios.append(two / one)
    job = open_job(load_model_config(Path("models/hisac.toml")), PreparedData(data))
    figures = [
        figure("two ranks over one, candidates/s, a core each", ratios, goal=">= 1.7"),
        figure(
            "imbalance: tokens of the fuller rank over the mean of a step",
            _imbalance(job),
            "%",
            "<= 0.1",
        ),
    ]
    text = (
        "`torchrun --nproc_per_node 2` against one process, one thread each, the same batches of "
        "65,536 tokens cut by the loader's budget over all ranks. Lengths are log-normal between "
        "20 and 5,000 events."
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
