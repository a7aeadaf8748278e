"""Fill sharded tables: seeded initial rows and frozen semantic vectors.

Every row's initial value depends on the seed, the table's name and the row number alone,
never on the number of ranks or the plan: 1 and 128 ranks start from the same model.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor

from hisac_rec.ranker.sparse import VECTOR_TABLE

TABLE_KEY = re.compile(r"\.(?:embeddings|embedding_bags)\.(\w+)\.weight$")
"""A table's key in the state of a sharded model."""

ROWS_PER_BLOCK = 1 << 16
"""Rows that share one random generator."""


def fill_tables(
    state: dict[str, Tensor | ShardedTensor],
    *,
    seed: int,
    scale: float,
    vectors: NDArray[np.floating] | None,
) -> None:
    """Write initial values into this rank's shards, in place.

    Args:
        state: ``state_dict()`` of the sharded model.
        seed: of the random rows.
        scale: rows are uniform in [-scale, scale].
        vectors: [I, s] semantic vectors for the frozen table, None where there is none.

    Cost: O(rows of this rank x d) for row- and table-wise shards; column-wise shards
    generate whole rows and keep their columns.
    """
    for key, value in state.items():
        name = TABLE_KEY.search(key)
        if name is None:
            continue
        table = name[1]
        for rows, columns, shard, width in _shards(value):
            if table == VECTOR_TABLE:
                if vectors is None:
                    raise ValueError("the model has a semantic table but no vectors were given")
                block = np.array(vectors[rows, columns], copy=True)
                shard.copy_(torch.from_numpy(block))
            else:
                _fill_random(shard, rows, columns, width, scale, seed ^ zlib.crc32(table.encode()))


def _shards(value: Tensor | ShardedTensor) -> Iterator[tuple[slice, slice, Tensor, int]]:
    """(rows, columns, local tensor, full width) of this rank's shards of one table."""
    if not isinstance(value, ShardedTensor):
        yield slice(0, value.shape[0]), slice(0, value.shape[1]), value, value.shape[1]
        return
    width = value.metadata().size[1]
    for shard in value.local_shards():
        row, column = shard.metadata.shard_offsets
        rows, columns = shard.metadata.shard_sizes
        yield slice(row, row + rows), slice(column, column + columns), shard.tensor, width


def _fill_random(
    shard: Tensor, rows: slice, columns: slice, width: int, scale: float, seed: int
) -> None:
    generator = torch.Generator()
    for block in range(rows.start // ROWS_PER_BLOCK, -(-rows.stop // ROWS_PER_BLOCK)):
        generator.manual_seed((seed << 20) + block)
        start = block * ROWS_PER_BLOCK
        drawn = torch.rand((ROWS_PER_BLOCK, width), generator=generator).mul_(2).sub_(1).mul_(scale)
        begin, end = max(rows.start, start), min(rows.stop, start + ROWS_PER_BLOCK)
        part = drawn[begin - start : end - start, columns]
        shard[begin - rows.start : end - rows.start].copy_(part)
