"""HSTU against the paper's layer on one whole sequence [history, candidate] at a time."""

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
from hisac_rec.methods.hstu import HSTUConfig, Method, Unit


def make_method(dtype: torch.dtype = torch.float64, **keys: Any) -> Method:
    torch.manual_seed(0)
    method = Method(HSTUConfig(**keys), make_shape())
    for parameter in method.parameters():  # also what starts at zero
        torch.nn.init.normal_(parameter, std=0.5)
    return method.to(dtype)


def make_days(lengths: list[int], candidates: list[int], seed: int = 0) -> Any:
    """A case whose ages fall over several buckets, to zero."""
    history, wanted = make_case(lengths, candidates, dtype=torch.float64, seed=seed)
    history.age = torch.sort(history.age**4 * 1e7, descending=True).values
    return history, wanted


def normed(row: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    centred = row - row.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def silu(values: Tensor) -> Tensor:
    return values / (1 + (-values).exp())


def whole_sequence(method: Method, tokens: list[Tensor], ages: list[float]) -> list[Tensor]:
    """Every token through every layer, position by position, head by head."""
    width = DIM // method.config.heads
    for layer in method.layers:
        parts = []
        for token in tokens:
            projected = layer.split_in_four.weight @ normed(token, layer.norm)
            parts.append(silu(projected + layer.split_in_four.bias).split(DIM))
        updated = []
        for i, token in enumerate(tokens):
            heads = []
            for head in range(method.config.heads):
                piece = slice(head * width, (head + 1) * width)
                total = torch.zeros(width, dtype=torch.float64)
                for j in range(i + 1):
                    passed = max(1.0, ages[j] - ages[i])
                    bias = layer.position_bias[i - j]
                    bias = bias + layer.time_bias[int(math.log(passed) / 0.301)]
                    score = parts[i][2][piece] @ parts[j][3][piece] + bias
                    total = total + silu(score) / (i + 1) * parts[j][1][piece]
                heads.append(total)
            gated = normed(torch.cat(heads), layer.norm_attended) * parts[i][0]
            updated.append(token + layer.out.weight @ gated + layer.out.bias)
        tokens = updated
    return tokens


def plain(method: Method, history: History, candidates: Candidates) -> Tensor:
    rows = []
    for number, request in enumerate(candidates.request.tolist()):
        start, end = history.offsets[request : request + 2].tolist()
        start = max(start, end - method.config.max_events)
        tokens = [*history.values[start:end], candidates.values[number]]
        ages = [*history.age[start:end].tolist(), 0.0]
        rows.append(whole_sequence(method, tokens, ages)[-1])
    return torch.stack(rows).unsqueeze(1)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 7, 20]), min_size=1, max_size=3),
    layers=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4]),
    max_events=st.sampled_from([1, 5, 16]),
    seed=st.integers(0, 99),
)
def test_equals_one_whole_sequence_per_candidate(
    lengths: list[int], layers: int, heads: int, max_events: int, seed: int
) -> None:
    method = make_method(layers=layers, heads=heads, max_events=max_events)
    history, candidates = make_days(lengths, [2] * len(lengths), seed)
    with torch.no_grad():
        found = method(history, candidates)
        torch.testing.assert_close(found, plain(method, history, candidates))


def test_candidates_do_not_see_each_other() -> None:
    method = make_method()
    history, candidates = make_days([9], [3])
    (gradient,) = torch.autograd.grad(method(history, candidates)[1].sum(), candidates.values)
    assert gradient[1].any()
    assert not gradient[[0, 2]].any()


def test_thousands_of_events_in_fp32() -> None:
    """More blocks than one, in fp32, against the same in float64."""
    history, candidates = make_days([3_000, 1, 0], [2, 1, 1])
    exact = make_method(max_events=700)(history, candidates)
    history.events, candidates.values = history.values.float(), candidates.values.float()
    found = make_method(torch.float32, max_events=700)(history, candidates)
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3)


def test_only_the_newest_events_are_read() -> None:
    method = make_method(max_events=4)
    history, candidates = make_days([9, 2], [1, 1])
    (gradient,) = torch.autograd.grad(method(history, candidates).sum(), history.values)
    assert [bool(row.any()) for row in gradient] == 5 * [False] + 6 * [True]


def test_what_is_kept_is_bounded() -> None:
    method = make_method(max_events=4, layers=3)
    memory = method.compress(make_days([50, 2], [1, 1])[0])
    assert memory.keys.shape == memory.values.shape == (3, 4 + 2, DIM)
    assert memory.age.shape == (6,)


def test_gradients_reach_everything() -> None:
    method = make_method(max_events=5)
    history, candidates = make_days([6, 0, 1], [2, 1, 1])

    def run(values: Tensor, wanted: Tensor, *_: Tensor) -> Tensor:
        case = History(history.offsets, values, history.codes, None, history.age)
        own = Candidates(candidates.offsets, wanted, candidates.codes, None, candidates.request)
        return method(case, own)

    inputs = (history.values, candidates.values, *method.parameters())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_queries_and_keys_start_alike() -> None:
    """And the values do not: the four parts lie in the order that ``split`` takes them."""
    unit = Method(HSTUConfig(layers=1, heads=1), make_shape()).layers[0]
    with torch.no_grad():
        unit.split_in_four.bias.zero_()
        _, value, query, key = unit.split(torch.randn(3, DIM))
    torch.testing.assert_close(query, key)
    assert not torch.allclose(value, key)


def test_autocast_gives_about_the_same() -> None:
    method = make_method(torch.float32)
    history, candidates = make_case([70, 0, 5], [3, 1, 2])
    exact = method(history, candidates)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = method(history, candidates)
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_parameters_are_as_many_as_documented() -> None:
    d, layers, events = DIM, 2, 256
    expected = layers * (5 * d * d + 9 * d + events + 1 + 128)
    assert sum(p.numel() for p in make_method().parameters()) == expected


def test_heads_must_divide() -> None:
    with pytest.raises(UserError, match=r"history.heads = 3 does not divide tables.dim = 8"):
        make_method(heads=3)


def test_values_and_keys_alone_are_those_of_the_split() -> None:
    torch.manual_seed(0)
    unit = Unit(8, 2, 4)
    tokens = torch.randn(5, 8)
    _, value, _, key = unit.split(tokens)
    torch.testing.assert_close(unit.values_keys(tokens), (value, key))
