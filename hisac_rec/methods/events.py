"""Event embeddings that are not built until somebody reads them one by one.

An event's embedding e' is a plain sum of table rows: of its item, its type, its age. So any
weighted sum of events is a weighted sum of rows, and most compressors need no [T, d] at all.

Legend: T events, X rows of a table, G groups, S single events, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from hisac_rec.ops.rows import group_rows, sum_rows, take_rows


@dataclass(frozen=True)
class EventRows:
    """T events, each the sum of one row of every part.

    Args:
        parts: (table [X, d], row of each event [T] int64); at least one.
    """

    parts: Sequence[tuple[Tensor, Tensor]]

    def __len__(self) -> int:
        """T."""
        return len(self.parts[0][1])

    def each(self) -> Tensor:
        """[T, d] all events. O(T d) for each part."""
        return reduce(torch.add, (take_rows(table, at) for table, at in self.parts))

    def take(self, rows: Tensor) -> Tensor:
        """[n, d] the events ``rows`` [n]. O(n d) for each part."""
        some = ((table, at.index_select(0, rows)) for table, at in self.parts)
        return reduce(torch.add, (take_rows(table, at) for table, at in some))

    def sums(self, owner: Tensor, groups: int) -> Tensor:
        """[G, d] sums of the events by ``owner`` [T]. O(T d) for each part, O(T) memory."""
        sorted_once = group_rows(owner, groups)
        return reduce(torch.add, (sum_rows(table, at, sorted_once) for table, at in self.parts))


@dataclass(frozen=True)
class PooledEvents:
    """T events whose table rows were summed where the rows are (:mod:`hisac_rec.data.bags`).

    Args:
        groups: [G, d] sums of looked-up rows over the groups that the method named.
        single: [S, d] looked-up rows of the events that came one by one.
        single_events: [S] int64 which events those are, ascending.
        own: what each event adds beside, not summed yet: of small tables, of its type and age.
    """

    groups: Tensor
    single: Tensor
    single_events: Tensor
    own: EventRows

    def __len__(self) -> int:
        """T."""
        return len(self.own)

    def each(self) -> Tensor:
        """There is no such thing: a method that needs it names no groups."""
        raise ValueError("events that were summed at the shard cannot be read one by one")

    def take(self, rows: Tensor) -> Tensor:
        """[n, d] of the events ``rows`` [n], which must be among the single ones. O(n log S)."""
        if not len(self.single_events):
            return self.single[rows] + self.own.take(rows)
        at = torch.searchsorted(self.single_events, rows)
        return take_rows(self.single, at.clamp_max(len(self.single) - 1)) + self.own.take(rows)

    def sums(self, owner: Tensor, groups: int) -> Tensor:
        """[G, d] sums by ``owner`` [T], which must be the groups that the method named."""
        if groups != len(self.groups):
            raise ValueError(f"summed at the shard: {len(self.groups)} groups, not {groups}")
        return self.groups + self.own.sums(owner, groups)
