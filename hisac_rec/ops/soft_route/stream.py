"""Soft routing on a CPU for long histories: nothing padded, nothing read from memory twice.

Rows stream through a buffer of n x K numbers that stays in the second-level cache: one matrix
product of n rows with all agents, which become distances and then weights in place, in one pass,
and are spent in the second product. Softmax is relative to the nearest of a request's first rows,
or, where a nearer one might overflow it, online, to the nearest so far. Legend: R requests,
K slots, T rows, s semantic width, d value width.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from hisac_rec.ops.soft_route.block import Block
from hisac_rec.ops.soft_route.problem import Frozen, Routed

BUFFER_ELEMENTS = 1 << 18
"""Products at a time: 1 MiB in fp32."""

FAR = 40.0
"""A nearest row within so many temperatures may be the reference of all: e^40 times 1e4 rows of
values up to 1e12 fit fp32."""

LEAST_ROWS = 64
"""Rows at a time however many agents there are, so that the products stay products; and rows of
which the nearest is looked for first."""


def forward(values: Tensor, frozen: Frozen) -> Routed:
    """Route with "events". O(T K (s + d)) multiplications, O(BUFFER_ELEMENTS) extra memory.

    The Python loop runs once for each BUFFER_ELEMENTS of products, and once for each request:
    made for requests of hundreds of rows and more.
    """
    requests, slots, _ = frozen.queries.shape
    nearest = frozen.queries.new_full((requests, slots), float("inf"))
    mass = frozen.queries.new_zeros((requests, slots))
    vectors = values.new_zeros((requests, slots, values.shape[1]))
    online = False
    for block in _blocks(frozen):
        request = block.request
        if block.is_first:
            nearest[request] = block.nearest(LEAST_ROWS)
            # Rows to come may be nearer by no more than this: where weights stay finite even so,
            # they remain relative to the first rows, and nothing has to be looked for or faded.
            online = bool(nearest[request].max() > FAR)
        if online:
            before = nearest[request].clone()
            now = torch.minimum(before, block.nearest())
            fades = (now - before).exp_()
            nearest[request] = now
            mass[request].mul_(fades)
            vectors[request].mul_(fades.to(vectors.dtype).unsqueeze(1))
        weights, own_mass = block.weigh(nearest[request])
        mass[request].add_(own_mass)
        vectors[request].addmm_(weights.T.to(values.dtype), values[block.rows])
    vectors /= mass.clamp_min(torch.finfo(mass.dtype).tiny).unsqueeze(-1)
    return Routed(vectors, mass, -nearest)


def backward(scaled: Tensor, highest: Tensor, frozen: Frozen) -> Tensor:
    """The gradient of the values; weights are computed again. Costs as the forward pass."""
    result = scaled.new_empty((frozen.keys.shape[0], scaled.shape[-1]))
    for block in _blocks(frozen):
        weights, _ = block.weigh(-highest[block.request])
        torch.mm(weights.to(scaled.dtype), scaled[block.request], out=result[block.rows])
    return result


def _blocks(frozen: Frozen) -> Iterator[Block]:
    """All rows in order, as many at a time as the buffer holds; one buffer for all of them."""
    _, slots, _ = frozen.queries.shape
    step = max(LEAST_ROWS, BUFFER_ELEMENTS // max(1, slots))
    longest = min(step, int(frozen.offsets.diff().max()) if len(frozen.offsets) > 1 else 0)
    buffer = frozen.queries.new_empty(slots * longest)
    squares = torch.linalg.vecdot(frozen.queries, frozen.queries)
    for request, (begin, end) in enumerate(pairwise(frozen.offsets.tolist())):
        for first in range(begin, end, step):
            rows = slice(first, min(first + step, end))
            products = buffer[: slots * (rows.stop - first)].view(-1, slots)
            torch.mm(frozen.keys[rows], frozen.queries[request].T, out=products)
            yield Block(frozen, request, rows, first == begin, products, squares[request])
