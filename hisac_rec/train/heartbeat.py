"""What each rank is doing, as files in the run folder that anyone may look at.

``heartbeat/rank-00003.json`` is written by that rank alone, from a thread, so that it stays fresh
while the rank waits; ``heartbeat.json`` is all of them together, by rank 0. A file that grows old
belongs to a process that is stopped or gone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

import psutil

from hisac_rec.config import Strict
from hisac_rec.files import replace_text

State = Literal["running", "finished", "interrupted", "failed"]


class Heartbeat(Strict):
    """One rank at one moment; times are seconds since 1970 on its own clock."""

    rank: int
    host: str
    pid: int
    state: State = "running"
    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    """Epoch being read, from 0."""
    doing: str = "start"
    """What it does now, in words."""
    since: float
    """When it began with that."""
    at: str = ""
    """Line of the program that its main thread is in."""
    beats: int = 0
    """Beginnings so far. Ranks begin the same things in the same order: the fewest is last."""
    time: float
    """When this was written."""
    error: str = ""
    """What it failed with."""

    def describe(self) -> str:
        """Where the rank is, for a message."""
        at = f" ({self.at})" if self.at else ""
        return (
            f"rank {self.rank} (host {self.host}, process {self.pid}) was last seen after step "
            f"{self.step}, epoch {self.epoch + 1}: '{self.doing}' for "
            f"{max(0.0, self.time - self.since):.0f} s{at}"
        )

    def is_gone(self) -> bool:
        """True where its process is known to have ended; only its own host can tell."""
        if self.host != os.uname().nodename:
            return False
        try:
            return psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


class Heartbeats:
    """The files of one run.

    Args:
        root: the run folder.
        world_size: number of ranks.
    """

    def __init__(self, root: Path, world_size: int) -> None:
        self._root, self._world_size = root, world_size

    def write(self, beat: Heartbeat) -> None:
        """Replace the file of one rank."""
        path = self._path(beat.rank)
        path.parent.mkdir(exist_ok=True)
        replace_text(path, beat.model_dump_json(indent=1))

    def read(self) -> dict[int, Heartbeat]:
        """Rank -> its last heartbeat, of those that have left one."""
        found = {}
        for rank in range(self._world_size):
            try:
                found[rank] = Heartbeat.model_validate(json.loads(self._path(rank).read_text()))
            except (OSError, ValueError):
                continue
        return found

    def write_together(self, mine: Heartbeat) -> None:
        """Replace ``heartbeat.json``: rank 0's step, epoch and time, and all ranks."""
        ranks = [beat.model_dump() for beat in (self.read() | {mine.rank: mine}).values()]
        whole = {"step": mine.step, "epoch": mine.epoch, "time": mine.time, "ranks": ranks}
        replace_text(self._root / "heartbeat.json", json.dumps(whole, indent=1))

    def read_together(self) -> tuple[int, float]:
        """Step and time of ``heartbeat.json``; zeros where there is none."""
        try:
            whole = json.loads((self._root / "heartbeat.json").read_text())
            return int(whole["step"]), float(whole["time"])
        except (OSError, ValueError, KeyError):
            return 0, 0.0

    def drop_others(self) -> None:
        """Remove what more ranks of an earlier start have left."""
        for path in (self._root / "heartbeat").glob("rank-*.json"):
            if int(path.stem.removeprefix("rank-")) >= self._world_size:
                path.unlink(missing_ok=True)

    def _path(self, rank: int) -> Path:
        return self._root / "heartbeat" / f"rank-{rank:05d}.json"
