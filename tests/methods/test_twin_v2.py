"""TWIN-V2's clustering against the same splits, request by request, in plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from histories import make_case, make_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from partitions import (
    LENGTHS,
    Point,
    assert_agents_are,
    assert_partition,
    gradient_shares,
    plain_lloyd,
    plain_points,
)

from hisac_rec.methods.parts.agents import log_weights
from hisac_rec.methods.twin_v2 import Clusters, Method, TwinV2Config, parts_of


def make_method(dtype: torch.dtype = torch.float64, **keys: Any) -> Method:
    torch.manual_seed(0)
    return Method(TwinV2Config(**keys), make_shape(dtype=dtype)).to(dtype)


def size_of(cluster: list[Point]) -> int:
    return sum(len(point.events) for point in cluster)


def wanted_parts(clusters: list[list[Point]], gamma: int, agents: int) -> list[int]:
    """Biggest first, within the budget; those above their fair share before all others."""
    events = sum(map(size_of, clusters))
    able = [j for j, c in enumerate(clusters) if len(c) > 1 and size_of(c) > gamma]
    large = [j for j in able if size_of(clusters[j]) > math.ceil(events / agents)]
    parts, room = [1] * len(clusters), agents - len(clusters)
    for j in sorted(large or able, key=lambda j: -size_of(clusters[j])):
        power = math.floor(size_of(clusters[j]) ** 0.3 + 1e-6)
        more = min(max(2, power), len(clusters[j])) - 1
        parts[j] += min(more, room)
        room -= min(more, room)
    return parts


def plain_clusters(points: list[Point], config: TwinV2Config) -> list[list[Point]]:
    clusters = [points] if points else []
    for _ in range(2 * math.ceil(math.log2(config.agents))):
        parts = wanted_parts(clusters, config.gamma, config.agents)
        following = []
        for cluster, k in zip(clusters, parts, strict=True):
            weights = [float(len(point.events)) for point in cluster]
            vectors = [point.vector for point in cluster]
            found = plain_lloyd(vectors, weights, k, config.iterations)
            split = [[p for p, c in zip(cluster, found, strict=True) if c == j] for j in range(k)]
            following += [child for child in split if child]
        clusters = following
    return clusters


@pytest.mark.parametrize("semantics", ["codes", "vectors", "values"])
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=4),
    agents=st.sampled_from([1, 2, 5, 16, 64]),
    gamma=st.sampled_from([1, 4]),
    seed=st.integers(0, 99),
)
def test_agents_are_the_means_of_plain_clusters(
    semantics: str, lengths: list[int], agents: int, gamma: int, seed: int
) -> None:
    method = make_method(semantics=semantics, agents=agents, gamma=gamma, iterations=2)
    history, _ = make_case(lengths, [1] * len(lengths), dtype=torch.float64, seed=seed)
    memory = method.compress(history)
    assert_partition(memory, history, agents)
    shares = gradient_shares(memory, history.values)
    torch.testing.assert_close(shares, torch.ones_like(shares))
    parts = [
        [
            sorted(i for point in cluster for i in point.events)
            for cluster in plain_clusters(plain_points(history, request, semantics), method.config)
        ]
        for request in range(history.num_requests)
    ]
    assert_agents_are(memory, history, parts)


@pytest.mark.parametrize(("length", "agents"), [(64, 64), (65, 64), (90, 64), (3_000, 64)])
def test_the_budget_is_used_up(length: int, agents: int) -> None:
    method = make_method(torch.float32, semantics="vectors", agents=agents)
    history, _ = make_case([length, 0, 1, 30], [1, 1, 1, 1])
    memory = method.compress(history)
    assert memory.filled.sum(1).tolist() == [agents, 0, 1, 30]
    # No cluster is many times what the budget gives an agent on average.
    assert memory.events.max() <= 6 * math.ceil(length / agents)


def test_gamma_ends_the_splitting_as_in_the_paper() -> None:
    """With room in the budget, clusters are split until none has more than gamma events."""
    method = make_method(semantics="vectors", agents=256, gamma=20)
    history, _ = make_case([500], [1], dtype=torch.float64)
    memory = method.compress(history)
    assert memory.events.max() <= 20
    assert 500 / 20 <= memory.filled.sum() < 256


def test_events_of_one_leaf_stay_together() -> None:
    history, _ = make_case([50], [1], dtype=torch.float64)
    history.codes[:30] = torch.tensor([0, 0])
    memory = make_method(agents=128).compress(history)
    assert memory.events.max() >= 30


def test_parts_by_hand() -> None:
    clusters = Clusters(
        sizes=torch.tensor([40.0, 9.0, 200.0, 6.0, 7.0, 5.0, 5.0, 5.0, 5.0]),
        members=torch.tensor([40, 9, 200, 6, 7, 5, 5, 5, 5]),
        owner=torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2]),
        requests=3,
    )
    # Request 0 has room for 3 more: all for 200 (200 ** 0.3 = 4.9), the only one above its
    # share of ceil(249 / 6) = 42. Request 1 has room for one, for 7. Request 2 splits its 5 in 2.
    assert parts_of(clusters, 1, 6).tolist() == [1, 1, 4, 1, 2, 1, 1, 1, 2]
    assert parts_of(clusters, 6, 6).tolist() == [1, 1, 4, 1, 2, 1, 1, 1, 1]
    # A single point cannot be split: 40 gets 2 more (40 ** 0.3 = 3.02), and 9 the last one.
    clusters.members[2] = 1
    assert parts_of(clusters, 1, 6).tolist() == [3, 2, 1, 1, 2, 1, 1, 1, 2]


def test_attention_is_weighted_by_cluster_size() -> None:
    """The paper adds log n to the scores; per request a constant makes no difference."""
    config = TwinV2Config()
    assert (config.agent_weight, config.weight_power) == ("bias", 1.0)
    history, _ = make_case([60], [1], dtype=torch.float64)
    memory = make_method(agents=4).compress(history)
    bias = log_weights(memory, config.weight_power)
    torch.testing.assert_close(bias.diff(), memory.events.log().diff())


def test_twice_the_same_and_no_coarser_under_autocast() -> None:
    method = make_method(torch.float32, semantics="vectors", agents=32)
    history, _ = make_case([2_000, 0, 1], [1, 1, 1])
    memory = method.compress(history)
    assert torch.equal(method.compress(history).vectors, memory.vectors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(method.compress(history).events, memory.events)
