"""What each stage of a preparation took: seconds, memory, bytes read and written.

The record outlives the process: a preparation that is killed and goes on adds to it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from hisac_rec.files import replace_text

PROC = Path("/proc/self")


@dataclass(slots=True)
class Stage:
    """One stage, over all starts."""

    title: str
    seconds: float = 0.0
    peak_bytes: int = 0
    """Largest resident memory of the process meanwhile, mapped files included."""
    read_bytes: int = 0
    written_bytes: int = 0
    """As the process asked the system for it; the system's cache may have answered."""


class Stages:
    """The stages so far, in the order of their first start.

    Args:
        path: where they are kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        known = json.loads(path.read_text()) if path.is_file() else []
        self._stages = {entry["title"]: Stage(**entry) for entry in known}

    @property
    def all(self) -> list[Stage]:
        """The stages so far."""
        return list(self._stages.values())

    @contextmanager
    def measure(self, title: str) -> Iterator[Callable[[], None]]:
        """Measure a stage, or another part of one.

        Yields:
            A function that books what was measured so far, for stages that are saved in parts.
        """
        stage = self._stages.setdefault(title, Stage(title=title))
        _forget_peak()
        seen = _now()

        def book() -> None:
            nonlocal seen
            now = _now()
            stage.seconds += now[0] - seen[0]
            stage.read_bytes += now[1] - seen[1]
            stage.written_bytes += now[2] - seen[2]
            stage.peak_bytes = max(stage.peak_bytes, _peak())
            seen = now
            entries = [asdict(entry) for entry in self.all]
            replace_text(self._path, json.dumps(entries, indent=2) + "\n")

        yield book
        book()


def _now() -> tuple[float, int, int]:
    counters = psutil.Process().io_counters()
    return time.monotonic(), counters.read_chars, counters.write_chars


def _forget_peak() -> None:
    """Let the kernel's record of the largest resident memory begin anew, where it can."""
    with suppress(OSError):
        (PROC / "clear_refs").write_text("5")


def _peak() -> int:
    """Largest resident memory since :func:`_forget_peak`; now where /proc does not say."""
    with suppress(OSError):
        for line in (PROC / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process().memory_info().rss)
