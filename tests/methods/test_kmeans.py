"""Per-user k-means against k-means in plain loops, one request at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from histories import DIM, make_case, make_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from partitions import (
    LENGTHS,
    assert_agents_are,
    assert_partition,
    gradient_shares,
    plain_lloyd,
    plain_points,
)
from torch import Tensor

from hisac_rec.errors import UserError
from hisac_rec.methods.base import History, MethodShape
from hisac_rec.methods.kmeans import KMeansConfig, Method

SEMANTICS = ["codes", "vectors", "values"]


def make_method(dtype: torch.dtype = torch.float64, **keys: Any) -> Method:
    torch.manual_seed(0)
    return Method(KMeansConfig(**keys), make_shape(dtype=dtype)).to(dtype)


def plain_parts(history: History, config: KMeansConfig) -> list[list[list[int]]]:
    parts = []
    for request in range(history.num_requests):
        points = plain_points(history, request, config.semantics)
        slots: list[list[int]] = [[] for _ in range(min(config.agents, len(points)))]
        if points:
            weights = [float(len(point.events)) for point in points]
            vectors = [point.vector for point in points]
            found = plain_lloyd(vectors, weights, len(slots), config.iterations)
            for point, cluster in zip(points, found, strict=True):
                slots[cluster] += point.events
        parts.append(slots)
    return parts


@pytest.mark.parametrize("semantics", SEMANTICS)
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=4),
    agents=st.sampled_from([1, 3, 8, 64]),
    iterations=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_agents_are_the_means_of_plain_clusters(
    semantics: str, lengths: list[int], agents: int, iterations: int, seed: int
) -> None:
    method = make_method(semantics=semantics, agents=agents, iterations=iterations)
    history, _ = make_case(lengths, [1] * len(lengths), dtype=torch.float64, seed=seed)
    memory = method.compress(history)
    assert_partition(memory, history, agents)
    assert_agents_are(memory, history, plain_parts(history, method.config))


def test_as_many_agents_as_events_keep_every_event() -> None:
    history, _ = make_case([50], [1], dtype=torch.float64)
    memory = make_method(semantics="vectors", agents=50).compress(history)
    torch.testing.assert_close(memory.vectors[0], history.values)
    assert (memory.events == 1).all()


def test_agents_of_the_default_are_leaves_where_they_fit() -> None:
    """24 leaves, 128 agents: an agent is a leaf's mean."""
    history, _ = make_case([2_000], [1], dtype=torch.float64)
    memory = make_method().compress(history)
    paths = history.codes[:, 0] * 6 + history.codes[:, 1]
    expected = torch.stack([history.values[paths == path].mean(0) for path in paths.unique()])
    torch.testing.assert_close(memory.vectors[0], expected)


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_thousands_of_events_in_fp32_and_twice_the_same(semantics: str) -> None:
    method = make_method(torch.float32, semantics=semantics, agents=32)
    history, _ = make_case([3_000, 0, 1], [1, 1, 1])
    memory = method.compress(history)
    assert memory.filled.sum(1).tolist() == [24 if semantics == "codes" else 32, 0, 1]
    assert memory.events.sum(1).tolist() == [3_000, 0, 1]
    again = method.compress(history)
    assert torch.equal(memory.vectors, again.vectors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(method.compress(history).events, memory.events)


def test_vectors_of_a_half_precision_table() -> None:
    history, _ = make_case([40], [1])
    history.vectors = history.vectors.half()
    memory = make_method(torch.float32, semantics="vectors", agents=5).compress(history)
    history.vectors = history.vectors.float()
    same = make_method(torch.float32, semantics="vectors", agents=5).compress(history)
    torch.testing.assert_close(memory.vectors, same.vectors)


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_gradient_flows_through_the_means_alone(semantics: str) -> None:
    method = make_method(semantics=semantics, agents=3)
    history, candidates = make_case([12, 0, 1], [2, 1, 1], dtype=torch.float64)
    assert history.vectors is not None
    history.vectors.requires_grad_()
    memory = method.compress(history)
    torch.testing.assert_close(
        gradient_shares(memory, history.values), torch.ones(13, dtype=torch.float64)
    )

    def run(values: Tensor, wanted: Tensor) -> Tensor:
        return method(
            History(history.offsets, values, history.codes, history.vectors, history.age),
            type(candidates)(
                candidates.offsets, wanted, candidates.codes, None, candidates.request
            ),
        )

    assert torch.autograd.gradcheck(run, (history.values, candidates.values))
    run(history.values, candidates.values).sum().backward()
    assert history.vectors.grad is None


def test_needs_semantic_ids_unless_values_are_clustered() -> None:
    for semantics in ("codes", "vectors"):
        with pytest.raises(UserError, match=f"history.semantics = '{semantics}' needs semantic"):
            Method(KMeansConfig(semantics=semantics), MethodShape(DIM, (), 0))
    Method(KMeansConfig(semantics="values"), MethodShape(DIM, (), 0))


def test_asks_for_vectors_only_where_it_reads_them() -> None:
    assert Method.vector_sides(KMeansConfig()) == ()
    assert Method.vector_sides(KMeansConfig(semantics="vectors")) == ("history",)
    method = make_method(semantics="vectors")
    history, _ = make_case([3], [1], dtype=torch.float64)
    history.vectors = None
    with pytest.raises(ValueError, match=r"needs History\.vectors"):
        method.compress(history)
