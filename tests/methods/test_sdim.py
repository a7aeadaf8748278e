"""SDIM against its formula, candidate by candidate, group by group, event by event."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from histories import DIM, make_case, make_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hisac_rec.methods.base import Candidates, History
from hisac_rec.methods.parts.hashing import bit_groups, hyperplanes, sign_bits
from hisac_rec.methods.sdim import Method, SDIMConfig


def make_method(dtype: torch.dtype = torch.float64, **keys: Any) -> Method:
    return Method(SDIMConfig(**keys), make_shape(dtype=dtype)).to(dtype)


def same_bucket(a: list[float], b: list[float], planes: list[list[float]]) -> bool:
    """On the same side of all of these planes."""

    def side(vector: list[float], plane: list[float]) -> bool:
        return sum(x * y for x, y in zip(vector, plane, strict=True)) > 0

    return all(side(a, plane) == side(b, plane) for plane in planes)


def plain(
    candidate: list[float], events: list[list[float]], planes: list[list[float]], bits: int
) -> list[float]:
    """One candidate's interest; planes by plane, [m * tau][d]."""
    total = [0.0] * len(candidate)
    groups = [planes[first : first + bits] for first in range(0, len(planes), bits)]
    for group in groups:
        bucket = [0.0] * len(candidate)
        for event in events:
            if same_bucket(candidate, event, group):
                bucket = [x + y for x, y in zip(bucket, event, strict=True)]
        length = math.sqrt(sum(x * x for x in bucket))
        if length:
            total = [t + x / length / len(groups) for t, x in zip(total, bucket, strict=True)]
    return total


def assert_equals_plain(method: Method, bits: int, history: History, wanted: Candidates) -> None:
    found = method(history, wanted)[:, 0]
    planes = method.planes.T.tolist()
    for row, request in enumerate(wanted.request.tolist()):
        events = history.values[slice(*history.offsets[request : request + 2].tolist())]
        expected = plain(wanted.values[row].tolist(), events.tolist(), planes, bits)
        assert found[row].tolist() == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 9, 60]), min_size=1, max_size=4),
    groups=st.integers(1, 5),
    bits=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_equals_the_formula(lengths: list[int], groups: int, bits: int, seed: int) -> None:
    method = make_method(groups=groups, bits=bits, hash_seed=seed)
    history, wanted = make_case(lengths, [2] * len(lengths), dtype=torch.float64, seed=seed)
    assert_equals_plain(method, bits, history, wanted)


def test_equals_the_formula_for_thousands_of_events() -> None:
    method = make_method(groups=2, bits=3)
    history, wanted = make_case([3_000, 1], [2, 1], dtype=torch.float64)
    assert_equals_plain(method, 3, history, wanted)


def test_the_memory_is_bounded() -> None:
    method = make_method(groups=3, bits=2)
    for lengths in ([0], [1], [5_000]):
        history, _ = make_case(lengths, [1], dtype=torch.float64)
        memory = method.compress(history)
        assert memory.shape == (1, 3, 4, DIM)
        norms = memory.norm(dim=-1)
        assert ((norms - 1).abs().minimum(norms) < 1e-12).all()
        assert (norms > 0.5).sum() >= min(1, lengths[0]) * 3


def test_similar_events_count_as_the_angle_says() -> None:
    """The expectation over hashes: an event at angle a is met with (1 - a / pi)^tau."""
    method = make_method(groups=4_000, bits=3)
    angle = 1.0
    query = torch.zeros(1, DIM, dtype=torch.float64)
    query[0, 0] = 1
    event = query.clone()
    event[0, :2] = torch.tensor([math.cos(angle), math.sin(angle)])
    met = (method.signatures(query) == method.signatures(event)).double().mean()
    assert float(met) == pytest.approx((1 - angle / math.pi) ** 3, abs=0.03)


def test_gradients_reach_the_events_of_read_buckets_alone() -> None:
    method = make_method(groups=2, bits=2)
    history, wanted = make_case([30, 4, 1], [1, 0, 2], dtype=torch.float64)
    method(history, wanted).pow(3).sum().backward()
    assert history.values.grad is not None
    assert wanted.values.grad is None  # hashes have no gradient
    assert not method.planes.requires_grad
    reached = history.values.grad.abs().sum(1) > 1e-12
    for event in range(35):
        request = 0 if event < 30 else 1 if event < 34 else 2
        expected = any(
            bool((method.signatures(history.values[event, None]) == own).any())
            for own in method.signatures(wanted.values[wanted.request == request])
        )
        # A bucket of one event is that event at unit length, whose gradient is not zero:
        # the cube's direction differs from the event's.
        assert bool(reached[event]) == expected


def test_gradient_of_the_sums() -> None:
    method = make_method(groups=3, bits=1)
    history, wanted = make_case([12, 0, 2], [2, 1, 1], dtype=torch.float64)

    def run(values: Tensor) -> Tensor:
        return method(History(history.offsets, values, history.codes, None, history.age), wanted)

    assert torch.autograd.gradcheck(run, (history.values,))


def test_the_planes_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = make_method().planes
    torch.manual_seed(2)
    assert torch.equal(make_method().planes, first)
    assert not torch.equal(make_method(hash_seed=1).planes, first)
    assert "planes" in make_method().state_dict()


def test_autocast_does_not_change_a_hash() -> None:
    method = make_method(torch.float32)
    history, _ = make_case([500], [1])
    expected = method.signatures(history.values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(method.signatures(history.values), expected)


def test_bits_by_hand() -> None:
    planes = torch.tensor([[1.0, 0.0, -1.0, 1.0], [0.0, 1.0, 0.0, -2.0]])
    bits = sign_bits(torch.tensor([[1.0, -1.0], [-1.0, 0.0]]), planes)
    assert bits.tolist() == [[True, False, False, True], [False, False, True, False]]
    assert bit_groups(bits, 2).tolist() == [[2, 1], [0, 2]]
    assert bit_groups(bits, 1).tolist() == [[9], [2]]
    assert hyperplanes(3, 5, 0).shape == (3, 5)
