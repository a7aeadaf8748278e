"""Small prepared data sets for tests, written as real Parquet per the data contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hisac_rec.data.contract import (
    CONTRACT_VERSION,
    SPLITS,
    Feature,
    Manifest,
    PreparedData,
    SplitCounts,
    Stats,
    items_schema,
    split_schema,
)

Rows = list[dict[str, Any]]


def random_rows(
    rng: np.random.Generator,
    users: int,
    items: int,
    *,
    max_history: int = 20,
    max_requests: int = 4,
    max_candidates: int = 5,
    user_features: list[Feature] | None = None,
) -> Rows:
    """Rows of a split with uniform items in 1..items-1; row u is user u + 1."""
    rows = []
    for user in range(1, users + 1):
        length = int(rng.integers(1, max_history + 1))
        times = np.sort(rng.integers(0, 1_000, length))
        requests = []
        for time in np.sort(rng.integers(1, 1_001, int(rng.integers(1, max_requests + 1)))):
            n = int(rng.integers(1, max_candidates + 1))
            requests.append(
                {
                    "time": int(time),
                    "history_end": int((times < time).sum()),
                    "items": rng.integers(1, items, n).tolist(),
                    "labels": rng.integers(0, 2, n).astype(float).tolist(),
                }
            )
        row = {
            "user": user,
            "history_item": rng.integers(1, items, length).tolist(),
            "history_type": [0] * length,
            "history_time": times.tolist(),
            "requests": requests,
        }
        for feature in user_features or []:
            row[f"user_{feature.name}"] = int(rng.integers(0, feature.rows))
        rows.append(row)
    return rows


def write_prepared(
    root: Path,
    *,
    items: int = 50,
    users: int = 30,
    content: np.ndarray | None = None,
    text: list[str | None] | None = None,
    rows: dict[str, Rows] | None = None,
    user_features: list[Feature] | None = None,
    item_features: list[Feature] | None = None,
    definition: dict[str, Any] | None = None,
    files_per_split: int = 2,
    seed: int = 0,
) -> PreparedData:
    """Write a prepared data set and open it.

    Args:
        root: the folder, made if absent.
        items: I, rows of the item table, the unknown item 0 included.
        users: rows of each split where ``rows`` does not give it.
        content: [I, d] content embeddings, or None.
        text: I texts (None: null), or None for no text column.
        rows: split -> rows as :func:`random_rows` makes them; random where absent.
        user_features: columns ``user_<name>`` of the splits; give ``rows`` them too.
        item_features: random ids in ``items.parquet``.
        definition: what the manifest records as the data-set definition.
        files_per_split: Parquet files a split is cut into.
        seed: of everything random.
    """
    rng = np.random.default_rng(seed)
    user_features, item_features = user_features or [], item_features or []
    given = rows or {}
    filled = {
        split: given[split]
        if split in given
        else random_rows(rng, users, items, user_features=user_features)
        for split in SPLITS
    }
    root.mkdir(parents=True, exist_ok=True)
    schema = split_schema([feature.name for feature in user_features])
    for split, split_rows in filled.items():
        (root / split).mkdir(exist_ok=True)
        for part, chunk in enumerate(np.array_split(np.arange(len(split_rows)), files_per_split)):
            table = pa.Table.from_pylist([split_rows[i] for i in chunk], schema=schema)
            pq.write_table(table, root / split / f"part-{part:05d}.parquet")

    manifest = Manifest(
        contract_version=CONTRACT_VERSION,
        name="test",
        users=1 + max((row["user"] for part in filled.values() for row in part), default=0),
        items=items,
        user_features=user_features,
        item_features=item_features,
        event_types=["click"],
        has_clock=True,
        content_dim=None if content is None else content.shape[1],
        has_text=text is not None,
        has_oracle=False,
        splits={split: _counts(filled[split]) for split in SPLITS},
        definition=definition or {},
        fingerprint=f"test-{seed}-{items}",
    )
    (root / "manifest.json").write_text(manifest.model_dump_json(indent=1))
    (root / "stats.json").write_text(_stats(filled["train"], item_features).model_dump_json())
    (root / "vocab").mkdir(exist_ok=True)
    names = [None, *(f"user{number}" for number in range(1, manifest.users))]
    pq.write_table(pa.table({"value": pa.array(names, pa.string())}), root / "vocab/user.parquet")
    pq.write_table(_items(manifest, content, text, filled["train"], rng), root / "items.parquet")
    return PreparedData(root)


def _items(
    manifest: Manifest,
    content: np.ndarray | None,
    text: list[str | None] | None,
    train: Rows,
    rng: np.random.Generator,
) -> pa.Table:
    n = manifest.items
    counts = np.zeros(n, np.int64)
    for row in train:
        for request in row["requests"]:
            np.add.at(counts, request["items"], 1)
    columns: dict[str, Any] = {
        "item": np.arange(n, dtype=np.int32),
        "raw_id": [None, *(f"raw-{i}" for i in range(1, n))],
        "train_count": counts,
        "first_time": [0 if count else None for count in counts],
    }
    for feature in manifest.item_features:
        shape = (n, 2) if feature.multi else n
        columns[feature.name] = rng.integers(0, feature.rows, shape).tolist()
    if text is not None:
        columns["text"] = text
    if content is not None:
        columns["content"] = list(content.astype(np.float32))
    schema = items_schema(manifest)
    return pa.table([pa.array(columns[f.name], f.type) for f in schema], schema=schema)


def _counts(rows: Rows) -> SplitCounts:
    requests = [request for row in rows for request in row["requests"]]
    return SplitCounts(
        users=len(rows),
        events=sum(len(row["history_item"]) for row in rows),
        requests=len(requests),
        candidates=sum(len(request["items"]) for request in requests),
        positives=float(sum(sum(request["labels"]) for request in requests)),
    )


def _stats(rows: Rows, item_features: list[Feature]) -> Stats:
    requests = [request for row in rows for request in row["requests"]]
    lengths = [request["history_end"] for request in requests] or [0]
    candidates = [len(request["items"]) for request in requests] or [0]
    return Stats(
        history_length_mean=float(np.mean(lengths)),
        history_length_quantiles={
            str(q): int(np.quantile(lengths, q)) for q in (0.5, 0.9, 0.95, 0.99, 1.0)
        },
        candidates_mean=float(np.mean(candidates)),
        candidates_max=max(candidates),
        feature_values_mean={f.name: 2.0 if f.multi else 1.0 for f in item_features},
    )
