"""LONGER against the paper's layers, request by request, the candidate as a global token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from histories import DIM, make_case, make_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hisac_rec.errors import UserError
from hisac_rec.methods.base import Candidates, History
from hisac_rec.methods.longer import LongerConfig, Method


def make_method(dtype: torch.dtype = torch.float64, **keys: Any) -> Method:
    torch.manual_seed(0)
    method = Method(LongerConfig(**keys), make_shape())
    for parameter in method.parameters():  # also what starts at zero
        nn.init.normal_(parameter, std=0.4)
    return method.to(dtype)


def layer_norm(row: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = row - row.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias


def block(layer: Any, queries: list[Tensor], seen: list[list[Tensor]]) -> list[Tensor]:
    """One pre-norm transformer block: query i attends to the tokens seen[i]."""
    width = DIM // layer.heads
    result = []
    for token, others in zip(queries, seen, strict=True):
        query = layer.query.weight @ layer_norm(token, layer.norm)
        keys = [layer.key.weight @ layer_norm(other, layer.norm) for other in others]
        values = [layer.value.weight @ layer_norm(other, layer.norm) for other in others]
        heads = []
        for head in range(layer.heads):
            piece = slice(head * width, (head + 1) * width)
            scores = torch.stack([query[piece] @ key[piece] for key in keys]) / math.sqrt(width)
            weights = scores.softmax(0)
            heads.append(sum(w * v[piece] for w, v in zip(weights, values, strict=True)))
        token = token + layer.out.weight @ torch.cat(heads)
        norm, widen, _, narrow = layer.feed_forward
        wide = widen.weight @ layer_norm(token, norm) + widen.bias
        wide = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))
        result.append(token + narrow.weight @ wide + narrow.bias)
    return result


def merged(method: Method, events: Tensor) -> list[Tensor]:
    """Groups of ``merge`` events counted from the newest, newest first."""
    newest_first = [
        row + method.merge.recency[min(63, math.floor(4 * math.log2(1 + later)))]
        for later, row in enumerate(reversed(list(events)))
    ]
    tokens = []
    for start in range(0, len(newest_first), method.config.merge):
        group = newest_first[start : start + method.config.merge]
        if method.config.inner:
            group = block(method.merge.inner, group, [group] * len(group))
        padding = [torch.zeros(DIM, dtype=torch.float64)] * (method.config.merge - len(group))
        joined = torch.cat([*group, *padding])
        tokens.append(method.merge.project.weight @ joined + method.merge.project.bias)
    return tokens


def one_request(method: Method, events: Tensor, candidate: Tensor) -> Tensor:
    """[1 + m, d]: the tokens [candidate, globals, merged] through all layers."""
    count = method.config.global_tokens
    tokens = [*method.global_tokens, *merged(method, events)]
    kept = tokens[: count + method.config.recent]
    seen = [tokens[i:] for i in range(len(kept))]
    if method.config.candidate == "sequence":
        (candidate,) = block(method.cross, [candidate], [[candidate, *tokens]])
    kept = block(method.cross, kept, seen)
    for layer in method.layers:
        (following,) = block(layer, [candidate], [[candidate, *kept]])
        kept = block(layer, kept, [kept[i:] for i in range(len(kept))])
        candidate = following
    return torch.stack([candidate, *kept[:count]])


def plain(method: Method, history: History, candidates: Candidates) -> Tensor:
    rows = []
    for number, request in enumerate(candidates.request.tolist()):
        part = slice(*history.offsets[request : request + 2].tolist())
        rows.append(one_request(method, history.values[part], candidates.values[number]))
    return torch.stack(rows)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 7, 20]), min_size=1, max_size=3),
    merge=st.sampled_from([1, 3, 4]),
    inner=st.booleans(),
    recent=st.sampled_from([1, 4, 60]),
    global_tokens=st.integers(0, 2),
    layers=st.integers(1, 2),
    heads=st.sampled_from([1, 2, 4]),
    candidate=st.sampled_from(["memory", "sequence"]),
    seed=st.integers(0, 99),
)
def test_equals_the_plain_layers(lengths: list[int], seed: int, **keys: Any) -> None:
    method = make_method(**keys)
    history, candidates = make_case(lengths, [2] * len(lengths), dtype=torch.float64, seed=seed)
    with torch.no_grad():
        found = method(history, candidates)
        assert found.shape[1] == method.interests
        torch.testing.assert_close(found, plain(method, history, candidates))


@pytest.mark.parametrize("candidate", ["memory", "sequence"])
def test_thousands_of_events_in_fp32(candidate: str) -> None:
    history, candidates = make_case([3_000, 1, 0], [1, 1, 1], dtype=torch.float64)
    with torch.no_grad():
        exact = plain(make_method(recent=5, candidate=candidate), history, candidates)
        history.events, candidates.values = history.values.float(), candidates.values.float()
        method = make_method(torch.float32, recent=5, candidate=candidate)
        found = method(history, candidates)
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3)


def test_every_event_takes_part() -> None:
    """Also those long before the newest merged tokens."""
    method = make_method(recent=2, merge=2)
    history, candidates = make_case([30], [1], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(method(history, candidates).sum(), history.values)
    assert (gradient.abs().sum(1) > 0).all()


@pytest.mark.parametrize("candidate", ["memory", "sequence"])
def test_candidates_do_not_see_each_other(candidate: str) -> None:
    method = make_method(candidate=candidate)
    history, candidates = make_case([9], [3], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(method(history, candidates)[1].sum(), candidates.values)
    assert gradient[1].any()
    assert not gradient[[0, 2]].any()


@pytest.mark.parametrize(
    ("candidate", "tokens"), [("memory", [2 + 6]), ("sequence", [2 + 50, 2 + 6])]
)
def test_what_is_kept(candidate: str, tokens: list[int]) -> None:
    """Bounded by m + recent, unless candidates take part in the cross attention."""
    method = make_method(recent=6, global_tokens=2, candidate=candidate)
    memory = method.compress(make_case([200], [1], dtype=torch.float64)[0])
    assert [len(layer.keys) for layer in memory.layers] == tokens
    assert method.compresses == (candidate == "memory")


@pytest.mark.parametrize("candidate", ["memory", "sequence"])
def test_gradients_reach_everything(candidate: str) -> None:
    method = make_method(candidate=candidate, merge=2, recent=2, layers=2)
    history, candidates = make_case([7, 0, 1], [2, 1, 1], dtype=torch.float64)

    def run(values: Tensor, wanted: Tensor, *_: Tensor) -> Tensor:
        case = History(history.offsets, values, history.codes, None, history.age)
        own = Candidates(candidates.offsets, wanted, candidates.codes, None, candidates.request)
        return method(case, own)

    inputs = (history.values, candidates.values, *method.parameters())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_merged_tokens_start_as_means() -> None:
    method = Method(LongerConfig(merge=4, inner=False), make_shape()).double()
    history, _ = make_case([6], [1], dtype=torch.float64)
    tokens, offsets = method.merge(history)
    assert offsets.tolist() == [0, 2]
    torch.testing.assert_close(tokens[0], history.values[2:].mean(0))
    torch.testing.assert_close(tokens[1], history.values[:2].sum(0) / 4)


def test_autocast_gives_about_the_same() -> None:
    method = make_method(torch.float32)
    history, candidates = make_case([70, 0, 5], [3, 1, 2])
    exact = method(history, candidates)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = method(history, candidates)
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_parameters_are_as_many_as_documented() -> None:
    d = DIM
    expected = 3 * (12 * d * d + 9 * d) + 4 * d * d + d + (64 + 1) * d
    assert sum(p.numel() for p in make_method().parameters()) == expected


def test_heads_must_divide() -> None:
    with pytest.raises(UserError, match=r"history.heads = 3 does not divide tables.dim = 8"):
        make_method(heads=3)
