"""Where numbers of a running job go: the log line, TensorBoard and a JSON-lines file."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import psutil
import torch
from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)


class MetricsLog:
    """Writes metrics of rank 0; does nothing on other ranks. Storage that does not take them is
    no reason to end a training: that is told when it does not take a checkpoint.

    Args:
        folder: the run folder.
        active: True on rank 0.
    """

    def __init__(self, folder: Path, active: bool) -> None:
        self._path = folder / "metrics.jsonl"
        self._board = SummaryWriter(str(folder / "tensorboard")) if active else None

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        """Record ``values`` of one ``group`` (train, valid) at a step."""
        if self._board is None:
            return
        line = json.dumps({"step": step, "group": group, "time": time.time()} | values)
        try:
            with self._path.open("a") as file:
                file.write(f"{line}\n")
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)
        except OSError as error:
            log.warning("%s: metrics of step %d not written: %s", self._path.parent, step, error)

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._board is None:
            return
        try:
            self._board.close()
        except OSError as error:  # must not hide the error that ends the job
            log.warning("%s: curves not written: %s", self._path.parent, error)


def memory_gib(device: torch.device) -> float:
    """Peak device memory on a GPU, resident memory of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30
