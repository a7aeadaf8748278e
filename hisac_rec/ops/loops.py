"""Where compiled loops may stand in for torch operators."""

from __future__ import annotations

import torch
from torch import Tensor


def suit_loops(numbers: Tensor) -> bool:
    """Whether a loop over these numbers can run: they are on a CPU, of a type that Numba knows,
    and no graph is being taken, which holds torch operators alone.
    """
    known = numbers.dtype in (torch.float32, torch.float64)
    return known and numbers.device.type == "cpu" and not torch.compiler.is_compiling()
