"""The dense arches of DLRM (arXiv 1906.00091): DenseArch, InteractionArch, OverArch.

Legend: N candidates, F feature vectors, d width.
"""

from __future__ import annotations

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


class InteractionArch(nn.Module):
    """All pairwise dot products of the feature vectors, optionally beside the vectors.

    Args:
        vectors: F.
        dim: d.
        include_vectors: pass all F vectors on; else the first (the dense one) alone.
    """

    pairs: Tensor

    def __init__(self, vectors: int, dim: int, include_vectors: bool) -> None:
        super().__init__()
        self.include_vectors = include_vectors
        pairs = torch.triu_indices(vectors, vectors, offset=1)
        self.register_buffer("pairs", pairs[0] * vectors + pairs[1], persistent=False)
        self.out_dim = (vectors if include_vectors else 1) * dim + pairs.shape[1]

    def forward(self, vectors: Tensor) -> Tensor:
        """[N, F, d] -> [N, out_dim]. O(N F^2 d)."""
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        kept = vectors.flatten(1) if self.include_vectors else vectors[:, 0]
        return torch.cat([kept, products.flatten(1).index_select(1, self.pairs)], dim=1)


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

    def forward(self, interactions: Tensor) -> Tensor:
        """[N, inputs] -> [N] logits."""
        return self.out(self.model(interactions)).squeeze(1)
