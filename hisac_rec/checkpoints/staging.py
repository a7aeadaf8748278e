"""A copy of a training's state in host memory, which the next steps do not change.

Buffers are kept from one checkpoint to the next: at most one is being written at a time.
"""

from __future__ import annotations

import copy
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensorBase

SPARE = 1.25
"""So many times the bytes of the copies must be free on a host before they are made."""


class Staging:
    """Copies flat states, each into the same buffers as the one before."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, flat: dict[str, Any]) -> dict[str, Any]:
        """The same state, its tensors in host memory and this object's own. O(bytes).

        The next call overwrites what this one returns.
        """
        copied = {key: self._copied(key, value) for key, value in flat.items()}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied

    def fits(self, flat: dict[str, Any], group: dist.ProcessGroup, per_host: int) -> bool:
        """Whether there is memory for the copies on every host; the same on all ranks.

        Args:
            flat: what would be copied.
            group: of all ranks, gloo.
            per_host: ranks that share a host's memory.
        """
        missing = sum(
            tensor.nbytes
            for key, value in flat.items()
            for name, tensor in _tensors(key, value)
            if name not in self._buffers
        )
        enough = not missing or missing * per_host * SPARE < psutil.virtual_memory().available
        agreed = torch.tensor([int(enough)])
        dist.all_reduce(agreed, dist.ReduceOp.MIN, group=group)
        return bool(agreed)

    def _copied(self, key: str, value: Any) -> Any:
        tensors = {name: self._buffered(name, tensor) for name, tensor in _tensors(key, value)}
        if isinstance(value, ShardedTensor):
            shards = value.local_shards()
            # The form without a process group: its shards need not lie where the plan says.
            return ShardedTensorBase._init_from_local_shards_and_global_metadata(
                [
                    Shard(tensor, shard.metadata)
                    for tensor, shard in zip(tensors.values(), shards, strict=True)
                ],
                value.metadata(),
            )
        return tensors[key] if isinstance(value, Tensor) else copy.deepcopy(value)

    def _buffered(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty_like(
                tensor, device="cpu", requires_grad=False, pin_memory=tensor.is_cuda
            )
            self._buffers[name] = buffer
        return buffer.copy_(tensor.detach(), non_blocking=True)


def _tensors(key: str, value: Any) -> list[tuple[str, Tensor]]:
    """The local tensors of an entry, each under a name of its own."""
    if isinstance(value, ShardedTensor):
        return [(f"{key}#{i}", shard.tensor) for i, shard in enumerate(value.local_shards())]
    return [(key, value)] if isinstance(value, Tensor) else []
