"""Latency of a request of 1,000 candidates on one core: from a cache, from the history, by DIN."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from benchmarks.speed.measure import Figure, Topic, figure
from benchmarks.speed.runs import WORK, hisac_rec
from benchmarks.speed.training import thousand_events
from hisac_rec.data.assemble import BatchAssembler
from hisac_rec.data.contract import PreparedData
from hisac_rec.data.units import RequestTable
from hisac_rec.ranker.build import build_ranker
from hisac_rec.ranker.config import load_model_config
from hisac_rec.scorer import LmdbStore, Scorer
from hisac_rec.scorer.state import StateFormat
from hisac_rec.scorer.store import MANIFEST_KEY
from hisac_rec.serving.cache import NEWEST, CacheManifest, Keys, pack
from hisac_rec.serving.compress import describe
from hisac_rec.serving.precision import PRECISIONS, Precision
from hisac_rec.train.job import Job, open_job
from hisac_rec.train.run import RunFolder

LENGTHS = (100, 1_000, 10_000)
CANDIDATES = 1_000
TURNS = 40
EVERY = 4
"""DIN over the longest history takes seconds: it has every fourth turn."""
NOW = 1_720_000_000


def measure() -> Topic:
    """All figures."""
    torch.set_num_threads(1)
    data = PreparedData(thousand_events())
    run, model = _exported(data)
    hisac = open_job(RunFolder(run).config(), data)
    din = open_job(load_model_config(Path("models/din.toml")), data)
    asked = np.random.default_rng(0).integers(1, data.manifest.items, CANDIDATES)
    work: dict[tuple[str, int], Callable[[], object]] = {}
    cached, sizes = _cached(hisac, run, model, asked)
    for length in LENGTHS:
        work["cached HiSAC", length] = cached[length]
        work["uncached HiSAC", length] = _whole(hisac, length, asked)
        work["full DIN", length] = _whole(din, length, asked)
    seconds = _turns(work)
    figures = []
    for name, quantile in (("p50", 0.5), ("p99", 0.99)):

        def at(way: str, length: int, of: float = quantile) -> float:
            return float(np.quantile(seconds[way, length], of))

        figures += [
            _plain(
                f"{name}: full DIN over cached HiSAC, {length:,} events",
                at("full DIN", length) / at("cached HiSAC", length),
                ">= 20" if (length, name) == (10_000, "p50") else "",
            )
            for length in LENGTHS
        ]
        figures += [
            _plain(
                f"{name}: uncached over cached HiSAC, {length:,} events",
                at("uncached HiSAC", length) / at("cached HiSAC", length),
            )
            for length in LENGTHS
        ]
    for short in (100, 1_000):
        flat = zip(seconds["cached HiSAC", 10_000], seconds["cached HiSAC", short], strict=True)
        name = f"cached HiSAC: 10,000 events over {short:,}"
        figures.append(figure(name, [a / b for a, b in flat], goal="<= 1.1"))
    raw = 10_000 * 4 * hisac.config.tables.dim
    figures += [
        _plain(
            f"bytes of 10,000 events' embeddings over a cached user's, {name}", raw / size, ">= 20"
        )
        for name, size in sizes.items()
    ]
    text = (
        f"One request of {CANDIDATES:,} candidates, one thread, from a user's id and raw item ids "
        "to scores. *Cached*: the exported program, agents from the store, tables mapped. "
        "*Uncached* and *DIN*: the history's ids in memory, batch, lookups and the whole model in "
        f"one process. {TURNS} turns; full DIN has every {EVERY}th. A hundred events make fewer "
        "agents than may be kept, and a candidate reads what agents there are."
    )
    curves = {
        "milliseconds a request, median": {
            way.removesuffix(" HiSAC").removeprefix("full "): [
                (n, 1e3 * float(np.median(seconds[way, n]))) for n in LENGTHS
            ]
            for way in ("cached HiSAC", "uncached HiSAC", "full DIN")
        }
    }
    return Topic("Serving", text, figures, curves)


def _plain(name: str, value: float, goal: str = "") -> Figure:
    return Figure(name, value, value, value, "x", goal)


def _turns(work: dict[tuple[str, int], Callable[[], object]]) -> dict[tuple[str, int], list[float]]:
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in work}
    for run in work.values():
        run()
    for turn in range(TURNS):
        for key, run in work.items():
            if key[0] == "full DIN" and turn % EVERY:
                continue
            begin = time.perf_counter()
            run()
            seconds[key].append(time.perf_counter() - begin)
    return seconds


def _exported(data: PreparedData) -> tuple[Path, Path]:
    """A run of a few steps, and what is exported of it."""
    run, model = WORK / "serving-run", WORK / "serving-model"
    for folder in (run, model):
        shutil.rmtree(folder, ignore_errors=True)
    few = ("--set", "train.max_candidates=4000", "--set", "train.epochs=1")
    hisac_rec("train", "hisac", str(data.root), "--out", str(run), *few)
    hisac_rec("export", str(run), "--out", str(model))
    return run, model


def _request(job: Job, length: int, asked: NDArray[np.int64]) -> RequestTable:
    """One user's request, its events drawn by popularity."""
    counts = job.data.items["train_count"].to_numpy() + 1.0
    generator = np.random.default_rng(length)
    items = generator.choice(len(counts), length, p=counts / counts.sum())
    none, one = np.zeros(1, np.int64), np.ones(1, np.int64)
    users = {lookup.column: np.ones(1, np.int32) for lookup in job.spec.of_side("user")}
    return RequestTable(
        users=users | {"user": np.ones(1, np.int32)},
        history_item=items.astype(np.int32),
        history_type=np.zeros(length, np.int8),
        history_time=NOW - np.sort(generator.integers(1, 10_000_000, length))[::-1],
        user_row=none,
        history_start=none,
        history_end=one * length,
        candidate_start=none,
        candidate_end=one * len(asked),
        visible=one * length,
        time=one * NOW,
        number=none,
        candidate_item=asked.astype(np.int32),
        candidate_label=np.zeros(len(asked), np.float32),
        candidate_oracle=np.zeros(0, np.float32),
    )


