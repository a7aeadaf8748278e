"""Start from the weights of another run, whose vocabularies and codebook may differ.

Rows of tables are matched by what they stand for (:mod:`hisac_rec.checkpoints.row_matching`), dense
parameters by name and shape. What has no counterpart keeps its fresh initial values. Stored tables
are read one shard after the other, so that no rank holds more of one than a rank of that run did.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.distributed.model_parallel import DistributedModelParallel

from hisac_rec.checkpoints.managed_state import collision_modules, load_moved, take_step_over
from hisac_rec.checkpoints.manifest import MANIFEST, read_manifest
from hisac_rec.checkpoints.restore import flat_state, require_whole
from hisac_rec.checkpoints.row_copy import copy_rows
from hisac_rec.checkpoints.row_matching import RowMatcher
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
        _copy_table(source, key, value, flat, model, matcher, start.optimizer)
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
    model: DistributedModelParallel,
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
    if table in collision_modules(model):
        match, kept = load_moved(source, table, model, flat, state=with_state)
        take_step_over(source, table, model)
    else:
        kept = copy_rows(source, key, there, flat, match, with_state=with_state)
    kept_of_all = int(gather_numbers([float(kept)]).sum())
    return TableReport(table, before, rows, kept_of_all, match.by)


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
