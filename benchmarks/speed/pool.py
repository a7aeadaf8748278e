"""Rows, sums of leaves or sums of agents over the network: bytes and step time on two ranks."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.speed.measure import Topic, Turns, figure
from benchmarks.speed.runs import prepared, torchrun
from benchmarks.speed.traffic import FORMS

EVENTS = 10_000
WIDTH = 64
EACH_ROW = EVENTS * (2 * 4 * WIDTH + 8) / 2
"""Bytes a request if every event's item row were sent: half of them to another rank, there and
back in fp32, and 8 bytes an id."""


def measure() -> Topic:
    """All figures."""
    lengths = (f"length_min={EVENTS}", f"length_median={EVENTS}", f"length_max={EVENTS}")
    data = prepared(
        "wide-10000",
        "users=100",
        "items=400000",
        "branches=[16, 8]",
        "candidates=16",
        "train_requests=1",
        *lengths,
        codes="[64, 64]",
    )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        torchrun("benchmarks.speed.traffic", str(data), str(out), ranks=2)
        found = json.loads(out.read_text())
    sent = {name: found[name]["bytes"] for name in FORMS}
    turns = Turns({name: found[name]["seconds"] for name in FORMS})
    figures = []
    for name in FORMS:
        if name == "rows":
            figures.append(figure("rows: kB a request", [sent[name] / 1e3], "kB"))
            less = EACH_ROW / sent[name]
            figures.append(figure("rows: fewer bytes than a row for every event", [less]))
            continue
        goal = ">= 10" if name == "leaves" else ""
        less = sent["rows"] / sent[name]
        figures.append(figure(f"{name}: fewer bytes than rows", [less], goal=goal))
        less = EACH_ROW / sent[name]
        figures.append(figure(f"{name}: fewer bytes than a row for every event", [less]))
        figures.append(turns.ratio(f"{name}: faster step than rows", "rows", name))
    text = (
        f"Two ranks of one thread each, tables whole on one of them (`table_wise`), {EVENTS:,} "
        f"events a request over 400,000 items, up to 200 agents, width {WIDTH}, about 22 requests "
        "a rank and step. Bytes are what all-to-all collectives send to the other rank, forward "
        "and backward, counted as they are called. *Rows* sends an item of a batch once however "
        "often it was met; *leaves* is what is chosen here where the model file does not say."
    )
    return Topic("Summed where the rows are", text, figures, {})
