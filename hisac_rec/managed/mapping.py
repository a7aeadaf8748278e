"""Which row a managed table has given to which key, as a whole: what a checkpoint holds of it.

Ranks own equal ranges of keys and equal blocks of rows (:mod:`hisac_rec.managed.modules`). On
another number of ranks both are cut elsewhere, so keys move to another owner and their rows with
them.

Legend: X rows of the table, W ranks, n keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hisac_rec.data.jagged import Ints
from hisac_rec.data.vocabulary import KEYS

FREE = np.iinfo(np.int64).max
"""In place of a key: the row is given to none."""


@dataclass(frozen=True)
class RowMapping:
    """The mapping of one table, block after block; in a block, keys ascend and free rows follow.

    Args:
        segments: [W+1] where the blocks of rows begin, and X.
        keys: [X] of each place, :data:`FREE` where there is none.
        rows: [X] the row of each place; the last of a block is that of all keys that have none.
        counts: what the eviction policy keeps of each place: name -> [X].
    """

    segments: Ints
    keys: Ints
    rows: Ints
    counts: dict[str, Ints]

    def rows_of(self, keys: NDArray[np.integer]) -> Ints:
        """[n] the row that each key reads. O(n log X)."""
        given = np.flatnonzero(self.keys != FREE)
        known, rows = self.keys[given], self.rows[given]  # ascending: blocks own ascending ranges
        shared = self.segments[1:][keys // _width(self.segments)] - 1
        if not len(known):
            return shared
        at = np.searchsorted(known, keys).clip(max=len(known) - 1)
        return np.where(known[at] == keys, rows[at], shared)

    def cut_anew(self, segments: Ints) -> tuple[RowMapping, Ints, int]:
        """The mapping on other blocks. Rows stay where they are as far as they can; where a block
        has more keys than rows, those that the policy would evict first are left out. O(X log X).

        Returns:
            The mapping; [X'] the row here of each row there, -1 for none; how many keys were
            left out.
        """
        total = int(segments[-1])
        keys, rows = np.full(total, FREE), np.arange(total)
        counts = {name: np.zeros(total, np.int64) for name in self.counts}
        before = np.full(total, -1, np.int64)
        given = np.flatnonzero(self.keys != FREE)
        owner = self.keys[given] // _width(segments)
        worth = self._worth()
        for block, (begin, end) in enumerate(pairwise(segments.tolist())):
            mine = given[owner == block]
            mine = mine[np.argsort(-worth[mine], kind="stable")[: end - begin - 1]]
            mine = mine[np.argsort(self.keys[mine])]
            old = self.rows[mine]
            moves = (old < begin) | (old >= end - 1)
            free = np.setdiff1d(np.arange(begin, end - 1), old[~moves])
            new = old.copy()
            new[moves] = free[: moves.sum()]
            places = slice(begin, begin + len(mine))
            keys[places], rows[places] = self.keys[mine], new
            rows[begin + len(mine) : end - 1] = free[moves.sum() :]
            for name, values in self.counts.items():
                counts[name][places] = values[mine]
            before[new] = old
            # What no key's own row has learned is where this block's first key read until now.
            first = block * _width(segments) // _width(self.segments)
            before[end - 1] = self.segments[first + 1] - 1
        left_out = len(given) - int((keys != FREE).sum())
        return RowMapping(segments, keys, rows, counts), before, left_out

    def _worth(self) -> NDArray[np.floating]:
        """[X] the larger, the later a policy evicts it."""
        met = self.counts.get("counts", np.ones(len(self.keys), np.int64)).astype(np.float64)
        last = self.counts.get("last_access_iter")
        return met if last is None else met / (last.max(initial=0) - last + 1)


def _width(segments: Ints) -> int:
    """Keys of a rank's range: equal ones, the last may be shorter."""
    return -(-KEYS // (len(segments) - 1))
