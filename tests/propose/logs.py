"""Small event logs that tests write, with and without planted problems."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hisac_rec.propose.look import Looked, propose
from hisac_rec.propose.proposal import Options

START = 1_700_000_000
Row = dict[str, Any]


def clean_log(users: int = 40, events: int = 30, items: int = 60, seed: int = 0) -> list[Row]:
    """Impressions with clicks: each user ``events`` rows over thirty days, nothing wrong."""
    draw = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        times = np.sort(draw.choice(30 * 86_400, events, replace=False)) + START
        for time in times:
            item = int(draw.integers(items))
            clicked = int(draw.random() < 0.2 + 0.4 * (item % 3 == user % 3))
            rows.append(
                {
                    "user_id": user,
                    "item_id": f"i{item}",
                    "timestamp": int(time),
                    "click": clicked,
                    "device": ["phone", "desk"][int(draw.integers(2))],
                }
            )
    return rows


def write_csv(path: Path, rows: list[Row], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def changed(rows: list[Row], change: Callable[[int, Row], Row]) -> list[Row]:
    """Every row through ``change(index, copy)``."""
    return [change(index, dict(row)) for index, row in enumerate(rows)]


def looked(tmp_path: Path, events: Path, **options: Any) -> Looked:
    scratch = tmp_path / f"scratch-{len(list(tmp_path.glob('scratch-*')))}"
    scratch.mkdir()
    return propose(Options((events,), **options), tmp_path / "found.toml", scratch, threads=1)


def codes(found: Looked) -> list[str]:
    return [concern.code for concern in found.concerns]
