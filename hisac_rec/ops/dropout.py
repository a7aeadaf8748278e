"""Dropout that does not wait for random numbers.

On a CPU ``nn.Dropout`` draws one number of 53 bits for each element, alone: for a small ranker
that takes longer than its matrix products. Sixteen bits tell whether an element stays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hisac_rec.ops.loops import suit_loops

STEPS = 1 << 16
"""How finely a rate can be told by 16 bits."""


class Dropout(nn.Module):
    """``nn.Dropout``; on a CPU at the nearest rate in 1/65,536, and five times as fast.

    What stays is scaled by the rate that is drawn, so that the mean is exact.

    Args:
        rate: share of the elements that become 0, below 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, inputs: Tensor) -> Tensor:
        """The same shape. O(n); a CPU draws 2 bytes an element."""
        if not (self.training and self.rate):
            return inputs
        if inputs.device.type != "cpu" or torch.compiler.is_compiling():
            return functional.dropout(inputs, self.rate)
        dropped = min(max(1, round(self.rate * STEPS)), STEPS - 1)
        # Four numbers at a time: the generator gives 64 bits for the price of one element.
        words = torch.empty((inputs.numel() + 3) // 4, dtype=torch.int64).random_(-(1 << 63), None)
        numbers = words.view(torch.int16)[: inputs.numel()].view(inputs.shape)
        least, scale = dropped - STEPS // 2, STEPS / (STEPS - dropped)
        if suit_loops(inputs):
            kept: Tensor = _Keep.apply(inputs, numbers, least, scale)
            return kept
        return inputs * (numbers >= least).to(inputs.dtype).mul_(scale)

    def extra_repr(self) -> str:
        """For ``print``."""
        return f"rate={self.rate}"


class _Keep(torch.autograd.Function):
    """Keep and scale what ``least`` allows, in one pass; 2 bytes an element wait for the other."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, numbers: Tensor, least: int, scale: float) -> Tensor:
        ctx.save_for_backward(numbers)
        ctx.how = least, scale
        return _keep(inputs, numbers, least, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _keep(gradient, *ctx.saved_tensors, *ctx.how), None, None, None


def _keep(given: Tensor, numbers: Tensor, least: int, scale: float) -> Tensor:
    from hisac_rec.ops.dropout_cpu import keep  # needs Numba, which a GPU does not

    found = torch.empty_like(given, memory_format=torch.contiguous_format)
    flat, drawn = given.detach().flatten().numpy(), numbers.flatten().numpy()
    keep(flat, drawn, least, scale, found.view(-1).numpy())
    return found
