"""Dropout of our own does what ``nn.Dropout`` does."""

from __future__ import annotations

import pytest
import torch

from hisac_rec.ops import dropout
from hisac_rec.ops.dropout import STEPS, Dropout


@pytest.mark.parametrize("rate", [1e-9, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drops_its_share_and_keeps_the_mean(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    count = 1_000_003  # no multiple of what is drawn at a time
    found = Dropout(rate)(torch.ones(count, dtype=dtype))
    drawn = max(1, round(rate * STEPS)) / STEPS
    deviation = (drawn * (1 - drawn) / count) ** 0.5
    assert abs(float((found == 0).float().mean()) - drawn) < 5 * deviation
    kept = found[found != 0]
    assert kept.unique().numel() == 1
    torch.testing.assert_close(float(kept[0]), 1 / (1 - drawn), rtol=1e-2, atol=0)


def test_every_place_is_drawn_for_itself() -> None:
    """All four quarters of a 64-bit word, also the one with its sign, are fair coins."""
    torch.manual_seed(0)
    stays = (Dropout(0.5)(torch.ones(100_000, 4)) != 0).double()
    torch.testing.assert_close(stays.mean(0), torch.full((4,), 0.5).double(), atol=0.01, rtol=0)
    apart = torch.corrcoef(stays.T) - torch.eye(4)
    assert apart.abs().max() < 0.02


def test_gradient_passes_where_values_do_and_seeds_repeat() -> None:
    inputs = torch.randn(50, 7, requires_grad=True)
    layer = Dropout(0.3)
    torch.manual_seed(1)
    found = layer(inputs)
    (gradient,) = torch.autograd.grad(found.sum(), inputs)
    assert torch.equal(gradient == 0, found == 0)
    torch.manual_seed(1)
    assert torch.equal(layer(inputs), found)


def test_the_loop_equals_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = torch.randn(7, 50).T.requires_grad_()  # not contiguous
    layer, found = Dropout(0.3), []
    for by_loop in (True, False):
        monkeypatch.setattr(dropout, "suit_loops", lambda _, by_loop=by_loop: by_loop)
        torch.manual_seed(1)
        kept = layer(inputs)
        found.append((kept, *torch.autograd.grad(kept.square().sum(), inputs)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=0)


def test_nothing_is_dropped_without_training_or_rate() -> None:
    inputs = torch.randn(5)
    assert Dropout(0.3).eval()(inputs) is inputs
    assert Dropout(0.0)(inputs) is inputs
