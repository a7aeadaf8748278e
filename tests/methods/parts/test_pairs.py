"""Pairs of blocks against plain loops over candidates and events."""

from __future__ import annotations

import pytest
import torch
from histories import offsets_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hisac_rec.methods.parts import pairs as module
from hisac_rec.methods.parts.pairs import (
    Pairs,
    dot_scores,
    make_pairs,
    softmax,
    weighted_sum,
)
from hisac_rec.methods.parts.top import top_events

DIM = 6
LENGTHS = st.lists(
    st.tuples(st.sampled_from([0, 1, 5, 40, 300]), st.sampled_from([0, 1, 3, 20])),
    min_size=1,
    max_size=5,
)


class Case:
    """Random rows for these (events, candidates) per request."""

    def __init__(self, sizes: list[tuple[int, int]], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths, counts = [s[0] for s in sizes], [s[1] for s in sizes]
        self.event_offsets, self.offsets = offsets_of(lengths), offsets_of(counts)
        self.events, self.count = sum(lengths), sum(counts)
        self.queries = torch.randn(self.count, DIM, generator=generator, dtype=torch.float64)
        self.keys = torch.randn(self.events, DIM, generator=generator, dtype=torch.float64)
        self.values = torch.randn(self.events, DIM, generator=generator, dtype=torch.float64)

    def pairs(self, **sizes: int) -> Pairs:
        return make_pairs(self.offsets, self.event_offsets, self.count, self.events, **sizes)

    def own(self) -> list[slice]:
        """Per candidate: its events."""
        bounds = self.event_offsets.tolist()
        counts = self.offsets.diff().tolist()
        slices = [slice(*bounds[r : r + 2]) for r in range(len(counts))]
        return [slices[r] for r, count in enumerate(counts) for _ in range(count)]


@settings(max_examples=60, deadline=None)
@given(sizes=LENGTHS, largest=st.sampled_from([1, 4, 64]), seed=st.integers(0, 99))
def test_every_pair_of_rows_once(sizes: list[tuple[int, int]], largest: int, seed: int) -> None:
    case = Case(sizes, seed)
    pairs = case.pairs(largest_candidates=largest, largest_events=16)
    candidate = pairs.of_candidates(torch.arange(case.count))[:, :, None]
    event = pairs.of_events(torch.arange(case.events))[:, None, :]
    valid = pairs.mask & pairs.candidates.mask[pairs.candidate_block][:, :, None]
    found = torch.stack([x.expand(pairs.shape)[valid] for x in (candidate, event)], 1).tolist()
    expected = [[c, e] for c, own in enumerate(case.own()) for e in range(own.start, own.stop)]
    assert sorted(found) == expected


@settings(max_examples=60, deadline=None)
@given(sizes=LENGTHS, heads=st.sampled_from([0, 1, 2]), seed=st.integers(0, 99))
def test_attention_equals_a_loop(sizes: list[tuple[int, int]], heads: int, seed: int) -> None:
    case = Case(sizes, seed)
    pairs = case.pairs(largest_candidates=8, largest_events=16)
    split = (lambda x: x.unflatten(1, (heads, -1))) if heads else (lambda x: x)
    # 300: exp overflows without the shift by the maximum.
    scores = 300 * dot_scores(pairs, split(case.queries), split(case.keys))
    found = weighted_sum(pairs, softmax(pairs, scores), case.values)
    assert found.shape == (case.count, DIM)
    width = DIM // max(1, heads)
    for row, own in enumerate(case.own()):
        keys, values = case.keys[own], case.values[own]
        for part in (slice(h, h + width) for h in range(0, DIM, width)):
            weights = (300 * keys[:, part] @ case.queries[row, part]).softmax(0)
            torch.testing.assert_close(found[row, part], weights @ values[:, part])


@settings(max_examples=30, deadline=None)
@given(sizes=LENGTHS, seed=st.integers(0, 99))
def test_plain_weights_are_not_normalised(sizes: list[tuple[int, int]], seed: int) -> None:
    case = Case(sizes, seed)
    pairs = case.pairs(largest_events=16)
    weights = dot_scores(pairs, case.queries, case.keys).masked_fill(~pairs.mask, 0)
    found = weighted_sum(pairs, weights, case.values)
    for row, own in enumerate(case.own()):
        expected = (case.keys[own] @ case.queries[row]) @ case.values[own]
        torch.testing.assert_close(found[row], expected)


def test_softmax_under_a_mask_of_the_callers() -> None:
    """A candidate with no allowed event gets zeros, the others ignore what is masked."""
    case = Case([(20, 2), (3, 1)])
    pairs = case.pairs(largest_events=8)
    event = pairs.of_events(torch.arange(case.events))[:, None, :]
    candidate = pairs.of_candidates(torch.arange(case.count))[:, :, None]
    allowed = pairs.mask & (event % 2 == 0) & (candidate != 1)
    scores = dot_scores(pairs, case.queries, case.keys).requires_grad_()
    found = weighted_sum(pairs, softmax(pairs, scores, allowed), case.values)
    even = slice(0, 20, 2)
    weights = (case.keys[even] @ case.queries[0]).softmax(0)
    torch.testing.assert_close(found[0], weights @ case.values[even])
    assert not found[1].any()
    torch.testing.assert_close(found[2], (case.keys[20::2] @ case.queries[2]).softmax(0)
                               @ case.values[20::2])  # fmt: skip
    found.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("normalised", [True, False])
def test_gradients(normalised: bool) -> None:
    case = Case([(9, 3), (0, 1), (1, 2), (4, 0)])
    pairs = case.pairs(largest_candidates=2, largest_events=8)

    def run(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        scores = dot_scores(pairs, queries.unflatten(1, (2, -1)), keys.unflatten(1, (2, -1)))
        if normalised:
            return weighted_sum(pairs, softmax(pairs, scores), values)
        return weighted_sum(pairs, scores.masked_fill(~pairs.mask[:, None], 0), values)

    inputs = (case.queries, case.keys, case.values)
    assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in inputs])


