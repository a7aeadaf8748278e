"""The cut of events into requests, against a plain reference written from the contract."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hisac_rec.data.contract import split_schema
from hisac_rec.preparation.blocks import (
    CutRules,
    EventBlock,
    cut,
    split_by_fraction,
    visible_history,
    without_later_splits,
)

Row = tuple[int, int, int, bool, bool, int, int]


def block_of(rows: list[Row], grouped: bool) -> EventBlock:
    """Events (user, time, type, history?, candidate?, split, group), sorted here."""
    rows = sorted(rows, key=lambda row: row[:2])
    n = len(rows)
    column = [np.array(c) for c in zip(*rows, strict=True)] if rows else [np.zeros(0)] * 7
    return EventBlock(
        user=column[0].astype(np.int32),
        item=np.arange(1, n + 1, dtype=np.int32),  # tells events apart
        time=column[1].astype(np.int64),
        type=column[2].astype(np.int8),
        is_history=column[3].astype(bool),
        is_candidate=column[4].astype(bool),
        label=(np.arange(n) % 2).astype(np.float32),
        split=column[5].astype(np.int8),
        group=column[6].astype(np.uint64) if grouped else None,
    )


def reference(block: EventBlock, split: int, rules: CutRules) -> list[dict[str, object]]:
    """What ``cut`` promises, with loops over users and events."""
    events = range(len(block.user))
    result = []
    for user in sorted(set(block.user.tolist())):
        mine = [e for e in events if block.user[e] == user]
        past = [e for e in mine if block.is_history[e] and block.split[e] <= split]

        def visible(e: int, past: list[int] = past) -> int:
            return sum(block.time[p] < block.time[e] for p in past)

        votes = [p for p in past if rules.counted is None or block.type[p] in rules.counted]
        asked = [
            e
            for e in mine
            if block.is_candidate[e] and block.split[e] == split
            if visible(e, votes) >= rules.min_events
        ]
        if not asked:
            continue
        groups: dict[int, list[int]] = {}
        for rank, e in enumerate(asked):
            by_count = rank // rules.group_events
            groups.setdefault(by_count if block.group is None else int(block.group[e]), []).append(
                e
            )
        requests = sorted(groups.values())
        ends = [visible(members[0]) for members in requests]
        dropped = 0 if rules.max_length is None else max(0, ends[0] - rules.max_length)
        stored = past[dropped : ends[-1]]
        result.append(
            {
                "user": user,
                "user_age": user + 100,
                "history_item": block.item[stored].tolist(),
                "history_type": block.type[stored].tolist(),
                "history_time": block.time[stored].tolist(),
                "requests": [
                    {
                        "time": int(block.time[members[0]]),
                        "history_end": end - dropped,
                        "items": block.item[members].tolist(),
                        "labels": block.label[members].tolist(),
                    }
                    for members, end in zip(requests, ends, strict=True)
                ],
            }
        )
    return result


rows = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.integers(0, 12),
        st.integers(0, 2),
        st.booleans(),
        st.booleans(),
        st.integers(0, 2),
        st.integers(0, 3),
    ),
    max_size=40,
)


@settings(max_examples=300, deadline=None)
@given(
    rows=rows,
    grouped=st.booleans(),
    min_events=st.integers(0, 4),
    group_events=st.integers(1, 4),
    max_length=st.none() | st.integers(1, 5),
    counted=st.none() | st.sets(st.integers(0, 4)).map(tuple),
)
def test_cut_equals_reference(
    rows: list[Row],
    grouped: bool,
    min_events: int,
    group_events: int,
    max_length: int | None,
    counted: tuple[int, ...] | None,
) -> None:
    block = block_of(rows, grouped)
    rules = CutRules(min_events, group_events, max_length, counted)
    ages = {"age": np.arange(100, 105, dtype=np.int32)}
    for split in range(3):
        known = without_later_splits(block, split)
        table = cut(known, split, rules, visible_history(known)).table(ages)
        assert table.cast(split_schema(["age"])).to_pylist() == reference(block, split, rules)


def test_event_of_the_same_time_is_not_visible() -> None:
    block = block_of([(1, 5, 0, True, False, 0, 0), (1, 5, 0, True, True, 0, 0)], grouped=False)
    assert visible_history(block).tolist() == [0, 0]
    later = replace(block, time=np.array([5, 6]))
    assert visible_history(later).tolist() == [0, 1]


@pytest.mark.parametrize("count", [1, 5, 9, 10, 11, 100, 1230])
def test_fraction_split_is_exact(count: int) -> None:
    user = np.repeat(np.array([3, 8], np.int32), count)
    split = split_by_fraction(user, 0.8, 0.1)
    expected = [(10 * k >= 8 * count) + (10 * k >= 9 * count) for k in range(count)]
    assert split.tolist() == expected * 2
