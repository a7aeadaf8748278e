"""Compress the histories of a split into a cache, on any number of ranks.

The same lookups, pipeline and plan as training: tables may be larger than one machine. What the
cache holds already is left out, so a second call goes on where a first one was killed, and
compresses again only who has new events.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel

from hisac_rec.checkpoints.saving import Position, first_difference, read_manifest
from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.contract import PreparedData, Split
from hisac_rec.data.jagged import offsets_of, take_ranges
from hisac_rec.data.units import RequestTable
from hisac_rec.errors import UserError
from hisac_rec.files import replace_text
from hisac_rec.methods.base import find_method
from hisac_rec.methods.hisac.config import HiSACConfig, tree_rules
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.progress import progress
from hisac_rec.ranker.ranker import Head
from hisac_rec.serving.cache import (
    AGAINST,
    AGAINST_PATH,
    MANIFEST,
    NEWEST,
    At,
    Cache,
    CacheManifest,
    CacheWriter,
    Keys,
    joined,
    pack,
)
from hisac_rec.serving.moments import snapshots
from hisac_rec.serving.precision import Precision, squared_error
from hisac_rec.train.distributed import Ranks, gather_numbers
from hisac_rec.train.evaluate import load_ranker
from hisac_rec.train.job import Job, open_job
from hisac_rec.train.optim import Optimizers
from hisac_rec.train.pipeline import Batches, outputs
from hisac_rec.train.run import RunFolder, checkpoint_manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compressed:
    """What :func:`compress_run` did, over all ranks.

    Args:
        histories: compressed now.
        held: that were in the cache already, with no event since.
        seconds: of compressing.
        bytes: of the rows written.
        agents: of the rows written.
        events: of their histories.
        row_bytes: of one event's embedding in 32 bits.
        error: of the stored vectors, root mean square over that of the vectors.
    """

    histories: int
    held: int
    seconds: float
    bytes: int
    agents: int
    events: int
    row_bytes: int
    error: float

    @property
    def ratio(self) -> float:
        """Bytes of the histories' embeddings in 32 bits over bytes of the cache."""
        return self.events * self.row_bytes / max(1, self.bytes)


def compress_run(
    run: RunFolder,
    data: PreparedData,
    ranks: Ranks,
    out: Path,
    *,
    split: Split = "test",
    at: At = "last",
    age: int = 0,
    precision: Precision = "fp32",
    checkpoint: str = "best",
    planner: PlannerConfig | None = None,
) -> Compressed:
    """Compress every user's history of a split. Called on every rank.

    Args:
        run: a trained run.
        data: the data it was trained on, or later data of the same vocabularies.
        ranks: this process; need not be as many as trained.
        out: the cache, new or to be added to.
        split: whose histories.
        at: moments: of each user's first or last request there, or of each request.
        age: so long before them, in the data set's unit of time.
        precision: of the vectors.
        checkpoint: "best", "last" or a step.
        planner: where tables go; None for the devices that are there.

    Raises:
        UserError: the method keeps no agents, or ``out`` is a cache of another run, data,
            precision or kind of moment.
    """
    job = open_job(run.config(), data)
    path = run.checkpoints().find(checkpoint)
    manifest = describe(job, path, at=at, age=age, precision=precision)
    held = _open(out, manifest, ranks)
    model = load_ranker(job, path, ranks, planner)
    head = head_of(model)
    head.holds = True
    writer = CacheWriter(out, manifest, ranks.rank)
    agents, events = 0, 0
    squares = np.zeros(2)

    def view(table: RequestTable) -> RequestTable:
        found = snapshots(table, at, age)
        return found.take(np.flatnonzero(~_is_held(found, held, at)))

    feeder = Batches(job, ranks).in_order(split, view, name_events=True)
    names = data.read_parquet("vocab/user.parquet", ["value"])["value"].cast(pa.string())
    counts = data.manifest.splits[split]
    total = counts.requests if at == "requests" else counts.users
    started = time.perf_counter()
    with progress(f"compress {split}", total, "histories") as advance:
        for batch, output in outputs(model, Optimizers(model, job.config.train), ranks, feeder):
            rows = batch.request_rows
            if not rows.any():  # of nobody: this rank has run out
                continue
            tensors = {name: value.cpu() for name, value in output.items()}
            user, moment, number, seen = (column.numpy() for column in rows.T)
            keys = Keys(user, moment, number, seen, joined(names.take(pa.array(user))))
            writer.write(pack(keys, tensors, manifest, _as_they_are(batch, job, manifest)))
            agents += int(tensors["filled"].sum())
            squares += squared_error(tensors["vectors"][tensors["filled"]].numpy(), precision)
            events += int(batch.num_events)
            advance(len(rows) * ranks.world_size)
    writer.flush()
    seconds = time.perf_counter() - started
    mine = [float(n) for n in (writer.rows, writer.bytes, agents, events, *squares)]
    *counted, wrong, whole = gather_numbers(mine).sum(0).tolist()
    done, written, slots, read = map(int, counted)
    return Compressed(
        histories=done,
        held=total - done,
        seconds=seconds,
        bytes=written,
        agents=slots,
        events=read,
        row_bytes=4 * manifest.dim,
        error=(wrong / max(whole, 1e-30)) ** 0.5,
    )


