"""Hashes: the ones that are written down, and even."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from hisac_rec.data.hashing import hash_strings


def reference(text: str) -> int:
    """FNV-1a and SplitMix64's finaliser, a byte and a word at a time."""
    word, bits = 0xCBF29CE484222325, 2**64
    for octet in text.encode():
        word = (word ^ octet) * 0x100000001B3 % bits
    word = (word + 0x9E3779B97F4A7C15) % bits
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % bits
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % bits
    return word ^ (word >> 31)


def test_hash_is_the_one_that_is_written_down() -> None:
    words = ["a", "", None, "foobar", "é", "https://shop.example/" + 60 * "item/"]
    expected = [reference(word or "") for word in words]
    assert hash_strings(pa.array(words)).tolist() == expected
    assert hash_strings(pa.chunked_array([words[:2], words[2:]])).tolist() == expected
    assert hash_strings(pa.array(words)[3:]).tolist() == expected[3:]
    assert hash_strings(pa.array([7, 123456])).tolist() == [reference("7"), reference("123456")]


def test_rows_are_even_and_functions_independent() -> None:
    """Names that differ in the last digits alone, as ids do."""
    count, rows = 200_000, 1_001
    words = hash_strings(pa.array(np.arange(count)).cast(pa.string()))
    held = np.bincount((words % np.uint64(rows - 1)).astype(np.int64), minlength=rows - 1)
    chi_squared = ((held - held.mean()) ** 2 / held.mean()).sum()
    assert abs(chi_squared - (rows - 2)) < 5 * np.sqrt(2 * (rows - 2))
    low_bits = np.bincount((words & np.uint64(255)).astype(np.int64), minlength=256)
    assert np.abs(low_bits / (count / 256) - 1).max() < 0.25
