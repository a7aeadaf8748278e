"""Sets of request numbers, against Python's own."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hisac_rec.data.consumed import Consumed

NUMBERS = st.lists(st.integers(0, 40))


@given(parts=st.lists(NUMBERS, max_size=5), asked=NUMBERS)
def test_equals_a_set(parts: list[list[int]], asked: list[int]) -> None:
    found, truth = Consumed(), set[int]()
    for part in parts:
        found.add(np.array(part, dtype=np.int64))
        truth |= set(part)
        assert len(found) == len(truth)
    held = found.holds(np.array(asked, dtype=np.int64))
    assert held.tolist() == [number in truth for number in asked]
    intervals = found.intervals.tolist()
    # As few as there can be: between two of them is a number that is missing.
    assert all(begin < end for begin, end in intervals)
    assert all(one[1] < other[0] for one, other in pairwise(intervals))


@given(parts=st.lists(NUMBERS, min_size=1, max_size=4))
def test_union(parts: list[list[int]]) -> None:
    sets = [Consumed() for _ in parts]
    for one, part in zip(sets, parts, strict=True):
        one.add(np.array(part, dtype=np.int64))
    both = sets[0].union(sets[1:])
    truth = sorted({number for part in parts for number in part})
    listed = [number for begin, end in both.intervals.tolist() for number in range(begin, end)]
    assert listed == truth


def test_what_is_whole_is_one_interval() -> None:
    found = Consumed()
    for part in np.random.default_rng(0).permutation(1000).reshape(10, 100):
        found.add(part)
    assert found.intervals.tolist() == [[0, 1000]]
