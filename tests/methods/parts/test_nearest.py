"""Retrieval by dot product against a sort of all dot products, written plainly."""

from __future__ import annotations

import pytest
import torch
from histories import make_case
from hypothesis import given, settings
from hypothesis import strategies as st
from target_attention import best, dot, each_candidate

from hisac_rec.methods.parts import pairs
from hisac_rec.methods.parts.nearest import IndexedEvents, nearest_events


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 3, 9, 150]), min_size=1, max_size=4),
    counts=st.sampled_from([0, 1, 4]),
    k=st.sampled_from([1, 4, 64]),
    whole=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_a_sort(lengths: list[int], counts: int, k: int, whole: bool, seed: int) -> None:
    """Whole numbers have many ties: the newest event comes first."""
    history, wanted = make_case(lengths, [counts] * len(lengths), seed=seed)
    keys, queries = history.values.detach(), wanted.values.detach()
    if whole:
        keys, queries = keys.round().clamp(-1, 1), queries.round().clamp(-1, 1)
    index = IndexedEvents(history.offsets, history.values, keys)
    rows, filled = nearest_events(queries, wanted.offsets, index, k)
    assert rows.shape == filled.shape == (len(queries), k)
    for row, span in each_candidate(history, wanted):
        scores = [dot(queries[row].tolist(), event) for event in keys[span].tolist()]
        expected = [span.start + place for place in best(scores, k)]
        assert rows[row, filled[row]].tolist() == expected


def test_one_bit_of_a_thousand_decides_under_autocast() -> None:
    """Dot products of 1000, 998, 996: a bf16 has eight bits and would call them equal."""
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    keys = torch.where(torch.arange(1000) < order[:, None], -1.0, 1.0)
    index = IndexedEvents(torch.tensor([0, 300]), keys, keys)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows, _ = nearest_events(torch.ones(2, 1000), torch.tensor([0, 2]), index, 9)
    assert order[rows].tolist() == [list(range(9))] * 2


def test_in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    history, wanted = make_case([700, 0, 30], [3, 1, 2])
    index = IndexedEvents(history.offsets, history.values, history.values)
    whole = nearest_events(wanted.values, wanted.offsets, index, 5)
    monkeypatch.setattr(pairs, "CHUNK_ELEMENTS", 1)
    parts = nearest_events(wanted.values, wanted.offsets, index, 5)
    assert torch.equal(parts[0], whole[0])
    assert torch.equal(parts[1], whole[1])


def test_no_gradient() -> None:
    history, wanted = make_case([5], [2])
    index = IndexedEvents(history.offsets, history.values, history.values)
    rows, filled = nearest_events(wanted.values, wanted.offsets, index, 2)
    assert not rows.requires_grad
    assert filled.all()
