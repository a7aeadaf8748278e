"""Training throughput: HiSAC beside full-length DIN, the loader beside HiSAC, memory, ranks."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from benchmarks.speed.measure import Figure, Topic, figure
from benchmarks.speed.runs import Ran, prepared, train
from hisac_rec.data.contract import PreparedData
from hisac_rec.data.loader import RequestBatches
from hisac_rec.ranker.config import load_model_config
from hisac_rec.train.job import open_job

EVERY = "train.log_every=4"
TURNS = 3


def thousand_events() -> Path:
    """Histories of 1,000 events and 10 candidates a request."""
    lengths = ("length_min=900", "length_median=1000", "length_max=1100")
    return prepared("events-1000", "users=600", "candidates=10", *lengths)


def measure() -> Topic:
    """All figures."""
    data = thousand_events()
    turns: dict[str, list[Ran]] = {"hisac": [], "din": []}
    for _ in range(TURNS):
        turns["hisac"].append(
            train("hisac", data, EVERY, "train.max_candidates=24000", "train.epochs=1")
        )
        turns["din"].append(
            train("din", data, EVERY, "train.max_candidates=8000", "train.epochs=1")
        )
    hisac, din = ([run.candidates_per_second() for run in turns[name]] for name in ("hisac", "din"))
    waits = [run.mean("data_wait_share") for run in turns["hisac"]]
    fed = [_loader_events_per_second(data) for _ in range(TURNS)]
    eaten = [run.mean("events_per_second") for run in turns["hisac"]]
    figures = [
        figure(
            "HiSAC over full-length DIN, candidates/s, 1,000 events, 10 candidates a request",
            [one / other for one, other in zip(hisac, din, strict=True)],
            goal=">= 8",
        ),
        figure(
            "loader alone over HiSAC training, events/s",
            [one / other for one, other in zip(fed, eaten, strict=True)],
            goal=">= 10",
        ),
        figure("share of a HiSAC step spent waiting for data", waits, unit="%", goal="<= 0.05"),
        *_memory(),
    ]
    text = (
        "Whole training runs (`hisac-rec train`) on synthetic data, all threads, the first and "
        "the last log window left out; rivals take turns. Tables of 32 columns, the shipped model "
        "files, batches of 65,536 tokens. What is missing to eight times DIN: of a HiSAC step here "
        "about a quarter is the history method (`--profile`, docs/training.md); the lookups, their "
        "gradients and the ranker are the same work for both, and ten candidates a request share "
        "them among few."
    )
    return Topic("Training", text, figures, {})


def _loader_events_per_second(data: Path) -> float:
    """Events that the loader alone puts into batches, after the first batch."""
    job = open_job(load_model_config(Path("models/hisac.toml")), PreparedData(data))
    config = job.config.loader
    batches = iter(RequestBatches(job.data, "train", job.spec, job.items, config, seed=0))
    next(batches)
    begin, events = time.perf_counter(), 0
    for batch in itertools.islice(batches, 40):
        events += batch.num_events
    return events / (time.perf_counter() - begin)


def _memory() -> list[Figure]:
    """A step of 64 requests of 10,000 events."""
    lengths = ("length_min=10000", "length_median=10000", "length_max=10000")
    data = prepared("events-10000", "users=80", "candidates=16", "train_requests=4", *lengths)
    step = ("loader.batch_tokens=700000", "train.log_every=1", "train.epochs=1")
    ran = train("hisac", data, *step, "train.max_candidates=4000")
    return [
        figure("peak GiB, 64 requests of 10,000 events in a step", [ran.peak_gib], "GiB", "<= 8")
    ]
