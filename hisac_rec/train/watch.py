"""A thread beside the training loop: heartbeats, signals, and ranks that do not arrive.

The loop may be blocked in a collective or on the device for as long as another rank likes. So
what must go on all the same is done here, on any backend: telling where this rank is, taking a
signal, and, where one rank is far behind the others, saying which and what it was doing.
"""

from __future__ import annotations

import logging
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from hisac_rec.errors import AskedToEndError, LostRankError
from hisac_rec.train.distributed import Ranks
from hisac_rec.train.heartbeat import Heartbeat, Heartbeats, State

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
AGAIN = 3.0
"""Seconds after which another signal is a second one. A launcher passes on what its processes
have had from the terminal or the scheduler as well."""
LOOKS = 20
"""How often heartbeats are written within the time-out, but no less than every 5 seconds."""
CLOCKS = 5.0
"""Seconds that the clocks of two hosts may differ."""
PACKAGE = Path(__file__).resolve().parents[1]

_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|timed out|timeout|pair closure|peer|nccl|gloo",
    re.IGNORECASE,
)


class Bystander:
    """Nobody watches: evaluation, and tests of parts."""

    asked_to_end = False

    def beat(self, doing: str, *, step: int | None = None, epoch: int | None = None) -> None:
        """Nothing."""


@dataclass(frozen=True)
class _Beat:
    doing: str
    beats: int
    step: int
    epoch: int
    since: float


