"""Feed batches to the pipeline so that ranks with unequal data stay in step.

Every rank calls :class:`Feeder` equally often. For each batch the ranks add up how many
candidates they hold, a batch ahead, so that none waits for the sum; a rank that has run out
works on an empty batch until all have, and then all stop together, as they do when one of them
was asked to end. The same sum scales the loss, so that a step's gradient is the mean over the
candidates of all ranks, however they are dealt out.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from hisac_rec.data.batch import RequestBatch
from hisac_rec.train.watch import Bystander

T = TypeVar("T")
_END = object()


@dataclass(frozen=True)
class Fed:
    """A batch in flight.

    Args:
        batch: on the host.
        candidates: over all ranks.
        waited: seconds this rank waited for its data.
        held_up: seconds it then waited for the other ranks.
    """

    batch: RequestBatch
    candidates: int
    waited: float
    held_up: float


@dataclass(frozen=True)
class _Asked:
    """A batch that was read, and the sums over all ranks once ``work`` is done."""

    batch: RequestBatch | None
    sums: torch.Tensor
    work: dist.Work | None
    waited: float


class Feeder(Iterator[RequestBatch]):
    """Iterator for ``TrainPipelineSparseDist.progress``; batches come out in step.

    Args:
        batches: this rank's batches.
        empty: makes the batch of a rank that has run out.
        world_size: number of ranks.
        group: a group of its own for the counts, so that they never mix with the model's
            collectives; None on one rank.
        watch: told what this rank does, and asked whether it is to end.
        pause: given how many batches and candidates (over all ranks) have been fed, whether to feed
            no more for now: the pipeline works off what it holds, and nothing is in flight between
            ranks then. Must say the same on every rank.
    """

    def __init__(
        self,
        batches: Iterable[RequestBatch],
        empty: Callable[[], RequestBatch],
        world_size: int,
        group: dist.ProcessGroup | None,
        watch: Bystander | None = None,
        pause: Callable[[int, int], bool] | None = None,
    ) -> None:
        self._batches = iter(batches)
        self._empty = empty
        self._world_size = world_size
        self._group = group
        self._in_flight: deque[Fed] = deque()
        self._asked: _Asked | None = None
        self._ended = False
        self._watch = watch or Bystander()
        self._pause = pause
        self._fed, self._candidates = 0, 0
        self.paused = False
        """Fed no more because ``pause`` said so; set to False to go on."""
        self.stopping = False
        """A rank was asked to end. All ranks know it after the same step."""

    def __next__(self) -> RequestBatch:
        """The next batch, with its ``loss_scale`` set; stops on all ranks at once."""
        if self._ended or self.paused:
            raise StopIteration
        asked = self._asked or self._ask()
        self._watch.beat("wait for the other ranks before a step")
        start = time.perf_counter()
        if asked.work is not None:
            asked.work.wait()
        reading, candidates, stopping = asked.sums.tolist()
        held_up = time.perf_counter() - start
        self.stopping = self.stopping or stopping > 0
        self._watch.beat("compute")
        if not reading:
            self._ended = True
            raise StopIteration
        # While this batch is computed, the ranks add up the next one.
        self._asked = self._ask()
        batch = self._empty() if asked.batch is None else asked.batch
        batch = batch.with_loss_scale(self._world_size / max(1, candidates))
        self._in_flight.append(Fed(batch, candidates, asked.waited, held_up))
        self._fed, self._candidates = self._fed + 1, self._candidates + candidates
        if self._pause is not None:
            self.paused = self._pause(self._fed, self._candidates)
        return batch

    def _ask(self) -> _Asked:
        """Read a batch and begin to add up what all ranks have; the same often on every rank."""
        self._watch.beat("read the next batch")
        start = time.perf_counter()
        batch = next(self._batches, None)
        waited = time.perf_counter() - start
        mine = [0, 0] if batch is None else [1, batch.num_candidates]
        sums = torch.tensor([*mine, int(self._watch.asked_to_end)])
        work = None
        if self._group is not None:
            work = dist.all_reduce(sums, group=self._group, async_op=True)
        self._watch.beat("compute")
        return _Asked(batch, sums, work, waited)

    @property
    def at_last(self) -> bool:
        """True where the ranks have run out and a single batch is left in flight."""
        return self._ended and len(self._in_flight) == 1

    @property
    def drained(self) -> bool:
        """True where nothing more is fed for now, and nothing is in flight."""
        return (self._ended or self.paused) and not self._in_flight

    def finished(self) -> Fed:
        """The batch that the pipeline has just finished (they finish in order)."""
        return self._in_flight.popleft()

    def close(self) -> None:
        """Stop reading. Nothing is left to run where training ends early or fails."""
        self._ended = True
        if isinstance(self._batches, Generator):
            self._batches.close()


def in_background(source: Iterable[T], ahead: int = 4) -> Generator[T, None, None]:
    """Iterate ``source`` in a thread, at most ``ahead`` items in advance.

    An exception of the source is raised here, in the consumer. Leaving early stops the thread.
    """
    items: queue.Queue[object] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in source:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # handed over, not swallowed
            put(error)

    thread = threading.Thread(target=work, name="loader", daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not _END:
            if isinstance(item, BaseException):
                raise item
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
