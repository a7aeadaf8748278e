"""Write the report of a comparison, from its cells alone: Markdown, HTML, figures, Parquet."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from markdown_it import MarkdownIt
from rich.console import Console

from hisac_rec.compare.cells import Cell, Layout, Reference, Scores
from hisac_rec.compare.figures import figures
from hisac_rec.compare.summary import DataSummary, summarise
from hisac_rec.compare.tables import (
    budget_table,
    cost_table,
    difference_table,
    history_table,
    metric_table,
    slice_tables,
)
from hisac_rec.data.parquet import WRITING
from hisac_rec.evaluation.bootstrap import CONFIDENCE
from hisac_rec.evaluation.table import markdown_table, rich_table

RESULTS_SCHEMA = pa.schema(
    [
        ("data", pa.string()),
        ("model", pa.string()),  # stem of the model file; a trivial predictor's name
        ("name", pa.string()),
        ("seed", pa.int32()),  # null for what is not trained
        ("split", pa.string()),
        ("group", pa.string()),  # metric, slice, cost, training, parameters
        ("axis", pa.string()),  # of a slice; "history_length" of a cost
        ("bucket", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ]
)
"""``results.parquet``: one row per cell and number."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1em 0; }
th, td { border: 1px solid #ccc; padding: .25em .6em; white-space: nowrap; }
tbody tr:nth-child(even) { background: #f6f6f6; }
svg { max-width: 100%; height: auto; }
"""


def write_report(layout: Layout, baseline: str | None = None) -> list[DataSummary]:
    """Compare all cells and write ``report.md``, ``report.html``, ``results.parquet``, figures.

    Args:
        layout: of the comparison.
        baseline: see :func:`hisac_rec.compare.summary.summarise`.

    Raises:
        UserError: see there.
    """
    summaries = summarise(layout, baseline)
    drawn = {summary.data: figures(summary) for summary in summaries}
    folder = layout.out / "figures"
    folder.mkdir(exist_ok=True)
    svgs: dict[str, str] = {}
    for pictures in drawn.values():
        for name, (_, svg) in pictures.items():
            svgs[name] = svg
            _replace(folder / name, svg.encode())
    titles = {
        data: {name: title for name, (title, _) in found.items()} for data, found in drawn.items()
    }
    text = _markdown(summaries, titles, list(layout.read_errors()))
    _replace(layout.out / "report.md", text.encode())
    _replace(layout.out / "report.html", _html(text, svgs).encode())
    table = pa.Table.from_pylist(list(_results(summaries)), schema=RESULTS_SCHEMA)
    temporary = layout.out / ".results.parquet.tmp"
    pq.write_table(table, temporary, **WRITING)
    temporary.replace(layout.out / "results.parquet")
    return summaries


def print_summaries(summaries: Sequence[DataSummary], console: Console | None = None) -> None:
    """Print metrics and differences of every data set (standard output where absent)."""
    target = console or Console()
    for summary in summaries:
        target.rule(summary.data, align="left")
        for cells in (metric_table(summary), difference_table(summary)):
            if cells is not None and cells.rows:
                target.print(rich_table(cells))
                target.print()


def _markdown(
    summaries: Sequence[DataSummary],
    titles: dict[str, dict[str, str]],
    errors: list[tuple[str, str]],
) -> str:
    parts = ["# Comparison\n"]
    if errors:
        parts.append("**Cells that failed** (their logs are beside the cells):\n")
        parts += [f"- {name}: `{line}`" for name, line in errors]
        parts.append("")
    for summary in summaries:
        parts.append(_introduction(summary))
        tables = [metric_table(summary), difference_table(summary)]
        parts += [markdown_table(cells, 3) for cells in tables if cells is not None and cells.rows]
        for name, title in titles[summary.data].items():
            parts.append(f"![{title}, {summary.data}](figures/{name})\n")
        rest = [cost_table(summary), history_table(summary), *slice_tables(summary)]
        budget = budget_table(summary.models)
        parts += [markdown_table(cells, 3) for cells in [*rest, *([budget] if budget else [])]]
    parts.append(_made_with(summaries))
    return "\n".join(parts)


def _introduction(summary: DataSummary) -> str:
    first = summary.first
    rows, identity = first.rows, first.identity
    of = f" of {rows.task}" if rows.task else ""
    return (
        f"## {summary.data}, {identity.split} split\n\n"
        f"{rows.rows:,} candidates in {rows.requests:,} requests of {rows.users:,} users; positive "
        f"rate {rows.positive_rate:.4f}{of}. GAUC leaves out {rows.left_out_users:,} users whose "
        f"labels are all equal. Intervals: {CONFIDENCE:.0%}, {identity.draws} bootstrap draws over "
        "users.\n"
    )


def _made_with(summaries: Sequence[DataSummary]) -> str:
    """Which machines, versions and days the cells are from."""
    found: dict[str, list[str]] = {}
    for cell in _cells(summaries):
        versions = ", ".join(f"{name} {number}" for name, number in cell.versions.items())
        ranks = "" if cell.training.ranks == 1 else f", {cell.training.ranks} ranks a cell"
        found.setdefault(f"{cell.host}{ranks}; {versions}", []).append(cell.date)
    lines = [
        f"- {len(days)} cells, {min(days)} to {max(days)}: {made}" for made, days in found.items()
    ]
    return "## Made with\n\n" + "\n".join(lines) + "\n"


def _html(text: str, svgs: dict[str, str]) -> str:
    """The Markdown as one page that loads nothing: styles and figures are inside."""
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)

    def inline(found: re.Match[str]) -> str:
        return svgs[html.unescape(found[1])]

    body = re.sub(r'<img src="figures/([^"]+)"[^>]*>', inline, body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>Comparison</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}</body>\n</html>\n"
    )


def _results(summaries: Sequence[DataSummary]) -> Iterator[dict[str, Any]]:
    """Rows of ``results.parquet``."""
    for cell in _cells(summaries):
        about = {"data": cell.data, "model": cell.model, "name": cell.name, "seed": cell.seed}
        about["split"] = cell.identity.split
        yield from _score_rows(about, cell.scores)
        training = cell.training
        numbers = {
            "seconds": training.seconds,
            "epochs": training.epochs,
            "best_step": training.best_step,
            "candidates_per_second": cell.candidates_per_second,
        }
        yield from _rows(about, "training", numbers)
        yield from _rows(about, "parameters", cell.parameters.model_dump())
        for cost in cell.costs:
            where = {"axis": "history_length", "bucket": str(cost.length)}
            yield from _rows(about | where, "cost", cost.model_dump(exclude={"length"}))
    for summary in summaries:
        for reference in [summary.reference] if summary.reference else []:
            yield from _reference_rows(reference)


def _reference_rows(reference: Reference) -> Iterator[dict[str, Any]]:
    for name, scores in reference.predictors.items():
        about = {"data": reference.data, "model": name, "name": name, "split": reference.split}
        yield from _score_rows(about, scores)


def _score_rows(about: dict[str, Any], scores: Scores) -> Iterator[dict[str, Any]]:
    yield from _rows(about, "metric", scores.metrics)
    for one in scores.slices:
        numbers = one.model_dump(exclude={"axis", "bucket"})
        yield from _rows(about | {"axis": one.axis, "bucket": one.bucket}, "slice", numbers)


def _rows(about: dict[str, Any], group: str, numbers: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for metric, value in numbers.items():
        yield about | {"group": group, "metric": metric, "value": value}


def _cells(summaries: Sequence[DataSummary]) -> Iterator[Cell]:
    for summary in summaries:
        for model in summary.models:
            yield from model.cells


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
