from __future__ import annotations

import sys

import pytest

from hisac_rec.errors import UserError
from hisac_rec.evaluation.plots import plot_slices
from hisac_rec.evaluation.results import Estimate, PredictorReport, Report, SliceReport, SliceValues


def report(name: str = "hisac", fingerprint: str = "f", buckets: tuple[str, ...] = ("0", "1-10")):
    kinds = {name: "model", "item mean": "trivial"}
    values = {k: SliceValues(auc=0.7, gauc=None, logloss=0.5) for k in kinds}
    rows = {"rows": 5, "users": 2, "positive_rate": 0.5, "predictors": values}
    return Report(
        data="d",
        fingerprint=fingerprint,
        rows=10,
        users=2,
        requests=5,
        positive_rate=0.5,
        left_out_users=0,
        left_out_rows=0,
        draws=0,
        seed=0,
        confidence=0.95,
        baseline="item mean",
        predictors=[
            PredictorReport(
                name=key,
                kind=kind,
                metrics={"auc": Estimate(value=0.7)},
                differences=None,
                distance_closed=None,
            )
            for key, kind in kinds.items()
        ],
        slices=[SliceReport(axis="history_length", bucket=b, **rows) for b in buckets],
    )


def test_picture_names_each_predictor_once(tmp_path):
    pytest.importorskip("matplotlib")
    path = plot_slices([report("hisac"), report("din")], tmp_path / "new" / "auc.svg")
    text = path.read_text()
    assert all(text.count(f"<!-- {name} -->") == 1 for name in ("hisac", "din", "item mean"))
    assert [file.name for file in path.parent.iterdir()] == ["auc.svg"]


def test_png_and_chosen_predictors(tmp_path):
    pytest.importorskip("matplotlib")
    path = plot_slices([report()], tmp_path / "auc.png", predictors=["hisac"], metric="logloss")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_unknown_format_leaves_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match=r"auc.xyz: .*xyz"):
        plot_slices([report()], tmp_path / "auc.xyz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [report(fingerprint="g"), report(buckets=("0", "1-5"))])
def test_reports_that_do_not_belong_together(tmp_path, other):
    with pytest.raises(UserError, match="evaluate both on the same prepared data"):
        plot_slices([report(), other], tmp_path / "auc.png")


def test_nothing_to_draw(tmp_path):
    for reports in ([], [report(buckets=())]):
        with pytest.raises(UserError, match="nothing to draw"):
            plot_slices(reports, tmp_path / "auc.png")


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="pip install matplotlib"):
        plot_slices([report()], tmp_path / "auc.png")
