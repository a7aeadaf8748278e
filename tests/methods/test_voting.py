"""Voting and activation: the fast form equals the plain reference, whatever the history."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hisac_rec.data.bags import FrozenEvents
from hisac_rec.methods.base import request_of_rows
from hisac_rec.methods.hisac import voting, voting_cpu, voting_torch
from hisac_rec.methods.hisac.leaves import Agents, path_numbers, path_vectors
from hisac_rec.methods.hisac.reference import path_vector, vote
from hisac_rec.methods.hisac.tree import TreeRules
from hisac_rec.methods.hisac.voting import (
    VOTE_UNIT,
    activate,
    count_leaves,
    recent_votes,
    to_slots,
)

Paths = list[tuple[int, ...]]


@st.composite
def voting_cases(draw: st.DrawFn) -> tuple[list[int], list[int], list[Paths]]:
    """(codes per level, keep per level, histories): thin and thick trees, empty histories."""
    counts = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    keep = [draw(st.integers(1, 7)) for _ in counts]
    path = st.tuples(*(st.integers(0, count - 1) for count in counts))
    histories = draw(st.lists(st.lists(path, max_size=40), min_size=1, max_size=5))
    return counts, keep, histories


def batch_of(histories: list[Paths], levels: int) -> tuple[Tensor, Tensor]:
    """Codes [T, D] and offsets [R+1]."""
    codes = torch.tensor([p for h in histories for p in h], dtype=torch.int64).view(-1, levels)
    return codes, torch.tensor([0, *map(len, histories)]).cumsum(0)


WAYS = {"loops": None, "sort": 0, "dense": 10**9}
"""How leaves are counted: by the CPU's backend, or by torch's with so many bins an event."""


@contextmanager
def counted_by(way: str) -> Iterator[None]:
    """Take one of :data:`WAYS` on any device."""
    with pytest.MonkeyPatch.context() as patch:
        bins_per_event = WAYS[way]
        backend = voting_cpu if bins_per_event is None else voting_torch
        patch.setattr(voting, "choose_backend", lambda _: backend)
        if bins_per_event is not None:
            patch.setattr(voting_torch, "DENSE_BINS_PER_EVENT", bins_per_event)
        yield


def fast_vote(counts: list[int], keep: list[int], histories: list[Paths]) -> Agents:
    return activate(count_leaves(*batch_of(histories, len(counts)), counts), keep, counts)


def number(path: tuple[int, ...], counts: list[int]) -> int:
    total = 0
    for code, count in zip(path, counts, strict=True):
        total = total * count + code
    return total


def expected_agents(
    counts: list[int], keep: list[int], histories: list[Paths]
) -> list[tuple[int, int, int]]:
    """(request, path number, votes) in the order the fast form promises."""
    return [
        (request, number(path, counts), votes)
        for request, history in enumerate(histories)
        for path, votes in vote(history, keep).items()
    ]


def rows(agents: Agents) -> list[tuple[int, ...]]:
    return [
        tuple(row) for row in torch.stack([agents.request, agents.path, agents.votes], 1).tolist()
    ]


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=150, deadline=None)
@given(case=voting_cases())
def test_equals_the_reference(way: str, case: tuple[Any, ...]) -> None:
    counts, keep, histories = case
    with counted_by(way):
        assert rows(fast_vote(counts, keep, histories)) == expected_agents(counts, keep, histories)


@settings(max_examples=50, deadline=None)
@given(case=voting_cases())
def test_all_ways_of_counting_agree(case: tuple[Any, ...]) -> None:
    counts, _, histories = case
    codes, offsets = batch_of(histories, len(counts))
    found = []
    for way in WAYS:
        with counted_by(way):
            leaves = count_leaves(codes, offsets, counts)
        found.append(leaves)
        # Every event points to the leaf of its own request and path.
        request = request_of_rows(offsets, len(codes))
        assert torch.equal(leaves.request[leaves.of_event], request)
        assert torch.equal(leaves.path[leaves.of_event], path_numbers(codes, counts))
    for name in ("request", "path", "events", "votes", "of_event"):
        for other in found[1:]:
            assert torch.equal(getattr(found[0], name), getattr(other, name)), name


@pytest.mark.parametrize("counts", [[40, 70_000], [2, 3, 1_000, 300]])
def test_leaves_are_ordered_whatever_the_number_of_paths(counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(count, (3_000,), generator=generator) for count in counts]
    codes = torch.stack(columns, dim=1)
    offsets = torch.tensor([0, 1, 1, 2_000, 3_000])
    found = []
    for way in ("loops", "sort"):
        with counted_by(way):
            leaves = count_leaves(codes, offsets, counts)
            agents = activate(leaves, [5] * len(counts), counts, 7)
        found.append([*vars(leaves).values(), *vars(agents).values()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


WEIGHTS = (1.0, 0.0, -1.0, 0.5, -2.5, 3.0)
"""Of the types of events."""


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=100, deadline=None)
@given(
    case=voting_cases(),
    half_life=st.sampled_from([None, 2.0]),
    tail=st.integers(0, 2),
    seed=st.integers(0, 99),
    kinds=st.integers(1, len(WEIGHTS)),
)
def test_votes_by_type_equal_the_reference(
    way: str, case: tuple[Any, ...], half_life: float | None, tail: int, seed: int, kinds: int
) -> None:
    """With events of any weight, and some whose items have no place; votes for and against."""
    counts, keep, histories = case
    codes, offsets = batch_of(histories, len(counts))
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(kinds, (len(codes),), generator=generator)
    placed = torch.rand(len(codes), generator=generator) < 0.8
    rules = TreeRules(tuple(counts), tuple(keep), tail, half_life, 0.1, False, WEIGHTS)
    with counted_by(way):
        leaves, agents = rules.grow(FrozenEvents(offsets, codes, kind, placed))
        rejected = rules.rejected(leaves)
    weights = (torch.tensor(WEIGHTS)[kind] * placed).tolist()
    bounds = offsets.tolist()
    of_user = [weights[a:b] for a, b in pairwise(bounds)]
    assert int(leaves.events.sum()) == len(codes)  # all are routed
    assert rows(agents) == [
        (user, number(path, counts), votes)
        for user, (history, own) in enumerate(zip(histories, of_user, strict=True))
        for path, votes in vote(history, keep, half_life=half_life, tail=tail, weights=own).items()
    ]
    assert rows(rejected) == [
        (user, number(path, counts), votes)
        for user, (history, own) in enumerate(zip(histories, of_user, strict=True))
        if any(weight < 0 for weight in own)
        for path, votes in vote(
            history, keep, half_life=half_life, tail=tail, weights=[-weight for weight in own]
        ).items()
    ]


def test_weights_of_one_change_nothing() -> None:
    rules = TreeRules((4, 4), (2, 2), 0, None, 0.1, False)
    codes, offsets = batch_of([[(1, 2), (1, 3), (1, 2)], [(0, 0)]], 2)
    kind, placed = torch.tensor([0, 1, 0, 1]), torch.ones(4, dtype=torch.bool)
    leaves, agents = rules.grow(FrozenEvents(offsets, codes, kind, placed))
    assert rows(agents) == [(0, 6, 2), (0, 7, 1), (1, 0, 1)]
    assert leaves.votes is leaves.events
    assert leaves.unit == 1


def test_who_votes_for_nothing_has_agents_without_strength() -> None:
    rules = TreeRules((4,), (2,), 0, None, 0.1, False, (-1.0,))
    codes, offsets = batch_of([[(1,), (3,), (1,)]], 1)
    leaves, agents = rules.grow(FrozenEvents(offsets, codes, torch.zeros(3, dtype=torch.int64)))
    assert rows(agents) == [(0, 1, 2), (0, 3, 1)]  # in units of 1 / VOTE_UNIT
    assert rows(rules.rejected(leaves)) == [(0, 1, 2 * VOTE_UNIT), (0, 3, VOTE_UNIT)]


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=60, deadline=None)
@given(case=voting_cases(), half_life=st.sampled_from([None, 0.5, 7.0]), tail=st.integers(0, 3))
def test_fading_votes_and_reserved_leaves_equal_the_reference(
    way: str, case: tuple[Any, ...], half_life: float | None, tail: int
) -> None:
    counts, keep, histories = case
    codes, offsets = batch_of(histories, len(counts))
    votes = None if half_life is None else recent_votes(offsets, len(codes), half_life)
    with counted_by(way):
        leaves = count_leaves(codes, offsets, counts, votes)
        found = activate(leaves, keep, counts, tail)
    assert int(leaves.events.sum()) == len(codes)
    assert rows(found) == [
        (user, number(path, counts), number_of_votes)
        for user, history in enumerate(histories)
        for path, number_of_votes in vote(history, keep, half_life=half_life, tail=tail).items()
    ]


def test_recent_events_outvote_old_ones() -> None:
    history: Paths = [(0,)] * 5 + [(1,)] * 2
    codes, offsets = batch_of([history], 1)
    votes = recent_votes(offsets, 7, 1.0)
    assert rows(activate(count_leaves(codes, offsets, [2], votes), [1], [2]))[0][1] == 1
    assert rows(activate(count_leaves(codes, offsets, [2]), [1], [2])) == [(0, 0, 5)]


def test_thousands_of_events_beside_empty_and_single_histories() -> None:
    counts, keep = [16, 32], [4, 3]
    generator = torch.Generator().manual_seed(0)
    long = torch.stack([torch.randint(0, c, (5_000,), generator=generator) for c in counts], 1)
    histories: list[Paths] = [[], [tuple(p) for p in long.tolist()], [(3, 31)], []]
    agents = fast_vote(counts, keep, histories)
    assert rows(agents) == expected_agents(counts, keep, histories)
    assert torch.bincount(agents.request, minlength=4).tolist() == [0, 12, 1, 0]


def test_all_events_on_one_path_make_one_agent() -> None:
    assert rows(fast_vote([4, 4], [2, 2], [[(1, 2)] * 1_000])) == [(0, 6, 1_000)]


def test_ties_go_to_the_smaller_code() -> None:
    ties: Paths = [(3, 0), (2, 0), (1, 1), (1, 0), (2, 1), (3, 1)]
    assert rows(fast_vote([4, 2], [2, 1], [ties])) == [(0, 2, 1), (0, 4, 1)]


def test_asking_for_more_than_exists_keeps_every_leaf() -> None:
    history: Paths = [(0, 1), (0, 0), (1, 1), (0, 1)]
    assert rows(fast_vote([2, 2], [99, 99], [history])) == [(0, 0, 1), (0, 1, 2), (0, 3, 1)]


def test_an_inner_node_wins_by_the_sum_of_its_leaves() -> None:
    """Branch 0 has the single largest leaf, branch 1 more events: branch 1 survives."""
    history: Paths = [(0, 0)] * 3 + [(1, 0), (1, 0), (1, 1), (1, 2)]
    assert rows(fast_vote([2, 3], [1, 1], [history])) == [(0, 3, 2)]


@settings(max_examples=30, deadline=None)
@given(case=voting_cases())
def test_slots_are_unique_and_filled_from_the_left(case: tuple[Any, ...]) -> None:
    counts, keep, histories = case
    agents = fast_vote(counts, keep, histories)
    slot, filled = to_slots(agents, len(histories))
    per_request = torch.bincount(agents.request, minlength=len(histories))
    assert torch.equal(filled.sum(1), per_request)
    assert torch.equal(filled, filled.cummin(1).values)
    dense = torch.full(filled.shape, -1)
    dense[agents.request, slot] = torch.arange(len(slot))
    assert torch.equal(dense[filled], torch.arange(len(slot)))


@settings(max_examples=30, deadline=None)
@given(case=voting_cases())
def test_agent_vectors_are_sums_of_code_words(case: tuple[Any, ...]) -> None:
    counts, keep, histories = case
    generator = torch.Generator().manual_seed(1)
    codebook = [torch.randn(c, 3, generator=generator, dtype=torch.float64) for c in counts]
    words = [level.tolist() for level in codebook]
    agents = fast_vote(counts, keep, histories)
    expected = [path_vector(path, words) for h in histories for path in vote(h, keep)]
    torch.testing.assert_close(
        path_vectors(agents.path, codebook),
        torch.tensor(expected, dtype=torch.float64).view(-1, 3),
    )
