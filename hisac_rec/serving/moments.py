"""Requests in memory, seen from other moments: what a cache is made of, and what it is read with.

All functions take the :class:`~hisac_rec.data.units.RequestTable` of a unit as it was read, which
holds its users' whole histories, and give another one that shares them. Legend: R requests,
L stored events.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hisac_rec.data.jagged import Ints
from hisac_rec.data.units import RequestTable
from hisac_rec.serving.cache import At


def snapshots(table: RequestTable, at: At, age: int = 0) -> RequestTable:
    """Requests without candidates, one for each history that is to be compressed.

    Args:
        table: each user's requests in the order of time.
        at: which requests.
        age: so long before the request, in the data set's unit of time: events of that span are
            not there yet. 0: exactly what the request may see.
    """
    chosen = np.arange(table.num_requests)
    if at != "requests":
        user = table.user_row if at == "first" else table.user_row[::-1]
        _, first = np.unique(user, return_index=True)
        chosen = np.sort(first if at == "first" else len(user) - 1 - first)
    table = without_candidates(_only(table, chosen))
    return seen_at(table, table.time - age) if age else table


def seen_at(table: RequestTable, time: Ints) -> RequestTable:
    """The same requests at other moments ``time`` [R], no later: events from then on are gone."""
    begin = table.history_end - table.visible
    end = np.minimum(events_before(table, time), table.history_end)
    # Where the model reads the newest events alone, so it did then.
    most = table.history_end - table.history_start
    kept = np.where(most < table.visible, most, np.iinfo(np.int64).max)
    start = np.maximum(begin, end - kept)
    return replace(table, time=time, history_start=start, history_end=end, visible=end - begin)


def events_before(table: RequestTable, time: Ints) -> Ints:
    """[R] int64: where in ``history_*`` the events of each request's user from ``time`` [R] on
    begin. O((L + R) log L).
    """
    if not len(table.history_time):
        return np.zeros(table.num_requests, np.int64)
    # Users lie one after the other, each by time: with a user's number before it, time ascends.
    begin = table.history_end - table.visible
    lowest = min(int(table.history_time.min()), int(time.min(initial=0)))
    span = max(int(table.history_time.max()), int(time.max(initial=0))) - lowest + 2
    segments, of_request = np.unique(begin, return_inverse=True)
    ends = np.zeros(len(segments), np.int64)
    np.maximum.at(ends, of_request, table.history_end)
    at = np.arange(len(table.history_time))
    segment = (np.searchsorted(segments, at, side="right") - 1).clip(min=0)
    # What no request sees, also of users without any, is later than all.
    since = np.where(at < ends[segment], table.history_time - lowest, span - 1)
    wanted = of_request * span + (time - lowest)
    return np.searchsorted(segment * span + since, wanted, side="left")


def newest_only(table: RequestTable, count: int) -> RequestTable:
    """The same requests, holding the ``count`` newest events of each history."""
    start = np.maximum(table.history_start, table.history_end - count)
    return replace(table, history_start=start)


def _only(table: RequestTable, chosen: Ints) -> RequestTable:
    """These requests, in the same places of the same history."""
    of_request = (
        *("user_row", "history_start", "history_end", "candidate_start", "candidate_end"),
        *("visible", "time", "number"),
    )
    return replace(table, **{name: getattr(table, name)[chosen] for name in of_request})


def without_candidates(table: RequestTable) -> RequestTable:
    """The same requests, asking for nothing."""
    none = np.zeros(table.num_requests, np.int64)
    return replace(
        table,
        candidate_start=none,
        candidate_end=none,
        candidate_item=table.candidate_item[:0],
        candidate_label=table.candidate_label[:0],
        candidate_oracle=table.candidate_oracle[:0],
        candidate_tasks={name: labels[:0] for name, labels in table.candidate_tasks.items()},
    )
