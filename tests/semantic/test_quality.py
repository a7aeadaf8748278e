from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hisac_rec.semantic.codebook import Codebook
from hisac_rec.semantic.quality import measure

COUNTS = [5, 4]


def case(n: int, seed: int) -> tuple[np.ndarray, torch.Tensor, Codebook]:
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, count, n) for count in COUNTS], axis=1).astype(np.int32)
    codebook = Codebook([torch.tensor(rng.normal(size=(c, 3))).float() for c in COUNTS])
    return codes, torch.tensor(rng.normal(size=(n, 3))).float(), codebook


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 40), seed=st.integers(0, 99))
def test_the_numbers_equal_a_plain_count(n: int, seed: int) -> None:
    codes, vectors, codebook = case(n, seed)
    path = codebook.path_vector(torch.from_numpy(codes))
    quality = measure(codes, vectors, codebook, vectors, path)

    paths = Counter(map(tuple, codes.tolist()))
    shared = sum(times for times in paths.values() if times > 1)
    assert quality.collision_rate == pytest.approx(shared / n)
    spread = float((vectors - vectors.mean(0)).square().sum(1).mean())
    for level, got in enumerate(quality.levels):
        times = Counter(codes[:, level].tolist())
        entropy = -sum(t / n * np.log(t / n) for t in times.values())
        assert got.usage == pytest.approx(len(times) / COUNTS[level])
        assert got.perplexity == pytest.approx(np.exp(entropy))
        assert got.nodes == len({tuple(row[: level + 1]) for row in codes.tolist()})
        partial = sum(codebook.levels[j][codes[:, j]] for j in range(level + 1))
        error = float((vectors - partial).square().sum(1).mean())
        assert got.mse == pytest.approx(error, rel=1e-4)
        assert got.variance_explained == pytest.approx(1 - error / spread, abs=1e-3)

    own, other = [], []
    for vector, row in zip(vectors, codes.tolist(), strict=True):
        for leaf in paths:
            distance = float((vector - codebook.path_vector(torch.tensor([leaf]))[0]).norm())
            (own if leaf == tuple(row) else other).append(distance)
    assert quality.distance_own == pytest.approx(np.mean(own), rel=1e-3)
    if other:
        assert quality.distance_other == pytest.approx(np.mean(other), rel=1e-3)
        hint = max(np.mean(other) - np.mean(own), 0) / np.log(max(len(paths), 2))
        assert quality.tau_hint == pytest.approx(hint, abs=1e-3)


def test_collapse_is_said() -> None:
    codes, vectors, codebook = case(30, 0)
    codes[:, 1] = 2
    path = codebook.path_vector(torch.from_numpy(codes))
    quality = measure(codes, vectors, codebook, vectors, path)
    assert len(quality.warnings) == 1
    assert "level 1 uses 25% of its 4 codes" in quality.warnings[0]
