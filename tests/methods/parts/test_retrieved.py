"""Attention over retrieved events against a plain softmax, candidate by candidate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hisac_rec.errors import UserError
from hisac_rec.methods.parts.attention import CandidateAttention
from hisac_rec.methods.parts.retrieved import RetrievedAttention, take_events

DIM = 8


def make_attention(heads: int) -> RetrievedAttention:
    torch.manual_seed(0)
    attention = RetrievedAttention(DIM, heads).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    return attention


def make_retrieved() -> tuple[Tensor, Tensor, Tensor]:
    """Five candidates [5, d], their events [5, 4, d] and how many are filled: 4, 0, 1, 2, 4."""
    generator = torch.Generator().manual_seed(1)
    candidates = torch.randn(5, DIM, generator=generator, dtype=torch.float64)
    events = torch.randn(5, 4, DIM, generator=generator, dtype=torch.float64)
    return candidates, events, torch.arange(4) < torch.tensor([4, 0, 1, 2, 4])[:, None]


def plain(attention: RetrievedAttention, candidate: Tensor, events: list[Tensor]) -> Tensor:
    """One candidate over the events of each head [k_h, d], and the null slot."""
    query = attention.query.weight @ candidate
    width = DIM // attention.heads
    heads = []
    for head, own in enumerate(events):
        keys = torch.cat([own @ attention.key.weight.T, attention.null_key[None]])
        values = torch.cat([own @ attention.value.weight.T, attention.null_value[None]])
        part = slice(head * width, (head + 1) * width)
        scores = keys[:, part] @ query[part] / width**0.5
        heads.append(scores.softmax(0) @ values[:, part])
    return attention.out.weight @ torch.cat(heads)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_equals_a_plain_softmax(heads: int) -> None:
    attention = make_attention(heads)
    candidates, events, filled = make_retrieved()
    found = attention(candidates, events, filled)
    for row in range(5):
        own = events[row, filled[row]]
        torch.testing.assert_close(found[row], plain(attention, candidates[row], [own] * heads))


def test_each_head_its_own_events() -> None:
    attention = make_attention(2)
    candidates, events, filled = make_retrieved()
    both = torch.stack([events, events.flip(0)], 1)
    found = attention(candidates, both, torch.stack([filled, filled.flip(0)], 1))
    for row in range(5):
        own = [events[row, filled[row]], events[4 - row, filled[4 - row]]]
        torch.testing.assert_close(found[row], plain(attention, candidates[row], own))


def test_keys_and_queries_give_the_scores() -> None:
    attention = make_attention(2)
    candidates, events, _ = make_retrieved()
    keys = attention.keys(events.flatten(0, 1)).unflatten(0, (5, 4))
    expected = torch.einsum("nhw,nkhw->nhk", attention.queries(candidates), keys)
    torch.testing.assert_close(attention.scores(candidates, events), expected)


def test_scores_of_the_callers() -> None:
    """Scores with something added equal a softmax of the sum."""
    attention = make_attention(1)
    candidates, events, filled = make_retrieved()
    scores = torch.full((5, 1, 4), -1e4, dtype=torch.float64)
    scores[:, :, 1] = 1e4
    found = attention(candidates, events, filled, scores)
    values = attention.value(events[:, 1]) @ attention.out.weight.T
    torch.testing.assert_close(found[[0, 3, 4]], values[[0, 3, 4]])


def test_the_same_function_as_candidate_attention() -> None:
    """All of a request's events retrieved: attention over the whole memory."""
    attention = make_attention(2)
    shared = CandidateAttention(DIM, 2).double()
    shared.load_state_dict(attention.state_dict())
    candidates, events, filled = make_retrieved()
    expected = shared(candidates, torch.arange(6), events, filled, None)
    torch.testing.assert_close(attention(candidates, events, filled), expected)


def test_gradients() -> None:
    attention = make_attention(2)
    candidates, events, filled = make_retrieved()
    inputs = (candidates.requires_grad_(), events.requires_grad_())
    assert torch.autograd.gradcheck(lambda c, e: attention(c, e, filled), inputs)
    attention(candidates, events, filled).square().sum().backward()
    for parameter in attention.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_autocast_and_no_candidates() -> None:
    attention = RetrievedAttention(DIM, 2)
    candidates, events, filled = make_retrieved()
    exact = attention(candidates.float(), events.float(), filled)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = attention(candidates.float(), events.float(), filled)
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)
    none = attention(candidates[:0].float(), events[:0].float(), filled[:0])
    assert none.shape == (0, DIM)
    none.sum().backward()


def test_take_events() -> None:
    values = torch.arange(12.0).view(6, 2).requires_grad_()
    rows = torch.tensor([[5, 99], [0, 5]])
    filled = torch.tensor([[True, False], [True, True]])
    found = take_events(values, rows, filled)
    assert found.tolist() == [[[10.0, 11.0], [0.0, 0.0]], [[0.0, 1.0], [10.0, 11.0]]]
    found.sum().backward()
    assert values.grad is not None
    assert values.grad[:, 0].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 2.0]
    assert take_events(values[:0], rows, filled & False).tolist() == [[[0.0, 0.0]] * 2] * 2


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match=r"history.heads = 3 does not divide tables.dim = 8"):
        RetrievedAttention(8, 3)
