"""The MLPs of DLRM (arXiv 1906.00091): DenseArch and OverArch.

Legend: n rows, N candidates, d width.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from hisac_rec.ops.dropout import Dropout


def mlp(sizes: list[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers with ReLU between and after them; dropout before each."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        # Dropout stays in at rate 0, where it costs nothing: the names of the parameters,
        # and so a checkpoint, do not depend on the rate.
        layers += [Dropout(dropout), nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)


class DenseArch(nn.Module):
    """Context numbers to one vector of width d.

    Args:
        inputs: number of context features.
        hidden: hidden sizes.
        dim: d.
    """

    def __init__(self, inputs: int, hidden: list[int], dim: int) -> None:
        super().__init__()
        self.model = nn.Sequential(mlp([inputs, *hidden]), nn.Linear([inputs, *hidden][-1], dim))

    def forward(self, context: Tensor) -> Tensor:
        """[n, inputs] -> [n, d]."""
        return self.model(context)


class OverArch(nn.Module):
    """The MLP from interactions to one logit.

    Args:
        inputs: width of the interactions.
        hidden: hidden sizes.
        dropout: before every layer.
    """

    def __init__(self, inputs: int, hidden: list[int], dropout: float) -> None:
        super().__init__()
        self.model = mlp([inputs, *hidden], dropout)
        self.out = nn.Linear([inputs, *hidden][-1], 1)

    @torch.no_grad()
    def start_at(self, rate: float) -> None:
        """Predict about ``rate`` for everything until trained: no step is spent on finding it, and
        a training that finds nothing else ends there.
        """
        self.out.bias.fill_(math.log(rate / (1 - rate)))

    def forward(self, interactions: Tensor) -> Tensor:
        """[N, inputs] -> [N] logits."""
        return self.out(self.model(interactions)).squeeze(1)
