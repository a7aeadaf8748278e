"""Random histories and candidates for method tests."""

from __future__ import annotations

import torch
from torch import Tensor

from hisac_rec.methods.base import Candidates, History, MethodShape, request_of_rows

DIM = 8
VECTOR_DIM = 5
CODES = (4, 6)


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def make_shape(*, dtype: torch.dtype = torch.float32) -> MethodShape:
    generator = torch.Generator().manual_seed(7)
    words = tuple(torch.randn(c, VECTOR_DIM, generator=generator, dtype=dtype) for c in CODES)
    return MethodShape(DIM, words, VECTOR_DIM)


def make_case(
    lengths: list[int],
    candidates: list[int],
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[History, Candidates]:
    """Histories of these lengths, and this many candidates for each; values need gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, width: int) -> Tensor:
        return torch.randn(rows, width, generator=generator, dtype=dtype)

    def codes(rows: int) -> Tensor:
        return torch.stack([torch.randint(0, c, (rows,), generator=generator) for c in CODES], 1)

    events, count = sum(lengths), sum(candidates)
    history = History(
        offsets=offsets_of(lengths),
        events=normal(events, DIM).requires_grad_(),
        codes=codes(events),
        vectors=normal(events, VECTOR_DIM),
        age=torch.rand(events, generator=generator),
    )
    bounds = offsets_of(candidates)
    return history, Candidates(
        offsets=bounds,
        values=normal(count, DIM).requires_grad_(),
        codes=codes(count),
        vectors=normal(count, VECTOR_DIM),
        request=request_of_rows(bounds, count),
    )
