"""The state of a sharded model as whole tensors, in a form that no sharding changes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from hisac_rec.train.optim import Optimizers


def whole_state(model: torch.nn.Module, optimizers: Optimizers) -> dict[str, Tensor]:
    """Name -> weights and optimiser state, whole. Called on every rank.

    Row-wise Adagrad keeps one number a row and column shard: its mean over the row's columns
    is the same in every sharding.
    """
    weights = dict(model.state_dict())
    states = {
        f"{key}/{name}": value
        for key, state in optimizers.sparse.state_dict()["state"].items()
        for name, value in state.items()
    }
    found = {k: v.detach().clone() for k, v in weights.items() if not isinstance(v, ShardedTensor)}
    found |= _whole({k: v for k, v in weights.items() if isinstance(v, ShardedTensor)})
    for key, value in _whole(states).items():
        weight = weights[key.split("/")[0]]
        found[key] = value if value.ndim > 1 else _mean_of_row(value, weight)
    for key, state in optimizers.dense.state_dict()["state"].items():
        found |= {f"{key}/{k}": torch.as_tensor(v).detach().clone() for k, v in state.items()}
    return found


def _whole(tensors: dict[str, ShardedTensor]) -> dict[str, Tensor]:
    """Sharded tensors put together; a rank need not know those that it has no part of."""
    mine = {
        key: (
            tuple(value.size()),
            [(s.metadata.shard_offsets, s.tensor.detach().cpu()) for s in value.local_shards()],
        )
        for key, value in tensors.items()
    }
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    found: dict[str, Tensor] = {}
    for part in every:
        for key, (size, shards) in part.items():
            result = found.setdefault(key, torch.full(size, float("nan")))
            for offsets, piece in shards:
                ends = [begin + size for begin, size in zip(offsets, piece.shape, strict=True)]
                result[tuple(map(slice, offsets, ends))] = piece.float()
    assert not any(value.isnan().any() for value in found.values())
    return found


def _mean_of_row(state: Tensor, weight: ShardedTensor) -> Tensor:
    """[rows] of [shards of columns x rows]."""
    shards = weight.metadata().shards_metadata
    columns = sorted({(shard.shard_offsets[1], shard.shard_sizes[1]) for shard in shards})
    widths = torch.tensor([float(width) for _, width in columns])
    return widths @ state.view(len(widths), -1) / widths.sum()
