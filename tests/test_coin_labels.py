"""Real histories and candidates, labels by a fair coin: nothing that is read may tell them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hisac_rec.cli.app import app
from hisac_rec.evaluation.results import Report

COIN = "md5(concat(\"user\", ':', item)) < '8'"
AS_BEFORE = (
    *("train.sparse_caution=0", "train.unknown_rate=0", "train.metric=auc"),
    *("train.early_stop=0", "loader.max_candidates=2048"),
)
ALL_USERS = ("collaborative.views=1", "collaborative.min_support=1", "collaborative.shrinkage=0")


def invoke(*words: str | Path) -> None:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def sets(keys: tuple[str, ...]) -> list[str]:
    return [word for key in keys for word in ("--set", key)]


def report_of(raw: Path, folder: Path, codes: tuple[str, ...], train: tuple[str, ...]) -> Report:
    """Prepare, fit, train and evaluate as a person would."""
    coin = (f"requests.label={COIN}", f"history.where={COIN}", "history.votes={}")
    coin = (*coin, "requests.group_events=8")
    data, run = folder / "data", folder / "run"
    invoke(
        "prepare", "movielens_latest", "--raw", raw / "ml-latest-small", "--out", data, *sets(coin)
    )
    invoke("semantic-ids", data, *sets(("source=collaborative", "restarts=1", *codes)))
    invoke("train", "hisac", data, "--out", run, *sets(train))
    invoke("evaluate", run, "--draws", "20")
    return Report.load(run)


def above_a_constant(report: Report) -> float:
    """Logloss above that of a fair coin."""
    value = report.predictors[0].metrics["logloss"].value
    assert value is not None
    return value - math.log(2)


def test_the_defaults_learn_nothing_of_a_coin(shared_data: Path, tmp_path: Path) -> None:
    report = report_of(shared_data, tmp_path, (), ())
    auc = report.predictors[0].metrics["auc"]
    assert auc.value is not None
    assert abs(auc.value - 0.5) < 0.02  # 10,000 test rows: a standard error of .006
    assert report.training["auc"] < 0.53
    assert above_a_constant(report) < 0.003


@pytest.mark.slow
def test_codes_of_all_users_do(shared_data: Path, tmp_path: Path) -> None:
    report = report_of(shared_data, tmp_path, ALL_USERS, AS_BEFORE)
    assert report.training["auc"] > 0.6
    assert above_a_constant(report) > 0.01
    assert report.concerns
