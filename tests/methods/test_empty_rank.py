"""A rank without data must give every weight a gradient, or the others wait for it forever."""

from __future__ import annotations

import pytest
import torch
from histories import make_case, make_shape

from hisac_rec.methods.base import HistoryMethod, find_method, method_names


def with_gradient(method: HistoryMethod, lengths: list[int], candidates: list[int]) -> set[str]:
    """Names of the parameters and inputs that take part in the loss."""
    history, wanted = make_case(lengths, candidates)
    method.zero_grad()
    (method(history, wanted).square().sum() + wanted.values.sum()).backward()
    inputs = {"events": history.values}  # where age and type embeddings come from
    tensors = [*method.named_parameters(), *inputs.items()]
    return {name for name, tensor in tensors if tensor.grad is not None}


@pytest.mark.parametrize("name", method_names())
@pytest.mark.parametrize(
    ("lengths", "candidates"), [([0], [0]), ([0, 0], [2, 1]), ([5], [0])], ids=str
)
def test_every_weight_takes_part(name: str, lengths: list[int], candidates: list[int]) -> None:
    method = find_method(name)
    torch.manual_seed(0)
    built = method(method.Config(), make_shape())
    assert with_gradient(built, lengths, candidates) == with_gradient(built, [40, 3], [3, 2])
