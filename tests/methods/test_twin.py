"""TWIN against a loop: scores of all events, the best k of each head, their softmax."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from histories import DIM, make_case, make_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hisac_rec.errors import UserError
from hisac_rec.methods.base import Candidates, History
from hisac_rec.methods.twin import Method, TWINConfig


def make_method(dtype: torch.dtype = torch.float64, **keys: Any) -> Method:
    method = Method(TWINConfig(**keys), make_shape()).to(dtype)
    generator = torch.Generator().manual_seed(3)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return method


def make_aged(lengths: list[int], candidates: list[int], seed: int = 0) -> tuple[Any, Any]:
    """Ages from the future (an error of clocks) to decades."""
    history, wanted = make_case(lengths, candidates, dtype=torch.float64, seed=seed)
    history.age = (history.age * 32).exp2() - 2
    return history, wanted


def plain(method: Method, history: History, candidates: Candidates, k: int) -> Tensor:
    part, result = method.attention, []
    width = DIM // part.heads
    for row, request in enumerate(candidates.request.tolist()):
        begin, end = history.offsets[request : request + 2].tolist()
        query = part.query.weight @ candidates.values[row]
        heads = []
        for head in range(part.heads):
            own = slice(head * width, (head + 1) * width)
            scores = []
            for event in range(begin, end):
                key = part.key.weight @ history.values[event]
                score = query[own] @ key[own] / math.sqrt(width)
                if method.ages is not None:
                    age = max(0.0, float(history.age[event]))
                    bucket = min(int(math.log2(age + 1)), method.ages.num_embeddings - 1)
                    score = score + method.ages.weight[bucket, head]
                scores.append(score)
            best = sorted(range(end - begin), key=lambda e: scores[e].item())[-k:]
            null = query[own] @ part.null_key[own] / math.sqrt(width)
            weights = torch.stack([*(scores[e] for e in best), null]).softmax(0)
            values = [(part.value.weight @ history.values[begin + e])[own] for e in best]
            heads.append(weights @ torch.stack([*values, part.null_value[own]]))
        result.append(part.out.weight @ torch.cat(heads))
    return torch.stack(result)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 60]), min_size=1, max_size=3),
    k=st.sampled_from([1, 3, 64]),
    heads=st.sampled_from([1, 2]),
    buckets=st.sampled_from([0, 4, 32]),
    seed=st.integers(0, 99),
)
def test_equals_a_loop(lengths: list[int], k: int, heads: int, buckets: int, seed: int) -> None:
    method = make_method(top_k=k, heads=heads, age_buckets=buckets)
    history, candidates = make_aged(lengths, [2] * len(lengths), seed)
    found = method(history, candidates)[:, 0]
    torch.testing.assert_close(found, plain(method, history, candidates, k))


def test_both_stages_have_one_score() -> None:
    """What is found by score is what a softmax over all events weighs most."""
    method = make_method(top_k=5)
    history, candidates = make_aged([500], [3])
    memory = method.compress(history)
    rows, filled = method.retrieve(memory, candidates)
    assert filled.all()
    everything = torch.arange(500).expand(3, 2, 500)
    events = history.values[everything]
    scores = method.attention.scores(candidates.values, events)
    assert memory.bias is not None
    best = (scores + memory.bias.t()).topk(5).indices
    assert rows.tolist() == best.tolist()
    assert rows[:, 0].tolist() != rows[:, 1].tolist()


def test_equal_scores_find_the_newest() -> None:
    history, candidates = make_aged([50], [1])
    method = make_method(top_k=4, age_buckets=0)
    torch.nn.init.zeros_(method.attention.query.weight)
    rows, _ = method.retrieve(method.compress(history), candidates)
    assert rows.tolist() == [[[49, 48, 47, 46]] * 2]


def test_gradients() -> None:
    method = make_method(top_k=3)
    history, candidates = make_aged([20, 0, 1], [2, 1, 1])

    def run(values: Tensor, wanted: Tensor, ages: Tensor) -> Tensor:
        events = History(history.offsets, values, history.codes, None, history.age)
        targets = Candidates(candidates.offsets, wanted, candidates.codes, None, candidates.request)
        return torch.func.functional_call(method, {"ages.weight": ages}, (events, targets))

    assert method.ages is not None
    inputs = (history.values, candidates.values, method.ages.weight)
    assert torch.autograd.gradcheck(run, inputs)
    method(history, candidates).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())
    rows, filled = method.retrieve(method.compress(history), candidates)
    assert history.values.grad is not None
    touched = (history.values.grad.abs().sum(1) > 0).nonzero().squeeze(1)
    assert touched.tolist() == rows[filled].unique().tolist()


@pytest.mark.parametrize(("lengths", "candidates"), [([0, 0], [2, 1]), ([0], [0]), ([4], [0])])
def test_all_parameters_take_part_in_an_empty_batch(
    lengths: list[int], candidates: list[int]
) -> None:
    method = make_method(torch.float32)
    method(*make_case(lengths, candidates)).sum().backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_thousands_of_events_under_autocast() -> None:
    """As it is built: rounding changes which of nearly equal events are found, not much more."""
    method = Method(TWINConfig(), make_shape())
    history, candidates = make_case([5_000, 3], [2, 1])
    exact = method(history, candidates)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = method(history, candidates)
    assert (rough - exact).norm() < 0.05 * exact.norm()


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match=r"history.heads = 3 does not divide"):
        make_method(heads=3)
