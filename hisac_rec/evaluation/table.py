"""The report for people: rich tables on a terminal, Markdown in ``report.md``.

Both are made from the same cells. The terminal shows what fits into 80 columns; Markdown
shows every metric, and every predictor in every slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from hisac_rec.evaluation.report import Estimate, Report, SliceReport, SliceValues

TITLES = {
    "auc": "AUC",
    "gauc": "GAUC",
    "gauc_macro": "GAUC, users equal",
    "logloss": "logloss",
    "normalised_entropy": "norm. entropy",
    "calibration": "calibration",
    "ece": "ECE",
}
"""Metric -> column title."""

TERMINAL_METRICS = ("auc", "gauc", "logloss", "calibration")
DIFFERENCE_METRICS = ("auc", "gauc", "logloss")
AXES = {
    "history_length": "By history length (events)",
    "item_popularity": "By item popularity (training impressions)",
    "item_age": "By item age",
}
"""Axis of a slicing -> title of its table."""

NOTHING = "-"


@dataclass(frozen=True)
class Cells:
    """A table before it is drawn; the first column is text, the others are numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]
    """Cells may hold two lines: the value, and its interval below."""
    caption: str = ""


def print_report(report: Report, console: Console | None = None, *, slices: bool = True) -> None:
    """Print the report's tables to the console (standard output where absent)."""
    target = console or Console()
    for cells in _all_cells(report, TERMINAL_METRICS, _main_predictors(report), slices):
        target.print(_rich(cells))


def markdown(report: Report) -> str:
    """The whole report as Markdown text."""
    every = [predictor.name for predictor in report.predictors]
    head = (
        f"# Evaluation on {report.data}\n\n"
        f"{report.rows:,} candidates in {report.requests:,} requests of {report.users:,} users; "
        f"positive rate {report.positive_rate:.4f}. GAUC leaves out {report.left_out_users:,} "
        f"users ({report.left_out_rows:,} candidates) whose labels are all equal. "
        f"{_interval_note(report)}\n"
    )
    tables = _all_cells(report, tuple(TITLES), every, slices=True)
    return "\n".join([head, *map(_markdown, tables)])


def _all_cells(
    report: Report, metrics: Sequence[str], names: Sequence[str], slices: bool
) -> list[Cells]:
    tables = [_metric_cells(report, metrics), _difference_cells(report)]
    if slices:
        for axis, rows in groupby(report.slices, key=lambda row: row.axis):
            tables.append(_slice_cells(axis, list(rows), names))
    return tables


def _metric_cells(report: Report, metrics: Sequence[str]) -> Cells:
    rows = [
        [predictor.name, *(_estimate(predictor.metrics[metric]) for metric in metrics)]
        for predictor in report.predictors
    ]
    return Cells(
        title=f"{report.data}: {report.rows:,} candidates of {report.users:,} users",
        header=["predictor", *(TITLES[metric] for metric in metrics)],
        rows=rows,
        caption=(
            f"{_interval_note(report)} GAUC leaves out {report.left_out_users:,} users "
            f"({report.left_out_rows:,} candidates) with one class."
        ),
    )


def _difference_cells(report: Report) -> Cells:
    with_share = any(predictor.distance_closed for predictor in report.predictors)
    header = ["predictor", *(TITLES[metric] for metric in DIFFERENCE_METRICS)]
    rows = []
    for predictor in report.predictors:
        if predictor.differences is None:
            continue
        found = [predictor.differences[metric] for metric in DIFFERENCE_METRICS]
        row = [predictor.name, *map(_difference, found)]
        if with_share:
            row.append(_share(predictor.distance_closed))
        rows.append(row)
    if with_share:
        header.append("to the oracle")
    return Cells(
        title=f"Difference to '{report.baseline}', same users",
        header=header,
        rows=rows,
        caption="* the interval excludes zero." if report.draws else "",
    )


def _slice_cells(axis: str, rows: list[SliceReport], names: Sequence[str]) -> Cells:
    return Cells(
        title=AXES.get(axis, axis),
        header=["bucket", "rows", "positive", *names],
        rows=[
            [
                row.bucket,
                f"{row.rows:,}",
                f"{row.positive_rate:.3f}",
                *(_slice(row.predictors[name]) for name in names),
            ]
            for row in rows
        ],
        caption="AUC / GAUC, logloss below; '-' where a bucket holds one class.",
    )


def _main_predictors(report: Report) -> list[str]:
    """What the terminal's slices compare: the models, the baseline and the oracle."""
    return [p.name for p in report.predictors if p.kind != "trivial" or p.name == report.baseline]


def _interval_note(report: Report) -> str:
    if not report.draws:
        return "No intervals were drawn."
    return (
        f"Intervals: {report.confidence:.0%}, {report.draws} bootstrap draws over users, "
        f"seed {report.seed}."
    )


def _number(value: float | None, digits: int = 4) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _estimate(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return _number(found.value)
    return f"{_number(found.value)}\n{found.low:.4f}-{found.high:.4f}"


def _difference(found: Estimate) -> str:
    if found.value is None:
        return NOTHING
    mark = "*" if found.excludes_zero else ""
    text = f"{found.value:+.4f}{mark}"
    if found.low is None or found.high is None:
        return text
    return f"{text}\n{found.low:+.4f} to {found.high:+.4f}"


def _share(found: Estimate | None) -> str:
    if found is None or found.value is None:
        return NOTHING
    if found.low is None or found.high is None:
        return f"{found.value:.1%}"
    return f"{found.value:.1%}\n{found.low:.1%} to {found.high:.1%}"


def _slice(values: SliceValues) -> str:
    if values.auc is None and values.gauc is None:
        return f"{NOTHING}\n{_number(values.logloss)}"
    return f"{_number(values.auc)} / {_number(values.gauc)}\n{_number(values.logloss)}"


def _rich(cells: Cells) -> Table:
    table = Table(
        title=cells.title,
        caption=cells.caption or None,
        box=SIMPLE,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
    )
    for number, name in enumerate(cells.header):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in cells.rows:
        table.add_row(*row)
    return table


def _markdown(cells: Cells) -> str:
    def line(values: Sequence[str]) -> str:
        safe = (value.replace("|", "\\|").replace("\n", "<br>") for value in values)
        return f"| {' | '.join(safe)} |"

    rule = ["---", *("---:" for _ in cells.header[1:])]
    body = [line(cells.header), line(rule), *map(line, cells.rows)]
    caption = f"\n{cells.caption}\n" if cells.caption else ""
    return f"## {cells.title}\n\n" + "\n".join(body) + f"\n{caption}"
