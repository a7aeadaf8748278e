"""Copy rows of a stored table, and their optimiser state, to where they belong in another one.

Stored tables are read one shard after the other, so that no rank holds more of one than a rank of
that run did.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor

from hisac_rec.checkpoints.column_state import column_shares, columns_here, columns_there
from hisac_rec.checkpoints.row_matching import Match
from hisac_rec.checkpoints.stored_tensors import StoredTensors


def copy_rows(
    source: StoredTensors,
    key: str,
    there: str,
    flat: dict[str, Any],
    match: Match,
    *,
    with_state: bool,
) -> int:
    """Fill this rank's shards of a table in place; rows without a match stay as they are.

    Args:
        source: the checkpoint.
        key: of the table's rows in ``flat``.
        there: and in the checkpoint.
        flat: the state to be filled.
        match: which row there a row here is.
        with_state: copy the optimiser's numbers of the rows as well.

    Returns:
        Rows that were found, each counted by one rank alone.
    """
    weight: ShardedTensor = flat[key]
    old = {id(shard): _rows_there(shard, match) for shard in weight.local_shards()}
    for offsets, values in source.shards(there):
        for shard in weight.local_shards():
            _copy_rows(shard, old[id(shard)], offsets, values)
    if with_state:
        _copy_state(source, key, there, weight, flat, match)
    return sum(
        int((old[id(shard)] >= 0).sum())
        for shard in weight.local_shards()
        if shard.metadata.shard_offsets[1] == 0
    )


def _rows_there(shard: Shard, match: Match) -> Tensor:
    first, count = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0]
    return torch.from_numpy(np.ascontiguousarray(match.rows(first, first + count)))


def _copy_rows(shard: Shard, old: Tensor, offsets: list[int], values: Tensor) -> None:
    """What a stored shard has of a shard here. O(rows of both)."""
    inside = ((old >= offsets[0]) & (old < offsets[0] + len(values))).nonzero().flatten()
    begin, width = shard.metadata.shard_offsets[1], shard.metadata.shard_sizes[1]
    left, right = max(begin, offsets[1]), min(begin + width, offsets[1] + values.shape[1])
    if not len(inside) or left >= right:
        return
    found = values[old[inside] - offsets[0], left - offsets[1] : right - offsets[1]]
    target = shard.tensor
    target[inside.to(target.device), left - begin : right - begin] = found.to(target)


def _copy_state(
    source: StoredTensors,
    key: str,
    there: str,
    weight: ShardedTensor,
    flat: dict[str, Any],
    match: Match,
) -> None:
    """The optimiser's numbers of the rows that were matched."""
    path = key.removeprefix("model.")
    for name, state in flat.items():
        if not (name.startswith("optimizers.sparse.") and path in name):
            continue
        stored_name = name.replace(path, there.removeprefix("model."))
        if source.of(stored_name) is None or not isinstance(state, ShardedTensor):
            continue
        if len(state.size()) > 1:  # a number a value: laid out as the rows are
            old = {id(shard): _rows_there(shard, match) for shard in state.local_shards()}
            for offsets, values in source.shards(stored_name):
                for shard in state.local_shards():
                    _copy_rows(shard, old[id(shard)], offsets, values)
            continue
        _copy_numbers_of_rows(source, stored_name, there, state, weight, match)


def _copy_numbers_of_rows(
    source: StoredTensors,
    name: str,
    there: str,
    state: ShardedTensor,
    weight: ShardedTensor,
    match: Match,
) -> None:
    """A number a row and column shard: see :mod:`hisac_rec.checkpoints.column_state`."""
    stored = source.of(there)
    assert stored is not None
    shares = column_shares(columns_there(stored), columns_here(weight))
    rows, before = int(weight.size()[0]), int(stored.size[0])
    for shard in state.local_shards():
        begin, count = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0]
        if not count:
            continue
        column, first = divmod(begin, rows)
        old = torch.from_numpy(np.ascontiguousarray(match.rows(first, first + count)))
        total = torch.zeros(count)
        for (offset,), values in source.shards(name):
            part, start = divmod(offset, before)
            inside = (old >= start) & (old < start + len(values))
            total[inside] += shares[column, part] * values[old[inside] - start]
        shard.tensor.copy_(total.view_as(shard.tensor))
