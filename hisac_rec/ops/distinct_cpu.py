"""Distinct whole numbers on a CPU: a hash table instead of a sort of them all.

Legend: n numbers, G groups of them, U distinct ones.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hisac_rec.ops.compiled import Ints, compiled

Slots: TypeAlias = NDArray[np.int32]

SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""2^64 by the golden ratio: multiplied by it, neighbours land far apart (Knuth 6.4)."""
FIRST_BITS = 8
"""Slots of a new table, as a power of two."""


@compiled
def sorted_distinct(values: Ints) -> tuple[Ints, Ints]:
    """``numpy.unique(values, return_inverse=True)``. O(n + U log U), 8 bytes a number.

    Args:
        values: [n] in any order.

    Returns:
        [U] ascending and [n] which of them each is.
    """
    _, distinct, _, places = distinct_of_groups(values, np.array([0, len(values)]))
    return distinct, places


@compiled
def distinct_of_groups(values: Ints, offsets: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """The distinct values of each group of neighbours, and how often each is there.

    O(n + U log U) for U of all groups.

    Args:
        values: [n].
        offsets: [G+1] where each group begins.

    Returns:
        [U] group, ascending; [U] value, ascending within a group; [U] how often; and [n] which
        of the U each value is.
    """
    count = len(values)
    places, distinct = np.empty(count, np.int64), np.empty(count, np.int64)
    met, groups = np.empty(count, np.int64), np.empty(count, np.int64)
    slots = _new_slots(count)
    end = 0
    for group in range(len(offsets) - 1):
        first, last = offsets[group], offsets[group + 1]
        begin = end
        own, own_met = distinct[begin:], met[begin:]
        end = begin + _number(values[first:last], places[first:last], own, own_met, slots)
        order = _ascending(distinct[begin:end])
        rank = np.empty(end - begin, np.int64)
        for place in range(end - begin):
            rank[order[place]] = begin + place
        for row in range(first, last):
            places[row] = rank[places[row]]
        distinct[begin:end] = distinct[begin:end][order]
        met[begin:end] = met[begin:end][order]
        groups[begin:end] = group
    return groups[:end].copy(), distinct[:end].copy(), met[:end].copy(), places


@compiled
def _new_slots(count: int) -> Slots:
    """Room for the table of :func:`_number` for at most ``count`` numbers."""
    size = 1 << FIRST_BITS
    while size < 2 * count:
        size *= 2
    return np.empty(size, np.int32)


@compiled
def _number(values: Ints, numbers: Ints, distinct: Ints, met: Ints, slots: Slots) -> int:
    """Number the distinct values as they are met. O(n).

    Args:
        values: [n].
        numbers: [n] written: the number of each value.
        distinct: [>= U] written: the value of each number.
        met: [>= U] written: how often.
        slots: of :func:`_new_slots`; an open-addressed table that grows with what it holds.

    Returns:
        U.
    """
    bits = FIRST_BITS
    slots[: 1 << bits] = -1
    found = 0
    for row in range(len(values)):
        value = values[row]
        shift, last = np.uint64(64 - bits), np.uint64((1 << bits) - 1)
        slot = (np.uint64(value) * SPREAD) >> shift
        number = np.int64(slots[slot])
        while number >= 0 and distinct[number] != value:
            slot = (slot + np.uint64(1)) & last
            number = np.int64(slots[slot])
        if number < 0:
            number = np.int64(found)
            slots[slot] = number
            distinct[number] = value
            met[number] = 0
            found += 1
            if 2 * found > 1 << bits and 2 << bits <= len(slots):
                bits += 1
                _refill(distinct[:found], slots, bits)
        met[number] += 1
        numbers[row] = number
    return found


@compiled
def _refill(distinct: Ints, slots: Slots, bits: int) -> None:
    slots[: 1 << bits] = -1
    shift, last = np.uint64(64 - bits), np.uint64((1 << bits) - 1)
    for number in range(len(distinct)):
        slot = (np.uint64(distinct[number]) * SPREAD) >> shift
        while slots[slot] >= 0:
            slot = (slot + np.uint64(1)) & last
        slots[slot] = number


@compiled
def _ascending(values: Ints) -> Ints:
    """[n] order in which the values ascend. O(n) a byte of the largest where none is negative."""
    count = len(values)
    order, other = np.arange(count), np.empty(count, np.int64)
    most = np.int64(0)
    for row in range(count):
        if values[row] < 0:
            return np.argsort(values, kind="mergesort")
        most = max(most, values[row])
    bounds = np.empty(257, np.int64)
    shift = 0
    while shift < 64 and most >> shift:
        bounds[:] = 0
        for row in range(count):
            bounds[((values[row] >> shift) & 255) + 1] += 1
        for byte in range(256):
            bounds[byte + 1] += bounds[byte]
        for rank in range(count):
            row = order[rank]
            byte = (values[row] >> shift) & 255
            other[bounds[byte]] = row
            bounds[byte] += 1
        order, other = other, order
        shift += 8
    return order