def _whole(job: Job, length: int, asked: NDArray[np.int64]) -> Callable[[], object]:
    """Batch, lookups and model, from ids to logits."""
    torch.manual_seed(0)
    ranker = build_ranker(job.config, job.schema, "cpu").eval()
    assembler, table = BatchAssembler(job.spec, job.items), _request(job, length, asked)

    @torch.inference_mode()
    def score() -> object:
        return ranker(assembler.assemble(table, np.zeros(1, np.int64)))

    return score


def _cached(
    job: Job, run: Path, model: Path, asked: NDArray[np.int64]
) -> tuple[dict[int, Callable[[], object]], dict[Precision, int]]:
    """Scoring from a store by length, and the bytes of the longest user's state by precision."""
    path = WORK / "serving-store"
    shutil.rmtree(path, ignore_errors=True)
    store = LmdbStore(path)
    ranker = build_ranker(job.config, job.schema, "cpu").eval()
    checkpoint = RunFolder(run).checkpoints().find("best")
    sizes: dict[Precision, int] = {}
    for length in LENGTHS:
        batch = BatchAssembler(job.spec, job.items, name_events=True).assemble(
            _request(job, length, asked), np.zeros(1, np.int64)
        )
        ranker.head.holds = True
        with torch.inference_mode():
            held = ranker(batch)[1][1]
        for precision in PRECISIONS:
            manifest = describe(job, checkpoint, at="last", age=0, precision=precision)
            (state,) = StateFormat(manifest).encode_rows(_row(batch, held, manifest, length))
            if length == max(LENGTHS):
                sizes[precision] = len(state)
            if precision == "fp32":
                store.put_many("state", [(str(length), state)])
                store.put_many("meta", [(MANIFEST_KEY, manifest.model_dump_json().encode())])
    scorer = Scorer.load(model, store)
    names = job.data.items["raw_id"].take(pa.array(asked)).to_pylist()
    return {
        length: (lambda user=str(length): scorer.score(user, names, time=NOW)) for length in LENGTHS
    }, sizes


def _row(batch: object, held: dict, manifest: CacheManifest, length: int) -> pa.RecordBatch:
    one = np.ones(1, np.int64)
    newest = {
        "newest_item": batch.history_items[batch.history_rows].numpy(),
        "newest_type": batch.history_type.numpy(),
        "newest_time": NOW - batch.history_age.numpy().astype(np.int64),
    }
    plain = {
        name: pa.array([newest[name][-manifest.newest :]], pa.list_(kind))
        for name, kind in NEWEST.items()
    }
    plain |= {f"user_{name}": pa.array(one, pa.int32()) for name in manifest.user_features}
    keys = Keys(one, one * NOW, one * 0, one * length, pa.array([str(length)]))
    return pack(keys, held, manifest, plain)
