"""Row-wise Adagrad's state across changes of column sharding.

The optimiser keeps one number a row: the mean over the row's columns of all squared gradients so
far. A table in k column shards has k of them a row, each of its own columns, laid out one shard
after the other: [k x rows]. A checkpoint of another number of shards is converted: a shard's
number is the mean of those that cover its columns, weighted by how many they share.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from hisac_rec.checkpoints.location import reader

Columns = Sequence[tuple[int, int]]
"""First column and width of every column shard, ascending."""

WEIGHT = re.compile(r"(?:\w+\.)*(?:embeddings|embedding_bags)\.\w+\.weight")


def other_layouts(flat: Mapping[str, Any], stored: Metadata) -> list[str]:
    """Keys whose one-dimensional state is stored for other column shards."""
    found = []
    for key, value in flat.items():
        there = stored.state_dict_metadata.get(key)
        if (
            isinstance(value, ShardedTensor)
            and WEIGHT.search(key)
            and isinstance(there, TensorStorageMetadata)
            and len(there.size) == len(value.size()) == 1
            and _columns(stored, key, flat) != columns_here(flat[_weight_of(key, flat)])
        ):
            found.append(key)
    return found


def load_converted(
    path: Path, keys: Sequence[str], flat: Mapping[str, Any], stored: Metadata
) -> None:
    """Fill the local shards of ``keys``, in place. A rank on its own: which states it has a part
    of depends on the plan, so ranks could not read them together.

    Args:
        path: the checkpoint.
        keys: of :func:`other_layouts`.
        flat: what is to be loaded, by flat key; weights with their present layout in it.
        stored: the checkpoint's metadata.

    Cost: every rank reads a table's whole stored state, one table after the other.
    """
    for key in keys:
        target: ShardedTensor = flat[key]
        weight = flat[_weight_of(key, flat)]
        rows = int(weight.size()[0])
        before, now = _columns(stored, key, flat), columns_here(weight)
        whole = torch.empty(stored.state_dict_metadata[key].size)  # type: ignore[union-attr]
        with warnings.catch_warnings():  # that it reads alone
            warnings.simplefilter("ignore")
            dcp.load({key: whole}, storage_reader=reader(path), no_dist=True)
        shares = column_shares(before, now)
        for shard in target.local_shards():
            begin, length = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes[0]
            if not length:  # more ranks than rows
                continue
            # A shard may hold part of the rows of one column shard.
            column, row = divmod(begin, rows)
            part = whole.view(len(before), rows)[:, row : row + length]
            shard.tensor.copy_((shares[column] @ part).view_as(shard.tensor))


def column_shares(before: Columns, now: Columns) -> Tensor:
    """[now, before]: the share of each present shard's columns that each stored one covers."""
    shares = torch.zeros(len(now), len(before))
    for row, (begin, width) in enumerate(now):
        for column, (other, wide) in enumerate(before):
            common = min(begin + width, other + wide) - max(begin, other)
            shares[row, column] = max(0, common) / width
    return shares


def columns_there(weight: TensorStorageMetadata) -> Columns:
    """Column shards of a stored table."""
    return _distinct((chunk.offsets, chunk.sizes) for chunk in weight.chunks)


def columns_here(weight: ShardedTensor) -> Columns:
    """Column shards of a table as it is now."""
    shards = weight.metadata().shards_metadata
    return _distinct((shard.shard_offsets, shard.shard_sizes) for shard in shards)


def _columns(stored: Metadata, key: str, flat: Mapping[str, Any]) -> Columns:
    weight = _weight_of(key, flat)
    there = stored.state_dict_metadata[weight]
    if not isinstance(there, TensorStorageMetadata):
        raise ValueError(f"{weight} is not stored as a tensor")
    return columns_there(there)


def _weight_of(key: str, flat: Mapping[str, Any]) -> str:
    """The flat key of the table's rows whose state ``key`` is."""
    named = WEIGHT.search(key)
    if named is not None:
        for other in flat:
            if other != key and other.endswith(_path(named[0])) and other.startswith("model."):
                return other
    raise ValueError(f"{key}: the table's rows are not in the checkpoint")


def _path(found: str) -> str:
    """The part of a match that names the table: collection, kind, table, ``weight``."""
    return ".".join(found.split(".")[-4:])


def _distinct(shards: Any) -> Columns:
    return sorted({(int(offsets[1]), int(sizes[1])) for offsets, sizes in shards})
