"""Grouping and adding rows on a CPU.

Legend: T rows, G groups, X rows of a table, d width.
"""

from __future__ import annotations

import numpy as np

from hisac_rec.ops.compiled import Floats, Ints, compiled


@compiled
def order_by_owner(owner: Ints, groups: int) -> tuple[Ints, Ints]:
    """``(order, bounds)`` of :class:`~hisac_rec.ops.rows.Groups`. O(T + G), two passes.

    Raises:
        IndexError: an owner is not a group.
    """
    bounds = np.zeros(groups + 1, np.int64)
    for row in range(len(owner)):
        group = owner[row]
        if group < 0 or group >= groups:
            raise IndexError("a row's owner is not a group")
        bounds[group + 1] += 1
    for group in range(groups):
        bounds[group + 1] += bounds[group]
    begin = bounds[:-1].copy()
    order = np.empty(len(owner), np.int64)
    for row in range(len(owner)):
        group = owner[row]
        order[begin[group]] = row
        begin[group] += 1
    return order, bounds


@compiled
def add_rows(rows: Floats, at: Ints, table: Floats) -> None:
    """``table[at[i]] += rows[i]`` for i in order. O(T d).

    Args:
        rows: [T, d].
        at: [T] into the table.
        table: [X, d] written.

    Raises:
        IndexError: there is no such row.
    """
    width = table.shape[1]
    for row in range(len(at)):
        if at[row] < 0 or at[row] >= len(table):
            raise IndexError("a row is not of the table")
        source, target = rows[row], table[at[row]]
        for column in range(width):
            target[column] += source[column]
