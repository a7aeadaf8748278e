"""Rows that no step of training has touched read as the unknown id's.

An id that is new when the model is used has a row that holds what it was initialised with. Nothing
of the model was trained with that row. The unknown id's row was trained in the place of rare ids
(:mod:`hisac_rec.data.exposure`), and so is a better guess of what a new id is worth; it is also
where a new id starts when training goes on. A row is untouched where its optimiser state is zero.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from hisac_rec.data.vocabulary import CODES
from hisac_rec.ranker.sparse import VECTOR_TABLE
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.tables import TABLE_KEY

UNKNOWN = 0
"""Row of the unknown id, in every table but those of codes."""


@torch.no_grad()
def fill_untouched(model: DistributedModelParallel, optimizers: Optimizers) -> None:
    """Write the unknown id's row over the rows without optimiser state. Called on every rank.

    Tables of codes are left as they are, and so are tables whose unknown row was never trained.
    O(rows of this rank x d), and d numbers a table over the network.
    """
    moments = {
        name: next(iter(state.values()))
        for name, state in optimizers.sparse.state_dict()["state"].items()
        if state
    }
    found = []
    for key, value in model.state_dict().items():
        name = TABLE_KEY.search(key)
        if name is not None and name[1] != VECTOR_TABLE and not CODES.fullmatch(name[1]):
            # A rank without a shard of a table has no state of it, but takes part all the same.
            found.append((value, moments.get(key)))
    if not found:
        return
    width = max(value.size()[1] for value, _ in found)
    # Beside each unknown row: how many ranks hold each of its columns, where it was trained.
    rows = torch.zeros(len(found), 2, width)
    for number, (value, moment) in enumerate(found):
        for first, column, weights, state in _shards(value, moment):
            if first == UNKNOWN and _is_touched(state[:1]).all():
                columns = slice(column, column + weights.shape[1])
                rows[number, 0, columns] = weights[0].float().cpu()
                rows[number, 1, columns] = 1
    if dist.get_world_size() > 1:
        dist.all_reduce(rows)
    for (value, moment), (sums, counts) in zip(found, rows, strict=True):
        row = sums / counts.clamp_min(1)
        for _, column, weights, state in _shards(value, moment):
            columns = slice(column, column + weights.shape[1])
            if not counts[columns].all():
                continue
            untouched = ~_is_touched(state)
            weights[untouched] = row[columns].to(weights.device, weights.dtype)


def _is_touched(state: Tensor) -> Tensor:
    """[rows] of a shard's optimiser state, [rows] or [rows, columns]."""
    return (state != 0) if state.ndim == 1 else (state != 0).any(dim=1)


def _shards(value: Any, moment: Any) -> list[tuple[int, int, Tensor, Tensor]]:
    """(first row, first column, weights, optimiser state) of this rank's shards of a table."""
    if not isinstance(value, ShardedTensor):
        return [(0, 0, value, moment)]
    if moment is None:
        return []
    states = [shard.tensor for shard in moment.local_shards()]
    return [
        (*shard.metadata.shard_offsets, shard.tensor, state)
        for shard, state in zip(value.local_shards(), states, strict=True)
    ]
