from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import write_prepared

from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.evaluation.metrics import METRICS, auc, gauc
from hisac_rec.evaluation.parts import sigmoid
from hisac_rec.evaluation.predictions import PredictionWriter, read_predictions
from hisac_rec.evaluation.report import distance_closed, evaluate_predictions
from hisac_rec.evaluation.results import Report

USERS, ROWS, ITEMS = 60, 12, 50


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return write_prepared(tmp_path_factory.mktemp("data"), items=ITEMS, users=USERS)


def predict(
    folder: Path, noise: float, *, seed: int = 0, oracle: bool = True, fingerprint: str = ""
) -> Path:
    """Predictions whose logit is the true one plus noise; the last user has one class."""
    rng = np.random.default_rng(seed)
    n = USERS * ROWS
    user = np.repeat(np.arange(1, USERS + 1), ROWS)
    true = rng.normal(scale=1.5, size=n)
    label = (rng.random(n) < sigmoid(true)).astype(float)
    label[-ROWS:] = 1
    item, length = rng.integers(1, ITEMS, n), rng.integers(0, 1500, n)
    with PredictionWriter(folder, oracle=oracle, fingerprint=fingerprint) as writer:
        writer.write(
            user=user,
            time=np.arange(n) + 2_000,
            item=item,
            label=label,
            logit=true + noise * np.random.default_rng(1).normal(size=n),
            history_length=length,
            request=np.arange(n) // 3,
            probability=sigmoid(true) if oracle else None,
        )
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("predictions")
    return {
        "good": predict(root / "good", 0.5),
        "floor": predict(root / "floor", 5.0),
    }


@pytest.fixture(scope="module")
def report(data: PreparedData, folders: dict[str, Path]) -> Report:
    return evaluate_predictions(
        folders["good"],
        data,
        name="hisac",
        baseline_predictions={"no history": folders["floor"]},
        draws=60,
    )


def test_all_predictors_side_by_side(report: Report):
    names = [predictor.name for predictor in report.predictors]
    assert names == ["hisac", "no history", "item mean", "item + user mean", "oracle"]
    assert report.baseline == "no history"
    assert all(set(predictor.metrics) == set(METRICS) for predictor in report.predictors)


def test_values_are_those_of_the_metric_functions(report: Report, folders: dict[str, Path]):
    rows = read_predictions(folders["good"])
    assert report.value("hisac") == pytest.approx(auc(rows.label, rows.logit), abs=1e-12)
    expected = gauc(rows.label, rows.logit, rows.user)
    assert report.value("hisac", "gauc") == pytest.approx(expected, abs=1e-12)
    assert report.value("oracle") == pytest.approx(auc(rows.label, rows.probability), abs=1e-12)


def test_intervals_hold_their_value(report: Report):
    for predictor in report.predictors:
        for metric, found in predictor.metrics.items():
            if metric == "ece":
                assert found.low is None
            else:
                assert found.low < found.value < found.high, (predictor.name, metric)


def test_differences_are_paired_to_the_baseline(report: Report):
    hisac = report.predictor("hisac")
    gain = hisac.differences["auc"]
    assert gain.value == pytest.approx(report.value("hisac") - report.value("no history"))
    assert gain.low <= gain.value <= gain.high
    assert gain.excludes_zero
    assert report.predictor("no history").differences is None


def test_distance_to_the_oracle(report: Report):
    closed = report.predictor("hisac").distance_closed
    values = [report.value(name) for name in ("hisac", "no history", "oracle")]
    assert closed.value == pytest.approx(distance_closed(*values))
    assert closed.low < closed.value < closed.high
    assert report.predictor("item mean").distance_closed is None


def test_left_out_users_are_counted(report: Report):
    assert (report.users, report.rows) == (USERS, USERS * ROWS)
    assert report.left_out_users == 1
    assert report.left_out_rows == ROWS


def test_slices_add_up(report: Report):
    for axis in ("history_length", "item_popularity", "item_age"):
        rows = [row for row in report.slices if row.axis == axis]
        assert sum(row.rows for row in rows) == report.rows
        mean = sum(row.rows * row.positive_rate for row in rows) / report.rows
        assert mean == pytest.approx(report.positive_rate)
        assert all(set(row.predictors) == {p.name for p in report.predictors} for row in rows)


