"""Jagged helpers against plain Python."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hisac_rec.data.jagged import offsets_of, sum_ranges, take_ranges

lengths_lists = st.lists(st.integers(0, 5), max_size=10)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5)), max_size=10))
def test_take_ranges(ranges: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in ranges], dtype=np.int64)
    lengths = np.array([length for _, length in ranges], dtype=np.int64)
    expected = [start + i for start, length in ranges for i in range(length)]
    assert take_ranges(starts, lengths).tolist() == expected


@given(lengths_lists)
def test_offsets_and_sums(lengths: list[int]) -> None:
    offsets = offsets_of(np.array(lengths, dtype=np.int64))
    assert offsets.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    values = np.arange(int(offsets[-1])) ** 2
    expected = [int(values[a:b].sum()) for a, b in pairwise(offsets)]
    assert sum_ranges(values, offsets).tolist() == expected
