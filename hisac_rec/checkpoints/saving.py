"""The checkpoints of a run: listed, written whole or not at all, dropped when there are better.

``checkpoints/step-00001200/`` holds the tensors of all ranks and ``manifest.json``, which seals
their files by checksum; a checkpoint without a manifest does not count. Tensors are re-sharded on
load (:mod:`hisac_rec.checkpoints.restore`), so a checkpoint of two ranks loads on one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDoneError
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from hisac_rec.checkpoints.location import is_remote, remove, write_whole, writer
from hisac_rec.checkpoints.manifest import (
    MANIFEST,
    CheckpointManifest,
    Position,
    first_difference,
    flatten,
    read_manifest,
)
from hisac_rec.checkpoints.restore import load_checkpoint
from hisac_rec.checkpoints.seal import seal_files
from hisac_rec.checkpoints.staging import Staging
from hisac_rec.errors import UserError

__all__ = [
    "MANIFEST",
    "CheckpointManifest",
    "Checkpoints",
    "Keep",
    "Position",
    "first_difference",
    "flatten",
    "load_checkpoint",
    "read_manifest",
]

log = logging.getLogger(__name__)
T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""A rank that has written waits so long for those that have not."""


LINGER = timedelta(minutes=2)
"""And so long where the training has failed, be it because a rank is gone."""


