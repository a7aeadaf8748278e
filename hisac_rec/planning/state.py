"""Bytes of weights and optimiser state that a shard really has."""

from __future__ import annotations

import torch
from torchrec.optim import optimizers, rowwise_adagrad

BYTES_PER_VALUE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "uint8": 1}
"""Type of a table -> bytes of a value."""

STATE_ITEM = 4
"""Bytes of a number of optimiser state; FBGEMM keeps it in fp32, whatever the table's type."""

ROW_WISE = (rowwise_adagrad.RowWiseAdagrad,)
PER_VALUE = {
    torch.optim.SGD: 0,
    optimizers.SGD: 0,
    torch.optim.Adagrad: 1,
    optimizers.Adagrad: 1,
    torch.optim.Adam: 2,
    optimizers.Adam: 2,
}
"""Fused optimiser -> numbers of state for each value of the table."""


def fused_optimizer(weight: torch.Tensor) -> type[torch.optim.Optimizer] | None:
    """The optimiser that ``apply_optimizer_in_backward`` gave a table; None: it is frozen."""
    found = getattr(weight, "_optimizer_classes", None)
    return found[0] if found else None


def state_bytes(optimizer: type[torch.optim.Optimizer] | None, rows: int, columns: int) -> int:
    """Bytes of the optimiser state of a shard.

    A row-wise optimiser keeps one number a row *and shard*: a table in k column shards has k.

    Raises:
        NotImplementedError: an optimiser of which nothing is known here.
    """
    if optimizer is None:
        return 0
    if optimizer in ROW_WISE:
        return STATE_ITEM * rows
    if optimizer in PER_VALUE:
        return STATE_ITEM * rows * columns * PER_VALUE[optimizer]
    raise NotImplementedError(f"how much state does {optimizer.__name__} keep?")
