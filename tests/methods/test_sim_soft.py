"""SIM soft against its formulas: search, attention, and the search unit's own loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from histories import DIM, make_case, make_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from target_attention import Vector, attend, best, dot, each_candidate, scramble, times
from torch import Tensor

from hisac_rec.methods.base import Candidates, History
from hisac_rec.methods.sim_soft import Method, SIMSoftConfig

LENGTHS = st.lists(st.sampled_from([0, 1, 2, 9, 40]), min_size=1, max_size=4)


def make_method(dtype: torch.dtype = torch.float64, **keys: Any) -> Method:
    method = Method(SIMSoftConfig(**keys), make_shape(dtype=dtype)).to(dtype)
    scramble(method)
    return method


def relevance(method: Method, candidate: Vector, events: list[Vector]) -> list[float]:
    """r_i of every event."""
    query = times(method.search_query.weight.tolist(), candidate)
    return [dot(query, times(method.search_key.weight.tolist(), event)) for event in events]


def assert_equals_plain(method: Method, history: History, wanted: Candidates) -> None:
    found = method(history, wanted)[:, 0]
    for row, span in each_candidate(history, wanted):
        candidate, events = wanted.values[row].tolist(), history.values[span].tolist()
        places = best(relevance(method, candidate, events), method.top_k)
        expected = attend(method.attention, candidate, [events[place] for place in places])
        assert found[row].tolist() == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    lengths=LENGTHS,
    top_k=st.sampled_from([1, 3, 64]),
    heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_equals_the_formula(lengths: list[int], top_k: int, heads: int, seed: int) -> None:
    method = make_method(top_k=top_k, heads=heads)
    history, wanted = make_case(lengths, [2] * len(lengths), dtype=torch.float64, seed=seed)
    assert_equals_plain(method, history, wanted)


def test_equals_the_formula_for_thousands_of_events() -> None:
    method = make_method(top_k=5)
    history, wanted = make_case([3_000, 1], [2, 1], dtype=torch.float64)
    assert_equals_plain(method, history, wanted)


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, counts=st.sampled_from([0, 1, 3]), seed=st.integers(0, 99))
def test_the_auxiliary_logit_equals_the_formula(lengths: list[int], counts: int, seed: int) -> None:
    """U_r event by event, then the MLP layer by layer."""
    method = make_method()
    history, wanted = make_case(lengths, [counts] * len(lengths), dtype=torch.float64, seed=seed)
    found = method.auxiliary(method.compress(history), wanted).detach()
    assert found.shape == (len(wanted.values),)
    first, _, last = method.judge
    for row, span in each_candidate(history, wanted):
        candidate, events = wanted.values[row].tolist(), history.values[span].tolist()
        interest = [0.0] * DIM
        for score, event in zip(relevance(method, candidate, events), events, strict=True):
            interest = [u + score * x / len(events) for u, x in zip(interest, event, strict=True)]
        hidden = times(first.weight.tolist(), interest + candidate)
        hidden = [max(0.0, x + b) for x, b in zip(hidden, first.bias.tolist(), strict=True)]
        expected = dot(last.weight[0].tolist(), hidden) + last.bias.item()
        assert float(found[row]) == pytest.approx(expected, abs=1e-9)


def test_the_auxiliary_loss_alone_trains_the_search() -> None:
    method = make_method(top_k=3)
    history, wanted = make_case([30, 2], [1, 1], dtype=torch.float64)
    search = [method.search_query.weight, method.search_key.weight]
    method(history, wanted).square().sum().backward()
    assert all(weight.grad is None for weight in search)
    assert history.values.grad is not None
    assert (history.values.grad.abs().sum(1) > 0).sum() == 3 + 2
    history.values.grad = None
    method.auxiliary(method.compress(history), wanted).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in search)
    assert (history.values.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("auxiliary", [False, True])
def test_gradient_of_the_whole_method(auxiliary: bool) -> None:
    method = make_method(top_k=4)
    history, wanted = make_case([9, 0, 1], [2, 1, 1], dtype=torch.float64)

    def run(values: Tensor, queries: Tensor) -> Tensor:
        memory = method.compress(History(history.offsets, values, history.codes, None, history.age))
        candidates = Candidates(wanted.offsets, queries, wanted.codes, None, wanted.request)
        return (method.auxiliary if auxiliary else method.read)(memory, candidates)

    assert torch.autograd.gradcheck(run, (history.values, wanted.values))


@pytest.mark.parametrize(("lengths", "counts"), [([0], [0]), ([0, 0], [1, 2]), ([7], [0])])
def test_the_auxiliary_loss_of_a_rank_without_data(lengths: list[int], counts: list[int]) -> None:
    """Every parameter still gets its (zero) gradient, or the other ranks would wait for it."""
    method = make_method(torch.float32)
    history, wanted = make_case(lengths, counts)
    memory = method.compress(history)
    loss = method.read(memory, wanted).sum() + method.auxiliary(memory, wanted).sum()
    loss.backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()


def test_weight() -> None:
    assert make_method(auxiliary_weight=0.3).auxiliary_weight == 0.3
    with pytest.raises(ValidationError):
        SIMSoftConfig(auxiliary_weight=0)
