"""What a candidate costs, once the history is compressed, against the history's length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.speed.measure import Figure, Topic, take_turns
from benchmarks.speed.training import thousand_events
from hisac_rec.compare.cost import generated_candidates, generated_history
from hisac_rec.config import Strict
from hisac_rec.data.contract import PreparedData
from hisac_rec.methods.base import find_method
from hisac_rec.ranker.config import load_model_config
from hisac_rec.train.job import open_job

LENGTHS = (100, 300, 1_000, 3_000, 10_000)
CANDIDATES = 256
TURNS = 5


def measure() -> Topic:
    """All methods at all lengths."""
    data = PreparedData(thousand_events())
    names = sorted(path.stem for path in Path("models").glob("*.toml"))
    read: dict[str, list[tuple[float, float]]] = {}
    compress: dict[str, list[tuple[float, float]]] = {}
    figures: list[Figure] = []
    for name in names:
        work = {n: _work(name, data, n) for n in LENGTHS}
        if any(one is None for one in work.values()):
            continue
        reading = take_turns({str(n): work[n][1] for n in LENGTHS}, TURNS)  # type: ignore[index]
        making = take_turns({str(n): work[n][0] for n in LENGTHS}, TURNS)  # type: ignore[index]
        read[name] = [(n, 1e6 * reading.median(str(n)) / CANDIDATES) for n in LENGTHS]
        compress[name] = [(n, 1e3 * making.median(str(n))) for n in LENGTHS]
        if name in ("hisac", "din"):
            goal = "<= 1.1" if name == "hisac" else ""
            figures.append(
                reading.ratio(
                    f"{name}: a candidate at 10,000 events over one at 1,000", "10000", "1000", goal
                )
            )
            figures.append(
                reading.ratio(
                    f"{name}: a candidate at 10,000 events over one at 100", "10000", "100", goal
                )
            )
    text = (
        f"Each method alone, one request of {CANDIDATES} candidates and one thread, events drawn "
        "by popularity. *Read* is what a candidate costs; *compress* what a request costs once."
    )
    curves = {
        "read, microseconds a candidate": read,
        "compress, milliseconds a request": compress,
    }
    return Topic("Cost against history length", text, figures, curves)


def _work(
    name: str, data: PreparedData, events: int
) -> tuple[Callable[[], object], Callable[[], object]] | None:
    """(compress, read) of a method at a length; None for one without a history."""
    job = open_job(load_model_config(Path("models") / f"{name}.toml"), data)
    kind = find_method(job.config.method)
    if not kind.uses_history:
        return None
    torch.manual_seed(0)
    config: Strict = job.config.method_config()
    method = kind(config, job.schema.method_shape(job.config.tables.dim))
    method.eval()
    generator = np.random.default_rng(events)
    length = min(events, job.spec.max_history or events)
    history = generated_history(method, job, length, generator)
    wanted = generated_candidates(method, job, CANDIDATES, generator)
    with torch.no_grad():
        memory = method.compress(history)

    @torch.no_grad()
    def compress() -> object:
        return method.compress(history)

    @torch.no_grad()
    def read() -> object:
        return method.read(memory, wanted)

    return compress, read
