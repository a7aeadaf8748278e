"""Kill one of the ranks of a training twenty times, at random, and compare with one left alone.

::

    python -m benchmarks.faults.kills --page docs/results/faults.md

The training is ``hisac-rec train`` under torchrun's elastic agent, as one would type it. SIGKILL
goes to a random rank at a random moment: while it computes, saves or evaluates.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from benchmarks.faults.record import lost_and_repeated, read_record, trained_steps
from hisac_rec.data.contract import PreparedData
from hisac_rec.train.run import stack_versions

EPOCHS = 3
SETTINGS = (
    f"train.epochs={EPOCHS}",
    "train.early_stop=0",
    "train.checkpoint_every=4",
    "train.log_every=20",
    "tables.dim=16",
    "loader.batch_tokens=12000",
    "loader.max_candidates=256",
)
PATIENCE = 300.0
"""Seconds without a new step after which the drill has failed."""


@dataclass
class Killed:
    """What twenty kills have done."""

    kills: list[int]
    """Step at which each came."""
    checked: int
    """Checkpoints whose files were compared with their seals after a kill."""
    corrupt: int
    seconds: float


def command_of(data: Path, run: Path, records: Path, ranks: int, restarts: int) -> list[str]:
    """The training, as typed, with the recording around it."""
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(ranks), "--max-restarts", str(restarts)),
        *(str(Path(__file__).with_name("record.py")), str(records)),
        *("train", "hisac", str(data), "--out", str(run), *sets),
    ]


def environment() -> dict[str, str]:
    """Packages of this checkout, one thread a rank."""
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def run_killed(data: Path, folder: Path, *, kills: int, ranks: int, seed: int) -> Killed:
    """Train with ``kills`` random kills, restarted by torchrun each time."""
    records, run = folder / "records", folder / "run"
    generator = random.Random(seed)
    whole = steps_of(folder.parent / "undisturbed" / "run")
    moments = sorted(generator.sample(range(2, whole), kills))
    started = time.monotonic()
    done: list[int] = []
    checked = corrupt = 0
    with (folder / "log.txt").open("w") as log:
        job = subprocess.Popen(
            command_of(data, run, records, ranks, kills),
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            for moment in moments:
                pids, step = wait_for(job, records, ranks, moment)
                time.sleep(generator.uniform(0.0, 0.3))
                os.kill(pids[generator.randrange(ranks)], signal.SIGKILL)
                done.append(step)
                bad, good = checkpoints_with_damage(run)
                checked, corrupt = checked + good + bad, corrupt + bad
                wait_for_end(pids)
            if job.wait(PATIENCE * 4):
                raise RuntimeError(f"the training failed: {folder / 'log.txt'}")
        finally:
            job.kill()
    return Killed(done, checked, corrupt, time.monotonic() - started)


def wait_for(
    job: subprocess.Popen[bytes], records: Path, ranks: int, step: int
) -> tuple[list[int], int]:
    """Until all ranks of the newest start have trained, and reached ``step``: their processes."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and job.poll() is None:
        newest = [max(records.glob(f"*-{rank}-*.jsonl"), default=None) for rank in range(ranks)]
        alive = [path for path in newest if path and Path(f"/proc/{pid_of(path)}").exists()]
        lines = [read_record(path) for path in alive]
        if len(alive) == ranks and all(lines):
            reached = min(one[-1]["step"] for one in lines)
            if reached >= step:
                return [pid_of(path) for path in alive], reached
        time.sleep(0.01)
    raise RuntimeError(f"step {step} was not reached within {PATIENCE:.0f} s")


def wait_for_end(pids: list[int]) -> None:
    """Until none of these processes runs any more."""
    end = time.monotonic() + PATIENCE
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > end:
            raise RuntimeError(f"processes {pids} did not end after the kill of one of them")
        time.sleep(0.05)


def pid_of(record: Path) -> int:
    """Process that writes a record."""
    return int(record.stem.split("-")[2])


def checkpoints_with_damage(run: Path) -> tuple[int, int]:
    """(corrupt, whole) checkpoints that count, by the seals of their manifests."""
    bad = good = 0
    for manifest in sorted(run.glob("checkpoints/step-*/manifest.json")):
        try:
            files = json.loads(manifest.read_text())["files"]
            digests = {
                name: hashlib.sha256((manifest.parent / name).read_bytes()).hexdigest()
                for name in files
            }
        except FileNotFoundError:  # an old one, dropped meanwhile by the ranks that still run
            continue
        whole = all(digests[name] == files[name]["sha256"] for name in files)
        bad, good = bad + (not whole), good + whole
    return bad, good


def steps_of(run: Path) -> int:
    """Steps of a finished run."""
    return int(json.loads((run / "summary.json").read_text())["progress"]["step"])


