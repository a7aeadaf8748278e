"""Candidate attention against a plain softmax, candidate by candidate and head by head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hisac_rec.errors import UserError
from hisac_rec.methods.parts import attention
from hisac_rec.methods.parts.attention import CandidateAttention

DIM = 8


@pytest.fixture(params=["loops", "blocks"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test holds for the loops of a CPU and for the blocks of other devices."""
    if request.param == "blocks":
        monkeypatch.setattr(attention, "suit_loops", lambda _: False)


def make_attention(heads: int) -> CandidateAttention:
    torch.manual_seed(0)
    attention = CandidateAttention(DIM, heads).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    return attention


def plain(
    attention: CandidateAttention, candidate: Tensor, memory: Tensor, bias: Tensor | None
) -> Tensor:
    """One candidate over its own filled slots [K, d] and the null slot."""
    query = attention.query.weight @ candidate
    keys = torch.cat([memory @ attention.key.weight.T, attention.null_key[None]])
    values = torch.cat([memory @ attention.value.weight.T, attention.null_value[None]])
    bias = torch.zeros(len(memory)) if bias is None else bias
    width = DIM // attention.heads
    heads = []
    for head in range(attention.heads):
        part = slice(head * width, (head + 1) * width)
        scores = keys[:, part] @ query[part] / width**0.5
        scores = scores + torch.cat([bias, torch.zeros(1)]).double()
        heads.append(scores.softmax(0) @ values[:, part])
    return attention.out.weight @ torch.cat(heads)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("biased", [False, True])
def test_equals_a_plain_softmax(heads: int, biased: bool) -> None:
    attention = make_attention(heads)
    generator = torch.Generator().manual_seed(heads)
    counts, slots = [3, 0, 70, 1], [5, 2, 0, 1]  # candidates, filled slots of each request
    memory = torch.randn(4, 5, DIM, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor(slots)[:, None]
    bias = torch.randn(4, 5, generator=generator, dtype=torch.float64) if biased else None
    candidates = torch.randn(sum(counts), DIM, generator=generator, dtype=torch.float64)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    found = attention(candidates, offsets, memory, mask, bias)
    row = 0
    for request, count in enumerate(counts):
        own = memory[request, : slots[request]]
        own_bias = None if bias is None else bias[request, : slots[request]]
        for _ in range(count):
            expected = plain(attention, candidates[row], own, own_bias)
            torch.testing.assert_close(found[row], expected)
            row += 1


def test_unfilled_slots_have_no_say() -> None:
    attention = make_attention(2)
    memory = torch.randn(1, 4, DIM, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, False]])
    candidates, offsets = torch.randn(3, DIM, dtype=torch.float64), torch.tensor([0, 3])
    before = attention(candidates, offsets, memory, mask, None)
    memory[0, 2:] = 1e9
    torch.testing.assert_close(attention(candidates, offsets, memory, mask, None), before)


def test_an_empty_memory_gives_the_null_value() -> None:
    attention = make_attention(2)
    candidates, offsets = torch.randn(2, DIM, dtype=torch.float64), torch.tensor([0, 2])
    memory, mask = torch.zeros(1, 1, DIM, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.bool)
    found = attention(candidates, offsets, memory, mask, None)
    expected = attention.out.weight @ attention.null_value
    torch.testing.assert_close(found, expected.expand(2, -1))


def test_no_candidates() -> None:
    attention = make_attention(2)
    memory, mask = torch.zeros(1, 1, DIM, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    found = attention(memory[0, :0], torch.tensor([0, 0]), memory, mask, None)
    assert found.shape == (0, DIM)
    found.sum().backward()


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match=r"history.heads = 3 does not divide tables.dim = 8"):
        CandidateAttention(8, 3)
