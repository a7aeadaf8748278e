"""Distinct numbers equal numpy's, whatever they are and however many."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hisac_rec.data.jagged import distinct

NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-3, 300)


@settings(max_examples=200, deadline=None)
@given(values=st.lists(NUMBERS, max_size=600))
def test_equals_numpy(values: list[int]) -> None:
    given_values = np.array(values, dtype=np.int64)
    found, place = distinct(given_values)
    expected, expected_place = np.unique(given_values, return_inverse=True)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(place, expected_place)


@pytest.mark.parametrize("apart", [1, 1 << 20, 3 << 40])
def test_many_numbers_outgrow_the_table_many_times(apart: int) -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(0, 40_000, 100_000) * apart
    found, place = distinct(values)
    np.testing.assert_array_equal(found, np.unique(values))
    np.testing.assert_array_equal(found[place], values)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint32, np.int64])
def test_takes_any_whole_numbers_and_any_strides(dtype: type[np.integer]) -> None:
    values = np.arange(60, dtype=dtype)[::-2] % 7
    found, place = distinct(values)
    assert found.dtype == place.dtype == np.int64
    np.testing.assert_array_equal(found[place], values)
