"""SIM-hard against a loop over the history of every candidate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from histories import DIM, make_case, make_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hisac_rec.errors import UserError
from hisac_rec.methods.base import Candidates, History, MethodShape
from hisac_rec.methods.sim_hard import Method, SIMHardConfig


def make_method(dtype: torch.dtype = torch.float64, **keys: Any) -> Method:
    method = Method(SIMHardConfig(**keys), make_shape()).to(dtype)
    generator = torch.Generator().manual_seed(3)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return method


def with_feature(history: History, candidates: Candidates, name: str, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for side in (history, candidates):
        side.features[name] = torch.randint(0, 4, (len(side.values),), generator=generator)


def attend(method: Method, query: Tensor, events: Tensor) -> Tensor:
    """One candidate's multi-head attention over its events [k, d] and the null slot."""
    part = method.attention
    keys = torch.cat([events @ part.key.weight.T, part.null_key[None]])
    values = torch.cat([events @ part.value.weight.T, part.null_value[None]])
    width = DIM // part.heads
    heads = []
    for head in range(part.heads):
        own = slice(head * width, (head + 1) * width)
        scores = keys[:, own] @ (part.query.weight @ query)[own] / width**0.5
        heads.append(scores.softmax(0) @ values[:, own])
    return part.out.weight @ torch.cat(heads)


def plain(method: Method, history: History, candidates: Candidates, k: int) -> Tensor:
    def category(side: History | Candidates, row: int) -> object:
        if method.category == "sid":
            return side.codes[row, : len(method.code_counts)].tolist()
        return int(side.features[method.category][row])

    result = []
    for row, request in enumerate(candidates.request.tolist()):
        begin, end = history.offsets[request : request + 2].tolist()
        own = [e for e in range(begin, end) if category(history, e) == category(candidates, row)]
        newest = torch.tensor(own[-k:], dtype=torch.int64)
        result.append(attend(method, candidates.values[row], history.values[newest]))
    return torch.stack(result)


@pytest.mark.parametrize("keys", [{}, {"levels": 2}, {"category": "genre"}], ids=str)
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 60]), min_size=1, max_size=4),
    k=st.sampled_from([1, 3, 64]),
    seed=st.integers(0, 99),
)
def test_equals_a_loop(keys: dict[str, Any], lengths: list[int], k: int, seed: int) -> None:
    method = make_method(top_k=k, **keys)
    history, candidates = make_case(lengths, [3] * len(lengths), dtype=torch.float64, seed=seed)
    with_feature(history, candidates, "genre", seed)
    found = method(history, candidates)[:, 0]
    torch.testing.assert_close(found, plain(method, history, candidates, k))


def test_thousands_of_events() -> None:
    """More of a category than k, ids near the limit of 31 bits."""
    method = make_method(category="genre")
    history, candidates = make_case([3_000, 0, 2_000], [4, 2, 4], dtype=torch.float64)
    with_feature(history, candidates, "genre")
    for side in (history, candidates):
        side.features["genre"] += 2**31 - 4
    found = method(history, candidates)[:, 0]
    torch.testing.assert_close(found, plain(method, history, candidates, 64))


def test_gradients() -> None:
    method = make_method(top_k=3)
    history, candidates = make_case([20, 0, 1], [2, 1, 1], dtype=torch.float64)

    def run(values: Tensor, wanted: Tensor) -> Tensor:
        events = History(history.offsets, values, history.codes, None, history.age)
        return method(
            events,
            Candidates(candidates.offsets, wanted, candidates.codes, None, candidates.request),
        )

    assert torch.autograd.gradcheck(run, (history.values, candidates.values))
    method(history, candidates).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    assert history.values.grad is not None
    touched = history.values.grad.abs().sum(1) > 0
    own = torch.isin(history.codes[:20, 0], candidates.codes[:2, 0])
    assert not touched[:20][~own].any()
    assert touched[:20].any()


@pytest.mark.parametrize(("lengths", "candidates"), [([0, 0], [2, 1]), ([0], [0]), ([4], [0])])
def test_all_parameters_take_part_in_an_empty_batch(
    lengths: list[int], candidates: list[int]
) -> None:
    method = make_method(torch.float32)
    method(*make_case(lengths, candidates)).sum().backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_the_features_that_are_read() -> None:
    assert Method.item_features(SIMHardConfig()) == ()
    assert Method.item_features(SIMHardConfig(category="genre")) == ("genre",)


def test_a_feature_needs_no_codebook() -> None:
    assert Method(SIMHardConfig(category="genre"), MethodShape(DIM, (), 0)).code_counts == ()


def test_messages() -> None:
    with pytest.raises(UserError, match="needs semantic ids; run 'hisac-rec semantic-ids' first"):
        Method(SIMHardConfig(), MethodShape(DIM, (), 0))
    with pytest.raises(UserError, match=r"history.levels = 3: the codebook has 2 levels"):
        make_method(levels=3)
    wide = MethodShape(DIM, (torch.zeros(1, 1).expand(2**20, 1),) * 2, 1)
    with pytest.raises(UserError, match=r"history.levels = 2: .* categories; choose fewer"):
        Method(SIMHardConfig(levels=2), wide)
    with pytest.raises(UserError, match=r"history.heads = 3 does not divide"):
        make_method(heads=3)
