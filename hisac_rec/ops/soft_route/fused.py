"""Soft routing on a GPU: one Triton kernel for each pass, jagged, nothing of size T x K kept.

Distances, softmax and sums are float32 whatever the inputs are. Legend: R requests, K slots,
T rows, s semantic width, d value width.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from hisac_rec.ops.soft_route import triton_kernels
from hisac_rec.ops.soft_route.problem import Frozen, Routed

BLOCK_K = 64
BLOCK_N = 64
PRECISION = "ieee"
"""Of products of float32: tf32 has 11 bits, too few for a distance that is a difference."""


def forward(values: Tensor, frozen: Frozen) -> Routed:
    """Route with "events". O(T K (s + d)) multiplications; reads each row ceil(K / BLOCK_K)
    times, no extra memory.
    """
    requests, slots, width = frozen.queries.shape
    dim = values.shape[1]
    vectors = values.new_empty((requests, slots, dim))
    mass = frozen.queries.new_empty((requests, slots))
    highest = torch.empty_like(mass)
    if mass.numel():
        triton_kernels.forward_kernel[(requests, triton.cdiv(slots, BLOCK_K))](
            values.contiguous(),
            frozen.queries.contiguous(),
            frozen.keys.contiguous(),
            frozen.offsets if frozen.counts is None else frozen.counts,
            frozen.offsets,
            vectors,
            mass,
            highest,
            slots,
            width,
            dim,
            1.0 / frozen.tau,
            COUNTED=frozen.counts is not None,
            **_shape(frozen, dim),
        )
    return Routed(vectors, mass, highest)


def backward(scaled: Tensor, highest: Tensor, frozen: Frozen) -> Tensor:
    """The gradient of the values. Costs as the forward pass; each row is written once."""
    requests, slots, width = frozen.queries.shape
    rows, dim = frozen.keys.shape[0], scaled.shape[-1]
    result = scaled.new_empty((rows, dim))
    if not rows:
        return result
    each = (frozen.offsets.diff() + BLOCK_N - 1) // BLOCK_N
    tiles = torch.nn.functional.pad(each.cumsum(0), (1, 0))
    triton_kernels.backward_kernel[(triton.cdiv(rows, BLOCK_N) + requests,)](
        scaled.contiguous(),
        frozen.queries.contiguous(),
        frozen.keys.contiguous(),
        highest,
        frozen.offsets,
        tiles,
        result,
        requests,
        slots,
        width,
        dim,
        1.0 / frozen.tau,
        HALVINGS=requests.bit_length(),
        **_shape(frozen, dim),
    )
    return result


def _shape(frozen: Frozen, dim: int) -> dict[str, int | bool | str]:
    return {
        "SQUARED": frozen.squared,
        "PRECISION": PRECISION,
        "BLOCK_K": BLOCK_K,
        "BLOCK_N": BLOCK_N,
        "BLOCK_S": _power_of_two(frozen.queries.shape[2]),
        "BLOCK_D": _power_of_two(dim),
    }


def _power_of_two(size: int) -> int:
    """A tile that holds ``size`` columns; a matrix product wants at least 16."""
    return max(16, triton.next_power_of_2(size))