def describe(
    job: Job, checkpoint: Path, *, at: At, age: int, precision: Precision
) -> CacheManifest:
    """The manifest of a cache of this checkpoint.

    Raises:
        UserError: the history method keeps no agents.
    """
    method = find_method(job.config.method)
    if method.memory is None:
        raise UserError(
            f"history.method = '{job.config.method}' keeps no agents: there is nothing to cache; "
            "methods that do: hisac, kmeans, lsh, time_patches, learned, twin_v2"
        )
    of = checkpoint_manifest(job, 1, Position(), {}, {})
    files = read_manifest(checkpoint).files
    digest = hashlib.sha256(repr(sorted((n, s.sha256) for n, s in files.items())).encode())
    fields, rejected = {"events": "float"}, {}
    path = "int32" if prod(job.spec.code_counts) < 1 << 31 else "int64"
    if "path" in {field.name for field in dataclasses.fields(method.memory)}:
        fields["path"] = path
    if votes_against(job):
        rejected = {AGAINST_PATH: path, AGAINST: "float"}
    return CacheManifest(
        run=digest.hexdigest(),
        method=job.config.method,
        data_fingerprint=of.data_fingerprint,
        semantics_fingerprint=of.semantics_fingerprint,
        dim=job.config.tables.dim,
        fields=fields,
        rejected=rejected,
        precision=precision,
        at=at,
        age=age,
        newest=job.config.ranker.recent,
        user_features=[lk.column for lk in job.spec.of_side("user") if lk.key != "user"],
    )


def votes_against(job: Job) -> bool:
    """Whether the memory of the job's histories holds votes against leaves."""
    config = job.config.method_config()
    shape = job.schema.method_shape(job.config.tables.dim)
    return isinstance(config, HiSACConfig) and tree_rules(config, shape).signed


def head_of(model: DistributedModelParallel) -> Head:
    """The dense part of a sharded model."""
    return next(module for module in model.modules() if isinstance(module, Head))


def _open(out: Path, manifest: CacheManifest, ranks: Ranks) -> Keys:
    """What ``out`` holds already; the folder and its manifest are there afterwards."""
    if (out / MANIFEST).is_file():
        cache = Cache(out)
        changed = first_difference(cache.manifest.model_dump(), manifest.model_dump())
        if changed:
            raise UserError(
                f"{out / MANIFEST}: a cache of something else: {changed} here; choose another "
                "--out, or delete it"
            )
        held = cache.keys
    else:
        none = np.zeros(0, np.int64)
        held = Keys(none, none, none, none)
    dist.barrier()
    if ranks.first:
        out.mkdir(parents=True, exist_ok=True)
        replace_text(out / MANIFEST, manifest.model_dump_json(indent=1))
        for left in out.glob(".part-*.partial"):
            left.unlink()
    dist.barrier()
    return held


def _is_held(table: RequestTable, held: Keys, at: At) -> np.ndarray:
    """[R] whether the cache has this history with as many events."""
    if at == "requests":
        return np.isin(table.number, held.number)
    user = table.users["user"][table.user_row].astype(np.int64)
    # A user's history only grows: user and length name it.
    most = 1 << 32
    return np.isin(user * most + table.visible, held.user * most + held.seen)


def _as_they_are(batch: RequestBatch, job: Job, manifest: CacheManifest) -> dict[str, pa.Array]:
    """What a cache keeps uncompressed: user features and newest events."""
    columns = {}
    for lookup in job.spec.of_side("user"):
        if lookup.key != "user":
            ids = batch.features[lookup.key].values()[batch.places[lookup.key]]
            columns[f"user_{lookup.column}"] = pa.array(ids.numpy(), pa.int32())
    bounds = batch.history_offsets.numpy()
    lengths = np.minimum(np.diff(bounds), manifest.newest)
    newest = take_ranges(bounds[1:] - lengths, lengths)
    request = np.repeat(np.arange(len(lengths)), lengths)
    moment = batch.request_rows[:, 1].numpy()[request]
    items = batch.history_items[batch.history_rows].numpy()
    values = {
        "newest_item": items[newest],
        "newest_type": batch.history_type.numpy()[newest],
        "newest_time": moment - batch.history_age.numpy()[newest].astype(np.int64),
    }
    at = pa.array(offsets_of(lengths), pa.int32())
    for name, kind in NEWEST.items():
        columns[name] = pa.ListArray.from_arrays(at, pa.array(values[name], kind))
    return columns


def print_compressed(done: Compressed) -> None:
    """What was compressed, as lines of the log."""
    log.info(
        "%s histories compressed, %s were in the cache already; %s a second",
        f"{done.histories:,}",
        f"{done.held:,}",
        f"{done.histories / max(done.seconds, 1e-9):,.0f}",
    )
    if done.histories:
        log.info(
            "%.1f agents, %s bytes a history of %s events: 1/%.0f of their embeddings in 32 bits",
            done.agents / done.histories,
            f"{done.bytes / done.histories:,.0f}",
            f"{done.events / done.histories:,.0f}",
            done.ratio,
        )
    if done.error:
        log.info(
            "vectors are off by %.2g of their size; what that costs in scores and AUC: "
            "'hisac-rec score --cache'",
            done.error,
        )