@dataclass(frozen=True)
class Keep:
    """How many checkpoints stay.

    Args:
        last: the newest ones.
        best: and those of the best evaluations.
    """

    last: int = 2
    best: int = 1


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: ``<run>/checkpoints``, or a URL's path.
        keep: how many stay.
        per_host: ranks that share a host's memory; None: training waits while a checkpoint is
            written.
    """

    def __init__(self, folder: Path, keep: Keep | None = None, per_host: int | None = None) -> None:
        self.folder = folder
        self._keep = keep or Keep()
        self._per_host = per_host
        self._group: dist.ProcessGroup | None = None
        self._staging = Staging()
        self._writing: tuple[int, Future[None]] | None = None
        self._written: set[int] = set()

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        found = self.folder.glob(f"step-*/{MANIFEST}")
        return sorted(int(path.parent.name.removeprefix("step-")) for path in found)

    def path(self, step: int) -> Path:
        """Folder of one checkpoint."""
        return self.folder / f"step-{step:08d}"

    def find(self, which: str) -> Path:
        """Resolve "last", "best" or a step number.

        Raises:
            UserError: there is no such checkpoint; lists those there are.
        """
        steps = self.steps()
        if which == "best" and (best := self._best(steps)):
            return self.path(best[0])
        if which in ("last", "best") and steps:
            return self.path(steps[-1])
        if which.isdigit() and int(which) in steps:
            return self.path(int(which))
        raise UserError(
            f"{self.folder}: no checkpoint '{which}'; there "
            + (f"are steps {', '.join(map(str, steps))}" if steps else "is none yet")
        )

    def save(
        self, state: dict[str, Any], manifest: CheckpointManifest, files: dict[str, bytes]
    ) -> None:
        """Write a checkpoint, now or while training goes on; drop those that need not stay.

        Called on every rank. Waits for the one before, so that one at a time is being written.

        Args:
            state: of :func:`~hisac_rec.checkpoints.restore.flat_state`, as it is now.
            manifest: without its seals.
            files: name -> content of what lies beside the tensors, on the first rank.

        Raises:
            UserError: this or the one before could not be written.
        """
        step = manifest.position.step
        self.wait()
        if self._group is None:
            # Of its own: it is used beside the training's collectives, by another thread.
            self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        if self._per_host and self._staging.fits(state, self._group, self._per_host):
            state = self._staging.copy(state)  # the next steps change the original
            self._writing = (step, _in_thread(lambda: self._write(state, manifest, files)))
            return
        if self._per_host:
            log.warning(
                "step %d: no memory for a copy of the state, training waits for the checkpoint",
                step,
            )
        self._write(state, manifest, files)

    def check(self) -> None:
        """Called at every step: learn of a checkpoint that could not be written.

        Raises:
            UserError: names the checkpoint and the cause.
        """
        if self._writing is not None and self._writing[1].done():
            self._finish()

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            UserError: see :meth:`check`.
        """
        if self._writing is None:
            return
        step, work = self._writing
        if not work.done():
            started = time.perf_counter()
            log.info("waiting for the checkpoint of step %d to be written", step)
            work.exception()
            log.info("waited %.1f s for it", time.perf_counter() - started)
        self._finish()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Whatever ended the training, what is being written is written to its end.

        All ranks meet a ``UserError``. Anything else may be that a rank is no longer there, and
        then the others cannot finish: they wait a little, and leave what does not count.
        """
        try:
            if self._writing is not None and not isinstance(error, UserError | None):
                self._writing[1].exception(LINGER.total_seconds())
            self.wait()
        except NotDoneError:
            log.error("the checkpoint that was being written is left unfinished: no word of a rank")
        except UserError as problem:
            if error is None:
                raise
            log.error("%s", problem)  # beside what ended the training

    def _finish(self) -> None:
        assert self._writing is not None
        (_, work), self._writing = self._writing, None
        work.result()

    def _write(
        self, state: dict[str, Any], manifest: CheckpointManifest, files: dict[str, bytes]
    ) -> None:
        step = manifest.position.step
        final = self.path(step)
        # What cannot be renamed is written where it will be: its manifest, written last, is what
        # makes it count.
        draft = final if is_remote(final) else final.with_name(f".{final.name}.partial")
        try:
            self._on_first(lambda: self._clear(draft, files))
            dcp.save(state, storage_writer=writer(draft), process_group=self._group)
            sealed = manifest.model_copy(update={"files": seal_files(draft, self._group)})
            self._on_first(lambda: self._publish(draft, final, sealed))
        except dcp.api.CheckpointException as error:
            # The exception's own text is the tracebacks of all ranks.
            cause = next((failure[0] for failure in error.failures.values()), error)
            raise _not_written(final, cause) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise _not_written(final, error) from error

    def _clear(self, draft: Path, files: dict[str, bytes]) -> None:
        gone = sorted(self._written - set(self.steps()))
        if gone:
            log.warning(
                "%s: the checkpoints of steps %s are no longer there; going on with new ones",
                self.folder,
                ", ".join(map(str, gone)),
            )
            self._written -= set(gone)
        if is_remote(draft):  # what counts there no longer does, from now on
            (draft / MANIFEST).unlink(missing_ok=True)
        remove(draft)
        draft.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (draft / name).write_bytes(content)

    def _publish(self, draft: Path, final: Path, manifest: CheckpointManifest) -> None:
        write_whole(draft / MANIFEST, manifest.model_dump_json(indent=1).encode())
        if draft != final:
            remove(final)
            draft.rename(final)
        self._written.add(manifest.position.step)
        steps = self.steps()
        kept = {*steps[-self._keep.last :], *self._best(steps)[: self._keep.best]}
        for step in set(steps) - kept:
            # Without its manifest a checkpoint no longer counts: remove that first.
            (self.path(step) / MANIFEST).unlink()
            remove(self.path(step))
            self._written.discard(step)

    def _best(self, steps: list[int]) -> list[int]:
        """Those of ``steps`` that were evaluated, the best first, the earlier of two alike."""
        scores = {step: read_manifest(self.path(step)).score for step in steps}
        found = [(-score, step) for step, score in scores.items() if score is not None]
        return [step for _, step in sorted(found)]

    def _on_first(self, work: Callable[[], None]) -> None:
        """Work of rank 0 that all wait for, and whose failure all learn of.

        Raises:
            OSError: it failed, on whichever rank.
        """
        problem: list[str | None] = [None]
        if dist.get_rank() == 0:
            try:
                work()
            except Exception as error:
                problem = [f"{type(error).__name__}: {error}"]
        dist.broadcast_object_list(problem, src=0, group=self._group)
        if problem[0]:
            raise OSError(problem[0])


def _in_thread(work: Callable[[], None]) -> Future[None]:
    """Work of a thread that does not keep the process alive."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
            done.set_result(None)
        except BaseException as error:  # handed over, not swallowed
            done.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return done


def _not_written(path: Path, cause: BaseException) -> UserError:
    return UserError(
        f"{path}: the checkpoint could not be written: {cause}; mend that (free space, "
        "permissions), then go on from the one before with --resume"
    )
