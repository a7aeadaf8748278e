"""Start real ranks of ``hisac-rec train``, break them, and tell what the model has learned.

Ranks are forked from a server that has imported everything: a start costs a second, not ten.
Each writes down which requests every step trained on, unbuffered, so that what it wrote survives
its own SIGKILL.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.faults.record import learned, lost_and_repeated, read_record, record_steps
from hisac_rec.config import dump_toml
from hisac_rec.data.contract import PreparedData
from hisac_rec.ranker.config import ModelConfig

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["hisac_rec.train.trainer", "hisac_rec.cli.app", "drills"])

PATIENCE = 120.0
"""Seconds after which a drill has failed."""


@dataclass
class Rank:
    """One started process."""

    process: Any
    output: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def exit_code(self) -> int:
        """Wait for its end."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, f"rank did not end:\n{self.text()[-3000:]}"
        return self.process.exitcode


@dataclass
class Drill:
    """One run folder and the ranks that work on it, start after start."""

    data: PreparedData
    folder: Path
    config: ModelConfig
    starts: int = 0
    ranks: list[Rank] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def records(self) -> Path:
        return self.folder / "records"

    def start(self, *options: str, ranks: int = 2) -> list[Rank]:
        """Start ranks as torchrun would."""
        self.records.mkdir(parents=True, exist_ok=True)
        model = self.folder / "model.toml"
        model.write_text(dump_toml(self.config))
        command = ["train", str(model), str(self.data.root), "--out", str(self.run), *options]
        port, self.starts = free_port(), self.starts + 1
        self.ranks = []
        for rank in range(ranks):
            environment = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": ranks,
                "LOCAL_WORLD_SIZE": ranks,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            output = self.folder / f"start{self.starts}-rank{rank}.log"
            process = SERVER.Process(target=work, args=(command, environment, output, self.records))
            process.start()
            self.ranks.append(Rank(process, output))
        return self.ranks

    def wait_for(self, step: int, rank: int = 0) -> None:
        """Until this start has done a step."""
        self.wait_until(lambda: self._last_step(rank) >= step, f"step {step} of rank {rank}")

    def wait_until(self, true: Callable[[], bool], what: str) -> None:
        """Until something is so; fails where all ranks end or time runs out before."""
        end = time.monotonic() + PATIENCE
        while not true():
            ended = all(rank.process.exitcode is not None for rank in self.ranks)
            assert not (ended and not true()), f"all ended before {what}: {self.ranks[0].text()}"
            assert time.monotonic() < end, f"waited too long for {what}: {self.ranks[0].text()}"
            time.sleep(0.005)

    def exit_codes(self) -> list[int]:
        return [rank.exit_code() for rank in self.ranks]

    def finish(self, *options: str, ranks: int = 2) -> None:
        """Start, and expect a good end."""
        self.start(*options, ranks=ranks)
        codes = self.exit_codes()
        assert codes == [0] * ranks, self.ranks[0].text()[-3000:] + self.ranks[-1].text()[-3000:]

    def text(self) -> str:
        """What the last start's ranks have said."""
        return "".join(rank.text() for rank in self.ranks)

    def summary(self) -> dict[str, Any]:
        return json.loads((self.run / "summary.json").read_text())

    def clean(self) -> None:
        """Leave no process behind."""
        for rank in self.ranks:
            if rank.process.exitcode is None:
                rank.process.kill()
                rank.process.join(10)

    def _last_step(self, rank: int) -> int:
        files = list(self.records.glob(f"*-{rank}-{self.ranks[rank].pid}-*.jsonl"))
        lines = [line for path in files for line in read_record(path)]
        return max((line["step"] for line in lines), default=-1)


def assert_each_once(drill: Drill) -> None:
    """Each training request exactly once an epoch in what the final model learned."""
    requests = drill.data.manifest.splits["train"].requests
    epochs = len(learned(drill.records))
    assert epochs == drill.config.train.epochs
    assert lost_and_repeated(drill.records, requests, epochs) == (0, 0)


def work(
    command: list[str],
    environment: dict[str, Any],
    output: Path,
    records: Path,
) -> None:
    """Be one rank: the command line as typed, in a fresh session."""
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update({name: str(value) for name, value in environment.items()})
    warnings.simplefilter("ignore")
    import torch

    from hisac_rec.cli import app

    torch.set_num_threads(1)
    record_steps(records, int(environment["RANK"]))
    sys.argv = ["hisac-rec", *command]
    app.main()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    """``folder`` on a disk of its own, of few MiB; skips the test where that needs more rights."""
    import subprocess

    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={mebibytes}m"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small file system can be made here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def children(pid: int) -> list[psutil.Process]:
    """Loader workers of a rank."""
    return psutil.Process(pid).children()
