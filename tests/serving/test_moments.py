"""Histories as they were at other moments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hisac_rec.data.units import RequestTable
from hisac_rec.serving.cache import At
from hisac_rec.serving.moments import events_before, newest_only, snapshots


def make_table(seed: int, users: int, max_history: int | None) -> RequestTable:
    """Random users; some without events, some events after a user's last request."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 9, users)
    times = [np.sort(rng.integers(0, 30, n)) for n in lengths]
    requests = rng.integers(1, 4, users)
    begin = np.repeat(np.cumsum(lengths) - lengths, requests)
    user_row = np.repeat(np.arange(users), requests)
    when = np.concatenate([np.sort(rng.integers(0, 30, n)) for n in requests])
    visible = np.array(
        [int((times[u] < t).sum()) for u, t in zip(user_row, when, strict=True)], np.int64
    )
    end = begin + visible
    start = begin if max_history is None else np.maximum(begin, end - max_history)
    total, asked = int(lengths.sum()), len(user_row)
    return RequestTable(
        users={"user": np.arange(1, users + 1, dtype=np.int32)},
        history_item=rng.integers(1, 50, total).astype(np.int32),
        history_type=np.zeros(total, np.int8),
        history_time=np.concatenate(times).astype(np.int64),
        user_row=user_row,
        history_start=start,
        history_end=end,
        candidate_start=np.arange(asked),
        candidate_end=np.arange(asked) + 1,
        visible=visible,
        time=when,
        number=np.arange(asked),
        candidate_item=np.ones(asked, np.int32),
        candidate_label=np.zeros(asked, np.float32),
        candidate_oracle=np.zeros(0, np.float32),
    )


def events_of(table: RequestTable, request: int) -> list[int]:
    span = slice(table.history_start[request], table.history_end[request])
    return table.history_item[span].tolist()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    users=st.integers(1, 6),
    age=st.integers(1, 20),
    max_history=st.none() | st.integers(1, 5),
)
def test_a_history_of_some_time_ago_is_its_earlier_events(
    seed: int, users: int, age: int, max_history: int | None
) -> None:
    table = make_table(seed, users, max_history)
    old = snapshots(table, "requests", age)
    assert np.array_equal(old.time, table.time - age)
    assert old.candidate_lengths().sum() == 0
    for request in range(table.num_requests):
        whole = slice(
            table.history_end[request] - table.visible[request], table.history_end[request]
        )
        seen = table.history_time[whole] < table.time[request] - age
        expected = table.history_item[whole][seen].tolist()
        assert old.visible[request] == len(expected)
        most = len(expected) if max_history is None else max_history
        assert events_of(old, request) == expected[max(0, len(expected) - most) :]


@pytest.mark.parametrize(("at", "last"), [("first", False), ("last", True)])
def test_one_history_a_user(at: At, last: bool) -> None:
    table = make_table(3, 5, None)
    found = snapshots(table, at)
    assert found.user_row.tolist() == list(range(5))
    for user, number in enumerate(found.number):
        own = table.number[table.user_row == user]
        assert number == (own.max() if last else own.min())
        assert events_of(found, user) == events_of(table, number)


def test_only_the_newest_events_stay() -> None:
    table = make_table(4, 5, None)
    cut = newest_only(table, 2)
    for request in range(table.num_requests):
        assert events_of(cut, request) == events_of(table, request)[-2:]
    assert np.array_equal(cut.visible, table.visible)


def test_a_table_without_events_has_none_before() -> None:
    table = make_table(0, 1, None)
    none = RequestTable(**{**vars(table), "history_time": table.history_time[:0]})
    assert events_before(none, none.time).tolist() == [0] * none.num_requests
