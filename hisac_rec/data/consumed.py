"""Which requests of a split have been read: what a training may not see twice in an epoch.

Requests have numbers that do not depend on who reads them (``RequestTable.number``) and that run
on within a row group, so what has been read is a few intervals, whatever the number of ranks and
loader workers, and can be dealt out again among others.

Legend: n numbers, k intervals.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from hisac_rec.data.jagged import Ints


class Consumed:
    """A set of request numbers, as disjoint intervals.

    Args:
        intervals: [k, 2] first and past-the-last number of each, ascending.
    """

    def __init__(self, intervals: Ints | None = None) -> None:
        self._intervals = np.zeros((0, 2), np.int64) if intervals is None else intervals
        self._pending: list[NDArray[np.int64]] = []

    def add(self, numbers: NDArray[np.int64]) -> None:
        """Note that these have been read. O(1); the work is done when the set is asked for."""
        if len(numbers):
            self._pending.append(np.array(numbers))

    @property
    def intervals(self) -> Ints:
        """[k, 2]. O((n + k) log(n + k)) after :meth:`add`."""
        if self._pending:
            numbers = np.unique(np.concatenate(self._pending))
            self._pending = []
            self._intervals = _joined(np.stack([numbers, numbers + 1], 1), self._intervals)
        return self._intervals

    def holds(self, numbers: Ints) -> NDArray[np.bool_]:
        """[n] whether each of ``numbers`` has been read. O(n log k)."""
        intervals = self.intervals
        at = np.searchsorted(intervals[:, 0], numbers, side="right") - 1
        ends = np.concatenate([intervals[:, 1], [np.iinfo(np.int64).min]])
        return (at >= 0) & (numbers < ends[at])

    def union(self, others: Iterable[Consumed]) -> Consumed:
        """What any of them has read."""
        every = [other.intervals for other in others]
        return Consumed(_joined(*every, self.intervals))

    def __len__(self) -> int:
        """How many requests have been read."""
        return int(np.diff(self.intervals, axis=1).sum())


def _joined(*parts: Ints) -> Ints:
    """Disjoint intervals over the union of all."""
    every = np.concatenate(parts)
    every = every[np.argsort(every[:, 0], kind="stable")]
    if not len(every):
        return every
    reach = np.maximum.accumulate(every[:, 1])
    starts = np.concatenate([[True], every[1:, 0] > reach[:-1]])
    ends = np.concatenate([starts[1:], [True]])
    return np.stack([every[starts, 0], reach[ends]], axis=1)
