"""Where compiled loops may stand in for torch operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_WITHOUT: ContextVar[bool] = ContextVar("without loops", default=False)


def suit_loops(numbers: Tensor) -> bool:
    """Whether a loop over these numbers can run: they are on a CPU, of a type that Numba knows,
    and no graph is being taken, which holds torch operators alone.
    """
    known = numbers.dtype in (torch.float32, torch.float64)
    here = known and numbers.device.type == "cpu" and not torch.compiler.is_compiling()
    return here and not _WITHOUT.get()


def as_arrays(*tensors: Tensor) -> list[NDArray[Any]]:
    """What a loop takes: the tensors' own numbers where they are contiguous, else copies, of which
    nothing that is written comes back.
    """
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


@contextmanager
def without_loops() -> Iterator[None]:
    """Within it no loop suits, and a CPU runs what other devices run, to tell what they keep."""
    token = _WITHOUT.set(True)
    try:
        yield
    finally:
        _WITHOUT.reset(token)