def test_report_round_trip(report: Report, tmp_path: Path):
    written = report.save(tmp_path / "out")
    assert [path.name for path in written] == ["report-test.json", "report-test.md"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [p.name for p in written]
    assert Report.load(tmp_path / "out") == report


def test_each_split_has_a_report_of_its_own(report: Report, tmp_path: Path):
    report.save(tmp_path)
    valid = report.model_copy(update={"rows": report.rows - 1})
    valid.save(tmp_path, split="valid")
    assert Report.load(tmp_path) == report
    assert Report.load(tmp_path, split="valid") == valid
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(UserError, match=r"report-train\.json: no such report"):
        Report.load(tmp_path, split="train")


def test_same_seed_same_report(data, folders, report):
    again = evaluate_predictions(
        [folders["good"]],
        data,
        name="hisac",
        baseline_predictions={"no history": folders["floor"]},
        draws=60,
    )
    assert again == report


def test_without_oracle_draws_or_other_models(data, tmp_path):
    report = evaluate_predictions(predict(tmp_path, 1.0, oracle=False), data, draws=0)
    assert [p.name for p in report.predictors] == ["model", "item mean", "item + user mean"]
    assert report.baseline == "item + user mean"
    found = report.predictor("model")
    assert found.metrics["auc"].low is None
    assert found.distance_closed is None
    with pytest.raises(UserError, match="hold no true probability"):
        evaluate_predictions(tmp_path, data, draws=0, baseline="oracle")


def test_one_class_everywhere_is_undefined_not_a_crash(data, tmp_path):
    with PredictionWriter(tmp_path) as writer:
        ones = np.ones(6)
        columns = dict.fromkeys(("user", "time", "item", "label", "history_length"), ones)
        writer.write(**columns, logit=np.arange(6.0), request=np.arange(6))
    report = evaluate_predictions(tmp_path, data, draws=5)
    assert report.value("model") is None
    assert report.left_out_users == 1
    assert report.value("model", "logloss") is not None
    report.save(tmp_path / "report")


def test_other_rows_are_refused(data, folders, tmp_path):
    others = {"other": predict(tmp_path, 1.0, seed=9)}
    with pytest.raises(UserError, match="'hisac' and 'other' predicted different rows"):
        evaluate_predictions(folders["good"], data, name="hisac", baseline_predictions=others)


def test_other_data_are_refused(data, tmp_path):
    folder = predict(tmp_path, 1.0, fingerprint="0123456789abcdef")
    with pytest.raises(UserError, match=r"other data .fingerprint 0123456789ab"):
        evaluate_predictions(folder, data)


def test_user_outside_the_table(tmp_path):
    small = write_prepared(tmp_path / "data", items=ITEMS, users=5)
    with pytest.raises(UserError, match=r"user 6 \(row 60 .* ids are 0 to 5"):
        evaluate_predictions(predict(tmp_path / "p", 1.0), small)


def test_names_must_differ_and_exist(data, folders):
    for name in ("item mean", "oracle"):
        with pytest.raises(UserError, match=f"two predictors are called '{name}'"):
            evaluate_predictions(folders["good"], data, name=name)
    with pytest.raises(UserError, match="'item men' is no predictor; did you mean 'item mean'"):
        evaluate_predictions(folders["good"], data, baseline="item men")


def test_report_that_is_none(report: Report, tmp_path: Path):
    with pytest.raises(UserError, match="no such report"):
        Report.load(tmp_path)
    (tmp_path / "report-test.json").write_text("{}")
    with pytest.raises(UserError, match="not a report of this release"):
        Report.load(tmp_path)
    with pytest.raises(UserError, match=r"no predictor 'hisak'.*did you mean 'hisac'"):
        report.predictor("hisak")


def test_distance_closed():
    assert distance_closed(0.75, 0.7, 0.8) == pytest.approx(0.5)
    assert distance_closed(0.65, 0.7, 0.8) == pytest.approx(-0.5)
    assert np.isnan(distance_closed(0.75, 0.8, 0.8))
    found = distance_closed(np.array([0.7, 0.8]), np.full(2, 0.7), np.array([0.8, 0.8]))
    np.testing.assert_allclose(found, [0.0, 1.0])
