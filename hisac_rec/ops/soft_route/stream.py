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
from hisac_rec.ops.threads import even_runs, in_threads_of_one

BUFFER_ELEMENTS = 1 << 18
"""Products at a time: 1 MiB in fp32."""

FAR = 40.0
"""A nearest row within so many temperatures may be the reference of all: e^40 times 1e4 rows of
values up to 1e12 fit fp32."""

PRODUCTS_A_THREAD = 1 << 17
"""A thread more is worth its start from so many, some tens of microseconds."""

LEAST_ROWS = 64
"""Rows at a time however many agents there are, so that the products stay products."""


def forward(values: Tensor, frozen: Frozen) -> Routed:
    """Route with "events". O(T K (s + d)) multiplications, O(BUFFER_ELEMENTS) extra memory a
    thread.

    Threads have requests of their own. The Python loop runs once for each BUFFER_ELEMENTS of
    products, and once for each request: made for requests of hundreds of rows and more.
    """
    requests, slots, _ = frozen.queries.shape
    nearest = frozen.queries.new_full((requests, slots), float("inf"))
    mass = frozen.queries.new_zeros((requests, slots))
    vectors = values.new_empty((requests, slots, values.shape[1]))

    def route(run: slice) -> None:
        vectors[run].zero_()
        online = False
        for block in _blocks(frozen, run):
            request = block.request
            before = nearest[request]
            if block.is_first:
                nearest[request] = block.nearest()
                # Rows to come may be nearer by no more than this: where weights stay finite even
                # so, they remain relative to the first rows, and nothing has to be looked for or
                # faded.
                online = bool(nearest[request].max() > FAR)
            elif online:
                now = torch.minimum(before, block.nearest())
                fades = (now - before).exp_()
                nearest[request] = now
                mass[request].mul_(fades)
                vectors[request].mul_(fades.to(vectors.dtype).unsqueeze(1))
            weights, own_mass = block.weigh(nearest[request])
            mass[request].add_(own_mass)
            vectors[request].addmm_(weights.T.to(values.dtype), values[block.rows])
        vectors[run] /= mass[run].clamp_min(torch.finfo(mass.dtype).tiny).unsqueeze(-1)

    in_threads_of_one(route, _runs(frozen))
    return Routed(vectors, mass, -nearest)


def backward(scaled: Tensor, highest: Tensor, frozen: Frozen) -> Tensor:
    """The gradient of the values; weights are computed again. Costs as the forward pass."""
    result = scaled.new_empty((frozen.keys.shape[0], scaled.shape[-1]))

    def route(run: slice) -> None:
        for block in _blocks(frozen, run):
            weights, _ = block.weigh(-highest[block.request])
            own = weights.to(scaled.dtype)
            torch.mm(own, scaled[block.request], out=result[block.rows])

    in_threads_of_one(route, _runs(frozen))
    return result


def _runs(frozen: Frozen) -> list[slice]:
    """Requests in runs, one for each thread."""
    return even_runs(frozen.offsets, max(1, PRODUCTS_A_THREAD // max(1, frozen.queries.shape[1])))


def _blocks(frozen: Frozen, run: slice) -> Iterator[Block]:
    """The rows of some requests in order, as many at a time as the buffer holds; one buffer for
    all of them.
    """
    _, slots, _ = frozen.queries.shape
    offsets = frozen.offsets[run.start : run.stop + 1]
    step = max(LEAST_ROWS, BUFFER_ELEMENTS // max(1, slots))
    longest = min(step, int(offsets.diff().max()))
    buffer = frozen.queries.new_empty(slots * longest)
    queries = frozen.queries[run]
    squares = torch.linalg.vecdot(queries, queries)
    for number, (begin, end) in enumerate(pairwise(offsets.tolist())):
        for first in range(begin, end, step):
            rows = slice(first, min(first + step, end))
            products = buffer[: slots * (rows.stop - first)].view(-1, slots)
            torch.mm(frozen.keys[rows], queries[number].T, out=products)
            yield Block(frozen, run.start + number, rows, first == begin, products, squares[number])
