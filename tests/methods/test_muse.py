"""MUSE against its formulas: cosines, tiers, fused scores, one candidate and event at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from histories import make_case, make_shape
from hypothesis import given, settings
from hypothesis import strategies as st
from target_attention import Vector, attend, best, dot, each_candidate, scramble, times
from torch import Tensor

from hisac_rec.methods.base import Candidates, History
from hisac_rec.methods.muse import Method, MUSEConfig
from hisac_rec.methods.parts import tiers as tiers_module
from hisac_rec.methods.parts.tiers import count_all, taken_products, tier_of


def make_method(dtype: torch.dtype = torch.float64, **keys: Any) -> Method:
    method = Method(MUSEConfig(**keys), make_shape(dtype=dtype)).to(dtype)
    scramble(method)
    return method


def cosine(left: Vector, right: Vector) -> float:
    length = math.sqrt(dot(left, left) * dot(right, right))
    return dot(left, right) / length if length else 0.0


def plain(
    method: Method, candidate: Vector, content: Vector, events: list[Vector], own: list[Vector]
) -> list[Vector]:
    """Both interest vectors of a candidate with this content over events with their own."""
    config = method.config
    cosines = [cosine(content, vector) for vector in own]
    places = best(cosines, config.top_k)
    mixture = method.mixture.tolist()

    def fused(head: int, place: int, by_id: float) -> float:
        g1, g2, g3 = mixture[head]
        by_content = cosines[places[place]] / config.temperature
        return g1 * by_id + g2 * by_content + g3 * by_id * by_content

    attended = attend(method.attention, candidate, [events[place] for place in places], fused)
    counted = places if config.tier_events == "retrieved" else range(len(events))
    counts = [0] * config.tiers
    for place in counted:
        tier = math.floor((cosines[place] + 1) / 2 * config.tiers)
        counts[min(config.tiers - 1, tier)] += 1
    first, _, last = method.similarity
    hidden = times(first.weight.tolist(), [math.log1p(count) for count in counts])
    hidden = [max(0.0, x + b) for x, b in zip(hidden, first.bias.tolist(), strict=True)]
    out = times(last.weight.tolist(), hidden)
    return [attended, [x + b for x, b in zip(out, last.bias.tolist(), strict=True)]]


def assert_equals_plain(method: Method, history: History, wanted: Candidates) -> None:
    assert history.vectors is not None
    assert wanted.vectors is not None
    found = method(history, wanted)
    for row, span in each_candidate(history, wanted):
        expected = plain(
            method,
            wanted.values[row].tolist(),
            wanted.vectors[row].tolist(),
            history.values[span].tolist(),
            history.vectors[span].tolist(),
        )
        for vector in (0, 1):
            assert found[row, vector].tolist() == pytest.approx(expected[vector], abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 9, 40]), min_size=1, max_size=4),
    top_k=st.sampled_from([1, 3, 64]),
    heads=st.sampled_from([1, 2]),
    tiers=st.sampled_from([2, 7, 20]),
    events=st.sampled_from(["retrieved", "all"]),
    seed=st.integers(0, 99),
)
def test_equals_the_formula(
    lengths: list[int], top_k: int, heads: int, tiers: int, events: str, seed: int
) -> None:
    method = make_method(top_k=top_k, heads=heads, tiers=tiers, tier_events=events)
    history, wanted = make_case(lengths, [2] * len(lengths), dtype=torch.float64, seed=seed)
    assert_equals_plain(method, history, wanted)


@pytest.mark.parametrize("events", ["retrieved", "all"])
def test_equals_the_formula_for_thousands_of_events(
    events: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where cosines and tiers are made in many small parts."""
    monkeypatch.setattr(tiers_module, "CHUNK_ELEMENTS", 20)
    method = make_method(top_k=5, tier_events=events)
    history, wanted = make_case([3_000, 1], [2, 3], dtype=torch.float64)
    assert_equals_plain(method, history, wanted)


def test_items_without_content_and_fp16_tables() -> None:
    """Zeros have cosine 0; the frozen rows arrive in fp16 and are cast."""
    method = make_method(top_k=4)
    history, wanted = make_case([9, 2], [2, 1], dtype=torch.float64)
    assert history.vectors is not None
    assert wanted.vectors is not None
    history.vectors[3:5] = 0
    wanted.vectors[0] = 0
    history = replace(history, vectors=history.vectors.half())
    wanted = replace(wanted, vectors=wanted.vectors.half())
    assert_equals_plain(method, history, wanted)


def test_tiers_by_hand() -> None:
    cosines = torch.tensor([-1.0, -1.000001, -0.91, -0.89, 0.0, 0.05, 0.9999, 1.0, 1.000001])
    assert tier_of(cosines, 20).tolist() == [0, 0, 0, 1, 10, 10, 19, 19, 19]


def test_starts_as_the_sum_of_both_similarities() -> None:
    method = Method(MUSEConfig(heads=2), make_shape())
    assert method.mixture.tolist() == [[1, 1, 0], [1, 1, 0]]
    assert method.interests == 2
    assert method.vector_sides(MUSEConfig()) == ("history", "candidate")


@pytest.mark.parametrize("events", ["retrieved", "all"])
def test_gradients(events: str) -> None:
    """They reach what was retrieved, candidates and weights; never the content."""
    method = make_method(top_k=3, tier_events=events)
    history, wanted = make_case([30, 2], [1, 1], dtype=torch.float64)
    assert history.vectors is not None
    assert wanted.vectors is not None
    history.vectors.requires_grad_()
    wanted.vectors.requires_grad_()
    method(history, wanted).square().sum().backward()
    assert history.vectors.grad is None
    assert wanted.vectors.grad is None
    assert history.values.grad is not None
    reached = set((history.values.grad.abs().sum(1) > 0).nonzero().squeeze(1).tolist())
    expected: set[int] = set()
    for row, span in each_candidate(history, wanted):
        content = wanted.vectors[row].tolist()
        cosines = [cosine(content, own) for own in history.vectors[span].tolist()]
        expected |= {span.start + place for place in best(cosines, 3)}
    assert reached == expected
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_gradient_of_the_whole_method() -> None:
    method = make_method(top_k=4)
    history, wanted = make_case([9, 0, 1], [2, 1, 1], dtype=torch.float64)

    def run(values: Tensor, queries: Tensor, mixture: Tensor) -> Tensor:
        moved = replace(history, events=values), replace(wanted, values=queries)
        return torch.func.functional_call(method, {"mixture": mixture}, moved)

    assert torch.autograd.gradcheck(run, (history.values, wanted.values, method.mixture))


def test_autocast_does_not_change_a_similarity() -> None:
    method = make_method(torch.float32, top_k=6)
    history, wanted = make_case([900], [5])
    assert wanted.vectors is not None
    memory = method.compress(history)
    queries = torch.nn.functional.normalize(wanted.vectors, dim=1)
    rows = torch.arange(30).view(5, 6)
    filled = torch.ones_like(rows, dtype=torch.bool)

    def similarities() -> tuple[Tensor, Tensor]:
        return (
            taken_products(queries, memory.keys, rows, filled),
            count_all(queries, wanted.offsets, memory, 100),
        )

    exact = similarities()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = similarities()
    assert torch.equal(found[0], exact[0])
    assert torch.equal(found[1], exact[1])


def test_without_vectors() -> None:
    history, wanted = make_case([3], [1])
    with pytest.raises(ValueError, match="muse needs the semantic vectors of both sides"):
        make_method(torch.float32)(replace(history, vectors=None), wanted)
