"""Sums and copies of table rows by index, without one row of numbers for each index.

``nn.Embedding`` and ``index_add`` write and read a row for every event, once for every table
an event is a sum of, and once more for every gradient. Here events are sorted by where they go
(whole numbers, a few bytes an event) and summed where they arrive.

Legend: X rows of a table, T indices, G groups, d width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def sum_rows(table: Tensor, at: Tensor, owner: Tensor, groups: int) -> Tensor:
    """``sum_g = sum over i with owner[i] = g of table[at[i]]``.

    Args:
        table: [X, d].
        at: [T] int64 row of each.
        owner: [T] int64 group of each, in any order.
        groups: G.

    Returns:
        [G, d], zeros where a group is empty. O(T d) additions, O(T log T) comparisons of
        whole numbers, O(T) extra memory; the gradient costs as much.
    """
    summed: Tensor = _SumRows.apply(table, at, owner, groups)
    return summed


def take_rows(table: Tensor, at: Tensor) -> Tensor:
    """[T, d] ``table[at]``, whose gradient is summed by :func:`sum_rows`. O(T d)."""
    taken: Tensor = _TakeRows.apply(table, at)
    return taken


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, at: Tensor, owner: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(at, owner)
        ctx.rows = table.shape[0]
        return _sums(table, at, owner, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        at, owner = ctx.saved_tensors
        return _sums(gradient, owner, at, ctx.rows), None, None, None


class _TakeRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, at: Tensor) -> Tensor:
        ctx.save_for_backward(at)
        ctx.rows = table.shape[0]
        return table.index_select(0, at)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (at,) = ctx.saved_tensors
        every = torch.arange(len(at), device=at.device)
        return _sums(gradient, every, at, ctx.rows), None


def _sums(table: Tensor, at: Tensor, owner: Tensor, groups: int) -> Tensor:
    if not (len(at) and groups):  # embedding_bag refuses tables without rows
        return table.new_zeros((groups, table.shape[1]))
    # Half as wide sorts nearly twice as fast; stable, so that sums are the same every time.
    order = torch.argsort(owner.to(torch.int32), stable=True)
    bounds = functional.pad(torch.bincount(owner, minlength=groups).cumsum(0), (1, 0))
    return functional.embedding_bag(
        at.index_select(0, order), table, bounds, mode="sum", include_last_offset=True
    )
