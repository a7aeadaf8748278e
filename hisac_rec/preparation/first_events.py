"""Positives that no drawn non-event can be like: the first event of their item.

A non-event is drawn among items that were positive for somebody before the request. A positive
whose item nobody had taken by then is therefore none of those, and whatever counts an item's
events tells it from all that was drawn. Here such positives are found, and left out where the
definition says so.

Legend: I rows of the item table, K moments at which some item was positive, R requests,
C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hisac_rec.data.contract import Split
from hisac_rec.data.jagged import Ints, offsets_of, sum_ranges, take_ranges
from hisac_rec.preparation.blocks import SplitRows
from hisac_rec.preparation.sql import Engine

BATCH_MOMENTS = 1_000_000
MANY = 0.1
"""Share of the positives above which a person is warned."""


@dataclass(frozen=True, slots=True)
class Moments:
    """When each item was positive; on disk where that is much."""

    offsets: Ints
    """[I + 1] into ``moment``."""
    moment: Ints
    """[K] ascending within an item."""

    def any_before(
        self, item: NDArray[np.int32], moment: Ints, window: int | None
    ) -> NDArray[np.bool_]:
        """Whether each item was positive strictly before a moment, and within the window.

        Args:
            item: [C].
            moment: [C].
            window: how far back counts; None: all that is earlier.

        Returns:
            [C]. O(C log K): every item is searched by halves, all at once.
        """
        first, low, high = self.offsets[item], self.offsets[item], self.offsets[item + 1]
        while (still := low < high).any():
            middle = (low + high) // 2
            earlier = still.copy()
            earlier[still] = self.moment[middle[still]] < moment[still]
            low = np.where(earlier, middle + 1, low)
            high = np.where(still & ~earlier, middle, high)
        found = low > first
        if window is not None:
            found[found] = self.moment[low[found] - 1] >= moment[found] - window
        return found


def in_words(shares: Mapping[Split, float | None]) -> str:
    """Shares of the splits in a line; empty where there are none.

    Args:
        shares: split -> share of its positives.
    """
    known = [f"{split} {share:.1%}" for split, share in shares.items() if share is not None]
    what = "positives that are their item's first event, as far as draws look back"
    return f"{what}: {', '.join(known)}" if known else ""


def warning(shares: Mapping[Split, float | None]) -> tuple[str, str] | None:
    """What a person should know, and what to do; None where shares are small.

    Args:
        shares: split -> share of its positives, none of them left out.
    """
    if max((share or 0.0 for share in shares.values()), default=0.0) <= MANY:
        return None
    return (
        f"{in_words(shares)}: no drawn non-event can be like these, so whatever counts an item's "
        "events tells them apart, and AUC says more of that than of taste",
        'set first_events = "drop" in [requests.negatives] to leave them out; where items come and '
        "go, a short window as well, or draws offer what is gone",
    )


class FirstEvents:
    """Finds the positives of requests that are their item's first event.

    Args:
        moments: of each split: of the positives of it and of the splits before it.
        window: how far back an item can be drawn; None: any time.
        clock: moments are times; otherwise splits, and no positive is a first event.
        drop: leave them out.
    """

    def __init__(
        self, moments: list[Moments], *, window: int | None, clock: bool, drop: bool
    ) -> None:
        self._moments, self._window, self._clock, self.drop = moments, window, clock, drop

    def find(self, rows: SplitRows, split: int) -> NDArray[np.bool_]:
        """True at each positive that no draw for its request could have been, [C].

        Args:
            rows: of one block, as the log has them.
            split: 0, 1 or 2.
        """
        first = np.zeros(len(rows.candidate_item), np.bool_)
        if self._clock:
            moment = np.repeat(rows.request_time, np.diff(rows.candidate_offsets))
            first = rows.label > 0
            item = rows.candidate_item[first]
            first[first] = ~self._moments[split].any_before(item, moment[first], self._window)
        return first


def without_candidates(
    rows: SplitRows, gone: NDArray[np.bool_], max_length: int | None
) -> SplitRows:
    """The rows less some candidates, less the requests and users that had no others.

    A request that keeps a candidate keeps its time and its history. What no request sees any more
    is not stored.

    Args:
        rows: of one block.
        gone: [C].
        max_length: as the rows were cut by.

    Returns:
        Rows as if these events had been no candidates. O(C + R + events).
    """
    left = sum_ranges((~gone).astype(np.int64), rows.candidate_offsets)  # [R]
    asked = left > 0
    of_user = sum_ranges(asked.astype(np.int64), rows.request_offsets)
    stays = of_user > 0  # [U]
    requests = offsets_of(of_user[stays])
    end = rows.history_end[asked].astype(np.int64)
    stored = end[requests[1:] - 1]  # of its requests, a user's last sees the most
    unseen = np.zeros_like(stored)
    if max_length is not None:
        unseen = np.maximum(end[requests[:-1]] - max_length, 0)
    events = take_ranges(rows.history_offsets[:-1][stays] + unseen, stored - unseen)
    return replace(
        rows,
        user=rows.user[stays],
        history_offsets=offsets_of(stored - unseen),
        history_item=rows.history_item[events],
        history_type=rows.history_type[events],
        history_time=rows.history_time[events],
        request_offsets=requests,
        request_time=rows.request_time[asked],
        history_end=(end - np.repeat(unseen, of_user[stays])).astype(np.int32),
        candidate_offsets=offsets_of(left[asked]),
        candidate_item=rows.candidate_item[~gone],
        label=rows.label[~gone],
        probability=None if rows.probability is None else rows.probability[~gone],
        further={task: labels[~gone] for task, labels in rows.further.items()},
    )


def write_moments(
    engine: Engine, positives: str, last: int, folder: Path, *, window: int | None
) -> None:
    """Write the moments of all items to files; DuckDB sorts them.

    Without a window the earliest of each item is all that is asked for.

    Args:
        engine: holds the table.
        positives: its name; columns item, moment and split.
        last: last split that counts.
        folder: for the files.
        window: as :class:`FirstEvents` has it.
    """
    moment = "min(moment)" if window is None else "moment"
    grouped = "item" if window is None else "item, moment"
    query = f"""SELECT item, {moment} AS moment FROM {positives} WHERE split <= {last}
        GROUP BY {grouped} ORDER BY item, moment"""
    item_file, moment_file = _files(folder, last)
    with item_file.open("wb") as items, moment_file.open("wb") as moments:
        for batch in engine.arrow_batches(query, BATCH_MOMENTS):
            batch["item"].to_numpy().tofile(items)
            batch["moment"].to_numpy().tofile(moments)


def open_moments(folder: Path, last: int, items: int) -> Moments:
    """What :func:`write_moments` wrote; it stays on disk.

    Args:
        folder: of the files.
        last: last split that counts.
        items: rows of the item table.
    """
    item_file, moment_file = _files(folder, last)
    if not item_file.stat().st_size:  # an empty file cannot be mapped
        return Moments(np.zeros(items + 1, np.int64), np.zeros(0, np.int64))
    item = np.memmap(item_file, np.int32, "r")
    offsets = np.searchsorted(item, np.arange(items + 1, dtype=np.int32))
    return Moments(offsets, np.memmap(moment_file, np.int64, "r"))


def _files(folder: Path, last: int) -> tuple[Path, Path]:
    return folder / f"met-item-{last}", folder / f"met-moment-{last}"
