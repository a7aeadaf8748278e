"""Pairwise products of feature vectors on a CPU, candidate by candidate.

Legend: R requests, N candidates, S feature vectors of a request, O of a candidate, F = S + O,
P = F (F - 1) / 2 pairs, k vectors passed on, d width.
"""

from __future__ import annotations

import numpy as np

from hisac_rec.ops.compiled import Floats, Ints, compiled_in_any_order


@compiled_in_any_order
def cross(
    first: int, last: int, kept: int, shared: Floats, own: Floats, request: Ints, found: Floats
) -> None:
    """The vectors that are passed on, then the products of each pair, of some candidates.
    O(n F^2 d / 2).

    Args:
        first: of the candidates.
        last: one after the last.
        kept: k.
        shared: [R, S, d] of the requests.
        own: [N, O, d] of the candidates.
        request: [N] of each candidate.
        found: [N, k d + P] written from ``first`` to ``last``.
    """
    of_request, width = shared.shape[1], shared.shape[2]
    vectors = of_request + own.shape[1]
    for candidate in range(first, last):
        common, single = shared[request[candidate]], own[candidate]
        row, at = found[candidate], 0
        for one in range(kept):
            left = common[one] if one < of_request else single[one - of_request]
            for column in range(width):
                row[at + column] = left[column]
            at += width
        for one in range(vectors):
            left = common[one] if one < of_request else single[one - of_request]
            for other in range(one + 1, vectors):
                right = common[other] if other < of_request else single[other - of_request]
                product = left[0] * right[0]
                for column in range(1, width):
                    product += left[column] * right[column]
                row[at] = product
                at += 1


@compiled_in_any_order
def cross_backward(
    first: int,
    last: int,
    kept: int,
    shared: Floats,
    own: Floats,
    request: Ints,
    gradient: Floats,
    of_shared: Floats,
    of_own: Floats,
) -> None:
    """Gradients of :func:`cross`. O(n F^2 d).

    Args:
        first: of the candidates, the first of its request.
        last: one after the last, the last of its request.
        kept: k.
        shared: as there.
        own: as there.
        request: as there.
        gradient: [N, k d + P] of what it found.
        of_shared: [R, S, d] added to, of the requests of these candidates.
        of_own: [N, O, d] written from ``first`` to ``last``.
    """
    of_request, width = shared.shape[1], shared.shape[2]
    vectors = of_request + own.shape[1]
    both = np.empty((vectors, width), own.dtype)
    summed = np.empty((vectors, width), own.dtype)
    pairs = np.zeros((vectors, vectors), own.dtype)  # symmetric, nothing of one with itself
    for candidate in range(first, last):
        row, at = gradient[candidate], kept * width
        both[:of_request] = shared[request[candidate]]
        both[of_request:] = own[candidate]
        summed[:kept] = row[:at].reshape(kept, width)
        summed[kept:] = 0
        for one in range(vectors):
            for other in range(one + 1, vectors):
                pairs[one, other] = pairs[other, one] = row[at]
                at += 1
        for one in range(vectors):
            target = summed[one]
            for other in range(vectors):
                weight, source = pairs[one, other], both[other]
                for column in range(width):
                    target[column] += weight * source[column]
        of_shared[request[candidate]] += summed[:of_request]
        of_own[candidate] = summed[of_request:]
