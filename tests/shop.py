"""A made-up shop: its raw event log, its definition, and how to compare what is made of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from hisac_rec.config import apply_overrides, validate
from hisac_rec.preparation.definition import DatasetDefinition

SHOP: dict[str, Any] = {
    "name": "shop",
    "source": {
        "files": ["events.csv", "goods.csv"],
        "where_to_get": "ask the shop",
        "events": """
            SELECT customer AS user, sku AS item, epoch(moment::TIMESTAMP)::BIGINT AS time,
                kind AS type, session, bought FROM read_csv('{raw}/events.csv')""",
        "items": """
            SELECT sku AS item, shelf, string_split(tags, '|') AS tags, name AS text,
                [weight, 1.0] AS content FROM read_csv('{raw}/goods.csv')""",
        "users": "SELECT DISTINCT customer AS user, town FROM read_csv('{raw}/events.csv')",
    },
    "history": {"where": "type <> 'skip'"},
    "requests": {"where": "type = 'view'", "label": "bought", "group": "session"},
    "split": {"by": "time", "valid_from": 1_700_060_000, "test_from": 1_700_080_000},
}


def shop_log(folder: Path, seed: int = 0, users: int = 40, order: int | None = None) -> Path:
    """Write raw files of a made-up shop: sessions of a few events, ties in time."""
    rng = np.random.default_rng(seed)
    lines, shelves = [], ["top", "middle", "low"]
    for user in range(users):
        for session in range(30):
            start = 1_700_000_000 + int(rng.integers(100_000))
            for step in range(int(rng.integers(1, 5))):
                at = np.datetime64(start + step // 2, "s")  # two events share a second
                kind = rng.choice(["view", "cart", "skip"], p=[0.6, 0.2, 0.2])
                sku = f"s{rng.integers(50)}"
                bought = int(rng.random() < 0.4)
                lines.append(f"c{user},{sku},{at},{kind},{user}-{session},{bought},t{user % 3}")
    if order is not None:
        np.random.default_rng(order).shuffle(lines)
    folder.mkdir(exist_ok=True)
    head = "customer,sku,moment,kind,session,bought,town"
    (folder / "events.csv").write_text("\n".join([head, *lines]) + "\n")
    goods = [
        f"s{i},{shelves[i % 3]},{'new|blue' if i % 2 else 'blue'},thing {i},{i / 10}"
        for i in range(60)
    ]
    (folder / "goods.csv").write_text("\n".join(["sku,shelf,tags,name,weight", *goods]) + "\n")
    return folder


def define(*overrides: str) -> DatasetDefinition:
    return validate(DatasetDefinition, apply_overrides(SHOP, overrides), "shop.toml")


def digest(root: Path, pattern: str) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.glob(pattern))
    }
