"""Candidate attention by loops on a CPU: no block of candidates is padded, no slot is read that
no agent fills, and keys and values stay one copy a request.

Legend: R requests, N candidates, K slots, the null slot before them, H heads, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hisac_rec.methods.parts import attention_cpu
from hisac_rec.ops.loops import as_arrays
from hisac_rec.ops.threads import even_runs, in_threads

CANDIDATES_A_THREAD = 256
"""A thread more is worth its start from so many candidates, some hundreds of microseconds."""


def attend(
    heads: int,
    queries: Tensor,
    keys: tuple[Tensor, Tensor],
    values: tuple[Tensor, Tensor],
    bias: Tensor,
    near: tuple[Tensor, Tensor] | None,
    offsets: Tensor,
    filled: Tensor,
) -> Tensor:
    """``softmax(q k / sqrt(d/H) + bias + gain * similarity) v`` of every head.

    Args:
        heads: H.
        queries: [N, d] on a CPU.
        keys: [d] of the null slot, whose bias is 0, and [R, K, d].
        values: [d] of the null slot, and [R, K, d].
        bias: [R, K], -inf where a slot is unfilled.
        near: [H] gains and [N, 1+K] similarities, which get no gradient; or None.
        offsets: [R+1] int64 over N.
        filled: [R] int64: after how many slots of each request none is filled.

    Returns:
        [N, d]. O((N + R) K d) time; N H K weights are kept for the backward pass.
    """
    gain, similarity = near or (queries.new_zeros(heads), queries.new_zeros((0, 0)))
    attended: Tensor = _Attend.apply(
        queries, *keys, *values, bias, gain, similarity, offsets, filled
    )
    return attended


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        null_key: Tensor,
        keys: Tensor,
        null_value: Tensor,
        values: Tensor,
        bias: Tensor,
        gain: Tensor,
        similarity: Tensor,
        offsets: Tensor,
        filled: Tensor,
    ) -> Tensor:
        ctx.heads = len(gain)
        weights = queries.new_empty((len(queries), ctx.heads, keys.shape[1] + 1))
        attended = queries.new_empty(queries.shape)
        of_keys = null_key, keys, bias, gain, similarity, offsets, filled
        _run(attention_cpu.score, offsets, queries, *of_keys, weights)
        torch.softmax(weights, -1, out=weights)
        _run(attention_cpu.attend, offsets, weights, null_value, values, offsets, filled, attended)
        ctx.save_for_backward(
            queries, null_key, keys, null_value, values, weights, similarity, offsets, filled
        )
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, *of_slots, weights, similarity, offsets, filled = ctx.saved_tensors
        keys = of_slots[1]
        requests, slots, dim = keys.shape
        of_queries, of_gain = queries.new_empty(queries.shape), keys.new_empty(requests, ctx.heads)
        of_null_key, of_null_value = (keys.new_empty((requests, dim)) for _ in range(2))
        of_keys, of_values = (keys.new_empty(keys.shape) for _ in range(2))
        of_bias = keys.new_empty((requests, slots))
        _run(
            attention_cpu.attend_backward,
            offsets,
            *(gradient, queries, *of_slots, weights, similarity, offsets, filled),
            *(of_queries, of_null_key, of_keys, of_null_value, of_values, of_bias, of_gain),
        )
        null_key, null_value, gain = (of.sum(0) for of in (of_null_key, of_null_value, of_gain))
        return of_queries, null_key, of_keys, null_value, of_values, of_bias, gain, None, None, None


@torch.no_grad()
def similarities(products: Tensor, words: Tensor, scale: Tensor, offsets: Tensor) -> Tensor:
    """[N, 1+K] similarity of each candidate with the slots of its request. O(N K D).

    Args:
        products: [N, C] each candidate's vector times each code word.
        words: [R, K, D] int64 code words of each slot.
        scale: [R, K] of each slot.
        offsets: [R+1] int64 over N.
    """
    found = products.new_empty((len(products), words.shape[1] + 1))
    _run(attention_cpu.similarities, offsets, products, words, scale, offsets, found)
    return found


def _run(loop: Callable[..., None], offsets: Tensor, *tensors: Tensor) -> None:
    """Run a loop over all requests, in threads. What it writes must be contiguous."""
    arrays = as_arrays(*tensors)
    runs = even_runs(offsets, CANDIDATES_A_THREAD)
    in_threads(lambda run: loop(run.start, run.stop, *arrays), runs)
