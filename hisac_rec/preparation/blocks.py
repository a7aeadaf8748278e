"""From time-ordered events to user-major rows: what each request may see.

The heart of preparation, in numpy alone. A source (SQL or generator) hands over
:class:`EventBlock` after block, each the whole event log of some users; :func:`cut` turns a
block into the rows of one split, as ``contract.split_schema`` wants them. An event is
visible to a request exactly when its time is *strictly* before the request's and its split is
not a later one.

Legend: E events, U users with a request, R requests, C candidates, H history events stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hisac_rec.data.contract import ORACLE_FIELD, task_field

Ints = NDArray[np.int64]
PARTS_PER_UNIT = 1_000_000_000
"""Fractions of a split are compared in whole billionths: exact, also at rank = 0.9 n."""


@dataclass(frozen=True, slots=True)
class EventBlock:
    """Every event of some users, sorted by user, time and a deterministic tie-break.

    All arrays are [E].
    """

    user: NDArray[np.int32]
    """User ids, from 1."""
    item: NDArray[np.int32]
    """Item ids, from 1."""
    time: NDArray[np.int64]
    """Seconds, or the order within the user."""
    type: NDArray[np.int8]
    """Index into the manifest's event types; any value where not history."""
    is_history: NDArray[np.bool_]
    """The event enters its user's history."""
    is_candidate: NDArray[np.bool_]
    """The event was shown and has a label."""
    label: NDArray[np.float32]
    """In [0, 1] where a candidate."""
    split: NDArray[np.int8]
    """0 train, 1 valid, 2 test."""
    group: NDArray[np.uint64] | None = None
    """A user's candidates of one split and equal group share a request; None: by count."""
    probability: NDArray[np.float32] | None = None
    """The true probability of label 1, where known."""
    further: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Further task -> its labels; nan where it does not apply."""


def split_by_fraction(user: NDArray[np.int32], train: float, valid: float) -> NDArray[np.int8]:
    """Split each user's events by rank: the oldest ``train`` of them, then ``valid``.

    Event k of n (from 0) is train when k < train * n, test when k >= (train + valid) * n.

    Args:
        user: [E], sorted.
        train: share of the training split.
        valid: share of the validation split.

    Returns:
        [E] of 0, 1, 2. O(E).
    """
    starts = _run_starts(user)
    lengths = np.diff(np.append(starts, len(user)))
    rank = (np.arange(len(user)) - np.repeat(starts, lengths)) * PARTS_PER_UNIT
    count = np.repeat(lengths, lengths)
    first_valid = round(train * PARTS_PER_UNIT) * count
    first_test = round((train + valid) * PARTS_PER_UNIT) * count
    return ((rank >= first_valid).astype(np.int8) + (rank >= first_test)).astype(np.int8)


def without_later_splits(block: EventBlock, split: int) -> EventBlock:
    """Take the events of later splits out of the history, for the requests of one split.

    Where time cuts the splits, no request sees such an event anyway. An official split may
    lie across time; what it holds back for testing must not show in training histories.

    Args:
        block: whole users.
        split: 0, 1 or 2.

    Returns:
        The same events; those of a later split are no history. O(E).
    """
    return replace(block, is_history=block.is_history & (block.split <= split))


def draw_cold_items(items: int, share: float) -> NDArray[np.bool_]:
    """Draw the items that training is to know nothing of.

    Args:
        items: rows of the item table, the unknown item 0 included, which is never drawn.
        share: of the items.

    Returns:
        [items], the same for the same arguments.
    """
    drawn: NDArray[np.bool_] = np.random.default_rng(0).random(items) < share
    drawn[0] = False
    return drawn


def without_training(block: EventBlock, cold: NDArray[np.bool_]) -> EventBlock:
    """The block less the training events of some items; O(E).

    Args:
        block: where to look.
        cold: [items] True where an item's training events are to go.
    """
    kept = ~(cold[block.item] & (block.split == 0))
    columns = {one.name: getattr(block, one.name) for one in fields(block) if one.name != "further"}
    taken: dict[str, Any] = {n: None if of is None else of[kept] for n, of in columns.items()}
    return EventBlock(**taken, further={k: v[kept] for k, v in block.further.items()})


def visible_history(block: EventBlock) -> Ints:
    """Count, for each event, its user's history events of strictly earlier time.

    Returns:
        [E]. O(E).
    """
    before: Ints = np.cumsum(block.is_history) - block.is_history
    position = np.arange(len(block.user))
    new_user = _changes(block.user)
    new_time = new_user | _changes(block.time)
    first_of_time = np.maximum.accumulate(np.where(new_time, position, 0))
    first_of_user = np.maximum.accumulate(np.where(new_user, position, 0))
    return before[first_of_time] - before[first_of_user]


@dataclass(frozen=True, slots=True)
class CutRules:
    """How :func:`cut` makes requests and histories."""

    min_events: int = 0
    """Candidates with fewer visible history events (that are counted) are left out."""
    group_events: int = 1
    """Consecutive candidates per request, where the block has no group."""
    max_length: int | None = None
    """Drop events that lie before the newest ``max_length`` of every request."""
    counted: tuple[int, ...] | None = None
    """Types of the history events that ``min_events`` counts; None: all."""


@dataclass(frozen=True, slots=True)
class SplitRows:
    """The rows of one split that came from one block, still flat."""

    user: NDArray[np.int32]  # [U]
    history_offsets: Ints  # [U + 1] into the H stored events
    history_item: NDArray[np.int32]  # [H]
    history_type: NDArray[np.int8]  # [H]
    history_time: NDArray[np.int64]  # [H]
    request_offsets: Ints  # [U + 1] into the R requests
    request_time: NDArray[np.int64]  # [R]
    history_end: NDArray[np.int32]  # [R]
    candidate_offsets: Ints  # [R + 1] into the C candidates
    candidate_item: NDArray[np.int32]  # [C]
    label: NDArray[np.float32]  # [C]
    probability: NDArray[np.float32] | None  # [C]
    further: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # task -> [C]

    def table(self, user_features: dict[str, NDArray[np.int32]]) -> pa.Table:
        """As an Arrow table of ``contract.split_schema``.

        Args:
            user_features: feature -> value id of every user id, [users + 1].
        """
        parts = {
            "time": pa.array(self.request_time),
            "history_end": pa.array(self.history_end),
            "items": _lists(self.candidate_offsets, self.candidate_item),
            "labels": _lists(self.candidate_offsets, self.label),
        }
        if self.probability is not None:
            parts[ORACLE_FIELD] = _lists(self.candidate_offsets, self.probability)
        for task, labels in self.further.items():
            known = pa.array(labels, mask=np.isnan(labels))
            parts[task_field(task)] = _lists(self.candidate_offsets, known)
        requests = pa.StructArray.from_arrays(list(parts.values()), names=list(parts))
        return pa.table(
            {
                "user": pa.array(self.user),
                **{f"user_{k}": pa.array(v[self.user]) for k, v in user_features.items()},
                "history_item": _lists(self.history_offsets, self.history_item),
                "history_type": _lists(self.history_offsets, self.history_type),
                "history_time": _lists(self.history_offsets, self.history_time),
                "requests": pa.ListArray.from_arrays(
                    pa.array(self.request_offsets.astype(np.int32)), requests
                ),
            }
        )


def cut(block: EventBlock, split: int, rules: CutRules, visible: Ints) -> SplitRows:
    """Make the rows of one split: users, their visible history once, their requests.

    Args:
        block: whole users.
        split: 0, 1 or 2.
        rules: grouping and lengths.
        visible: [E] of :func:`visible_history`.

    Returns:
        Rows of the users with at least one request, in the order of the block; requests in
        the order of their first candidate. O(E), O(C log C) where the block has groups.
    """
    counted = visible
    if rules.counted is not None and rules.min_events:
        votes = block.is_history & np.isin(block.type, rules.counted)
        counted = visible_history(replace(block, is_history=votes))
    chosen = block.is_candidate & (block.split == split) & (counted >= rules.min_events)
    rows, starts = _requests(block, np.flatnonzero(chosen), rules.group_events)
    first = rows[starts]  # [R] event that opens each request
    request_user = block.user[first]
    user_starts = _run_starts(request_user)  # [U] into requests
    user_ends = np.append(user_starts, len(first))[1:] - 1
    requests_of_user = user_ends - user_starts + 1

    end = visible[first]
    length = end[user_ends]  # requests are in time order: the last one sees the most
    dropped = np.zeros_like(length)
    if rules.max_length is not None:
        dropped = np.maximum(end[user_starts] - rules.max_length, 0)

    history_rows = np.flatnonzero(block.is_history)
    users_first_event = np.searchsorted(block.user, request_user[user_starts])
    users_first_history = np.searchsorted(history_rows, users_first_event)
    stored = length - dropped
    kept = history_rows[_ragged_range(users_first_history + dropped, stored)]
    return SplitRows(
        user=request_user[user_starts],
        history_offsets=_offsets(stored),
        history_item=block.item[kept],
        history_type=block.type[kept],
        history_time=block.time[kept],
        request_offsets=np.append(user_starts, len(first)),
        request_time=block.time[first],
        history_end=(end - np.repeat(dropped, requests_of_user)).astype(np.int32),
        candidate_offsets=np.append(starts, len(rows)),
        candidate_item=block.item[rows],
        label=block.label[rows],
        probability=None if block.probability is None else block.probability[rows],
        further={task: labels[rows] for task, labels in block.further.items()},
    )


def _requests(block: EventBlock, rows: Ints, group_events: int) -> tuple[Ints, Ints]:
    """Order the candidate events by request; say where each request starts.

    Args:
        block: the events.
        rows: [C] events that are candidates, ascending.
        group_events: candidates per request without a group.

    Returns:
        The rows, request after request [C], and the starts of the requests [R].
    """
    user = block.user[rows]
    if block.group is None:
        starts = _run_starts(user)
        rank = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
        return rows, np.flatnonzero(rank % group_events == 0)
    group = block.group[rows]
    together = np.lexsort((group, user))  # stable: a group's events stay in time order
    new = _changes(user[together]) | _changes(group[together])
    first = rows[together[np.flatnonzero(new)]]
    place = np.empty(len(first), np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    request = place[np.cumsum(new) - 1]
    order = np.argsort(request, kind="stable")
    return rows[together[order]], np.flatnonzero(_changes(request[order]))


def _changes(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    """True where a value differs from the one before; True at 0."""
    changed = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=changed[1:])
    return changed


def _run_starts(values: NDArray[np.generic]) -> Ints:
    return np.flatnonzero(_changes(values))


def _offsets(lengths: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _ragged_range(starts: Ints, lengths: Ints) -> Ints:
    """Concatenate ``range(start, start + length)`` of all pairs."""
    offsets = _offsets(lengths)
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)


def _lists(offsets: Ints, values: NDArray[np.generic] | pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))
