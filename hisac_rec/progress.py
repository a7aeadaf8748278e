"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere.

Only rank 0 shows anything. Use :func:`progress` for everything that may take longer than
two seconds::

    with progress("prepare users", total=len(users), unit="users") as advance:
        for chunk in chunks:
            work(chunk)
            advance(len(chunk))
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

PLAIN_SECONDS = 10.0
"""Without a terminal, one line at most this often."""

Advance = Callable[..., None]
"""``advance(steps, note="")``: tell that ``steps`` more units are done."""


def is_rank_zero() -> bool:
    """True on the process that may talk: rank 0, or the only one."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


@contextmanager
def progress(title: str, total: int | None = None, unit: str = "") -> Iterator[Advance]:
    """Show the progress of one piece of work.

    Args:
        title: what is being done.
        total: how many units there are, where known.
        unit: what a unit is, for the plain line.
    """
    if not is_rank_zero():
        yield lambda steps=1, note="": None
    elif sys.stderr.isatty():
        yield from _bar(title, total)
    else:
        yield from _lines(title, total, unit)


def _bar(title: str, total: int | None) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda steps=1, note="": bar.update(task, advance=steps, note=note)


def _lines(title: str, total: int | None, unit: str) -> Iterator[Advance]:
    done = 0
    start = last = time.monotonic()

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if now - last >= PLAIN_SECONDS:
            last = now
            of = f" of {total:,}" if total else ""
            tail = f" ({note})" if note else ""
            log.info("%s: %s%s %s, %.0f s%s", title, f"{done:,}", of, unit, now - start, tail)

    yield advance
