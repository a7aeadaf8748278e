"""Grouping rows on a CPU: a counting sort.

Legend: T rows, G groups.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hisac_rec.ops.compiled import compiled

Ints = NDArray[np.int64]


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
