"""Candidate attention by loops equals that by blocks, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hisac_rec.methods.parts import attend, attention
from hisac_rec.methods.parts.attend import similarities
from hisac_rec.methods.parts.attention import CandidateAttention, Kinship

DIM, LEVELS, WORDS = 8, 3, 12


def make_attention(heads: int) -> CandidateAttention:
    torch.manual_seed(0)
    made = CandidateAttention(DIM, heads).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def make_kinship(counts: list[int], mask: Tensor, heads: int) -> tuple[Kinship, Tensor]:
    """Similarities drawn at random, and the request of each candidate."""
    generator = torch.Generator().manual_seed(0)
    request = torch.repeat_interleave(torch.tensor(counts))
    products, gain = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((len(request), WORDS), (heads,))
    )
    words = torch.randint(0, WORDS, (*mask.shape, LEVELS), generator=generator)
    scale = torch.rand(mask.shape, generator=generator, dtype=torch.float64) * mask
    return Kinship(products, words, scale, gain.requires_grad_()), request


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    slots=st.integers(1, 6),
    heads=st.sampled_from([1, 2, 8]),
    kin=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
def test_loops_equal_blocks(
    counts: list[int], slots: int, heads: int, kin: bool, biased: bool, seed: int
) -> None:
    """Results and gradients of all that is trained, with holes among the slots, in threads."""
    made = make_attention(heads)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(counts), slots)
    mask = torch.rand(shape, generator=generator) < 0.7
    memory, bias, candidates = (
        torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
        for size in ((*shape, DIM), shape, (sum(counts), DIM))
    )
    kinship, _ = make_kinship(counts, mask, heads)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    given = candidates, offsets, memory, mask, bias if biased else None, kinship if kin else None
    trained = [candidates, memory, *made.parameters()]
    trained += [bias] * biased + [kinship.gain] * kin
    found = []
    for by_loops in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "suit_loops", lambda _, by_loops=by_loops: by_loops)
            patch.setattr(attend, "CANDIDATES_A_THREAD", 3)
            patch.setattr("torch.get_num_threads", lambda: 3)
            attended = made(*given)
            total = (attended * torch.arange(DIM).double()).square().sum()
            found.append((attended, torch.autograd.grad(total, trained, materialize_grads=True)))
    torch.testing.assert_close(found[0], found[1])


def test_gradients() -> None:
    made, counts = make_attention(2), [2, 0, 3]
    mask = torch.tensor([[True, False, True], [False] * 3, [True, True, False]])
    kinship, _ = make_kinship(counts, mask, 2)
    memory, bias, candidates = (
        torch.randn(size, dtype=torch.float64).requires_grad_()
        for size in ((3, 3, DIM), (3, 3), (5, DIM))
    )
    offsets = torch.tensor([0, *counts]).cumsum(0)

    def attended(candidates: Tensor, memory: Tensor, bias: Tensor, gain: Tensor) -> Tensor:
        near = Kinship(kinship.products, kinship.words, kinship.scale, gain)
        return made(candidates, offsets, memory, mask, bias, near)

    assert torch.autograd.gradcheck(attended, (candidates, memory, bias, kinship.gain))


@pytest.mark.parametrize("counts", [[3, 0, 5], [20]])
def test_similarities_are_the_cosines_of_the_filled(counts: list[int]) -> None:
    mask = torch.arange(4) < torch.tensor([4, 0, 2][: len(counts)])[:, None]
    kinship, request = make_kinship(counts, mask, 1)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    found = similarities(kinship.products, kinship.words, kinship.scale, offsets)
    torch.testing.assert_close(found[:, 1:], kinship.cosines(request))
    assert not found[:, 0].any()
