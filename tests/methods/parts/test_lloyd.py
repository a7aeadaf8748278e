"""k-means of many groups at once against k-means of one group in plain loops."""

from __future__ import annotations

import pytest
import torch
from histories import offsets_of
from hypothesis import given, settings
from hypothesis import strategies as st
from partitions import plain_lloyd
from torch import Tensor
from torch.nn import functional

from hisac_rec.methods.parts import lloyd as module
from hisac_rec.methods.parts.lloyd import first_alike, lloyd


def draw(sizes: list[int], seed: int, width: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(sum(sizes), width, generator=generator, dtype=torch.float64)
    # No two weights alike: two points are never equally far from their mean.
    weights = torch.rand(sum(sizes), generator=generator, dtype=torch.float64) * 9 + 1
    return vectors, weights


def plain(
    vectors: Tensor, weights: Tensor, sizes: list[int], counts: list[int], iterations: int
) -> list[int]:
    result, first = [], 0
    for size, k in zip(sizes, counts, strict=True):
        rows = slice(first, first + size)
        if size:
            own = (vectors[rows].tolist(), weights[rows].tolist())
            result += plain_lloyd(*own, k, iterations)
        first += size
    return result


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 2, 5, 40]), min_size=1, max_size=5),
    most=st.integers(1, 12),
    iterations=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_equals_plain_loops(sizes: list[int], most: int, iterations: int, seed: int) -> None:
    vectors, weights = draw(sizes, seed)
    counts = [min(most + group, size) for group, size in enumerate(sizes)]
    found = lloyd(vectors, weights, offsets_of(sizes), torch.tensor(counts), iterations)
    assert found.tolist() == plain(vectors, weights, sizes, counts, iterations)


def test_many_points_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, counts = [700, 0, 3], [9, 0, 2]
    vectors, weights = draw(sizes, 0)
    given_ = (vectors, weights, offsets_of(sizes), torch.tensor(counts), 3)
    whole = lloyd(*given_)
    assert whole.tolist() == plain(vectors, weights, sizes, counts, 3)
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 1)
    assert torch.equal(lloyd(*given_), whole)


def inertia(vectors: Tensor, cluster: Tensor) -> float:
    groups = [vectors[cluster == j] for j in cluster.unique()]
    return float(sum((rows - rows.mean(0)).square().sum() for rows in groups))


@pytest.mark.parametrize("seed", range(5))
def test_iterations_never_spread_clusters(seed: int) -> None:
    vectors, _ = draw([300], seed)
    ones, offsets, counts = torch.ones(300).double(), offsets_of([300]), torch.tensor([10])
    spread = [inertia(vectors, lloyd(vectors, ones, offsets, counts, n)) for n in range(6)]
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] < spread[0]


def test_an_empty_centre_moves_to_the_farthest_point() -> None:
    """Twelve points, three of them different: two of the three seeds are the same."""
    vectors = torch.tensor([[0.0]] * 9 + [[5.0]] + [[6.0]] * 2)
    given_ = (vectors, torch.ones(12), offsets_of([12]), torch.tensor([3]))
    assert len(lloyd(*given_, 0).unique()) == 2
    found = lloyd(*given_, 2)
    assert len(found.unique()) == 3
    assert len(found[:9].unique()) == 1
    assert found[10] == found[11] != found[9]


def test_points_all_alike_stay_together() -> None:
    found = lloyd(torch.ones(30, 4), torch.ones(30), offsets_of([30]), torch.tensor([5]), 3)
    assert found.tolist() == [0] * 30


def test_no_points() -> None:
    found = lloyd(torch.zeros(0, 2), torch.zeros(0), offsets_of([0, 0]), torch.tensor([0, 0]), 2)
    assert found.tolist() == []


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 2, 9]), min_size=1, max_size=4),
    spare=st.integers(0, 1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_repeated_points_share_a_cluster(
    sizes: list[int], spare: int, dtype: torch.dtype, seed: int
) -> None:
    """With as many centres as points, or one fewer; whole numbers, so that nothing is rounded."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randint(-1, 2, (sum(sizes), 3), generator=generator).to(dtype)
    vectors = vectors * (1 - 2 * torch.randint(0, 2, (sum(sizes), 1), generator=generator))
    counts = [max(min(size, 1), size - spare) for size in sizes]
    ones = torch.ones(len(vectors), dtype=dtype)
    found = lloyd(vectors, ones, offsets_of(sizes), torch.tensor(counts), 0)
    assert found.tolist() == plain(vectors, ones, sizes, counts, 0)
    if not spare:  # iterations change nothing then
        again = lloyd(vectors, ones, offsets_of(sizes), torch.tensor(counts), 3)
        assert torch.equal(again, found)


def test_first_alike_within_each_group() -> None:
    vectors = torch.tensor([[1.0, 2], [-1, -2], [1, 2], [0.0, 1], [-0.0, 1], [1, 2], [1, 2]])
    group = torch.tensor([0, 0, 0, 1, 1, 1, 1])
    for rows in (vectors, vectors.double(), functional.pad(vectors, (0, 1))):
        assert first_alike(rows, group).tolist() == [0, 1, 0, 3, 3, 5, 5]


def test_points_may_lie_anywhere_among_the_vectors() -> None:
    sizes, counts = [30, 0, 4, 9], [5, 0, 4, 1]
    vectors, weights = draw(sizes, 1)
    expected = lloyd(vectors, weights, offsets_of(sizes), torch.tensor(counts), 2)
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(2))
    rows = torch.argsort(order)
    found = lloyd(vectors[order], weights[order], offsets_of(sizes), torch.tensor(counts), 2, rows)
    assert torch.equal(found, expected)
