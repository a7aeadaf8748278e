"""``summary.json`` of a run: what happened, over all starts of its processes.

Written when training begins and when it ends, whatever ends it. Where it still says "running"
and the heartbeats are old, the processes were killed; the next start notes that they died.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rich.console import Console

from hisac_rec.checkpoints.saving import Checkpoints
from hisac_rec.config import Strict
from hisac_rec.errors import AskedToEndError, LostRankError
from hisac_rec.evaluation.table import Cells, rich_table
from hisac_rec.files import replace_text
from hisac_rec.train.distributed import Ranks
from hisac_rec.train.heartbeat import Heartbeats

log = logging.getLogger(__name__)

FILE = "summary.json"

Outcome = Literal[
    "running", "finished", "stopped early", "interrupted", "lost a rank", "failed", "died"
]


class Start(Strict):
    """One start of the run's processes, until they ended."""

    started: float
    """Seconds since 1970."""
    ended: float | None = None
    outcome: Outcome = "running"
    """"died": killed, or the machine went down; nobody could say so at the time."""
    error: str = ""
    resumed_from: int | None = None
    """Step of the checkpoint it went on from; None: it began anew."""
    step: int = 0
    """Last step done."""
    ranks: int
    automatic: bool = False
    """Started by torchrun after a failure."""


class Progress(Strict):
    """How far a training has come."""

    step: int = 0
    """Optimiser steps of the model."""
    epoch: float = 0.0
    """Passes over the training split."""
    candidates: int = 0
    """Training candidates of the model, each pass counted."""
    best: dict[str, float] = {}
    """Validation metrics of the best checkpoint."""
    stopped_early: bool = False
    """Evaluations no longer became better (``train.early_stop``)."""


class Summary(Strict):
    """``summary.json``."""

    outcome: Outcome = "running"
    error: str = ""
    progress: Progress = Progress()
    seconds: float = 0.0
    """Of all starts together."""
    resumes: int = 0
    """Starts that went on from a checkpoint."""
    restarts: int = 0
    """Starts by torchrun after a failure."""
    last_checkpoint: str = ""
    best_checkpoint: str = ""
    starts: list[Start] = []


class RunStory:
    """Keeps the summary of one run.

    Args:
        root: the run folder.
        checkpoints: of the run.
    """

    def __init__(self, root: Path, checkpoints: Checkpoints) -> None:
        self._root, self._checkpoints = root, checkpoints
        self._begun = False
        # Before this start writes heartbeats of its own.
        self._before = Heartbeats(root, 1).read_together()

    def read(self) -> Summary:
        """What the file says; empty where there is none."""
        try:
            return Summary.model_validate(json.loads((self._root / FILE).read_text()))
        except (OSError, ValueError):
            return Summary()

    def is_restarted(self, ranks: Ranks) -> bool:
        """Whether torchrun has started these ranks again, after they had worked on this run.

        A run that was there before torchrun was is somebody else's.
        """
        starts = self.read().starts
        if not ranks.restarts or ranks.launched is None or not starts:
            return False
        return starts[-1].started >= ranks.launched

    @contextmanager
    def told(self, progress: Callable[[], Progress]) -> Iterator[None]:
        """Around a training: how it ends is written down (rank 0)."""
        try:
            yield
        except BaseException as error:
            if self._begun:
                self.end(*_end_of(error), progress())
            raise
        if self._begun:
            done = progress()
            self.end("stopped early" if done.stopped_early else "finished", "", done)

    def lost(self, error: LostRankError) -> None:
        """A rank has not arrived, and this process is about to end (whichever rank it is)."""
        self.end(*_end_of(error), None)

    def begin(self, ranks: Ranks, *, resumed_from: int | None) -> None:
        """Training begins (rank 0)."""
        summary = self.read()
        starts = summary.starts
        if starts and starts[-1].outcome == "running":
            last, (step, seen) = starts[-1], self._before
            died = {"outcome": "died", "step": step, "ended": max(seen, last.started)}
            starts = [*starts[:-1], last.model_copy(update=died)]
        start = Start(
            started=time.time(),
            resumed_from=resumed_from,
            step=resumed_from or 0,
            ranks=ranks.world_size,
            automatic=ranks.restarts > 0,
        )
        self._begun = True
        self._write(summary, [*starts, start])

    def end(self, outcome: Outcome, error: str, progress: Progress | None = None) -> None:
        """Training has ended. ``progress`` None: as far as the heartbeats say."""
        summary = self.read()
        if not summary.starts:  # the folder was deleted
            return
        *earlier, last = summary.starts
        if progress is None:
            beats = Heartbeats(self._root, last.ranks).read().values()
            step = max((beat.step for beat in beats), default=last.step)
        else:
            step = progress.step
            summary = summary.model_copy(update={"progress": progress})
        ended = {"ended": time.time(), "outcome": outcome, "error": error, "step": step}
        self._write(summary, [*earlier, last.model_copy(update=ended)])

    def print(self) -> None:
        """The short table for people."""
        summary = self.read()
        if not summary.starts:
            return
        progress = summary.progress
        rows = [
            ["outcome", summary.outcome],
            ["steps", f"{progress.step:,} ({progress.epoch:.2f} epochs)"],
            ["candidates", f"{progress.candidates:,}"],
            *([name, f"{value:.4f}"] for name, value in progress.best.items()),
            ["time", f"{summary.seconds:,.0f} s"],
            ["starts", str(len(summary.starts))],
            ["  from a checkpoint", str(summary.resumes)],
            ["  by torchrun after a failure", str(summary.restarts)],
            ["last checkpoint", summary.last_checkpoint or "none"],
            ["best checkpoint", summary.best_checkpoint or "none"],
        ]
        Console().print(rich_table(Cells(title=str(self._root), header=["", ""], rows=rows)))

    def _write(self, summary: Summary, starts: list[Start]) -> None:
        steps = self._checkpoints.steps()
        whole = summary.model_copy(
            update={
                "outcome": starts[-1].outcome,
                "error": starts[-1].error,
                "seconds": sum((s.ended or s.started) - s.started for s in starts),
                "resumes": sum(start.resumed_from is not None for start in starts),
                "restarts": sum(start.automatic for start in starts),
                "last_checkpoint": str(self._checkpoints.find("last")) if steps else "",
                "best_checkpoint": str(self._checkpoints.find("best")) if steps else "",
                "starts": starts,
            }
        )
        try:
            replace_text(self._root / FILE, whole.model_dump_json(indent=1))
        except OSError as problem:
            log.warning("%s: not written: %s", self._root / FILE, problem)


def _end_of(error: BaseException) -> tuple[Outcome, str]:
    outcome: Outcome = "failed"
    if isinstance(error, AskedToEndError):
        outcome = "interrupted"
    elif isinstance(error, LostRankError):
        outcome = "lost a rank"
    return outcome, str(error).strip() or type(error).__name__
