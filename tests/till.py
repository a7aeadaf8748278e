"""A till's log: purchases alone, whose non-events are drawn."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from hisac_rec.config import apply_overrides, validate
from hisac_rec.data.contract import PreparedData
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare

VALID, TEST = 60_000, 80_000
PURCHASES: dict[str, Any] = {
    "name": "till",
    "source": {
        "files": ["till.csv"],
        "events": """SELECT customer AS user, sku AS item, second AS time, kind AS type, basket
            FROM read_csv('{raw}/till.csv')""",
        "items": "SELECT 's' || unnest(range(60)) AS item",
    },
    "requests": {
        "where": "type = 'bought'",
        "label": "1",
        "group": "basket",
        "negatives": {"per_positive": 3},
    },
    "split": {"by": "time", "valid_from": VALID, "test_from": TEST},
}
Line = tuple[str, str, int, str, str]


def lines(seed: int = 0, customers: int = 25) -> list[Line]:
    """Baskets of one to three goods at one second, some more popular; new goods over time."""
    rng = np.random.default_rng(seed)
    made = []
    for user in range(customers):
        for basket in range(12):
            second = int(rng.integers(100_000))
            goods = rng.choice(10 + second // 3_000, size=3, replace=False)
            for sku in goods[: rng.integers(1, 4)] // rng.integers(1, 4):
                kind = "bought" if rng.random() < 0.9 else "returned"
                made.append((f"c{user}", f"s{sku}", second, kind, f"{user}-{basket}"))
    return made


def write(folder: Path, made: list[Line]) -> Path:
    folder.mkdir(exist_ok=True)
    with (folder / "till.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("customer", "sku", "second", "kind", "basket"), *made])
    return folder


def make_till(
    folder: Path, *overrides: str, out: str = "out", log: list[Line] | None = None, **options: Any
) -> PreparedData:
    """Prepare the till's log (or other lines) with overrides."""
    raw = folder / f"raw-{out}"
    if not raw.exists():
        write(raw, lines() if log is None else log)
    definition = validate(DatasetDefinition, apply_overrides(PURCHASES, overrides), "till.toml")
    return prepare(definition, folder / out, raw=raw, **options)


def requests(data: PreparedData, split: str) -> list[dict[str, Any]]:
    """Each request with its user, what its history holds, what was bought and what was drawn."""
    names_of_users = pq.read_table(data.root / "vocab" / "user.parquet")["value"].to_pylist()
    names = data.items["raw_id"].to_pylist()
    made = []
    for row in pq.read_table(data.root / split).to_pylist():
        for request in row["requests"]:
            shown = list(zip(request["items"], request["labels"], strict=True))
            made.append(
                {
                    "user": names_of_users[row["user"]],
                    "time": request["time"],
                    "seen": {names[i] for i in row["history_item"][: request["history_end"]]},
                    "bought": [names[i] for i, label in shown if label == 1],
                    "drawn": [names[i] for i, label in shown if label == 0],
                }
            )
    return made


def digest(root: Path, pattern: str = "**/*.*") -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.glob(pattern))
    }
