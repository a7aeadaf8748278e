"""Which metric decides where the wanted one is undefined.

AUC needs both classes, GAUC a user who has both, and every metric a row. A metric that is undefined
is left out of what is written, and the next one in a fixed order decides.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from hisac_rec.data.contract import PreparedData, Split, label_field
from hisac_rec.data.parquet import open_parquet
from hisac_rec.evaluation.trivial import flatten_candidates

ORDER = ("logloss", "auc", "gauc")
"""What decides after the wanted metric."""
WHY = {
    "auc": "all labels are equal",
    "gauc": "no user has both a positive and a negative label",
    "logloss": "there is no labelled candidate",
}
"""Why a metric is undefined."""


def deciding(defined: Collection[str], wanted: str) -> str | None:
    """``wanted`` where it is defined, else the first of :data:`ORDER` that is; None: none is."""
    return next((name for name in (wanted, *ORDER) if name in defined), None)


def undefined_in_words(defined: Collection[str], wanted: str, split: str) -> str:
    """What is undefined on a split, why, and what decides instead; empty where all is defined."""
    missing = [name for name in ("auc", "gauc", "logloss") if name not in defined]
    if not missing:
        return ""
    reasons = "; ".join(f"{name} is undefined, because {WHY[name]}" for name in missing)
    found = deciding(defined, wanted)
    if found == wanted:
        return f"on {split} {reasons}"
    instead = f"{found} decides instead of {wanted}" if found else "the newest checkpoint is kept"
    return f"on {split} {reasons}: {instead}"


def defined_metrics_of(data: PreparedData, split: Split, task: str = "") -> tuple[str, ...]:
    """Which of auc, gauc and logloss the labels of a split define. O(candidates), streaming.

    Args:
        data: the prepared data.
        split: whose labels.
        task: which; empty: the main one's.
    """
    if not data.manifest.splits[split].requests:
        return ()
    field = label_field(task or data.manifest.task, data.manifest)
    positives = np.zeros(data.manifest.users, np.int64)
    rows = np.zeros(data.manifest.users, np.int64)
    for path in data.split_files(split):
        for batch in open_parquet(path).iter_batches(columns=["user", "requests"]):
            user, _, label = flatten_candidates(batch, field)
            rows += np.bincount(user, minlength=len(rows))
            positives += np.bincount(user, weights=label > 0.5, minlength=len(rows)).astype(int)
    found = ["logloss"] if rows.any() else []
    found += ["auc"] if 0 < positives.sum() < rows.sum() else []
    found += ["gauc"] if ((positives > 0) & (positives < rows)).any() else []
    return tuple(found)
