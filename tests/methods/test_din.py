"""DIN against its formula, pair by pair; the split first layer against the concatenation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from histories import DIM, make_case, make_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hisac_rec.methods import din
from hisac_rec.methods.base import Candidates, History
from hisac_rec.methods.din import DINConfig, Method
from hisac_rec.methods.parts import pairs
from hisac_rec.ranker.config import load_model_config
from hisac_rec.shipped import find_config


def make_method(dtype: torch.dtype = torch.float64, **keys: Any) -> Method:
    torch.manual_seed(0)
    method = Method(DINConfig(**keys), make_shape())
    torch.nn.init.uniform_(method.activation.weight, -0.5, 0.5)
    return method.to(dtype)


def plain(method: Method, history: History, candidates: Candidates) -> Tensor:
    """[N, d]: the MLP over (q, e, q - e, q * e), event by event."""
    result = []
    for row, request in enumerate(candidates.request.tolist()):
        query = candidates.values[row]
        begin, end = history.offsets[request : request + 2].tolist()
        scores, total = [], torch.zeros(DIM, dtype=query.dtype)
        for event in history.values[begin:end]:
            joined = torch.cat([query, event, query - event, query * event])
            hidden = method.hidden.weight @ joined + method.hidden.bias
            hidden = torch.where(hidden > 0, hidden, method.activation.weight * hidden)
            scores.append(method.weight.weight[0] @ hidden + method.weight.bias[0])
        if method.normalised and scores:
            scores = list(torch.stack(scores).softmax(0))
        for score, event in zip(scores, history.values[begin:end], strict=True):
            total = total + score * event
        result.append(total)
    return torch.stack(result) if result else torch.zeros(0, DIM, dtype=history.values.dtype)


@pytest.mark.parametrize("weights", ["plain", "softmax"])
@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.sampled_from([0, 1, 2, 40]), st.sampled_from([0, 1, 5])),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 99),
)
def test_equals_the_formula(weights: str, sizes: list[tuple[int, int]], seed: int) -> None:
    method = make_method(weights=weights, hidden=5)
    history, candidates = make_case(
        [s[0] for s in sizes], [s[1] for s in sizes], dtype=torch.float64, seed=seed
    )
    found = method(history, candidates)[:, 0]
    torch.testing.assert_close(found, plain(method, history, candidates))


@pytest.mark.parametrize("weights", ["plain", "softmax"])
def test_parts_computed_again_give_the_same(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts, recomputed in the backward pass: the same result and gradients."""
    history, candidates = make_case([300, 0, 7], [4, 1, 2], dtype=torch.float64)
    method = make_method(weights=weights)
    inputs = [history.values, candidates.values, *method.parameters()]
    whole = method(history, candidates)
    expected = torch.autograd.grad(whole.square().sum(), inputs)
    monkeypatch.setattr(din, "STORED_ELEMENTS", 0)
    calls = []
    compute = method._rectified
    monkeypatch.setattr(method, "_rectified", lambda *rows: calls.append(1) or compute(*rows))
    monkeypatch.setattr(pairs, "CHUNK_ELEMENTS", 20_000)
    parts = method(history, candidates)
    forward = len(calls)
    assert forward > 1
    torch.testing.assert_close(parts, whole)
    for found, wanted in zip(
        torch.autograd.grad(parts.square().sum(), inputs), expected, strict=True
    ):
        torch.testing.assert_close(found, wanted)
    assert len(calls) == 2 * forward


@pytest.mark.parametrize("weights", ["plain", "softmax"])
def test_gradients(weights: str) -> None:
    method = make_method(weights=weights, hidden=3)
    history, candidates = make_case([9, 0, 1], [2, 1, 1], dtype=torch.float64)

    def run(values: Tensor, wanted: Tensor) -> Tensor:
        events = History(history.offsets, values, history.codes, None, history.age)
        return method(
            events,
            Candidates(candidates.offsets, wanted, candidates.codes, None, candidates.request),
        )

    assert torch.autograd.gradcheck(run, (history.values, candidates.values))
    method(history, candidates).square().sum().backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None
        # A softmax does not change when all scores move together.
        assert parameter.grad.abs().sum() > 1e-9 or (name, weights) == ("weight.bias", "softmax")


@pytest.mark.parametrize(("lengths", "candidates"), [([0, 0], [2, 1]), ([0], [0]), ([4], [0])])
def test_all_parameters_take_part_in_an_empty_batch(
    lengths: list[int], candidates: list[int]
) -> None:
    method = make_method(torch.float32)
    interest = method(*make_case(lengths, candidates))
    assert not interest.any()
    interest.sum().backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_thousands_of_events_in_fp32_and_bf16() -> None:
    history, candidates = make_case([5_000, 3], [2, 1], dtype=torch.float64)
    expected = make_method(weights="softmax")(history, candidates).float()
    method = make_method(torch.float32, weights="softmax")
    single = [
        type(side)(side.offsets, side.values.float(), side.codes, None, last)
        for side, last in ((history, history.age), (candidates, candidates.request))
    ]
    torch.testing.assert_close(method(*single), expected, rtol=1e-3, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = method(*single).float()
    assert (rough - expected).norm() < 0.05 * expected.norm()


def test_model_files() -> None:
    full, recent = (
        load_model_config(find_config("models", name)) for name in ("din", "din_recent50")
    )
    assert (full.inputs.max_history, recent.inputs.max_history) == (None, 50)
    assert full.history == recent.history
    for key, values in Method.search.items():
        for value in values:
            DINConfig(**{key: value})
