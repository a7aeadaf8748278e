"""Read a split as token-budget batches of requests: sharded, shuffled, vectorised.

The way of the data: row groups -> *units* (a slice of a row group's users), dealt out to
ranks and worker processes -> a shuffle buffer of several units -> batches cut so that
each holds about the same number of tokens -> :class:`RequestBatch`. There is no Python
loop over rows, users or requests.

Legend: R requests, T history events, N candidates, D semantic-ID levels.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hisac_rec.config import Strict
from hisac_rec.data.assemble import BatchAssembler
from hisac_rec.data.batch import RequestBatch
from hisac_rec.data.consumed import Consumed
from hisac_rec.data.contract import PreparedData, Split
from hisac_rec.data.exposure import Forgetting
from hisac_rec.data.inputs import InputSpec
from hisac_rec.data.items import ItemStore
from hisac_rec.data.units import RequestTable, Unit, concat_tables, list_units, read_unit
from hisac_rec.errors import UserError

View: TypeAlias = Callable[[RequestTable], RequestTable]
"""Makes other requests of the users of a unit, e.g. :func:`hisac_rec.serving.moments.snapshots`."""


class LoaderConfig(Strict):
    """``[loader]`` of a model file: how training data is cut into batches."""

    batch_tokens: int = Field(default=65536, gt=0)
    """Token budget of one step over all ranks: history events plus ``candidate_cost`` a
    candidate. Global, so that the number of ranks does not change what a step sees."""
    candidate_cost: int = Field(default=16, ge=0)
    """How many tokens a candidate counts for in the budget."""
    max_candidates: int | None = Field(default=None, gt=0)
    """A step holds at most this many candidates over all ranks, however short histories are.
    Unset: as many as leave a pass 400 steps, from 256 to 2,048, because a small data set needs
    small steps."""
    shuffle_requests: int = Field(default=65536, gt=0)
    """Requests held for shuffling, per rank and worker; units are shuffled as well."""
    workers: int = Field(default=0, ge=0)
    """Loader processes per rank; 0 loads in a background thread of the training process."""


STEPS_A_PASS = 400
"""Steps that a pass should have, where they need not be smaller than the smallest."""
SMALLEST, LARGEST = 256, 2_048
"""Candidates of a step where the model file leaves it open."""


def resolve_loader(config: LoaderConfig, candidates: int) -> LoaderConfig:
    """The configuration with ``max_candidates`` set, for a training split of so many candidates."""
    if config.max_candidates is not None:
        return config
    most = min(LARGEST, max(SMALLEST, candidates // STEPS_A_PASS))
    return config.model_copy(update={"max_candidates": most})


def _keep_what_was_inherited(worker: int) -> None:
    """In a forked worker: the parent's objects are not this process's to destroy.

    The garbage collector could meet a process group in them, whose end waits for threads that a
    fork does not copy: for ever.
    """
    gc.freeze()


_BY_WORKER = " in DataLoader worker process "
"""In the text of an error that a worker has raised, and handed over before it ended."""


@dataclass(frozen=True)
class Shard:
    """Which share of the units a reader takes: number ``index`` of ``count``."""

    index: int = 0
    count: int = 1


class RequestBatches(IterableDataset[RequestBatch]):
    """All batches of one split for one rank, in a seeded order.

    Args:
        data: the prepared data set.
        split: "train", "valid" or "test".
        spec: what the model looks up.
        items: item features and codes (shared with worker processes by fork).
        config: budgets.
        rank: this rank's share.
        seed: shuffles units and requests; None reads in order.
        epoch: changes the order from epoch to epoch.
        skip: number of first batches to leave out (resume); they are cut, not built.
        without: requests that have been read already, by whomever.
        view: what to make of a unit's requests; None: they are read as they are.
        name_events: see :class:`~hisac_rec.data.assemble.BatchAssembler`.
        forget: likewise.

    Raises:
        UserError: damaged files, missing columns, ids out of range: naming file and row.
    """

    def __init__(
        self,
        data: PreparedData,
        split: Split,
        spec: InputSpec,
        items: ItemStore,
        config: LoaderConfig,
        *,
        rank: Shard = Shard(),
        seed: int | None = None,
        epoch: int = 0,
        skip: int = 0,
        without: Consumed | None = None,
        view: View | None = None,
        name_events: bool = False,
        forget: Forgetting | None = None,
    ) -> None:
        super().__init__()
        self._data = data
        self._split: Split = split
        self._spec = spec
        self._items = items
        self._config = config
        self._rank = rank
        self._seed = seed
        self._epoch = epoch
        self._skip = skip
        self._without = without if without is not None and len(without) else None
        self._view = view
        self._name_events = name_events
        self._forget = forget
        self._tokens = max(1, config.batch_tokens // rank.count)
        self._candidates = max(1, (config.max_candidates or LARGEST) // rank.count)

    @property
    def skip(self) -> int:
        """Number of first batches left out."""
        return self._skip

    def __iter__(self) -> Iterator[RequestBatch]:
        worker = get_worker_info()
        workers = worker.num_workers if worker else 1
        index = worker.id if worker else 0
        # Batches come round-robin from the workers, until one has run out: batch n of this
        # worker is the (n x workers + index)-th of all, or an earlier one.
        skip = (self._skip - index + workers - 1) // workers
        shard = Shard(self._rank.index * workers + index, self._rank.count * workers)
        assembler = BatchAssembler(
            self._spec, self._items, name_events=self._name_events, forget=self._forget
        )
        seed = (self._seed or 0, self._epoch, shard.index)
        for number, (table, rows) in enumerate(self._cuts(shard)):
            if number >= skip:
                yield assembler.assemble(table, rows, (*seed, number))
            elif worker:
                yield None  # type: ignore[misc]  # holds its place until make_loader drops it

    def _cuts(self, shard: Shard) -> Iterator[tuple[RequestTable, NDArray[np.int64]]]:
        """Tables in memory and, for each batch, the request rows of the table to take."""
        generator = np.random.default_rng([self._seed or 0, self._epoch, shard.index])
        left: RequestTable | None = None
        for table, last in self._buffers(shard):
            whole = table if left is None else concat_tables([left, table])
            order = np.arange(whole.num_requests)
            if self._seed is not None:
                generator.shuffle(order)
            cuts = self._cut(whole, order)
            # The unfinished batch at the end joins the next buffer, so that a buffer's end
            # does not make a small batch.
            keep = len(cuts) - 1 if last else len(cuts) - 2
            for begin, end in pairwise(cuts[: keep + 1]):
                yield whole, order[begin:end]
            left = None if last else whole.take(order[cuts[keep] :])

    def _buffers(self, shard: Shard) -> Iterator[tuple[RequestTable, bool]]:
        """Joined units of at least ``shuffle_requests`` requests; the flag marks the last."""
        units = self._units(shard)
        held: list[RequestTable] = []
        for position, unit in enumerate(units):
            table = read_unit(unit, self._data.manifest, self._spec)
            held.append(self._unread(table if self._view is None else self._view(table)))
            last = position == len(units) - 1
            if last or sum(t.num_requests for t in held) >= self._config.shuffle_requests:
                yield concat_tables(held), last
                held = []

    def _unread(self, table: RequestTable) -> RequestTable:
        if self._without is None:
            return table
        return table.take(np.flatnonzero(~self._without.holds(table.number)))

    def _units(self, shard: Shard) -> list[Unit]:
        units = list_units(self._data, self._split, shards=shard.count)
        if self._seed is not None:
            order = np.random.default_rng([self._seed, self._epoch]).permutation(len(units))
            units = [units[i] for i in order]
        return units[shard.index :: shard.count]

    def _cut(self, table: RequestTable, order: NDArray[np.int64]) -> list[int]:
        """Boundaries of the batches in ``order``: greedy under both budgets."""
        tokens = table.history_lengths() + self._config.candidate_cost * table.candidate_lengths()
        token_sum = np.cumsum(tokens[order])
        candidate_sum = np.cumsum(table.candidate_lengths()[order])
        cuts = [0]
        while cuts[-1] < len(order):
            begin = cuts[-1]
            token_base = token_sum[begin - 1] if begin else 0
            candidate_base = candidate_sum[begin - 1] if begin else 0
            end = min(
                np.searchsorted(token_sum, token_base + self._tokens, side="right"),
                np.searchsorted(candidate_sum, candidate_base + self._candidates, side="right"),
            )
            cuts.append(max(int(end), begin + 1))
        return cuts


def at_most(batches: Iterator[RequestBatch], candidates: int) -> Iterator[RequestBatch]:
    """The first batches, until they hold so many candidates."""
    left = candidates
    for batch in batches:
        yield batch
        left -= batch.num_candidates
        if left <= 0:
            return


def make_loader(batches: RequestBatches, workers: int) -> Iterator[RequestBatch]:
    """The batches of one epoch, made by ``workers`` processes (0: by the caller's own).

    Made anew for every epoch: worker processes that outlive one would go on with the old
    order. ``skip`` is exact for the same number of workers, also after one has run out.

    Raises:
        UserError: what :class:`RequestBatches` raises, or a worker was killed.
    """
    if workers:
        gc.collect()
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_keep_what_was_inherited if workers else None,
        # Of its own: otherwise it draws from the one that dropout goes on from, in its own time.
        generator=torch.Generator(),
    )
    try:
        yield from islice(loader, batches.skip if workers else 0, None)
    except UserError as error:
        # A worker hands its error over as the text of its traceback.
        raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip()) from None
    except (RuntimeError, OSError, EOFError) as error:
        # One that dies may be noticed as such, or in the midst of handing over a batch.
        if not workers or _BY_WORKER in str(error):
            raise
        raise UserError(
            "a loader process (loader.workers) was killed or crashed, most often by the kernel "
            "for want of memory; lower loader.workers or loader.shuffle_requests, or give the "
            "job more memory. Go on with --resume"
        ) from error
