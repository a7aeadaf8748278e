"""Small helpers for jagged numpy arrays (values + lengths), without a Python loop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def offsets_of(lengths: NDArray[np.integer]) -> Ints:
    """[n] lengths -> [n+1] offsets. O(n)."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def take_ranges(starts: NDArray[np.integer], lengths: NDArray[np.integer]) -> Ints:
    """Indices of the concatenated ranges ``starts[i] : starts[i] + lengths[i]``.

    O(sum of lengths), no Python loop.

    Example::

        take_ranges(np.array([5, 0]), np.array([2, 3]))  # [5, 6, 0, 1, 2]
    """
    offsets = offsets_of(lengths)
    shift = np.asarray(starts, dtype=np.int64) - offsets[:-1]
    return np.arange(offsets[-1], dtype=np.int64) + np.repeat(shift, lengths)


def sum_ranges(values: NDArray[np.integer], offsets: Ints) -> Ints:
    """Sum of ``values`` within each ``offsets[i]:offsets[i+1]``; empty ranges give 0."""
    running = offsets_of(values)
    return running[offsets[1:]] - running[offsets[:-1]]


def distinct(values: NDArray[np.integer]) -> tuple[Ints, Ints]:
    """``numpy.unique(values, return_inverse=True)`` of whole numbers: the distinct ones,
    ascending, and which of them each is.

    O(n + U log U) for n values of which U are distinct, and other threads run meanwhile.
    """
    from hisac_rec.ops.distinct_cpu import sorted_distinct  # needs Numba, which a server does not

    return sorted_distinct(np.ascontiguousarray(values, dtype=np.int64))
