from __future__ import annotations

import io

import pytest
from rich.console import Console

from hisac_rec.evaluation.results import (
    Estimate,
    PredictorReport,
    Report,
    SliceReport,
    SliceValues,
)
from hisac_rec.evaluation.table import TITLES, markdown, print_report


def predictor(name: str, kind: str, value: float, gain: float | None) -> PredictorReport:
    metrics = {m: Estimate(value=value, low=value - 0.01, high=value + 0.01) for m in TITLES}
    metrics["ece"] = Estimate(value=0.0123)
    differences = None
    if gain is not None:
        found = Estimate(value=gain, low=gain - 0.01, high=gain + 0.01)
        differences = dict.fromkeys(TITLES, found)
    closed = Estimate(value=0.8, low=0.7, high=0.9) if name == "hisac" else None
    return PredictorReport(
        name=name, kind=kind, metrics=metrics, differences=differences, distance_closed=closed
    )


@pytest.fixture
def report() -> Report:
    predictors = [
        predictor("hisac", "model", 0.75, 0.05),
        predictor("no history", "model", 0.7, None),
        predictor("item mean", "trivial", 0.695, -0.005),
        predictor("item + user mean", "trivial", 0.72, 0.02),
        predictor("oracle", "oracle", 0.76, 0.06),
    ]
    values = {p.name: SliceValues(auc=0.7, gauc=0.65, logloss=0.5) for p in predictors}
    values["oracle"] = SliceValues(auc=None, gauc=None, logloss=0.25)
    bucket = {"rows": 1234, "users": 56, "positive_rate": 0.5, "predictors": values}
    return Report(
        data="synthetic",
        fingerprint="f",
        rows=2468,
        users=100,
        requests=300,
        positive_rate=0.5,
        left_out_users=7,
        left_out_rows=21,
        draws=200,
        seed=0,
        confidence=0.95,
        baseline="no history",
        predictors=predictors,
        slices=[
            SliceReport(axis="history_length", bucket="1001+", **bucket),
            SliceReport(axis="item_age", bucket="unseen", **bucket),
        ],
    )


def printed(report: Report, **options: bool) -> str:
    out = io.StringIO()
    print_report(report, Console(file=out, width=80), **options)
    return out.getvalue()


def test_terminal_shows_values_intervals_and_marks(report: Report):
    text = printed(report)
    for part in (
        "0.7500",
        "0.7400-0.7600",
        "+0.0500*",
        "+0.0400 to +0.0600",
        "80.0%",
        "7 users",
        "1001+",
    ):
        assert part in text, part
    bucket = next(line for line in text.splitlines() if line.startswith("1001+"))
    assert bucket.split() == ["1001+", "1,234", "0.500", "0.7000", "0.7000", "-"]
    assert "-0.0050*" not in text  # its interval holds zero
    assert "history" not in printed(report, slices=False).lower().replace("no history", "")


def test_terminal_fits_eighty_columns_without_breaking_numbers(report: Report):
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("0.7400-0.7600") == 4
    assert text.count("item + user mean ") == 2


def test_markdown_shows_every_metric_and_predictor(report: Report):
    text = markdown(report)
    header = next(line for line in text.splitlines() if line.startswith("| predictor"))
    assert header == "| predictor | " + " | ".join(TITLES.values()) + " |"
    assert "GAUC leaves out 7 users (21 candidates)" in text
    bucket = next(line for line in text.splitlines() if line.startswith("| 1001+"))
    assert bucket.count("0.7000 / 0.6500<br>0.5000") == 4
    assert "| -<br>0.2500 |" in bucket


def test_markdown_tables_are_rectangular(report: Report):
    tables = [t for t in markdown(report).split("\n\n") if t.startswith("|")]
    assert len(tables) == 4
    for table in tables:
        assert len({line.count("|") for line in table.strip().splitlines()}) == 1


def test_without_draws_there_are_no_intervals(report: Report):
    plain = {m: Estimate(value=0.5) for m in TITLES}
    bare = [p.model_copy(update={"metrics": plain}) for p in report.predictors]
    text = markdown(report.model_copy(update={"draws": 0, "predictors": bare}))
    assert "No intervals were drawn." in text
    assert "| hisac | 0.5000 | 0.5000 |" in text
