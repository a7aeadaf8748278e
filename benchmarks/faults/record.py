"""Write down what every step trains on, and tell from that what a model has learned.

As a script it is ``hisac-rec`` with the recording around it::

    torchrun --nproc-per-node 2 benchmarks/faults/record.py FOLDER train hisac DATA --out RUN

Each rank of each start appends to a file of its own, a line a step, unbuffered: what it wrote
survives its own SIGKILL.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any


def record_steps(folder: Path, rank: int) -> None:
    """From now on, write down which requests each step of this process trains on."""
    from hisac_rec.train.trainer import Trainer

    folder.mkdir(parents=True, exist_ok=True)
    # What the ranks of one start have in common, and no other start has.
    start = ".".join(
        os.environ.get(name, "0") for name in ("MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    )
    path = folder / f"{time.time_ns()}-{rank}-{os.getpid()}-{start}.jsonl"
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    count = Trainer._count

    def counted(self: Any, fed: Any, loss: Any) -> None:
        count(self, fed, loss)
        rows = fed.batch.request_rows[:, 2].tolist() if fed.batch.num_candidates else []
        line = {"step": self.position.step, "epoch": self.position.epoch, "requests": rows}
        os.write(file, json.dumps(line).encode() + b"\n")

    Trainer._count = counted  # type: ignore[method-assign]


def read_record(path: Path) -> list[dict[str, Any]]:
    """Lines of one file; one cut short by a kill is none."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def learned(folder: Path) -> dict[int, Counter[int]]:
    """Epoch -> how often the final model was trained on each request.

    The history of a model is the chain of steps that made its weights. A start whose first step
    is s goes on from the weights after step s - 1; what earlier starts had trained from step s on
    was never in the weights that training went on with, so it is struck out, whoever trained it.
    """
    history: dict[tuple[int, int], tuple[str, int, list[int]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        _, rank, _, start = path.stem.split("-")
        lines = read_record(path)
        if not lines:
            continue
        first = lines[0]["step"]
        history = {at: had for at, had in history.items() if at[0] < first or had[0] == start} | {
            (line["step"], int(rank)): (start, line["epoch"], line["requests"]) for line in lines
        }
    epochs: dict[int, Counter[int]] = {}
    for _, epoch, requests in history.values():
        epochs.setdefault(epoch, Counter()).update(requests)
    return epochs


def lost_and_repeated(folder: Path, requests: int, epochs: int) -> tuple[int, int]:
    """Of ``requests`` an epoch: how many the final model never saw, how many more than once."""
    found = learned(folder)
    lost = sum(requests - len(found.get(epoch, {})) for epoch in range(epochs))
    repeated = sum(n > 1 for counts in found.values() for n in counts.values())
    return lost, repeated


def trained_steps(folder: Path) -> int:
    """Steps trained by rank 0 over all starts, those struck out too."""
    return sum(len(read_record(path)) for path in folder.glob("*-0-*.jsonl"))


if __name__ == "__main__":
    record_steps(Path(sys.argv[1]), int(os.environ.get("RANK", 0)))
    sys.argv[1:] = sys.argv[2:]
    from hisac_rec.cli.app import main

    main()
