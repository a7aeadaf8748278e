"""Measure the speed of everything and write docs/results/speed.md: what ``make bench`` runs.

Every figure is a ratio whose two sides were taken in turns in one run; the last committed
page is compared, never enforced::

    python -m benchmarks.bench
    python -m benchmarks.bench routing voting
    python -m benchmarks.bench --report-only
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import date
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure as Drawing

from benchmarks.speed.measure import Figure, Topic
from hisac_rec.train.host_memory import keep_freed_memory
from hisac_rec.train.run import stack_versions

TOPICS = ("routing", "voting", "candidates", "serving", "training", "ranks", "pool")
PAGE = Path("docs/results/speed.md")
RECORD = Path("docs/results/speed")
MARKS = "osD^v<>Phd*X"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "topics", nargs="*", default=list(TOPICS), metavar="TOPIC", help=", ".join(TOPICS)
    )
    parser.add_argument("--report-only", action="store_true", help="write the page anew")
    arguments = parser.parse_args()
    keep_freed_memory()  # as every training does
    RECORD.mkdir(parents=True, exist_ok=True)
    path = RECORD / "figures.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    before = _committed(path) or dict(record)
    for name in [] if arguments.report_only else arguments.topics:
        sys.stderr.write(f"{name} ...\n")
        begin = time.monotonic()
        topic = importlib.import_module(f"benchmarks.speed.{name}").measure()
        record[name] = _as_record(topic, time.monotonic() - begin)
        sys.stdout.write(_table(record[name], before.get(name)) + "\n\n")
        path.write_text(json.dumps(record, indent=1) + "\n")
    _draw(record)
    PAGE.write_text(_page(record, before))


def _committed(path: Path) -> dict[str, Any]:
    """What the last commit holds of a JSON file; nothing outside a checkout."""
    try:
        shown = subprocess.run(
            ["git", "show", f"HEAD:{path.as_posix()}"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:  # no git
        return {}
    found: dict[str, Any] = json.loads(shown.stdout) if shown.returncode == 0 else {}
    return found


def _as_record(topic: Topic, seconds: float) -> dict[str, Any]:
    return {
        "title": topic.title,
        "text": topic.text,
        "date": date.today().isoformat(),
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "host": f"{platform.system()} {platform.machine()}",
        "versions": stack_versions(),
        "figures": [figure.as_dict() for figure in topic.figures],
        "curves": topic.curves,
    }


def _page(record: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    known = [name for name in TOPICS if name in record]
    lines = [
        "# Speed",
        "",
        "Ratios, each taken in one run with its rivals in turns: median over turns and, in",
        "brackets, the quartiles. Made by `make bench` (`python -m benchmarks.bench TOPIC` for one",
        "topic); no test enforces them. *Before* is the page of the commit before.",
    ]
    for name in known:
        topic = record[name]
        lines += [
            "",
            f"## {topic['title']}",
            "",
            topic["text"],
            "",
            _table(topic, before.get(name)),
        ]
        for number, title in enumerate(topic["curves"]):
            lines += ["", f"![{title}](speed/{name}-{number}.svg)"]
        lines += [
            "",
            f"{topic['date']}, {topic['host']}, {topic['threads']} threads, {topic['seconds']} s: "
            f"`python -m benchmarks.bench {name}`; "
            + ", ".join(f"{package} {version}" for package, version in topic["versions"].items()),
        ]
    return "\n".join(lines) + "\n"


def _table(topic: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    earlier = {one["name"]: Figure(**one) for one in (before or {}).get("figures", [])}
    lines = ["| figure | measured | goal | | before |", "| --- | ---: | ---: | --- | ---: |"]
    for one in topic["figures"]:
        figure = Figure(**one)
        verdict = {True: "met", False: "**missed**", None: ""}[figure.met]
        then = earlier.get(figure.name)
        shown = _number(then.value, then.unit) if then else ""
        span = f"({_number(figure.low, figure.unit)} to {_number(figure.high, figure.unit)})"
        cells = [
            figure.name,
            f"{_number(figure.value, figure.unit)} {span}",
            _goal(figure),
            verdict,
            shown,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _goal(figure: Figure) -> str:
    if not figure.goal:
        return ""
    sense, wanted = figure.goal.split()
    return f"at {'least' if sense == '>=' else 'most'} {_number(float(wanted), figure.unit)}"


def _number(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.3g} %"
    return f"{value:.3g}{'x' if unit == 'x' else ' ' + unit}"


def _draw(record: Mapping[str, Any]) -> None:
    """Cost against length, one file a plot; the same text for the same numbers."""
    for name, topic in record.items():
        for number, (title, series) in enumerate(topic["curves"].items()):
            with rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
                drawing = Drawing(figsize=(8, 5), layout="constrained")
                axes = drawing.subplots()
                for (label, points), mark in zip(series.items(), cycle(MARKS), strict=False):
                    width = 3.0 if label == "hisac" else 1.2
                    axes.plot(*zip(*points, strict=True), marker=mark, label=label, linewidth=width)
                axes.set(xscale="log", yscale="log", xlabel="events of history", ylabel=title)
                axes.legend(fontsize=8, ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))
                drawing.savefig(
                    RECORD / f"{name}-{number}.svg", metadata={"Date": None, "Creator": None}
                )


if __name__ == "__main__":
    main()
