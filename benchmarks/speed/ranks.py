"""Two ranks on two cores against one rank on one, on histories of Zipf-like lengths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.speed.measure import Topic, figure
from benchmarks.speed.runs import LARGE_STEP, prepared, step_of, train
from hisac_rec.data.contract import PreparedData
from hisac_rec.data.loader import RequestBatches, Shard
from hisac_rec.ranker.config import load_model_config
from hisac_rec.train.job import Job, open_job

TURNS = 5
STEPS = {"65,536": (), "262,144": LARGE_STEP}
"""Tokens a step of one rank -> the settings."""
DOUBLED = {"65,536": step_of(131_072), "262,144": step_of(524_288)}
"""Twice as many: each of two ranks has what the one had."""


def measure() -> Topic:
    """All figures."""
    data = prepared(
        "skewed-large",
        "users=12000",
        "candidates=10",
        "length_min=20",
        "length_median=150",
        "length_max=5000",
    )
    same: dict[str, list[float]] = {name: [] for name in STEPS}
    each: dict[str, list[float]] = {name: [] for name in STEPS}
    for _ in range(TURNS):
        for name, step in STEPS.items():
            one = _candidates_per_second(data, 1, step)
            same[name].append(_candidates_per_second(data, 2, step) / one)
            each[name].append(_candidates_per_second(data, 2, DOUBLED[name]) / one)
    job = open_job(load_model_config(Path("models/hisac.toml")), PreparedData(data))
    goal = ">= 1.7"
    figures = [
        *(
            figure(
                f"two ranks over one, candidates/s, {name} tokens a step of a rank", of, goal=goal
            )
            for name, of in each.items()
        ),
        *(
            figure(f"two ranks over one, candidates/s, {name} tokens a step of both", of, goal=goal)
            for name, of in same.items()
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
        "core of its own. Lengths are log-normal between 20 and 5,000 events. *Of a rank*: each of "
        "two ranks has as many tokens a step as the one, as ranks are added to train faster. *Of "
        "both*: the same batches are shared out, half to each, and what a step costs whatever its "
        "size weighs twice: torch's and TorchRec's calls (7 ms, `--profile`), exchanges over gloo, "
        "and waiting in them for whichever core is slower at the moment, which on these shared "
        "machines are 3 to 10 ms a step."
    )
    return Topic("Two ranks", text, figures, {})


def _candidates_per_second(data: Path, ranks: int, step: Sequence[str]) -> float:
    """Well within an epoch, every process on a core of its own."""
    keys = ("train.log_every=4", "train.early_stop=0", "train.max_candidates=400000", *step)
    ran = train("hisac", data, *keys, ranks=ranks, threads=1, pinned=True)
    return ran.candidates_per_second()


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