@settings(max_examples=80, deadline=None)
@given(
    sizes=LENGTHS,
    k=st.sampled_from([1, 3, 16, 64, 400]),
    heads=st.sampled_from([0, 2]),
    ties=st.booleans(),
    chunk=st.sampled_from([1, 1 << 22]),
    seed=st.integers(0, 99),
)
def test_top_events_equal_a_sort(
    sizes: list[tuple[int, int]], k: int, heads: int, ties: bool, chunk: int, seed: int
) -> None:
    case = Case(sizes, seed)
    pairs = case.pairs(largest_candidates=4, largest_events=32)
    shape = (case.count, case.events, max(1, heads))
    table = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    # With ties: few values, among them zeros of both signs, which are equal.
    table = torch.where(table < 0, -0.0, table.round()) if ties else table

    parts = []

    def score(part: Pairs) -> Tensor:
        parts.append(len(part))
        candidate = part.of_candidates(torch.arange(case.count))[:, :, None]
        scores = table[candidate, part.of_events(torch.arange(case.events))[:, None, :]]
        return scores.permute(0, 3, 1, 2) if heads else scores[..., 0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_ELEMENTS", chunk)
        rows, filled = top_events(pairs, score, k)
    assert sum(parts) == len(pairs)
    assert len(parts) == (max(1, len(pairs)) if chunk == 1 else 1)
    assert rows.shape == filled.shape == ((case.count, heads, k) if heads else (case.count, k))
    if not heads:
        rows, filled = rows[:, None], filled[:, None]
    for candidate, own in enumerate(case.own()):
        for head in range(max(1, heads)):
            order = range(own.start, own.stop)
            expected = sorted(order, key=lambda e: (-table[candidate, e, head].item(), -e))[:k]
            assert rows[candidate, head][filled[candidate, head]].tolist() == expected
            assert not rows[candidate, head][~filled[candidate, head]].any()


def test_infinite_scores_are_still_ordered() -> None:
    case = Case([(4, 1)])
    wanted = torch.tensor([float("-inf"), float("inf"), -1e30, 2.0])
    rows, filled = top_events(case.pairs(), lambda part: part.of_events(wanted)[:, None], 8)
    assert rows[0, filled[0]].tolist() == [1, 3, 2, 0]


def test_nothing_is_padded_to_the_longest_history() -> None:
    """One long history beside many short ones: work near the sum of their products."""
    case = Case([(5_000, 2), *[(5, 2)] * 200])
    pairs = case.pairs()
    wanted = sum(events * count for events, count in [(5_000, 2), *[(5, 2)] * 200])
    count, candidates, events = pairs.shape
    assert events <= 64
    assert count * candidates * events < wanted + 201 * 2 * events  # one last block a request

    seen: list[int] = []

    def score(part: Pairs) -> Tensor:
        scores = dot_scores(part, case.queries, case.keys)
        seen.append(scores.numel())
        return scores

    rows, filled = top_events(pairs, score, 16)
    assert sum(seen) == count * candidates * events
    best = (case.keys[:5_000] @ case.queries[0]).float().topk(16).indices
    assert sorted(rows[0].tolist()) == sorted(best.tolist())
    assert filled.sum(1).tolist() == [16, 16, *[5] * 400]


def test_autocast_keeps_the_sums_wide() -> None:
    """4,000 equal scores: bf16 sums would stop growing at 256."""
    case = Case([(4_000, 1)])
    pairs = case.pairs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = dot_scores(pairs, torch.zeros(1, DIM), torch.zeros(4_000, DIM))
        assert scores.dtype == torch.bfloat16
        weights = softmax(pairs, scores)
        mean = weighted_sum(pairs, weights, torch.ones(4_000, DIM))
    torch.testing.assert_close(mean, torch.ones(1, DIM), rtol=4e-3, atol=0)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0), rtol=1e-5, atol=0)
