"""What ``python -m benchmarks.refresh`` makes of figures, without a training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import refresh
from hisac_rec.semantic.store import Semantics


def test_codes_of_a_fit_anew_are_named_as_well_as_can_be() -> None:
    rng = np.random.default_rng(0)
    was = np.stack([rng.integers(0, 6, 300), rng.integers(0, 5, 300)], 1).astype(np.int32)
    now = np.stack([rng.permutation(6)[was[:, 0]], rng.permutation(5)[was[:, 1]]], 1)
    now[:30, 0] = (now[:30, 0] + 1) % 6  # these have left
    words = [np.zeros((6, 2), np.float32), np.zeros((5, 2), np.float32)]
    both = np.ones(300, bool)
    known, vectors = both, np.zeros((300, 2), np.float32)
    named = refresh.renamed(Semantics(now.astype(np.int32), vectors, words, known), was, both)
    np.testing.assert_array_equal((named != was).mean(0), [0.1, 0.0])
    # Aligned codes have their names already.
    kin = Semantics(now.astype(np.int32), vectors, words, known, lineage=("x",))
    np.testing.assert_array_equal(refresh.renamed(kin, was, both), now)


def test_the_page_compares_seed_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh, "PAGE", tmp_path / "refresh.md")
    codes = {"explained": 0.4, "perplexity": [3.0, 4.0], "churn": [0.01, 0.02]}
    codes |= {"churn_path": 0.03, "unchanged": 50, "new": 5}
    rows = [
        {"seed": seed, "way": way, "training": "at once", "auc": 0.7 + 0.1 * seed + gain}
        | {"auc_known": 0.7, "auc_new": 0.6, "gauc": 0.65, "candidates": 100, "candidates_new": 9}
        for seed in (0, 1)
        for way, gain in (("unrefreshed", 0.0), ("refit", 0.01 + 0.002 * seed))
    ]
    refresh.write_page(
        {
            "date": "2026-01-01",
            "versions": {"torch": "x"},
            "codes": {"unrefreshed": codes, "refit": codes},
            "rows": json.loads(json.dumps(rows)),
        }
    )
    page = refresh.PAGE.read_text()
    assert "| refit | 0.7610 ± 0.0510 | +0.0110 ± 0.0010 | 0.7000 ± 0.0000 |" in page
    assert "1.0%, 2.0% | 3.0% |" in page
