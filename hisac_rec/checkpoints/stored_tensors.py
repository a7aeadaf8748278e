"""The tensors of a checkpoint one by one and shard by shard, read by each rank for itself.

Loading a checkpoint asks for tensors of the same shape, all ranks together. Whoever looks for other
rows than its own reads here, and holds no more of a table than the rank that wrote it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard
from torch.distributed._shard.sharded_tensor.api import ShardedTensorBase
from torch.distributed._shard.sharded_tensor.metadata import (
    ShardedTensorMetadata,
    TensorProperties,
)
from torch.distributed._shard.sharding_spec import ShardMetadata
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from hisac_rec.checkpoints.location import reader
from hisac_rec.train.tables import TABLE_KEY


class StoredTensors:
    """The tensors of a checkpoint.

    Args:
        path: the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.stored: Metadata = reader(path).read_metadata()

    def tables(self) -> set[str]:
        """Names of the tables in it."""
        names = (TABLE_KEY.search(key) for key in self.stored.state_dict_metadata)
        return {name[1] for name in names if name is not None}

    def of(self, key: str) -> TensorStorageMetadata | None:
        """How a tensor is stored."""
        found = self.stored.state_dict_metadata.get(key)
        return found if isinstance(found, TensorStorageMetadata) else None

    def key_of(self, table: str) -> str | None:
        """The key of a table's rows, whichever collection held it."""
        for key in self.stored.state_dict_metadata:
            name = TABLE_KEY.search(key)
            if name is not None and name[1] == table and key.startswith("model."):
                return key
        return None

    def read(self, tensors: dict[str, Any]) -> None:
        """Fill tensors in place."""
        with warnings.catch_warnings():  # that a rank reads alone
            warnings.simplefilter("ignore")
            dcp.load(tensors, storage_reader=reader(self._path), no_dist=True)

    def shards(self, key: str) -> Iterator[tuple[list[int], Tensor]]:
        """(offsets, values) of each stored shard of a tensor."""
        found = self.of(key)
        assert found is not None
        properties = TensorProperties(dtype=found.properties.dtype)
        every = [
            ShardMetadata(list(chunk.offsets), list(chunk.sizes), "rank:0/cpu")
            for chunk in found.chunks
        ]
        for one in every:
            if 0 in one.shard_sizes:
                continue
            values = torch.empty(one.shard_sizes, dtype=found.properties.dtype)
            whole = ShardedTensorBase._init_from_local_shards_and_global_metadata(
                [Shard(values, one)], ShardedTensorMetadata(every, found.size, properties)
            )
            # Asked for together with its size, though nothing is sent.
            whole._process_group = None  # type: ignore[attr-defined]
            self.read({key: whole})
            yield list(one.shard_offsets), values
