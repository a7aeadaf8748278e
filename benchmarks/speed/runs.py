"""Prepared data and real training runs, each in a process of its own, as a person starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

WORK = Path("runs/speed")
"""Prepared data, kept between runs."""


def step_of(tokens: int) -> tuple[str, str]:
    """Settings of a step of so many tokens, and as many candidates to a token as by default."""
    return (f"loader.batch_tokens={tokens}", f"loader.max_candidates={tokens // 32}")


LARGE_STEP = step_of(262_144)
"""Four times the default tokens a step."""


@dataclass(frozen=True)
class Ran:
    """A finished training.

    Args:
        windows: the log lines' numbers, without the first window's.
        peak_gib: largest resident memory of the process, or of one that it started.
    """

    windows: list[dict[str, float]]
    peak_gib: float

    def candidates_per_second(self) -> float:
        """Of the whole run: windows are equally many steps."""
        each = [window["candidates_per_second"] for window in self.windows]
        return len(each) / sum(1 / one for one in each)

    def mean(self, name: str) -> float:
        """Over windows."""
        return sum(window[name] for window in self.windows) / len(self.windows)


def hisac_rec(*words: str) -> None:
    """Run one command, quietly."""
    _run([sys.executable, "-m", "hisac_rec", *words])


def prepared(name: str, *keys: str, codes: str | None = None) -> Path:
    """A synthetic data set with semantic IDs, made once; ``codes`` of the codebook's levels."""
    data = WORK / name
    if not (data / "semantic_ids.parquet").is_file():
        sets = [word for key in keys for word in ("--set", f"synthetic.{key}")]
        hisac_rec("prepare", "synthetic", "--out", str(data), *sets, "--force")
        hisac_rec("semantic-ids", str(data), *(["--set", f"codes={codes}"] if codes else []))
    return data


def torchrun(module: str, *arguments: str, ranks: int) -> None:
    """Run a module on several ranks of one thread each."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += [f"--nproc_per_node={ranks}", "-m", module, *arguments]
    _run(launch, dict(os.environ) | {"OMP_NUM_THREADS": "1"})


def train(
    model: str,
    data: Path,
    *keys: str,
    ranks: int = 1,
    threads: int | None = None,
    pinned: bool = False,
) -> Ran:
    """Train for a while and read the log.

    Args:
        model: its name.
        data: prepared.
        keys: ``--set`` of the run.
        ranks: processes, by torchrun where more than one.
        threads: of each process; None: what torch takes.
        pinned: hold each process to a core of its own.
    """
    environment = dict(os.environ)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    launch = [sys.executable, "-m"]
    if ranks > 1:
        launch += ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"]
    sets = [word for key in keys for word in ("--set", key)]
    module = "benchmarks.speed.pinned" if pinned else "hisac_rec"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        words = [*launch, module, "train", model, str(data), "--out", str(out), *sets]
        peak = _run(words, environment)
        lines = (out / "metrics.jsonl").read_text().splitlines()
    windows = [line for line in map(json.loads, lines) if line["group"] == "train"]
    return Ran(windows[1:-1] or windows, peak)


def _run(words: list[str], environment: dict[str, str] | None = None) -> float:
    """Run to the end, quietly; GiB of memory that it held at most."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            words, env=environment, stdout=subprocess.DEVNULL, stderr=said, text=True
        )
        _, status, used = os.wait4(process.pid, 0)  # of this child alone
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(words)}\n{said.read()[-4_000:]}")
    return float(used.ru_maxrss) / 2**20
