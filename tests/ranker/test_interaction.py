"""Pairwise products of feature vectors, by loops and by the operators of other devices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hisac_rec.ranker import interaction
from hisac_rec.ranker.interaction import InteractionArch


def drawn(counts: list[int], shared: int, own: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors of requests with so many candidates each, in float64."""
    generator = torch.Generator().manual_seed(0)
    request = torch.repeat_interleave(torch.tensor(counts))
    rows = (len(counts), shared, dim), (len(request), own, dim)
    of_requests, of_candidates = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in rows
    )
    return of_requests, of_candidates, request


def by_operators(arch: InteractionArch, *arguments: Tensor) -> Tensor:
    """What runs on other devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interaction, "suit_loops", lambda _: False)
        crossed: Tensor = arch(*arguments)
    return crossed


@pytest.mark.parametrize("loops", [True, False])
def test_by_hand(monkeypatch: pytest.MonkeyPatch, loops: bool) -> None:
    if not loops:
        monkeypatch.setattr(interaction, "suit_loops", lambda _: False)
    vectors = torch.arange(12.0).view(1, 3, 4)
    dots = [float(vectors[0, a] @ vectors[0, b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    whole, short = InteractionArch(2, 1, 4, True), InteractionArch(2, 1, 4, False)
    given = vectors[:, :2], vectors[:, 2:], torch.tensor([0])
    assert whole(*given).tolist() == [[*vectors.flatten().tolist(), *dots]]
    assert short(*given).tolist() == [[*vectors[0, 0].tolist(), *dots]]
    assert (whole.out_dim, short.out_dim) == (15, 7)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    shared=st.integers(1, 3),
    own=st.integers(1, 5),
    dim=st.sampled_from([1, 3, 16]),
    include_vectors=st.booleans(),
)
def test_loops_equal_operators(
    counts: list[int], shared: int, own: int, dim: int, include_vectors: bool
) -> None:
    *vectors, request = drawn(counts, shared, own, dim)
    arch = InteractionArch(shared, own, dim, include_vectors)
    found, expected = arch(*vectors, request), by_operators(arch, *vectors, request)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), vectors),
        torch.autograd.grad((expected * weights).sum(), vectors),
    )


def test_gradients_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are cut between requests, so that no two threads add to one row."""
    monkeypatch.setattr(interaction, "CANDIDATES_A_THREAD", 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    *vectors, request = drawn([3, 0, 1, 5, 1, 0, 2], 2, 3, 4)
    runs = interaction._runs(request, 7)
    assert [slice(0, 3), slice(3, 9), slice(9, 12)] == runs
    arch = InteractionArch(2, 3, 4, True)
    torch.testing.assert_close(arch(*vectors, request), by_operators(arch, *vectors, request))
    assert torch.autograd.gradcheck(lambda *given: arch(*given, request), vectors)


def test_vectors_of_two_widths_of_number_take_the_operators() -> None:
    """Under autocast some come as bf16: torch decides what their product is."""
    shared, own, request = drawn([2, 1], 1, 2, 4)
    arch = InteractionArch(1, 2, 4, True)
    assert arch(shared.float(), own, request).dtype == torch.float64
