"""What is kept for the backward pass, on graphs whose bytes are known."""

from __future__ import annotations

import torch
from torch import nn

from hisac_rec.train.profiling import KeptForBackward


def test_tensors_count_once_and_parameters_do_not() -> None:
    weight = nn.Parameter(torch.randn(10, 10))
    inputs = torch.randn(1000, 10)
    with KeptForBackward() as kept:
        product = inputs @ weight.t()  # keeps inputs; the weight is no activation
        assert kept.bytes == inputs.nbytes
        scaled = product.exp()  # keeps its result
        twice = scaled * scaled  # keeps the same tensor twice
    assert kept.bytes == inputs.nbytes + scaled.nbytes
    (twice * scaled).sum().backward()  # outside: not looked at
    assert kept.bytes == inputs.nbytes + scaled.nbytes
    assert weight.grad is not None


def test_gradients_are_those_without_it() -> None:
    inputs = torch.randn(5, 3, requires_grad=True)
    inputs.tanh().sum().backward()
    expected, inputs.grad = inputs.grad, None
    with KeptForBackward():
        inputs.tanh().sum().backward()
    assert expected is not None
    assert inputs.grad is not None
    assert torch.equal(inputs.grad, expected)
