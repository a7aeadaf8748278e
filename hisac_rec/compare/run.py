"""Run the cells of a grid, each in its own process; one that fails does not stop the others."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path

from hisac_rec.compare.cell import Task
from hisac_rec.compare.cells import Cell, read, write
from hisac_rec.compare.children import LOG, Child, Forked
from hisac_rec.compare.grid import Grid
from hisac_rec.errors import UserError
from hisac_rec.progress import Advance, progress

log = logging.getLogger(__name__)

TAIL_LINES = 40
"""Last lines of a failed cell's log that are kept beside the cells."""

LAUNCHER = ("RANK", "LOCAL_", "WORLD_SIZE", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_")
"""Beginnings of what torchrun tells its children; cells are none of them."""


def run_grid(grid: Grid, *, jobs: int = 1, ranks: int = 1, keep_runs: bool = False) -> list[str]:
    """Run what is not finished.

    Args:
        grid: the cells.
        jobs: how many at a time; they share the processor cores.
        ranks: processes of each cell.
        keep_runs: leave checkpoints, predictions and logs behind.

    Returns:
        Names of the cells that failed; why is in their ``.error`` files.

    Raises:
        UserError: this process is one of several of torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("run compare in one process; --ranks N gives each of its cells N processes")
    failed: list[str] = []
    total = len(grid.tasks) + grid.done
    environment = _environment(jobs * ranks)
    with progress("compare", total, "cells") as advance, _children() as children:
        advance(grid.done)
        with ThreadPoolExecutor(jobs) as pool:
            running = {
                pool.submit(_run, task, ranks, environment, children, advance): task
                for task in grid.tasks
            }
            try:
                for number, one in enumerate(as_completed(running), start=grid.done + 1):
                    task = running[one]
                    _conclude(task, one.result(), f"{number}/{total} {task.name}", failed)
                    if not keep_runs and task.name not in failed:
                        shutil.rmtree(task.run)
                    advance(1, note=task.name)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                _stop(children)
                raise
    for task in grid.tasks:
        _remove_empty(list(task.run.parents)[:3])
    return sorted(failed)


def _run(
    task: Task,
    ranks: int,
    environment: dict[str, str],
    children: set[Child],
    advance: Advance,
) -> tuple[int, float]:
    """Run one cell from the start; (exit status, seconds)."""
    advance(0, note=task.name)
    shutil.rmtree(task.run, ignore_errors=True)
    task.run.mkdir(parents=True)
    path = task.run / "task.json"
    write(path, task)
    started = time.monotonic()
    child = _launched(path, ranks, environment) if ranks > 1 else Forked(path, environment)
    children.add(child)
    status = child.wait()
    children.discard(child)
    return status, time.monotonic() - started


def _launched(path: Path, ranks: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A cell of several ranks, under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    command = [sys.executable, *launcher, "-m", "hisac_rec.compare.cell", str(path)]
    with path.with_name(LOG).open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)


def _conclude(task: Task, result: tuple[int, float], title: str, failed: list[str]) -> None:
    status, seconds = result
    error = task.cell.with_suffix(".error")
    if status == 0 and task.cell.is_file():
        error.unlink(missing_ok=True)
        metrics = read(task.cell, Cell).scores.metrics
        log.info("%s: auc %s, gauc %s, %.0f s", title, metrics["auc"], metrics["gauc"], seconds)
        return
    failed.append(task.name)
    text = (task.run / LOG).read_text(encoding="utf-8", errors="replace")
    tail = [_without_paths(line, task) for line in text.strip().splitlines()[-TAIL_LINES:]]
    if status < 0:
        tail.append(f"killed by signal {-status} (9: often for want of memory)")
    error.parent.mkdir(parents=True, exist_ok=True)
    error.write_text("\n".join(tail) + "\n", encoding="utf-8")
    log.error("%s: failed after %.0f s: %s", title, seconds, tail[-1] if tail else status)


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove those that hold nothing."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _without_paths(line: str, task: Task) -> str:
    """The line without the folders of this machine: the file may be committed."""
    for path, name in ((task.run, task.name), (task.data, task.data_name)):
        line = line.replace(str(path), name)
    return line.replace(str(Path(sys.prefix)), "PREFIX")


def _environment(processes: int) -> dict[str, str]:
    """The children's environment: no traces of a launcher, and a fair share of the cores."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHER)}
    if processes > 1:
        cores = len(os.sched_getaffinity(0))
        kept.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # methods of the user's own
    return kept


@contextmanager
def _children() -> Iterator[set[Child]]:
    """The running children, ended with this process also where a scheduler ends it."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    children: set[Child] = set()
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, leave) if main else None
    try:
        yield children
    finally:
        _stop(children)
        if main:
            signal.signal(signal.SIGTERM, before)


def _stop(children: set[Child]) -> None:
    """End the children; cells that were stopped have no file, the next call starts them again."""
    left = list(children)
    for child in left:
        child.terminate()
    for child in left:
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
