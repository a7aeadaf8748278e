"""Where numbers of a running job go: the log line, TensorBoard and a JSON-lines file."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import torch
from torch.utils.tensorboard import SummaryWriter


class MetricsLog:
    """Writes metrics of rank 0; does nothing on other ranks.

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
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, "group": group, "time": time.time()} | values))
            file.write("\n")
        for name, value in values.items():
            self._board.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Flush TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def memory_gib(device: torch.device) -> float:
    """Peak device memory on a GPU, resident memory of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30