def final_auc(run: Path, group: str = "valid") -> float:
    """Of the last evaluation."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["auc"] for line in lines if line["group"] == group][-1]


def test_auc(run: Path) -> float:
    """Of the last checkpoint on the test split, by ``hisac-rec evaluate``."""
    command = [sys.executable, "-m", "hisac_rec", "evaluate", str(run), "--checkpoint", "last"]
    subprocess.run([*command, "--draws", "0"], env=environment(), check=True, capture_output=True)
    report = json.loads((run / "report-test.json").read_text())
    return next(p["metrics"]["auc"]["value"] for p in report["predictors"])


def prepare(folder: Path) -> PreparedData:
    """Synthetic data with semantic IDs, by the command line."""
    data = folder / "data"
    settings = (
        "users=600",
        "items=300",
        "branches=[4, 6]",
        "length_min=20",
        "length_median=40",
        "length_max=120",
    )
    sets = [part for one in settings for part in ("--set", f"synthetic.{one}")]
    for command in (
        ["prepare", "synthetic", "--out", str(data), *sets],
        ["semantic-ids", str(data), "--set", "codes=[4, 6]"],
    ):
        subprocess.run(
            [sys.executable, "-m", "hisac_rec", *command],
            env=environment(),
            check=True,
            capture_output=True,
        )
    return PreparedData(data)


def measure(folder: Path, *, kills: int, ranks: int, seed: int) -> str:
    """Both trainings, and the page about them."""
    data = prepare(folder)
    requests = data.manifest.splits["train"].requests
    for name in ("undisturbed", "killed"):
        (folder / name).mkdir()
    alone = folder / "undisturbed"
    started = time.monotonic()
    command = command_of(data.root, alone / "run", alone / "records", ranks, 0)
    subprocess.run(command, env=environment(), check=True, capture_output=True)
    seconds = time.monotonic() - started
    result = run_killed(data.root, folder / "killed", kills=kills, ranks=ranks, seed=seed)
    rows = []
    for one in (alone, folder / "killed"):
        lost, repeated = lost_and_repeated(one / "records", requests, EPOCHS)
        rows.append((lost, repeated, final_auc(one / "run"), test_auc(one / "run")))
    summary = json.loads((folder / "killed" / "run" / "summary.json").read_text())
    return page(
        rows,
        result,
        summary,
        requests=requests,
        steps=steps_of(alone / "run"),
        extra=trained_steps(folder / "killed" / "records") - steps_of(alone / "run"),
        seconds=seconds,
        ranks=ranks,
        seed=seed,
    )


def page(
    rows: list[tuple[int, int, float, float]],
    result: Killed,
    summary: dict[str, object],
    *,
    requests: int,
    steps: int,
    extra: int,
    seconds: float,
    ranks: int,
    seed: int,
) -> str:
    """Markdown."""
    (lost0, repeated0, valid0, test0), (lost, repeated, valid, test) = rows
    versions = ", ".join(f"{name} {version}" for name, version in stack_versions().items())
    return f"""# Twenty random kills

`hisac-rec train` on {ranks} ranks under torchrun's elastic agent, on synthetic data: {EPOCHS}
epochs of {requests:,} requests, {steps:,} steps, a checkpoint every 4 steps and after each epoch.
SIGKILL went to a random rank at {len(result.kills)} random moments, up to 0.3 s after these steps:
{", ".join(map(str, result.kills))}. torchrun started all ranks again each time
({summary["restarts"]} restarts, {summary["resumes"]} from a checkpoint).

| | left alone | killed {len(result.kills)} times | goal | |
| --- | ---: | ---: | ---: | --- |
| requests lost, of {requests * EPOCHS:,} | {lost0} | {lost} | 0 | {word(not lost)} |
| requests repeated | {repeated0} | {repeated} | 0 | {word(not repeated)} |
| checkpoints compared with their seals after a kill | | {result.checked} | | |
| corrupt ones | | {result.corrupt} | 0 | {word(not result.corrupt)} |
| AUC, last validation | {valid0:.5f} | {valid:.5f} | within 0.002 | \
{word(abs(valid - valid0) <= 0.002)} |
| AUC, test split | {test0:.5f} | {test:.5f} | within 0.002 | \
{word(abs(test - test0) <= 0.002)} |
| steps trained again | | {extra} | | |
| seconds | {seconds:.0f} | {result.seconds:.0f} | | |

**Lost and repeated** are counted in what the final model learned. Every rank writes down which
requests each of its steps trains on. The history of a model is the chain of steps that made its
weights: a start that goes on from the checkpoint of step s strikes out what earlier starts had
trained after step s, because those weights were thrown away. A request is *lost* where an epoch of
that history lacks it, and *repeated* where it holds it twice. (`benchmarks/faults/record.py`)

Seconds say how long torchrun and the imports take to start {len(result.kills)} times on a busy
machine of two cores, not what a restart costs elsewhere.

{date.today()}, {platform.system()} \
{platform.machine()}: `python -m benchmarks.faults.kills --kills {len(result.kills)} --seed {seed} \
--page docs/results/faults.md`; {versions}
"""


def word(met: bool) -> str:
    """For the last column."""
    return "met" if met else "**missed**"


def main() -> None:
    """Parse, measure, write; exit code 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, help="Markdown file to write; else printed")
    parser.add_argument("--keep", type=Path, help="folder for data and runs, kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        text = measure(folder, kills=given.kills, ranks=given.ranks, seed=given.seed)
    if given.page is None:
        sys.stdout.write(text)
    else:
        given.page.write_text(text)
    sys.exit(int("**missed**" in text))


if __name__ == "__main__":
    main()
