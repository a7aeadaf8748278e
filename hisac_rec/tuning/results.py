"""What a search found: the best model file, all trials as CSV, a table for people."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from hisac_rec.config import dump_toml
from hisac_rec.data.contract import PreparedData
from hisac_rec.files import replace_text
from hisac_rec.tuning.book import TrialRow
from hisac_rec.tuning.space import Search

HEADER = ["model", "metric", "defaults", "best", "trial", "trials", "pruned", "failed", "seconds"]
"""Columns of ``tuning.md``; ``defaults`` is the trial of the model file itself."""

TERMINAL = ["model", "defaults", "best", "trial", "trials", "failed", "seconds"]
"""The columns that fit into 80 characters."""


@dataclass(frozen=True)
class ModelResult:
    """The trials of one model.

    Args:
        search: what was searched.
        rows: finished trials, the defaults first.
    """

    search: Search
    rows: list[TrialRow]

    @property
    def name(self) -> str:
        """Of the model."""
        return self.search.name

    @property
    def best(self) -> TrialRow | None:
        """The best complete trial, the first of equals; None where there is none."""
        sign = -1 if self.search.metric == "logloss" else 1
        complete = [row for row in self.rows if row.state == "complete"]
        return max(complete, key=lambda row: sign * (row.value or 0.0), default=None)

    @property
    def defaults(self) -> TrialRow | None:
        """The trial of the model file's own values."""
        return self.rows[0] if self.rows else None

    def progress(self, trials: int) -> str:
        """One line on the newest trial."""
        row = self.rows[-1]
        best = self.best
        found = f"best {_metric(best.value)} of trial {best.number}" if best else "none complete"
        return (
            f"trial {row.number + 1}/{trials} {row.state}: {self.search.metric} "
            f"{_metric(row.value)} in {row.seconds:.0f} s; {found}"
        )

    def cells(self) -> list[str]:
        """The model's row under :data:`HEADER`."""
        states = [row.state for row in self.rows]
        best, defaults = self.best, self.defaults
        return [
            self.name,
            self.search.metric,
            _metric(defaults.value if defaults else None),
            _metric(best.value if best else None),
            str(best.number) if best else "-",
            str(len(states)),
            str(states.count("pruned")),
            str(states.count("failed")),
            f"{sum(row.seconds for row in self.rows):,.0f}",
        ]


def write_model(folder: Path, result: ModelResult, data: PreparedData) -> None:
    """Write ``trials.csv`` and, where a trial is complete, ``best.toml``."""
    replace_text(folder / "trials.csv", trials_csv(result))
    best = result.best
    if best is None:
        return
    head = (
        f"# {Path(result.search.source).name} after hisac-rec tune on {data.manifest.name}: trial "
        f"{best.number} of {len(result.rows)},\n"
        f"# valid {result.search.metric} {_metric(best.value)}.\n\n"
    )
    replace_text(folder / "best.toml", head + dump_toml(result.search.config(best.values)))


def write_summary(
    out: Path, results: Sequence[ModelResult], data: PreparedData, trials: int
) -> None:
    """Write ``tuning.md``."""
    replace_text(out / "tuning.md", summary(results, data, trials, out))


def print_results(results: Iterable[ModelResult], console: Console | None = None) -> None:
    """Print one row a model (to standard output where no console is given)."""
    table = Table(box=SIMPLE)
    for title in TERMINAL:
        table.add_column(title, justify="left" if title == "model" else "right")
    for result in results:
        cells = dict(zip(HEADER, result.cells(), strict=True))
        table.add_row(*(cells[title] for title in TERMINAL))
    (console or Console()).print(table)


def trials_csv(result: ModelResult) -> str:
    """One line a trial; lists are written as JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = list(result.search.dimensions)
    metrics = ["auc", "gauc", "logloss"]
    columns = ["trial", "state", "value", *metrics, "evaluations", "seconds", *keys, "error"]
    writer.writerow(columns)
    for row in result.rows:
        writer.writerow(
            [
                row.number,
                row.state,
                "" if row.value is None else row.value,
                *(row.metrics.get(name, "") for name in metrics),
                row.evaluations,
                round(row.seconds, 2),
                *(_cell(row.values[key]) for key in keys),
                row.error,
            ]
        )
    return text.getvalue()


def summary(results: Sequence[ModelResult], data: PreparedData, trials: int, out: Path) -> str:
    """The page: a table of the models, then the best values of each."""
    lines = [
        f"# Hyper-parameter search on {data.manifest.name}",
        "",
        f"{trials} trials for each model; trial 0 is the model file itself. Chosen on the "
        "validation split; the test split was not read.",
        "",
        *_markdown(HEADER, [result.cells() for result in results]),
    ]
    for result in results:
        best = result.best
        lines += ["", f"## {result.name}", ""]
        if best is None:
            lines.append("Every trial failed; the reasons are in `trials.csv`.")
            continue
        own = result.search.defaults()
        rows = [[f"`{key}`", _text(own[key]), _text(best.values[key])] for key in own]
        lines += _markdown(["key", "model file", "best"], rows)
        lines += ["", f"`hisac-rec train {out / result.name}/best.toml {data.root} --out RUN`"]
    return "\n".join(lines) + "\n"


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---"] * len(header)
    return ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]


def _metric(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _text(value: Any) -> str:
    """A value for people."""
    return f"{value:.4g}" if isinstance(value, float) else _cell(value)


def _cell(value: Any) -> str:
    """A value in full."""
    return value if isinstance(value, str) else json.dumps(value)
