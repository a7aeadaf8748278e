"""Products of rows and agents become weights, one pass over a buffer in the cache.

Agents lie side by side, so that all of it goes eight or sixteen agents at a time, the exponential
as well, which neither torch nor the C library does in one pass with the rest. Legend: n rows,
K slots.
"""

from __future__ import annotations

import numpy as np

from hisac_rec.ops.compiled import Floats, compiled


@compiled
def find_nearest(products: Floats, of_queries: Floats, of_keys: Floats, nearest: Floats) -> None:
    """Squared distance of the nearest row, rounded as :func:`weigh` rounds it, so that no weight
    is above 1 by what is lost to rounding. O(n K).

    Args:
        products: [n, K] float32, at least one row.
        of_queries: [K] squared norms.
        of_keys: [n] squared norms.
        nearest: [K] written.
    """
    two = np.float32(2)
    nearest[:] = np.inf
    for at in range(len(products)):
        row, own = products[at], of_keys[at]
        for slot in range(len(row)):
            here = of_queries[slot] + own - two * row[slot]
            nearest[slot] = here if here < nearest[slot] else nearest[slot]


@compiled
def weigh(
    products: Floats,
    of_queries: Floats,
    of_keys: Floats,
    counts: Floats,
    nearest: Floats,
    scale: float,
    squared: bool,
    mass: Floats,
) -> None:
    """``weights = exp(nearest - distance)`` in place of the products, and their sums. O(n K).

    Args:
        products: [n, K] float32 of keys and queries; weights when done, to 6e-7 of them.
        of_queries: [K] squared norms.
        of_keys: [n] squared norms.
        counts: [n] events of each row, or nothing where each is one.
        nearest: [K] distance / tau that the weights are relative to.
        scale: 1 / tau^2 of a squared distance, 1 / tau where ``squared``.
        squared: the distance is not rooted.
        mass: [K] added to.
    """
    two, zero, half, one = np.float32(2), np.float32(0), np.float32(0.5), np.float32(1)
    # exp(x) = 2^m 2^f with m + f = x log2(e), |f| <= 1/2; 2^f by its series to the 6th power,
    # whose rest is below 2e-8. Below 2^-126 there is nothing but 2^-126.
    to_base = np.float32(1.4426950408889634)
    least = np.float32(-126)
    by = np.float32(scale)
    start = nearest * to_base
    power = np.empty(products.shape[1], np.int32)
    bits = products.view(np.int32)
    for at in range(len(products)):
        row, of_row, own = products[at], bits[at], of_keys[at]
        for slot in range(len(row)):
            distance = max(of_queries[slot] + own - two * row[slot], zero) * by
            if not squared:
                distance = np.sqrt(distance)
            exponent = max(start[slot] - distance * to_base, least)
            whole = np.floor(exponent + half)
            rest = exponent - whole
            series = np.float32(1.5403530e-4) * rest + np.float32(1.3333558e-3)
            series = series * rest + np.float32(9.6181291e-3)
            series = series * rest + np.float32(5.5504109e-2)
            series = series * rest + np.float32(2.4022651e-1)
            series = series * rest + np.float32(6.9314718e-1)
            row[slot] = series * rest + one
            power[slot] = np.int32(whole)
        for slot in range(len(row)):
            of_row[slot] += power[slot] << 23  # the power of two of a float32
        events = counts[at] if len(counts) else one
        for slot in range(len(row)):
            mass[slot] += events * row[slot]
