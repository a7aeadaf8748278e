"""Sums and copies of table rows by index, without one row of numbers for each index.

``nn.Embedding`` and ``index_add`` write and read a row for every event, once for every table
an event is a sum of, and once more for every gradient. Here events are sorted by where they go
(whole numbers, a few bytes an event) and summed where they arrive.

Legend: X rows of a table, T indices, G groups, d width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hisac_rec.ops.loops import suit_loops


class Groups(NamedTuple):
    """Which of G groups each of T rows goes to, sorted once for all tables summed by it.

    Args:
        owner: [T] int64 group of each row.
        order: [T] int64 the rows by group, a group's own in their order.
        bounds: [G+1] int64 where each group begins in ``order``.
    """

    owner: Tensor
    order: Tensor
    bounds: Tensor


def group_rows(owner: Tensor, groups: int) -> Groups:
    """Sort rows by where they go. O(T + G) on a CPU, else O(T log T).

    Args:
        owner: [T] int64 group of each, in any order.
        groups: G.
    """
    if owner.device.type == "cpu":
        from hisac_rec.ops import rows_cpu  # needs Numba, which a GPU does not

        ordered = rows_cpu.order_by_owner(owner.numpy(), groups)
        return Groups(owner, *map(torch.from_numpy, ordered))
    return Groups(owner, *_order_by_owner(owner, groups))


def _order_by_owner(owner: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    # Half as wide sorts nearly twice as fast; stable, so that sums are the same every time.
    order = torch.argsort(owner.to(torch.int32), stable=True)
    counts = torch.bincount(owner, minlength=groups)
    return order, functional.pad(counts.cumsum(0), (1, 0))


def sum_rows(table: Tensor, at: Tensor, groups: Groups) -> Tensor:
    """``sum_g = sum over i with owner[i] = g of table[at[i]]``.

    Args:
        table: [X, d].
        at: [T] int64 row of each.
        groups: where each goes.

    Returns:
        [G, d], zeros where a group is empty. O(T d) additions, O(T) extra memory; the gradient
        costs as much and sorts the rows by ``at``.
    """
    summed: Tensor = _SumRows.apply(table, at, groups)
    return summed


def take_rows(table: Tensor, at: Tensor) -> Tensor:
    """[T, d] ``table[at]``, whose gradient is summed as :func:`sum_rows` does. O(T d)."""
    taken: Tensor = _TakeRows.apply(table, at)
    return taken


class _SumRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, at: Tensor, groups: Groups) -> Tensor:
        ctx.save_for_backward(at, groups.owner)
        ctx.rows = table.shape[0]
        return _sums(table, at, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        at, owner = ctx.saved_tensors
        return _sums(gradient, owner, group_rows(at, ctx.rows)), None, None


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
        if suit_loops(gradient):
            from hisac_rec.ops import rows_cpu

            table = gradient.new_zeros((ctx.rows, gradient.shape[1]))
            rows_cpu.add_rows(gradient.contiguous().numpy(), at.numpy(), table.numpy())
            return table, None
        every = torch.arange(len(at), device=at.device)
        return _sums(gradient, every, group_rows(at, ctx.rows)), None


def _sums(table: Tensor, at: Tensor, groups: Groups) -> Tensor:
    count = len(groups.bounds) - 1
    if not (len(at) and count):  # embedding_bag refuses tables without rows
        return table.new_zeros((count, table.shape[1]))
    sorted_at = at.index_select(0, groups.order)
    return functional.embedding_bag(
        sorted_at, table, groups.bounds, mode="sum", include_last_offset=True
    )
