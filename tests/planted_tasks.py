"""A shop's log with three planted tasks, each of which depends on something else.

- click: on the user's favourite shelf, which the history shows;
- like: on the item's colour alone;
- purchase, of clicked items only: on the user's budget alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hisac_rec.config import apply_overrides, validate
from hisac_rec.data.contract import PreparedData
from hisac_rec.preparation.definition import DatasetDefinition
from hisac_rec.preparation.prepare import prepare
from hisac_rec.semantic.fit import fit_semantic_ids, resolve_config

USERS, ITEMS, SHELVES, PAGES, PAGE = 60, 48, 4, 20, 4

DEFINITION: dict[str, Any] = {
    "name": "planted",
    "source": {
        "files": ["log.parquet", "items.parquet", "users.parquet"],
        "events": "FROM '{raw}/log.parquet'",
        "items": "FROM '{raw}/items.parquet'",
        "users": "FROM '{raw}/users.parquet'",
    },
    "history": {"where": "clicked"},
    "requests": {"label": "clicked", "group": "page"},
    "split": {"by": "time", "valid_from": 14_000, "test_from": 17_000},
    "semantic_ids": {"source": "content", "codes": [4, 3]},
}
TASKS = (
    'requests.task="click"',
    'requests.tasks.like="liked"',
    'requests.tasks.purchase="CASE WHEN clicked THEN bought END"',
)


def planted_definition(*overrides: str) -> DatasetDefinition:
    return validate(DatasetDefinition, apply_overrides(DEFINITION, overrides), "planted.toml")


def planted_log(folder: Path, order: int | None = None) -> Path:
    """Write the raw files; ``order`` shuffles the rows of the log."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    user = np.repeat(np.arange(USERS), PAGES * PAGE)
    page = np.tile(np.repeat(np.arange(PAGES), PAGE), USERS)
    time = 1_000 * page + user
    item = rng.integers(ITEMS, size=len(user))
    favourite, rich = rng.integers(SHELVES, size=USERS), rng.random(USERS) < 0.5
    shelf, red = np.arange(ITEMS) % SHELVES, rng.random(ITEMS) < 0.5

    def happens(likely: np.ndarray) -> np.ndarray:
        return rng.random(len(likely)) < np.where(likely, 0.85, 0.15)

    clicked = happens(shelf[item] == favourite[user])
    columns = {
        "user": user,
        "item": item,
        "time": time,
        "page": page,
        "clicked": clicked,
        "liked": happens(red[item]),
        "bought": happens(rich[user]),
    }
    log = pa.table(columns)
    if order is not None:
        log = log.take(np.random.default_rng(order).permutation(len(log)))
    pq.write_table(log, folder / "log.parquet")
    content = np.eye(SHELVES, dtype=np.float32)[shelf] + 0.1 * rng.normal(size=(ITEMS, SHELVES))
    items = {"item": np.arange(ITEMS), "colour": red.astype(np.int64)}
    items["content"] = content.astype(np.float32).tolist()
    pq.write_table(pa.table(items), folder / "items.parquet")
    users = {"user": np.arange(USERS), "budget": rich.astype(np.int64)}
    pq.write_table(pa.table(users), folder / "users.parquet")
    return folder


def planted_data(folder: Path, *overrides: str, out: str = "data") -> PreparedData:
    """Prepared, with semantic ids."""
    raw = folder / "raw"
    if not raw.exists():
        planted_log(raw)
    data = prepare(planted_definition(*overrides), folder / out, raw=raw)
    fit_semantic_ids(data, resolve_config(data))
    return data
