"""The report for people: rich tables on a terminal, Markdown in ``report-<split>.md``.

Both are made from the same cells. The terminal shows what fits into 80 columns (in the slices,
the AUC of the models, the baseline and the oracle); Markdown shows everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from hisac_rec.evaluation.results import (
    ITEM_AND_USER_MEAN,
    Estimate,
    PredictorReport,
    Report,
    SliceValues,
)

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
DIFFERENCE_METRICS = ("auc", "gauc", "logloss", "normalised_entropy")
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
    tables = [
        _metric_cells(report, TERMINAL_METRICS),
        _difference_cells(report, DIFFERENCE_METRICS[:2]),
    ]
    if slices:
        names = [p.name for p in report.predictors if _is_main(p, report)]
        tables += _slice_tables(report, names, _auc_only, "AUC;")
    target = console or Console()
    for cells in tables:
        target.print(rich_table(cells))
        target.print()
    for line in health_lines(report):
        target.print(line, highlight=False)


def health_lines(report: Report) -> list[str]:
    """The metrics on training rows, and what is wrong with the model, a line each."""
    lines = []
    if report.training:
        shown = ", ".join(f"{name} {value:.4f}" for name, value in report.training.items())
        lines.append(f"On a sample of the training rows: {shown}.")
    return [*lines, *(f"Warning: {text}." for text in report.concerns)]


def print_tasks(reports: Sequence[Report], console: Console | None = None) -> None:
    """Print one table with a row for each of a model's tasks, the main one first."""
    target = console or Console()
    target.print(rich_table(_task_cells(reports)))
    target.print()


def _task_cells(reports: Sequence[Report]) -> Cells:
    metrics = ("auc", "gauc", "logloss", "calibration")
    rows = []
    for report in reports:
        model, floor = report.predictors[0], report.predictor(ITEM_AND_USER_MEAN)
        rows.append(
            [
                report.task,
                f"{report.rows:,}",
                f"{report.positive_rate:.4f}",
                *(_number(model.metrics[metric].value) for metric in metrics),
                _number(floor.metrics["auc"].value),
            ]
        )
    return Cells(
        title=f"{reports[0].data}: '{reports[0].predictors[0].name}' by task",
        header=["task", "rows", "positive", "AUC", "GAUC", "logloss", "calib.", "means' AUC"],
        rows=rows,
        caption="Rows: candidates that the task applies to. "
        f"means: '{ITEM_AND_USER_MEAN}' of that task.",
    )


def markdown(report: Report) -> str:
    """The whole report as Markdown text."""
    head = (
        f"# Evaluation on {_title(report)}\n\n"
        f"{report.rows:,} candidates in {report.requests:,} requests of {report.users:,} users; "
        f"positive rate {report.positive_rate:.4f}. GAUC leaves out {report.left_out_users:,} "
        f"users ({report.left_out_rows:,} candidates) whose labels are all equal. "
        f"{_interval_note(report)}\n"
    )
    names = [predictor.name for predictor in report.predictors]
    tables = [
        _metric_cells(report, tuple(TITLES)),
        _difference_cells(report, DIFFERENCE_METRICS),
        *_slice_tables(report, names, _every_value, "AUC / GAUC, logloss below;"),
    ]
    health = [f"{line}\n" for line in health_lines(report)]
    return "\n".join([head, *health, *map(markdown_table, tables)])


def _title(report: Report) -> str:
    return f"{report.data}, {report.task}" if report.task else report.data


def _is_main(predictor: PredictorReport, report: Report) -> bool:
    """What the terminal's slices compare: the models, the baseline and the oracle."""
    return predictor.kind != "trivial" or predictor.name == report.baseline


def _metric_cells(report: Report, metrics: Sequence[str]) -> Cells:
    rows = [
        [predictor.name, *(_estimate(predictor.metrics[metric]) for metric in metrics)]
        for predictor in report.predictors
    ]
    return Cells(
        title=f"{_title(report)}: {report.rows:,} candidates of {report.users:,} users",
        header=["predictor", *(TITLES[metric] for metric in metrics)],
        rows=rows,
        caption=(
            f"{_interval_note(report)} GAUC leaves out {report.left_out_users:,} users "
            f"({report.left_out_rows:,} candidates) with one class."
        ),
    )


def _difference_cells(report: Report, metrics: Sequence[str]) -> Cells:
    with_share = any(predictor.distance_closed for predictor in report.predictors)
    header = ["predictor", *(TITLES[metric] for metric in metrics)]
    rows = []
    for predictor in report.predictors:
        if predictor.differences is None:
            continue
        found = [predictor.differences[metric] for metric in metrics]
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


def _slice_tables(
    report: Report, names: Sequence[str], show: Callable[[SliceValues], str], legend: str
) -> Iterator[Cells]:
    """One table per axis, one column per named predictor."""
    for axis, rows in groupby(report.slices, key=lambda row: row.axis):
        yield Cells(
            title=AXES.get(axis, axis),
            header=["bucket", "rows", "positive", *names],
            rows=[
                [
                    row.bucket,
                    f"{row.rows:,}",
                    f"{row.positive_rate:.3f}",
                    *(show(row.predictors[name]) for name in names),
                ]
                for row in rows
            ],
            caption=f"{legend} '{NOTHING}' where a bucket holds one class.",
        )


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


def _auc_only(values: SliceValues) -> str:
    return _number(values.auc)


def _every_value(values: SliceValues) -> str:
    defined = values.auc is not None or values.gauc is not None
    first = f"{_number(values.auc)} / {_number(values.gauc)}" if defined else NOTHING
    return f"{first}\n{_number(values.logloss)}"


def rich_table(cells: Cells) -> Table:
    """For a terminal."""
    table = Table(
        title=cells.title,
        caption=cells.caption or None,
        box=SIMPLE,
        title_justify="left",
        caption_justify="left",
        show_edge=False,
        pad_edge=False,
    )
    for number, name in enumerate(cells.header):
        side: Literal["left", "right"] = "right" if number else "left"
        table.add_column(name, justify=side, no_wrap=number == 0, overflow="fold")
    for row in cells.rows:
        table.add_row(*row)
    return table


def markdown_table(cells: Cells, level: int = 2) -> str:
    """For Markdown, under a heading of this level."""

    def line(values: Sequence[str]) -> str:
        safe = (value.replace("|", "\\|").replace("\n", "<br>") for value in values)
        return f"| {' | '.join(safe)} |"

    rule = ["---", *("---:" for _ in cells.header[1:])]
    body = [line(cells.header), line(rule), *map(line, cells.rows)]
    caption = f"\n{cells.caption}\n" if cells.caption else ""
    return f"{'#' * level} {cells.title}\n\n" + "\n".join(body) + f"\n{caption}"
