"""Measure models on a data set and write a dated results page.

Runs the same commands that a person would type, one after the other, and writes a Markdown
page with the commands, the versions and what came out::

    python benchmarks/results.py movielens-1m --raw ../shared/data/ml-1m
    python benchmarks/results.py synthetic
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from hisac_rec.evaluation.results import Report
from hisac_rec.evaluation.table import markdown
from hisac_rec.train.run import stack_versions


@dataclass(frozen=True)
class Study:
    """One results page: a data set, its preparation, and the models compared on it."""

    title: str
    dataset: str
    shown: str
    models: tuple[str, ...]
    prepare: tuple[str, ...] = ()
    goal: tuple[float, float] | None = None


STUDIES = {
    "movielens-1m": Study(
        title="MovieLens-1M",
        dataset="movielens_1m",
        shown="hisac",
        models=("hisac", "no_history", "mean_pooling"),
        prepare=("--set", "requests.train_group_events=8"),
        goal=(0.805, 0.735),
    ),
    "synthetic": Study(
        title="Synthetic data with long-tail interests",
        dataset="synthetic",
        shown="hisac",
        models=("hisac", "no_history", "mean_pooling", "recent50"),
    ),
}


@dataclass
class Shell:
    """Runs commands of ``hisac-rec`` and remembers them with their seconds."""

    typed: list[tuple[str, float]] = field(default_factory=list)

    def run(self, *words: str | Path) -> None:
        """Run one command; stop at the first that fails."""
        started = time.monotonic()
        command = [str(word) for word in words]
        subprocess.run([sys.executable, "-m", "hisac_rec", *command], check=True)
        self.typed.append((shlex.join(["hisac-rec", *command]), time.monotonic() - started))


def measure(study: Study, raw: Path | None, work: Path) -> tuple[Shell, Report]:
    """Prepare, train every model with its default configuration, evaluate on the test split."""
    shell = Shell()
    data = work / "data"
    source = ["--raw", raw] if raw else []
    shell.run("prepare", study.dataset, *source, "--out", data, *study.prepare)
    shell.run("semantic-ids", data)
    others = [model for model in study.models if model != study.shown]
    for model in (*others, study.shown):
        shell.run("train", model, data, "--out", work / model)
        against = (
            [w for o in others for w in ("--against", work / o)] if (model == study.shown) else []
        )
        shell.run("evaluate", work / model, *against)
    return shell, Report.load(work / study.shown)


def page(study: Study, shell: Shell, report: Report, work: Path, words: str) -> str:
    """The results page as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in stack_versions().items())
    commands = "\n".join(
        f"{line.replace(str(work), 'work'):<100} # {seconds:.0f} s" for line, seconds in shell.typed
    )
    verdict = _verdict(study, report)
    return (
        f"# {study.title}: measured {date.today().isoformat()}\n\n{verdict}\n\n{words}\n\n"
        f"One seed, default configurations, {os.cpu_count()} CPU cores "
        f"({platform.machine()}), Python {platform.python_version()}, {versions}.\n\n"
        f"Made by `python benchmarks/results.py`, which ran:\n\n```console\n{commands}\n```\n\n"
        + markdown(report).replace("# Evaluation on", "## Test split of", 1)
    )


def _verdict(study: Study, report: Report) -> str:
    name = report.predictors[0].name
    lines = []
    if study.goal:
        for metric, goal in zip(("auc", "gauc"), study.goal, strict=True):
            value = report.value(name, metric) or 0.0
            word = "reached" if value >= goal else f"missed by {goal - value:.4f}"
            lines.append(f"- {name}, test {metric.upper()} **{value:.4f}**; goal {goal}: {word}.")
    for other in report.predictors[1:]:
        for metric in ("auc", "gauc"):
            mine, theirs = (
                report.value(name, metric) or 0.0,
                report.value(other.name, metric) or 0.0,
            )
            word = "ahead of" if mine > theirs else "behind"
            lines.append(
                f"- {name} {word} {other.name}: {metric.upper()} {mine:.4f} to {theirs:.4f}."
            )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--raw", type=Path, help="folder of the publisher's files")
    parser.add_argument("--work", type=Path, default=None, help="folder for data and runs")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    study = STUDIES[arguments.study]
    work = arguments.work or Path("runs") / f"results-{arguments.study}"
    shell, report = measure(study, arguments.raw, work)
    path = arguments.out / f"{arguments.study}.md"
    notes = arguments.out / "notes" / f"{arguments.study}.md"
    words = notes.read_text().strip() if notes.is_file() else ""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(study, shell, report, work, words))
    sys.stdout.write(f"written to {path}\n")


if __name__ == "__main__":
    main()
