"""ETA against its formula: bits, Hamming distances, the nearest k, attention, one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from histories import make_case, make_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from target_attention import Vector, attend, best, dot, each_candidate, scramble
from torch import Tensor

from hisac_rec.methods.base import Candidates, History
from hisac_rec.methods.eta import ETAConfig, Method


def make_method(dtype: torch.dtype = torch.float64, **keys: Any) -> Method:
    method = Method(ETAConfig(**keys), make_shape(dtype=dtype)).to(dtype)
    scramble(method)
    return method


def retrieved(method: Method, candidate: Vector, events: list[Vector]) -> list[int]:
    """Places of the events of the smallest Hamming distance."""
    planes = method.planes.T.tolist()
    own = [dot(candidate, plane) > 0 for plane in planes]
    distances = [
        sum((dot(event, plane) > 0) != bit for plane, bit in zip(planes, own, strict=True))
        for event in events
    ]
    return best([-float(distance) for distance in distances], method.top_k)


def assert_equals_plain(method: Method, history: History, wanted: Candidates) -> None:
    found = method(history, wanted)[:, 0]
    for row, span in each_candidate(history, wanted):
        candidate, events = wanted.values[row].tolist(), history.values[span].tolist()
        places = retrieved(method, candidate, events)
        expected = attend(method.attention, candidate, [events[place] for place in places])
        assert found[row].tolist() == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 9, 40]), min_size=1, max_size=4),
    top_k=st.sampled_from([1, 3, 64]),
    bits=st.sampled_from([1, 7, 32]),
    heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_equals_the_formula(
    lengths: list[int], top_k: int, bits: int, heads: int, seed: int
) -> None:
    """Few bits: many events are equally far, and the newest of them count."""
    method = make_method(top_k=top_k, bits=bits, heads=heads, hash_seed=seed)
    history, wanted = make_case(lengths, [2] * len(lengths), dtype=torch.float64, seed=seed)
    assert_equals_plain(method, history, wanted)


def test_equals_the_formula_for_thousands_of_events() -> None:
    method = make_method(top_k=5, bits=16)
    history, wanted = make_case([3_000, 1], [2, 1], dtype=torch.float64)
    assert_equals_plain(method, history, wanted)


def test_gradients_reach_what_was_retrieved_and_the_candidate() -> None:
    method = make_method(top_k=3, bits=8)
    history, wanted = make_case([30, 2], [1, 1], dtype=torch.float64)
    method(history, wanted).square().sum().backward()
    assert history.values.grad is not None
    assert wanted.values.grad is not None
    reached = set((history.values.grad.abs().sum(1) > 0).nonzero().squeeze(1).tolist())
    expected: set[int] = set()
    for row, span in each_candidate(history, wanted):
        places = retrieved(method, wanted.values[row].tolist(), history.values[span].tolist())
        expected |= {span.start + place for place in places}
    assert reached == expected
    assert (wanted.values.grad.abs().sum(1) > 0).all()
    assert not method.planes.requires_grad


def test_gradient_of_the_whole_method() -> None:
    method = make_method(top_k=4, bits=8)
    history, wanted = make_case([9, 0, 1], [2, 1, 1], dtype=torch.float64)

    def run(values: Tensor, queries: Tensor) -> Tensor:
        return method(
            History(history.offsets, values, history.codes, None, history.age),
            Candidates(wanted.offsets, queries, wanted.codes, None, wanted.request),
        )

    assert torch.autograd.gradcheck(run, (history.values, wanted.values))