class Watch(Bystander):
    """Watches this rank's training, and the other ranks through their heartbeats.

    A context manager; enter it in the main thread, or signals are left as they are.

    Args:
        root: the run folder; nothing is written before it is there.
        ranks: this process.
        timeout: how long a rank waits for another one before all end.
        on_lost: told why, before this process ends because another did not arrive.
    """

    def __init__(
        self,
        root: Path,
        ranks: Ranks,
        timeout: timedelta,
        on_lost: Callable[[LostRankError], None] = lambda error: None,
    ) -> None:
        self._root, self._ranks, self._on_lost = root, ranks, on_lost
        self._timeout = timeout.total_seconds()
        self._tick = min(5.0, self._timeout / LOOKS)
        self._files = Heartbeats(root, ranks.world_size)
        self._beat = _Beat("start", 0, 0, 0, time.time())
        self._main = threading.main_thread().ident
        self._signalled: float | None = None
        self._by = ""
        self._closing = threading.Event()
        self._seen: dict[int, tuple[float, float]] = {}
        self._looked, self._idle, self._beats = time.monotonic(), 0.0, 0
        self._warned = False
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)
        self._handlers: dict[int, Any] = {}
        self._old_fd = -1

    @property
    def asked_to_end(self) -> bool:  # type: ignore[override]
        """True after a signal."""
        return self._signalled is not None

    def beat(self, doing: str, *, step: int | None = None, epoch: int | None = None) -> None:
        """The main thread begins with something. Called equally often on every rank. O(1)."""
        last = self._beat
        self._beat = _Beat(
            doing,
            last.beats + 1,
            last.step if step is None else step,
            last.epoch if epoch is None else epoch,
            time.time(),
        )

    def show(self) -> None:
        """Write a heartbeat now: the run folder is there."""
        os.write(self._woken, b"\0")

    def explain(self, error: BaseException) -> LostRankError | None:
        """Which rank's end is behind this error of a collective; None where it is none of those."""
        broken: BaseException | None = error
        while broken and not (isinstance(broken, RuntimeError) and _LOST.search(str(broken))):
            broken = broken.__cause__
        if self._ranks.world_size == 1 or broken is None:
            return None
        for _ in range(10):  # who dies closes its connections before it is seen to be dead
            others = [b for b in self._files.read().values() if b.rank != self._ranks.rank]
            for beat in others:
                if beat.state == "failed":
                    return LostRankError(f"rank {beat.rank} failed: {beat.error}")
            for beat in others:
                if beat.state == "running" and beat.is_gone():
                    return LostRankError(
                        f"a rank is gone, killed or crashed: {beat.describe()}. {GO_ON}"
                    )
            time.sleep(0.1)
        cut = self._cut_off(others)
        return LostRankError(
            f"the connection to another rank broke ({_first_line(broken)})"
            + (f"; alive all the same, so the network to them is cut: {cut}" if cut else "")
            + f". {GO_ON}"
        )

    def _cut_off(self, others: list[Heartbeat]) -> str:
        """Other hosts whose ranks still write heartbeats, though no message of theirs arrives."""
        alive: dict[str, list[str]] = {}
        for beat in others:
            recent = abs(time.time() - beat.time) < 3 * self._tick + CLOCKS
            if beat.state == "running" and recent and beat.host != os.uname().nodename:
                alive.setdefault(beat.host, []).append(str(beat.rank))
        return "; ".join(f"host {host} (rank {', '.join(ranks)})" for host, ranks in alive.items())

    def __enter__(self) -> Watch:
        self._wake, self._woken = os.pipe()
        os.set_blocking(self._woken, False)
        if threading.current_thread() is threading.main_thread():
            # Python runs handlers in the main thread, between two of its instructions; the number
            # of the signal is in this pipe at once, also while that thread waits for a rank.
            self._old_fd = signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
            self._handlers = {number: signal.signal(number, _leave_it) for number in SIGNALS}
        if self._ranks.first:
            self._files.drop_others()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        os.write(self._woken, b"\0")
        self._thread.join()
        if self._handlers:
            signal.set_wakeup_fd(self._old_fd)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        os.close(self._wake)
        os.close(self._woken)
        state: State = "finished"
        if error is not None:
            state = "interrupted" if isinstance(error, AskedToEndError) else "failed"
        lost = self.explain(error) if error is not None else None
        self._write(state, "" if error is None else _first_line(lost or error))
        if lost is not None:
            raise lost from error

    def _work(self) -> None:
        while not self._closing.is_set():
            self._write("running")
            self._judge()
            if select.select([self._wake], [], [], self._tick)[0]:
                for number in os.read(self._wake, 64):
                    if number in SIGNALS:
                        self._on_signal(number)

    def _on_signal(self, number: int) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self._signalled is None:
            self._signalled = now
            if self._ranks.first:
                log.warning(
                    "%s: this step is finished, then a checkpoint is saved and the job ends; "
                    "a second signal ends it at once",
                    name,
                )
        elif now - self._signalled > AGAIN:
            log.error("a second %s: ended at once, without a checkpoint", name)
            os._exit(128 + number)

    def _write(self, state: State, error: str = "") -> None:
        if not self._root.is_dir():
            return
        mine = self._mine(state, error)
        try:
            self._files.write(mine)
            if self._ranks.first:
                self._files.write_together(mine)
        except OSError as problem:
            # Training matters more: it notices a full disk when it saves.
            log.debug("no heartbeat: %s", problem)

    def _mine(self, state: State, error: str) -> Heartbeat:
        beat = self._beat
        return Heartbeat(
            rank=self._ranks.rank,
            host=os.uname().nodename,
            pid=os.getpid(),
            state=state,
            step=beat.step,
            epoch=beat.epoch,
            doing=beat.doing,
            since=beat.since,
            at=_line_of(sys._current_frames().get(self._main or 0)),
            beats=beat.beats,
            time=time.time(),
            error=error,
        )

    def _judge(self) -> None:
        """Warn of a rank that is late, and end where it is later than the time-out."""
        beat, now = self._beat, time.monotonic()
        # Counted look by look: a job that was stopped as a whole has not waited meanwhile.
        self._idle += min(now - self._looked, 2 * self._tick)
        if beat.beats != self._beats:
            self._idle = 0.0
        self._looked, self._beats, idle = now, beat.beats, self._idle
        if self._ranks.world_size == 1 or idle < self._timeout / 10:
            self._seen, self._warned = {}, False
            return
        found = self._files.read()
        found[self._ranks.rank] = self._mine("running", "")
        late = self._late(found)
        if not late or self._closing.is_set():
            return
        others = [rank for rank in range(self._ranks.world_size) if rank not in late]
        speaks = self._ranks.rank == min(others, default=0)
        if idle >= self._timeout:
            error = LostRankError(
                f"waited {self._timeout / 60:g} minutes (train.timeout_minutes) for a rank: "
                f"{'; '.join(late.values())}. All ranks end. {GO_ON}"
            )
            if speaks:
                log.error("%s", error)
                self._write("failed", str(error))
                self._on_lost(error)
            else:
                time.sleep(2.0)  # a launcher ends all when the first one ends: let that one speak
            os._exit(error.exit_code)
        if speaks and not self._warned:
            self._warned = True
            log.warning(
                "the others have waited %.0f s ('%s'): %s",
                idle,
                beat.doing,
                "; ".join(late.values()),
            )

    def _late(self, found: dict[int, Heartbeat]) -> dict[int, str]:
        """Rank -> where it is, of those that the others wait for."""
        now = time.monotonic()
        silent: dict[int, str] = {}
        for rank in range(self._ranks.world_size):
            if rank not in found:
                silent[rank] = f"rank {rank} has not started"
                continue
            written, noticed = self._seen.get(rank, (0.0, now))
            if found[rank].time != written:
                self._seen[rank] = found[rank].time, now
            elif now - noticed > 3 * self._tick:
                silent[rank] = (
                    f"{found[rank].describe()}, and is silent since then: its process is stopped "
                    "or gone, or its host is"
                )
        if silent:
            return silent
        fewest = min(beat.beats for beat in found.values())
        if fewest == max(beat.beats for beat in found.values()):
            return {}
        return {r: b.describe() for r, b in found.items() if b.beats == fewest}


GO_ON = "Go on with --resume"


def _leave_it(number: int, frame: FrameType | None) -> None:
    """The thread takes care of the signal."""


def _first_line(error: BaseException) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) < 500 else f"{text[:500]}..."


def _line_of(frame: FrameType | None) -> str:
    """The innermost line of this package, which says more than a wait within a library."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            where = path.relative_to(PACKAGE.parent)
            return f"{where}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return ""
