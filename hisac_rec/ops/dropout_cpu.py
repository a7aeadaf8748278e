"""Dropout on a CPU, one pass over what is drawn and what is dropped. Legend: n elements."""

from __future__ import annotations

from hisac_rec.ops.compiled import Floats, Int16s, compiled


@compiled
def keep(given: Floats, numbers: Int16s, least: int, scale: float, found: Floats) -> None:
    """``found[i] = scale * given[i]`` where ``numbers[i] >= least``, else 0. O(n).

    Args:
        given: [n].
        numbers: [n] drawn.
        least: of the numbers that keep an element.
        scale: of what is kept.
        found: [n] written.
    """
    of_width = given.dtype.type(scale)
    nothing = given.dtype.type(0)
    for at in range(len(given)):
        found[at] = given[at] * of_width if numbers[at] >= least else nothing
