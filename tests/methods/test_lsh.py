"""LSH buckets against sign bits computed event by event."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from histories import make_case, make_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from partitions import LENGTHS, assert_agents_are, assert_partition, gradient_shares, plain_points

from hisac_rec.methods.base import History
from hisac_rec.methods.lsh import LSHConfig, Method


def make_method(dtype: torch.dtype = torch.float64, **keys: Any) -> Method:
    torch.manual_seed(0)
    return Method(LSHConfig(**keys), make_shape(dtype=dtype)).to(dtype)


def plain_buckets(history: History, request: int, method: Method) -> dict[int, list[int]]:
    """Bucket -> places of events; a lone point is left out: its centred vector is rounding."""
    points = plain_points(history, request, method.config.semantics)
    events = sum(len(point.events) for point in points)
    buckets: dict[int, list[int]] = {}
    for point in points:
        vector = list(point.vector)
        if method.config.centred:
            for x in range(len(vector)):
                mean = math.fsum(len(p.events) * p.vector[x] for p in points) / events
                vector[x] -= mean
        bucket = 0
        for bit, plane in enumerate(method.planes.T.tolist()):
            bucket |= (math.fsum(p * v for p, v in zip(plane, vector, strict=True)) >= 0) << bit
        buckets.setdefault(bucket, []).extend(point.events)
    return buckets


@pytest.mark.parametrize("semantics", ["codes", "vectors", "values"])
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=4),
    agents=st.sampled_from([1, 2, 5, 16, 128]),
    centred=st.booleans(),
    seed=st.integers(0, 99),
)
def test_agents_are_the_means_of_plain_buckets(
    semantics: str, lengths: list[int], agents: int, centred: bool, seed: int
) -> None:
    method = make_method(semantics=semantics, agents=agents, centred=centred, hash_seed=seed)
    history, _ = make_case(lengths, [1] * len(lengths), dtype=torch.float64, seed=seed)
    memory = method.compress(history)
    assert_partition(memory, history, agents)
    shares = gradient_shares(memory, history.values)
    torch.testing.assert_close(shares, torch.ones_like(shares))
    parts: list[list[list[int]]] = []
    for request in range(history.num_requests):
        found = plain_buckets(history, request, method)
        if len(found) == 1 and centred:  # a lone point: any bucket is right
            (events,) = found.values()
            found = {int(memory.filled[request].nonzero()[0]): events}
        parts.append([found.get(bucket, []) for bucket in range(max(found, default=-1) + 1)])
    assert_agents_are(memory, history, parts)


@pytest.mark.parametrize(("agents", "bits"), [(1, 0), (2, 1), (127, 6), (128, 7), (129, 7)])
def test_bits_stay_within_the_budget(agents: int, bits: int) -> None:
    assert make_method(agents=agents).planes.shape[1] == bits


def test_the_same_seed_gives_the_same_planes() -> None:
    assert torch.equal(make_method().planes, make_method().planes)
    assert not torch.equal(make_method().planes, make_method(hash_seed=1).planes)
    assert "planes" in make_method().state_dict()


def test_near_vectors_share_a_bucket_and_opposite_ones_do_not() -> None:
    history, _ = make_case([4], [1], dtype=torch.float64)
    one = torch.randn(5, generator=torch.Generator().manual_seed(1)).double()
    history.vectors = torch.stack([one, one * 3, -one, -one * 3])
    memory = make_method(semantics="vectors").compress(history)
    assert sorted(memory.events[0, memory.filled[0]].tolist()) == [2, 2]


def test_centring_spreads_vectors_that_share_a_direction() -> None:
    history, _ = make_case([3_000], [1])
    assert history.vectors is not None
    history.vectors += 20
    occupied = {
        centred: int(
            make_method(torch.float32, semantics="vectors", agents=64, centred=centred)
            .compress(history)
            .filled.sum()
        )
        for centred in (True, False)
    }
    # 6 planes through the centre of 5 dimensions cut them into 2 (C(5,0) + .. + C(5,4)) = 62.
    assert 50 <= occupied[True] <= 62
    assert occupied[False] <= 5


def test_the_hash_is_no_coarser_under_autocast() -> None:
    method = make_method(torch.float32, semantics="vectors")
    history, _ = make_case([2_000, 0, 1], [1, 1, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = method.compress(history)
    assert torch.equal(inside.events, method.compress(history).events)
