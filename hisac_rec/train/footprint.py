"""How much memory a training step takes besides the tables, measured without the tables.

The first batch goes through the model on the CPU, with every table cut to a few rows: what the
dense part keeps for its backward pass does not depend on how many rows there are. It goes through
twice, the second time with histories cut short, which tells what an event takes from what a
candidate takes.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.inputs import InputSpec, Lookup
from hisac_rec.data.loader import RequestBatches
from hisac_rec.ops.loops import without_loops
from hisac_rec.planning.config import PlannerConfig
from hisac_rec.planning.footprint import Footprint, FootprintOf, dense_bytes
from hisac_rec.ranker.build import build_ranker
from hisac_rec.ranker.ranker import Ranker

if TYPE_CHECKING:
    from hisac_rec.train.job import Job

MEASURED_TOKENS = 16_384
"""Budget of the batch that is measured, at most: as ``loader.batch_tokens``."""

MEASURED_ROWS = 1_024
"""Rows of a table during the measurement, at most."""

MIB = 2**20


SHORTER = 4
"""Histories of the second measurement are this many times shorter than the mean."""

Sizes = tuple[float, float]
"""Bytes of (an input batch, what the dense part keeps for its backward pass, parameters left
out)."""


@dataclass(frozen=True)
class Measured:
    """What a step takes in proportion to what it works on."""

    event: Sizes
    """For each history event."""
    candidate: Sizes
    """For each candidate."""


def footprint_of(
    job: Job, model: Ranker, planner: PlannerConfig, events: float, candidates: float
) -> FootprintOf:
    """What a rank holds besides tables; what ``planner.reserve`` says replaces what is measured.

    Args:
        job: model and data; of the data the first batch is read.
        model: its unsharded ranker.
        planner: for which device, and what it is told to reserve.
        events: history events of a mean request.
        candidates: of a mean request.

    Returns:
        Gives whole MiB, so that processes whose floating-point sums differ agree.
    """
    reserve = planner.reserve
    dense = dense_bytes(model) if reserve.dense_gib is None else reserve.dense_gib * 2**30
    given = reserve.activation_kib
    needed = reserve.batches or given is None
    measured = measure(job, planner.topology.device) if needed else None

    def footprint(requests: int, history: float) -> Footprint:
        read, ranked = requests * events * history, requests * candidates
        batch = kept = 0.0
        if measured is not None:
            batch, kept = (
                read * event + ranked * candidate
                for event, candidate in zip(measured.event, measured.candidate, strict=True)
            )
        if given is not None:
            kept = given * 1024 * (read + ranked)
        return Footprint(
            dense=_whole(dense), batches=_whole(reserve.batches * batch), activations=_whole(kept)
        )

    return footprint


def measure(job: Job, device: str) -> Measured:
    """Bytes of training batches and of what their forward passes keep on such a device.

    Where the two batches do not tell events and candidates apart, both take the same.
    """
    spec = job.spec
    mean = job.data.stats.history_length_mean
    short = max(1, round(min(mean, spec.max_history or mean) / SHORTER))
    with nullcontext() if device == "cpu" else without_loops():
        passes = [_pass(job, cut) for cut in (spec.max_history, short)]
    rows, sizes = zip(*passes, strict=True)
    of_one = sizes[0][0] / max(1, sum(rows[0])), sizes[0][1] / max(1, sum(rows[0]))
    if abs(np.linalg.det(np.array(rows))) <= np.prod(rows[0]) / SHORTER:
        return Measured(of_one, of_one)
    solved = np.linalg.solve(np.array(rows), np.array(sizes))
    if (solved < 0).any():
        return Measured(of_one, of_one)
    (event, event_kept), (candidate, candidate_kept) = solved.tolist()
    return Measured((event, event_kept), (candidate, candidate_kept))


def _pass(job: Job, max_history: int | None) -> tuple[tuple[float, float], Sizes]:
    """((events, candidates), bytes) of the first batch with histories cut to ``max_history``."""
    budget = min(job.config.loader.batch_tokens, MEASURED_TOKENS)
    loader = job.config.loader.model_copy(update={"batch_tokens": budget})
    spec = replace(job.spec, max_history=max_history)
    batch = next(iter(RequestBatches(job.data, "train", spec, job.items, loader)), None)
    if batch is None:
        return (0.0, 0.0), (0.0, 0.0)
    few = replace(job.schema, spec=_cut(spec))
    with torch.random.fork_rng(devices=[]):  # what is trained must not depend on this
        ranker = build_ranker(job.config, few)
        kept = _kept_bytes(ranker, _within(batch, few.spec))
    counted = float(batch.num_events), float(batch.num_candidates)
    return counted, (float(batch_bytes(batch)), float(kept))


def batch_bytes(batch: RequestBatch) -> int:
    """Bytes of all tensors of a batch."""

    def size(value: Any) -> int:
        if isinstance(value, Tensor):
            return value.numel() * value.element_size()
        if isinstance(value, dict):
            return sum(map(size, value.values()))
        if isinstance(value, KeyedJaggedTensor):
            parts = [value.values(), value.lengths(), value.weights_or_none()]
            return sum(size(part) for part in parts if part is not None)
        return 0

    return sum(size(getattr(batch, field.name)) for field in fields(batch))


def _kept_bytes(ranker: Ranker, batch: RequestBatch) -> int:
    """Bytes of the tensors that autograd holds after a forward pass, each storage once."""
    own = {
        tensor.untyped_storage().data_ptr()
        for tensor in (*ranker.parameters(), *ranker.buffers(), *_tensors(batch))
    }
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = ranker(batch)
    found = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)
    del result
    return found


def _tensors(batch: RequestBatch) -> list[Tensor]:
    found: list[Tensor] = []
    for field in fields(batch):
        value = getattr(batch, field.name)
        found += [value] if isinstance(value, Tensor) else []
        found += value.values() if isinstance(value, dict) else []
        found += [value.values()] if isinstance(value, KeyedJaggedTensor) else []
    return found


def _cut(spec: InputSpec) -> InputSpec:
    """The same lookups of tables of few rows; what is summed where it lies stays so."""
    most = max(MEASURED_ROWS, spec.pool_min_rows) if spec.pooled() else MEASURED_ROWS
    lookups = tuple(_cut_lookup(lookup, min(lookup.rows, most)) for lookup in spec.lookups)
    return replace(spec, lookups=lookups, coded=min(spec.coded, MEASURED_ROWS))


def _cut_lookup(lookup: Lookup, rows: int) -> Lookup:
    vocabulary = lookup.vocabulary
    if vocabulary is not None:  # of a managed one it is only counted that rows are there
        vocabulary = None if lookup.managed else vocabulary.model_copy(update={"rows": rows})
    return replace(lookup, ids=rows, vocabulary=vocabulary)


def _within(batch: RequestBatch, spec: InputSpec) -> RequestBatch:
    """The batch with ids wrapped around into tables of few rows."""
    rows = {lookup.key: lookup.rows for lookup in spec.lookups}
    rows |= {lookup.table: lookup.rows for lookup in spec.lookups if lookup.table in spec.pooled()}
    rows |= {f"{side}.vector": spec.coded for side in spec.vector_sides}
    return replace(
        batch,
        features=_wrap(batch.features, rows),
        bags=_wrap(batch.bags, rows),
        semantics=_wrap(batch.semantics, rows),
    )


def _wrap(ids: KeyedJaggedTensor, rows: dict[str, int]) -> KeyedJaggedTensor:
    if not ids.keys():
        return ids
    lengths = torch.tensor(ids.length_per_key())
    limit = torch.tensor([rows[key] for key in ids.keys()]).repeat_interleave(lengths)  # noqa: SIM118
    return KeyedJaggedTensor(
        keys=ids.keys(),
        values=ids.values() % limit,
        weights=ids.weights_or_none(),
        lengths=ids.lengths(),
    )


def _whole(size: float) -> int:
    """Rounded up to a MiB."""
    return -int(-size // MIB) * MIB
