"""Processes of cells that start at once: children of a server that has imported torch."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Protocol

import torch

LOG = "log.txt"
"""Name of a cell's log in the folder of its run."""

POLL = 0.1
"""Seconds between two looks at a running child."""

_lock = threading.Lock()


class Child(Protocol):
    """What a grid asks of a process; ``subprocess.Popen`` has it."""

    def wait(self, timeout: float | None = None) -> int:
        """Exit status, negative for a signal; raises ``subprocess.TimeoutExpired``."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


class Forked:
    """A cell of one rank in a process of its own, without the seconds that imports take.

    The server is a fresh interpreter without threads that has imported all a cell needs and
    does nothing but fork; its children are as apart from each other as interpreters.

    Args:
        task: path of ``task.json``; the log is written beside it.
        environment: of the child, instead of this process's own.
    """

    def __init__(self, task: Path, environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["hisac_rec.compare.cell"])
        self._process = context.Process(target=_work, args=(task, environment))
        # Starting a process looks after all others, and two threads must not read the exit
        # status of one.
        with _lock:
            self._process.start()

    def wait(self, timeout: float | None = None) -> int:
        """See :class:`Child`."""
        started = time.monotonic()
        while True:
            with _lock:
                status = self._process.exitcode
            if status is not None:
                return status
            if timeout is not None and time.monotonic() - started > timeout:
                raise subprocess.TimeoutExpired(self._process.name, timeout)
            time.sleep(POLL)

    def terminate(self) -> None:
        """See :class:`Child`."""
        self._process.terminate()

    def kill(self) -> None:
        """See :class:`Child`."""
        self._process.kill()


def _work(task: Path, environment: dict[str, str]) -> None:
    """Run a cell with all that it prints, from C++ too, in its log."""
    with task.with_name(LOG).open("wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    if threads := environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))  # the server has read its own already
    sys.argv = ["hisac_rec.compare.cell", str(task)]
    from hisac_rec.compare.cell import main

    main()
