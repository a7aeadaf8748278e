"""The InteractionArch of DLRM (arXiv 1906.00091), of requests and their candidates.

Legend: R requests, N candidates, S feature vectors of a request, O of a candidate, F = S + O,
P = F (F - 1) / 2 pairs, d width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hisac_rec.ops.loops import as_arrays, suit_loops
from hisac_rec.ops.threads import even_runs, in_threads

CANDIDATES_A_THREAD = 512
"""A thread more is worth its start from so many candidates, some hundreds of microseconds."""


class InteractionArch(nn.Module):
    """All pairwise dot products of the feature vectors, optionally beside the vectors.

    Args:
        shared: S, the dense one first.
        own: O.
        dim: d.
        include_vectors: pass all F vectors on; else the first (the dense one) alone.
    """

    pairs: Tensor

    def __init__(self, shared: int, own: int, dim: int, include_vectors: bool) -> None:
        super().__init__()
        vectors = shared + own
        self.kept = vectors if include_vectors else 1
        pairs = torch.triu_indices(vectors, vectors, offset=1)
        self.register_buffer("pairs", pairs[0] * vectors + pairs[1], persistent=False)
        self.out_dim = self.kept * dim + pairs.shape[1]

    def forward(self, shared: Tensor, own: Tensor, request: Tensor) -> Tensor:
        """Cross each candidate's vectors with each other and with its request's. O(N F^2 d).

        Args:
            shared: [R, S, d] of the requests.
            own: [N, O, d] of the candidates.
            request: [N] int64 request of each candidate, ascending.

        Returns:
            [N, out_dim]: the vectors passed on, the shared ones first, then the products of
            vectors i < j in the order (0, 1), (0, 2), ..., (1, 2), ....
        """
        if suit_loops(own) and shared.dtype == own.dtype:
            crossed: Tensor = _Cross.apply(shared, own, request, self.kept)
            return crossed
        vectors = torch.cat([shared.index_select(0, request), own], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        kept = vectors[:, : self.kept].flatten(1)
        return torch.cat([kept, products.flatten(1).index_select(1, self.pairs)], dim=1)


class _Cross(torch.autograd.Function):
    """The same by loops: products of a few vectors are too small for a product of matrices, and
    the gradient of picking the pairs would be a scatter over columns.
    """

    @staticmethod
    def forward(ctx: Any, shared: Tensor, own: Tensor, request: Tensor, kept: int) -> Tensor:
        from hisac_rec.ranker.interaction_cpu import cross  # needs Numba, which a GPU does not

        shared, own = shared.contiguous(), own.contiguous()
        ctx.save_for_backward(shared, own, request)
        ctx.kept = kept
        count, vectors = len(own), shared.shape[1] + own.shape[1]
        width = kept * own.shape[2] + vectors * (vectors - 1) // 2
        crossed = own.new_empty((count, width))
        arrays = as_arrays(shared, own, request, crossed)
        runs = _runs(request, len(shared))
        in_threads(lambda run: cross(run.start, run.stop, kept, *arrays), runs)
        return crossed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        from hisac_rec.ranker.interaction_cpu import cross_backward

        shared, own, request = ctx.saved_tensors
        of_shared, of_own = torch.zeros_like(shared), torch.empty_like(own)
        arrays = as_arrays(shared, own, request, gradient, of_shared, of_own)
        runs = _runs(request, len(shared))
        in_threads(lambda run: cross_backward(run.start, run.stop, ctx.kept, *arrays), runs)
        return of_shared, of_own, None, None


def _runs(request: Tensor, requests: int) -> list[slice]:
    """Candidates in runs of whole requests, one for each thread."""
    ends = torch.searchsorted(request, torch.arange(requests + 1))
    runs = even_runs(ends, CANDIDATES_A_THREAD)
    return [slice(int(ends[run.start]), int(ends[run.stop])) for run in runs]
