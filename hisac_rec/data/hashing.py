"""64-bit hashes, vectorised: of texts, and of integers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hisac_rec.data.jagged import Ints

Words = NDArray[np.uint64]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""SplitMix64's increment; its multiples make a hash function into many."""
_FNV_START, _FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)


def mix(words: Words) -> Words:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the word."""
    words = words + GOLDEN
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hash_strings(values: pa.ChunkedArray | pa.Array) -> Words:
    """[n] FNV-1a (64 bits) of each value as UTF-8 text, mixed; a null is the empty text.

    A number and its text have one hash, so it does not matter which of both an export has.
    O(bytes), vectorised over the values.
    """
    chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
    return np.concatenate([np.zeros(0, np.uint64), *map(_hash_chunk, chunks)])


def _hash_chunk(values: pa.Array) -> Words:
    text = values.cast(pa.large_string()).fill_null("")
    _, ends, content = text.buffers()
    bounds = np.frombuffer(ends, np.int64)[text.offset : text.offset + len(text) + 1]
    octets = np.frombuffer(content or b"", np.uint8)
    starts: Ints = bounds[:-1]
    lengths = np.diff(bounds)
    words = np.full(len(text), _FNV_START)
    # The longest first: those that have a byte at a position are the first ones.
    order = np.argsort(-lengths, kind="stable")
    having = np.searchsorted(-lengths[order], -np.arange(lengths.max(initial=0)), side="left")
    for position, count in enumerate(having):
        at = order[:count]
        words[at] = (words[at] ^ octets[starts[at] + position]) * _FNV_PRIME
    return mix(words)
