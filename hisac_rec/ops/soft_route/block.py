"""Some rows of one request on a CPU: their products with all agents become weights in place.

Legend: K slots, n rows of the block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hisac_rec.ops.soft_route.problem import Frozen


@dataclass
class Block:
    """Rows of a request, ``||z - e||^2 = z.z + e.e - 2 z.e`` from all agents.

    Args:
        frozen: the whole problem.
        request: whose rows.
        rows: which.
        is_first: they are the first of the request.
        products: [n, K] e.z of rows and agents, overwritten.
        of_queries: [K] z.z.
    """

    frozen: Frozen
    request: int
    rows: slice
    is_first: bool
    products: Tensor
    of_queries: Tensor

    @cached_property
    def of_keys(self) -> Tensor:
        """[n] e.e."""
        keys = self.frozen.keys[self.rows]
        return torch.linalg.vecdot(keys, keys)

    @property
    def scale(self) -> float:
        """Of a squared distance."""
        return self.frozen.tau ** (-1 if self.frozen.squared else -2)

    def nearest(self, rows: int | None = None) -> Tensor:
        """[K] distance / tau of the nearest row, of the first ``rows``. Before :meth:`weigh`.
        O(n K).
        """
        products, of_keys = self.products[:rows], self.of_keys[:rows]
        if self.by_loops:
            from hisac_rec.ops.soft_route import stream_cpu  # needs Numba, which a GPU does not

            found = torch.empty_like(self.of_queries)
            _run(stream_cpu.find_nearest, products, self.of_queries, of_keys, found)
        else:
            found = self._squares(products.clone(), of_keys).amin(0)
        return self._distance(found)

    def weigh(self, nearest: Tensor) -> tuple[Tensor, Tensor]:
        """[n, K] weights relative to ``nearest`` [K], where the products were, and [K] their sum
        over events. O(n K).
        """
        counts = None if self.frozen.counts is None else self.frozen.counts[self.rows]
        if self.by_loops:
            from hisac_rec.ops.soft_route import stream_cpu

            mass = torch.zeros_like(self.of_queries)
            own = self.of_keys.new_empty(0) if counts is None else counts.to(mass.dtype)
            tensors = self.products, self.of_queries, self.of_keys, own, nearest
            _run(stream_cpu.weigh, *tensors, self.scale, self.frozen.squared, mass)
            return self.products, mass
        weights = torch.sub(
            nearest, self._distance(self._squares(self.products, self.of_keys))
        ).exp_()
        return weights, weights.sum(0) if counts is None else counts.to(weights.dtype) @ weights

    @property
    def by_loops(self) -> bool:
        """They know the exponential of float32 alone."""
        return self.products.dtype == torch.float32

    def _squares(self, products: Tensor, of_keys: Tensor) -> Tensor:
        """Products, in place, to squared distances."""
        return products.mul_(-2).add_(of_keys.unsqueeze(1)).add_(self.of_queries)

    def _distance(self, squares: Tensor) -> Tensor:
        """Squared distances, in place, to distances / tau."""
        squares.clamp_min_(0.0).mul_(self.scale)
        return squares if self.frozen.squared else squares.sqrt_()


def _run(loop: Callable[..., None], *arguments: Tensor | float) -> None:
    loop(*(of.contiguous().numpy() if isinstance(of, Tensor) else of for of in arguments))
