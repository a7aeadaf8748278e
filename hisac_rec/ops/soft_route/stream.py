"""Soft routing on a CPU for long histories: nothing padded, nothing read from memory twice.

Rows stream through a buffer of K x n scores that stays in the second-level cache: the squared
distances of n rows to all agents come out of one matrix product (norms ride along as two more
columns, the temperature is in the scale), become weights in place, and are spent in the second
product. Softmax is relative to the nearest of a request's first rows, or, where a nearer one might
overflow it, online, to the nearest so far. Legend: R requests, K slots,
T rows, s semantic width, d value width.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from hisac_rec.ops.soft_route.problem import Frozen, Routed

BUFFER_ELEMENTS = 1 << 18
"""Scores at a time: 1 MiB in fp32."""

FAR = 40.0
"""A nearest row within so many temperatures may be the reference of all: e^40 times 1e4 rows of
values up to 1e12 fit fp32."""

LEAST_ROWS = 64
"""Rows at a time however many agents there are, so that the products stay products."""


def forward(values: Tensor, frozen: Frozen) -> Routed:
    """Route with "events". O(T K (s + d)) multiplications, O(BUFFER_ELEMENTS) extra memory.

    The Python loop runs once for each BUFFER_ELEMENTS of scores, and once for each request:
    made for requests of hundreds of rows and more.
    """
    requests, slots, _ = frozen.queries.shape
    nearest = frozen.queries.new_full((requests, slots, 1), float("inf"))
    mass = frozen.queries.new_zeros((requests, slots, 1))
    vectors = values.new_zeros((requests, slots, values.shape[1]))
    online = False
    for request, rows, distance, is_first in _distances(frozen):
        before = nearest[request]
        if is_first:
            nearest[request] = distance.amin(1, keepdim=True)
            # Rows to come may be nearer by no more than this: where weights stay finite even so,
            # they remain relative to the first rows, and nothing has to be looked for or faded.
            online = bool(nearest[request].max() > FAR)
        elif online:
            now = torch.minimum(before, distance.amin(1, keepdim=True))
            fades = (now - before).exp_()
            nearest[request] = now
            mass[request].mul_(fades)
            vectors[request].mul_(fades.to(vectors.dtype))
        weights = torch.sub(nearest[request], distance, out=distance).exp_()
        mass[request].add_(_mass(weights, rows, frozen.counts))
        vectors[request].addmm_(weights.to(values.dtype), values[rows])
    vectors /= mass.clamp_min(torch.finfo(mass.dtype).tiny)
    return Routed(vectors, mass.squeeze(-1), -nearest.squeeze(-1))


def backward(scaled: Tensor, highest: Tensor, frozen: Frozen) -> Tensor:
    """The gradient of the values; weights are computed again. Costs as the forward pass."""
    result = scaled.new_empty((frozen.keys.shape[0], scaled.shape[-1]))
    nearest = -highest.unsqueeze(-1)
    for request, rows, distance, _ in _distances(frozen):
        weights = torch.sub(nearest[request], distance, out=distance).exp_()
        torch.mm(weights.T.to(scaled.dtype), scaled[request], out=result[rows])
    return result


def _distances(frozen: Frozen) -> Iterator[tuple[int, slice, Tensor, bool]]:
    """(request, rows, [K, n] distance / tau, whether they are the request's first) of all rows in
    order; one buffer for all of them.

    ``||z - e||^2 / tau^2 = [-2 z, z.z, 1] . [e, 1, e.e] / tau^2``.
    """
    _, slots, width = frozen.queries.shape
    step = max(LEAST_ROWS, BUFFER_ELEMENTS // max(1, slots))
    longest = min(step, int(frozen.offsets.diff().max()) if len(frozen.offsets) > 1 else 0)
    scale = 1.0 / frozen.tau if frozen.squared else 1.0 / frozen.tau**2
    queries, keys = frozen.queries, frozen.keys
    buffer = queries.new_empty(slots * longest)
    left = queries.new_ones((slots, width + 2))
    right = keys.new_ones((longest, width + 2))
    for request, (begin, end) in enumerate(pairwise(frozen.offsets.tolist())):
        if begin == end:
            continue
        left[:, :width] = queries[request]
        left[:, width] = torch.linalg.vecdot(queries[request], queries[request])
        left[:, width + 1] = 1.0
        left[:, :width].mul_(-2.0)
        left.mul_(scale)
        for first in range(begin, end, step):
            rows = slice(first, min(first + step, end))
            some = right[: rows.stop - first]
            some[:, :width] = keys[rows]
            torch.linalg.vecdot(keys[rows], keys[rows], out=some[:, width + 1])
            distance = buffer[: slots * len(some)].view(slots, len(some))
            torch.mm(left, some.T, out=distance).clamp_min_(0.0)
            if not frozen.squared:
                distance.sqrt_()
            yield request, rows, distance, first == begin


def _mass(weights: Tensor, rows: slice, counts: Tensor | None) -> Tensor:
    """[K, 1]: sum of the weights of ``rows`` over their events."""
    if counts is None:
        return weights.sum(1, keepdim=True)
    return weights @ counts[rows].to(weights.dtype).unsqueeze(1)
