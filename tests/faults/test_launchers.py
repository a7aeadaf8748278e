"""Kills and signals through torchrun and torchx, as a person starts them. ``make drill``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from training import logged, small_config

from hisac_rec.config import dump_toml
from hisac_rec.data.contract import PreparedData
from hisac_rec.train.run import RunFolder

pytestmark = [pytest.mark.distributed, pytest.mark.drill]

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "train.epochs=4",
    "train.early_stop=0",
    "train.checkpoint_every=5",
    "loader.max_candidates=100",
)
PATIENCE = 300.0


class Job:
    """One launcher, the ranks below it, and the run folder they work on."""

    def __init__(self, folder: Path, data: PreparedData) -> None:
        self.folder, self.run, self.data = folder, folder / "run", data
        self.model = folder / "model.toml"
        self.model.write_text(dump_toml(small_config(*SETTINGS)))
        self.process: subprocess.Popen[bytes] | None = None
        self.output = folder / "output.txt"

    def start(self, *command: str) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )

    def torchrun(self, *options: str, resume: bool = False) -> None:
        self.start(
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", *options, "-m", "hisac_rec", "train", str(self.model)),
            *(str(self.data.root), "--out", str(self.run), *(["--resume"] if resume else [])),
        )

    def torchx(self, *options: str) -> None:
        self.start(
            *(str(Path(sys.executable).with_name("torchx")), "run", "-s", "local_cwd"),
            *("launch/components.py:train", "-j", "1x2", "--model", str(self.model)),
            *("--data", str(self.data.root), "--out", str(self.run), *options),
        )

    def ranks(self) -> list[int]:
        """Processes of the newest start, by their heartbeats."""
        found = json.loads((self.run / "heartbeat.json").read_text())["ranks"]
        return [rank["pid"] for rank in found]

    def wait_for(self, step: int, starts: int = 1) -> None:
        """Until the newest of so many starts has done a step."""

        def reached() -> bool:
            try:
                summary = json.loads((self.run / "summary.json").read_text())
                beat = json.loads((self.run / "heartbeat.json").read_text())
            except FileNotFoundError:
                return False
            alive = all(psutil.pid_exists(rank["pid"]) for rank in beat["ranks"])
            lines = (self.run / "metrics.jsonl").exists() and logged(self.run, "train", "loss")
            started = len(summary["starts"]) >= starts and len(beat["ranks"]) == 2
            return bool(started and alive and lines and max(lines) >= step)

        self.wait_until(reached)

    def wait_until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not true():
            assert self.process is not None
            assert self.process.poll() is None, self.output.read_text()[-5000:]
            assert time.monotonic() < end, self.output.read_text()[-5000:]
            time.sleep(0.02)

    def end(self) -> int:
        assert self.process is not None
        return self.process.wait(PATIENCE)

    def summary(self) -> dict[str, Any]:
        return json.loads((self.run / "summary.json").read_text())

    def kill_all(self) -> None:
        """The machine goes down."""
        assert self.process is not None
        parent = psutil.Process(self.process.pid)
        for process in [parent, *parent.children(recursive=True)]:
            process.kill()
        self.process.wait()

    def auc(self) -> float:
        return list(logged(self.run, "valid", "auc").values())[-1]


@pytest.fixture
def job(small_data: PreparedData, tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path, small_data)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.kill_all()


@pytest.fixture(scope="module")
def undisturbed(small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> float:
    """AUC of the run that nothing happens to."""
    alone = Job(tmp_path_factory.mktemp("undisturbed"), small_data)
    alone.torchrun()
    assert alone.end() == 0, alone.output.read_text()[-5000:]
    return alone.auc()


def test_torchrun_starts_the_ranks_again(job: Job, undisturbed: float) -> None:
    job.torchrun("--max-restarts", "2")
    job.wait_for(12)
    os.kill(job.ranks()[0], signal.SIGKILL)
    job.wait_for(40, starts=2)
    os.kill(job.ranks()[1], signal.SIGKILL)
    assert job.end() == 0, job.output.read_text()[-5000:]
    summary = job.summary()
    assert (summary["outcome"], summary["restarts"], summary["resumes"]) == ("finished", 2, 2)
    first, second, _ = (start["outcome"] for start in summary["starts"])
    assert first == "died"
    # torchrun kills the rank that is left where it has not told its story in time, which the wait
    # for a checkpoint in flight can make so.
    assert second in ("lost a rank", "died")
    assert job.auc() == pytest.approx(undisturbed, abs=0.002)


def test_torchrun_does_not_take_up_a_run_of_somebody_else(job: Job, undisturbed: float) -> None:
    job.torchrun()
    assert job.end() == 0
    before = (job.run / "summary.json").read_text()
    job.torchrun("--max-restarts", "1")
    assert job.end() != 0
    assert job.output.read_text().count("holds a run already") >= 2  # of the restarted ones too
    assert (job.run / "summary.json").read_text() == before


def test_a_signal_to_torchrun_saves_and_ends(job: Job, undisturbed: float) -> None:
    job.torchrun("--max-restarts", "2")
    job.wait_for(12)
    assert job.process is not None
    job.process.send_signal(signal.SIGTERM)
    assert job.end() != 0
    assert job.summary()["outcome"] == "interrupted"
    assert "asked to end by a signal: saved" in job.output.read_text()
    step = job.summary()["progress"]["step"]
    assert RunFolder(job.run).checkpoints().steps()[-1] == step >= 12
    job.torchrun(resume=True)
    assert job.end() == 0, job.output.read_text()[-5000:]
    assert job.auc() == pytest.approx(undisturbed, abs=0.002)


def test_torchx_restarts_in_place_and_goes_on_when_submitted_again(
    job: Job, undisturbed: float
) -> None:
    """A rank is killed, then everything: as a scheduler does, the same command is given again."""
    options = ("--max_restarts", "1", "--max_retries", "1")
    job.torchx(*options)
    job.wait_for(12)
    os.kill(job.ranks()[1], signal.SIGKILL)
    job.wait_for(40, starts=2)
    job.kill_all()
    job.torchx(*options)
    assert job.end() == 0, job.output.read_text()[-5000:]
    summary = job.summary()
    outcomes = [start["outcome"] for start in summary["starts"]]
    assert outcomes == ["lost a rank", "died", "finished"]
    assert (summary["restarts"], summary["resumes"]) == (1, 2)
    assert job.auc() == pytest.approx(undisturbed, abs=0.002)
