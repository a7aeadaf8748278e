"""Start from the weights of another run, whose vocabularies and codebook may differ.

Rows of tables are matched by what they stand for (:mod:`hisac_rec.checkpoints.row_matching`), dense
parameters by name and shape. What has no counterpart keeps its fresh initial values. Stored tables
are read one shard after the other, so that no rank holds more of one than a rank of that run did.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor import Shard, ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from hisac_rec.checkpoints.column_state import column_shares, columns_here, columns_there
from hisac_rec.checkpoints.manifest import MANIFEST, read_manifest
from hisac_rec.checkpoints.restore import flat_state, require_whole
from hisac_rec.checkpoints.row_matching import Match, RowMatcher
from hisac_rec.checkpoints.stored_tensors import StoredTensors
from hisac_rec.checkpoints.warm_report import DenseReport, TableReport, WarmReport
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.ranker.build import optional_semantics
from hisac_rec.ranker.config import TableConfig
from hisac_rec.ranker.sparse import VECTOR_TABLE, EventEncoder
from hisac_rec.train.distributed import gather_numbers
from hisac_rec.train.job import Job
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.run import RunFolder
from hisac_rec.train.tables import TABLE_KEY


@dataclass(frozen=True)
class WarmStart:
    """What to start from.

    Args:
        source: a run, of which the best checkpoint is taken, or a checkpoint's folder.
        data: the data that it was trained on, where that has moved.
        optimizer: take the states of the optimisers over as well.
    """

    source: Path
    data: Path | None = None
    optimizer: bool = False


def warm_start(
    start: WarmStart, job: Job, model: DistributedModelParallel, optimizers: Optimizers
) -> WarmReport:
    """Overwrite fresh weights with those of another run, in place. Called on every rank.

    Returns:
        What was kept, grown and dropped, over all ranks.

    Raises:
        UserError: the source is no run and no checkpoint, is damaged, or its data is not there.
    """
    path, there = _source(start)
    manifest = read_manifest(path)
    require_whole(path, manifest)
    if there.manifest.fingerprint != manifest.data_fingerprint:
        raise UserError(
            f"{path}: was made on other data than {there.root} (fingerprint "
            f"{manifest.data_fingerprint[:12]}, that data has {there.manifest.fingerprint[:12]}); "
            "name the folder of its data with --warm-start-data"
        )
    source = StoredTensors(path)
    flat = flat_state(model, optimizers)
    matcher = RowMatcher(
        job.data,
        there,
        job.semantics,
        optional_semantics(there),
        job.config.tables.vocabulary,
        TableConfig.model_validate(manifest.architecture["tables"]).vocabulary,
    )
    tables = [
        _copy_table(source, key, value, flat, matcher, start.optimizer)
        for key, value in flat.items()
        if key.startswith("model.") and (name := TABLE_KEY.search(key)) and name[1] != VECTOR_TABLE
    ]
    not_alike: set[str] = set()
    if job.data.manifest.event_types != there.manifest.event_types:
        not_alike = _of_event_types(model, optimizers)
    dense = _copy_dense(source, flat, optimizers, start.optimizer, not_alike)
    gone = sorted(source.tables() - {table.name for table in tables} - {VECTOR_TABLE})
    return WarmReport(str(path), tables, dense, gone)


def _source(start: WarmStart) -> tuple[Path, PreparedData]:
    """The checkpoint, and the data that it was made on."""
    path, run = start.source, RunFolder(start.source)
    if (path / MANIFEST).is_file():
        run = RunFolder(path.resolve().parent.parent)
    elif run.exists():
        path = run.checkpoints().find("best")
    else:
        raise UserError(f"{path}: neither a run nor a checkpoint; nothing to start from")
    if start.data is None and not (run.root / "run.json").is_file():
        raise UserError(f"{path}: lies beside no run; name its data with --warm-start-data")
    return path, run.data(start.data)


def _copy_table(
    source: StoredTensors,
    key: str,
    weight: ShardedTensor,
    flat: dict[str, Any],
    matcher: RowMatcher,
    with_state: bool,
) -> TableReport:
    """One table's rows, and their optimiser state where asked for."""
    name = TABLE_KEY.search(key)
    assert name is not None
    table, (rows, dim) = name[1], weight.size()
    there = source.key_of(table)
    if there is None:
        return TableReport(table, 0, rows, 0, "new: that run had no such table")
    stored = source.of(there)
    assert stored is not None
    before, width = int(stored.size[0]), int(stored.size[1])
    if width != dim:
        return TableReport(table, before, rows, 0, f"rows of {width} there, of {dim} here")
    match = matcher.match(table)
    if isinstance(match, str):
        return TableReport(table, before, rows, 0, match)
    old = {id(shard): _rows_there(shard, match) for shard in weight.local_shards()}
    for offsets, values in source.shards(there):
        for shard in weight.local_shards():
            _copy_rows(shard, old[id(shard)], offsets, values)
    if with_state:
        _copy_state(source, key, there, weight, flat, match)
    kept = sum(
        int((old[id(shard)] >= 0).sum())
        for shard in weight.local_shards()
        if shard.metadata.shard_offsets[1] == 0
    )
    kept_of_all = int(gather_numbers([float(kept)]).sum())
    return TableReport(table, before, rows, kept_of_all, match.by)


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


def _of_event_types(model: DistributedModelParallel, optimizers: Optimizers) -> set[str]:
    """Names of the dense parameters with a row for each event type."""
    rows = {
        id(module.types.weight)
        for module in model.modules()
        if isinstance(module, EventEncoder) and module.types is not None
    }
    return {name for name, value in optimizers.dense.params.items() if id(value) in rows}


def _copy_dense(
    source: StoredTensors,
    flat: dict[str, Any],
    optimizers: Optimizers,
    with_state: bool,
    not_alike: set[str],
) -> list[DenseReport]:
    """Dense parameters of the same name and shape, but those that mean something else."""
    reports, wanted = [], {}
    for name in optimizers.dense.params:
        key = f"model.{name}"
        here, there = flat[key], source.of(key)
        if there is None:
            reports.append(DenseReport(name, tuple(here.shape), "new"))
        elif name in not_alike:
            reports.append(DenseReport(name, tuple(here.shape), "other event types: not kept"))
        elif there.size != here.shape:
            reports.append(
                DenseReport(name, tuple(here.shape), f"{tuple(there.size)} there: not kept")
            )
        else:
            reports.append(DenseReport(name, tuple(here.shape), "kept"))
            wanted[key] = here
            prefix = f"optimizers.dense.{name}."
            if with_state:
                wanted |= {
                    state: value
                    for state, value in flat.items()
                    if state.startswith(prefix) and source.of(state) is not None
                }
    source.read(wanted)
    return reports
