"""What a rank holds on its device besides tables."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from hisac_rec.config import Strict
from hisac_rec.planning.model_tables import COLLECTIONS
from hisac_rec.planning.units import human_bytes

COPIES = 4
"""Of a dense weight: itself, its gradient and the two numbers of AdamW."""


class Footprint(Strict):
    """Bytes of every rank, whatever the plan."""

    dense: int = 0
    """Weights of the dense part, their gradients, optimiser state; buffers."""
    batches: int = 0
    """Input batches on the device at once."""
    activations: int = 0
    """What the dense part keeps for its backward pass."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.dense + self.batches + self.activations

    def describe(self) -> str:
        """``dense part 1.0 MiB, batches 2.0 MiB, activations 3.0 MiB``."""
        parts = {"dense part": self.dense, "batches": self.batches}
        parts["activations"] = self.activations
        return ", ".join(f"{name} {human_bytes(size)}" for name, size in parts.items())


FootprintOf = Callable[[int, float], Footprint]
"""(Requests of a rank, share of the length of histories) -> what it holds besides tables."""

NOTHING = Footprint()
"""Where it is not known, or counted in ``reserve.percentage``."""


def dense_bytes(model: nn.Module) -> int:
    """Bytes of everything in an unsharded model that is not in an embedding collection.

    Parameters count :data:`COPIES` times, buffers once.
    """
    tables = {
        id(tensor)
        for module in model.modules()
        if isinstance(module, COLLECTIONS)
        for tensor in (*module.parameters(), *module.buffers())
    }

    def size(tensor: torch.Tensor) -> int:
        return 0 if id(tensor) in tables else tensor.numel() * tensor.element_size()

    return COPIES * sum(map(size, model.parameters())) + sum(map(size, model.buffers()))
