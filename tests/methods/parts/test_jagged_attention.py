"""Attention in block pairs against plain loops over queries and keys."""

from __future__ import annotations

import math

import pytest
import torch
from histories import offsets_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hisac_rec.methods.parts import jagged_attention
from hisac_rec.methods.parts.jagged_attention import (
    HIDDEN,
    Attending,
    Pairs,
    Rows,
    crop,
    make_pairs,
    places,
    pointwise_attention,
    softmax_attention,
)

HEADS, WIDTH = 2, 3
OWN_BIAS = torch.tensor(0.3, dtype=torch.float64)

Case = tuple[Attending, Rows, Rows]


def make_case(queries: list[int], keys: list[int], seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int) -> Tensor:
        shape = (rows, HEADS, WIDTH)
        made = torch.randn(shape, generator=generator, dtype=torch.float64)
        return made.requires_grad_()

    def rows(lengths: list[int]) -> Rows:
        position = torch.randint(-3, 12, (sum(lengths),), generator=generator)
        return Rows(offsets_of(lengths), position)

    count, total = sum(queries), sum(keys)
    attending = Attending(normal(count), normal(count), normal(count), normal(total), normal(total))
    return attending, rows(queries), rows(keys)


def visible(query: int, queries: Rows, keys: Rows) -> list[int]:
    """Keys of the same request at lower positions."""
    request = int((queries.offsets[1:] <= query).sum())
    inside = range(int(keys.offsets[request]), int(keys.offsets[request + 1]))
    return [j for j in inside if keys.position[j] < queries.position[query]]


def plain(case: Case, *, softmax: bool) -> Tensor:
    given, queries, keys = case
    result = torch.zeros_like(given.query)
    for i in range(len(given.query)):
        seen = visible(i, queries, keys)
        for head in range(HEADS):
            query = given.query[i, head]
            rows = [given.own_key[i, head], *(given.key[j, head] for j in seen)]
            values = [given.own_value[i, head], *(given.value[j, head] for j in seen)]
            scores = torch.stack([query @ key for key in rows])
            if softmax:
                weights = (scores / math.sqrt(WIDTH)).softmax(0)
            else:
                gaps = [int(queries.position[i] - keys.position[j]) for j in seen]
                biases = torch.tensor([OWN_BIAS, *(0.1 * gap for gap in gaps)])
                raw = scores + biases
                weights = raw / (1 + (-raw).exp())
            result[i, head] = sum(w * v for w, v in zip(weights, values, strict=True))
    return result


def in_pairs(case: Case, *, softmax: bool) -> Tensor:
    given, queries, keys = case
    pairs = make_pairs(queries, keys)
    if softmax:
        return softmax_attention(given, pairs)

    def bias(_: Pairs, distance: Tensor) -> Tensor:
        return (0.1 * distance.double()).masked_fill(distance <= 0, HIDDEN)

    return pointwise_attention(given, pairs, bias, OWN_BIAS)


LENGTHS = st.lists(
    st.tuples(st.sampled_from([0, 1, 3, 9]), st.sampled_from([0, 1, 5, 40])), min_size=1, max_size=4
)


@pytest.mark.parametrize("softmax", [True, False])
@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_equals_the_plain_loops(softmax: bool, lengths: list[tuple[int, int]], seed: int) -> None:
    queries, keys = ([pair[side] for pair in lengths] for side in (0, 1))
    case = make_case(queries, keys, seed)
    torch.testing.assert_close(in_pairs(case, softmax=softmax), plain(case, softmax=softmax))


@pytest.mark.parametrize("softmax", [True, False])
def test_chunks_change_nothing(softmax: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more scores than fit, the backward pass computes them again."""
    case = make_case([5, 0, 2], [90, 4, 30])
    tensors = [case[0].query, case[0].own_key, case[0].own_value, case[0].key, case[0].value]
    whole = in_pairs(case, softmax=softmax)
    expected = torch.autograd.grad(whole.square().sum(), tensors)
    monkeypatch.setattr(jagged_attention, "CHUNK_ELEMENTS", 200)
    assert len(list(make_pairs(*case[1:]).chunks(HEADS))) > 2
    cut = in_pairs(case, softmax=softmax)
    torch.testing.assert_close(cut, whole)
    found = torch.autograd.grad(cut.square().sum(), tensors)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("softmax", [True, False])
def test_gradients(softmax: bool) -> None:
    given, queries, keys = make_case([3, 1], [6, 0])

    def run(*tensors: Tensor) -> Tensor:
        return in_pairs((Attending(*tensors), queries, keys), softmax=softmax)

    tensors = (given.query, given.own_key, given.own_value, given.key, given.value)
    assert torch.autograd.gradcheck(run, tensors)


def test_the_softmax_is_stable() -> None:
    """Scores of hundreds overflow exp unless the highest one is taken away."""
    given, queries, keys = make_case([2], [30])
    given = Attending(
        1000 * given.query.float(),
        given.own_key.float(),
        given.own_value.float(),
        given.key.float(),
        given.value.float(),
    )
    found = softmax_attention(given, make_pairs(queries, keys))
    torch.testing.assert_close(found, plain((given, queries, keys), softmax=True))


def test_pairs_where_nothing_is_visible_are_left_out() -> None:
    """A causal sequence needs half of the square of its blocks."""
    sequence = Rows(torch.tensor([0, 640]), torch.arange(640))
    blocks = 640 // jagged_attention.LARGEST_BLOCK["cpu"]
    assert len(make_pairs(sequence, sequence).query) == blocks * (blocks + 1) // 2


def test_without_any_pair_every_tensor_has_a_gradient() -> None:
    """A rank that has run out must still take part in the reduction of gradients."""
    for softmax in (True, False):
        case = make_case([0], [4])
        in_pairs(case, softmax=softmax).sum().backward()
        assert case[0].key.grad is not None
        assert case[0].value.grad is not None


def test_crop_and_places() -> None:
    offsets = offsets_of([3, 0, 1, 5])
    for end, expected in (("last", [1, 2, 3, 7, 8]), ("first", [0, 1, 3, 4, 5])):
        rows, kept = crop(offsets, 2, end)
        assert rows.tolist() == expected
        assert kept.tolist() == [0, 2, 2, 3, 5]
    assert places(offsets, 9).tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
