"""``compare`` as typed: a grid with a failing model, going on, refusals, and its report."""

from __future__ import annotations

import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from compare_support import compare
from sklearn.metrics import log_loss, roc_auc_score

from hisac_rec.compare.cells import Cell, Identity, Layout, Reference, read, write
from hisac_rec.compare.grid import load_models, make_grid, open_data
from hisac_rec.compare.summary import DataSummary, summarise
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.evaluation.predictions import Predictions, read_predictions
from hisac_rec.evaluation.report import evaluate_predictions
from hisac_rec.train.run import RunFolder

GOOD = ("agents", "floor")
SEEDS = (0, 1)


def predictions(compared, model: str, seed: int) -> Predictions:
    run = RunFolder(compared.layout.run(compared.name, model, seed))
    return read_predictions(run.predictions("test"))


def summary_of(layout: Layout, baseline: str | None = None) -> DataSummary:
    (summary,) = summarise(layout, baseline)
    return summary


@pytest.fixture
def copy(compared, tmp_path: Path) -> Layout:
    """The finished cells, without runs and report, to be changed."""
    shutil.copytree(compared.layout.cells, tmp_path / "out" / "cells")
    return Layout(tmp_path / "out")


def test_a_failing_model_does_not_stop_the_others(compared) -> None:
    assert compared.result.exit_code == 1
    cells = compared.layout.read_cells()
    assert [(cell.model, cell.seed) for cell in cells] == [(m, s) for m in GOOD for s in SEEDS]
    for seed in SEEDS:
        error = compared.layout.error(compared.name, "diverging", seed).read_text()
        assert "loss is not finite" in error
        assert str(compared.layout.out.resolve()) not in error
    page = (compared.layout.out / "report.md").read_text()
    assert f"{compared.name}/diverging/seed0" in page
    assert "loss is not finite" in page
    assert "the agents" in compared.result.output


def test_a_cell_says_what_a_full_evaluation_says(compared) -> None:
    for model in GOOD:
        run = RunFolder(compared.layout.run(compared.name, model, 0))
        report = evaluate_predictions(run.predictions("test"), compared.data, name=model, draws=0)
        cell = read(compared.layout.cell(compared.name, model, 0), Cell)
        for metric, found in report.predictor(model).metrics.items():
            assert cell.scores.metrics[metric] == pytest.approx(found.value, abs=1e-6)
        buckets = [(one.axis, one.bucket, one.rows) for one in cell.scores.slices]
        assert buckets == [(one.axis, one.bucket, one.rows) for one in report.slices]
        for mine, theirs in zip(cell.scores.slices, report.slices, strict=True):
            assert mine.gauc == pytest.approx(theirs.predictors[model].gauc, abs=1e-6)
        reference = read(compared.layout.reference(compared.name), Reference)
        for name, scores in reference.predictors.items():
            expected = report.predictor(name).metrics["auc"].value
            assert scores.metrics["auc"] == pytest.approx(expected, abs=1e-6)
        assert set(reference.predictors) == {"item mean", "item + user mean", "oracle"}


def test_a_cell_knows_its_training(compared) -> None:
    cell = read(compared.layout.cell(compared.name, "agents", 1), Cell)
    assert cell.seed == 1
    assert cell.training.epochs == 2
    steps = [point["step"] for point in cell.training.curve]
    assert len(steps) == 2
    assert cell.training.best_step in steps
    assert cell.candidates_per_second > 0
    assert cell.candidate_independent
    ranker_rows = cell.parameters.tables // 8
    assert cell.parameters.tables == 8 * ranker_rows > 8 * compared.data.manifest.items
    assert 0 < cell.parameters.method < cell.parameters.dense
    floor = read(compared.layout.cell(compared.name, "floor", 1), Cell)
    assert floor.parameters.method == 0
    assert all(cost.compress == cost.read_candidate == 0 for cost in floor.costs)
    size = compared.layout.cell(compared.name, "agents", 1).stat().st_size
    assert size < 10_000  # small enough to be committed


def direct_bootstrap(compared, metric, draws: int) -> tuple[np.ndarray, float]:
    """Draws and value of 'agents' minus 'floor', by repeating rows: no weights, no shared code."""
    rows = {(m, s): predictions(compared, m, s) for m in GOOD for s in SEEDS}
    users = np.unique(rows["floor", 0].user)
    rng = np.random.default_rng(0)

    def gap(at: np.ndarray) -> float:
        means = [
            np.mean([metric(rows[m, s].label[at], rows[m, s].logit[at]) for s in SEEDS])
            for m in GOOD
        ]
        return float(means[0] - means[1])

    found = []
    for _ in range(draws):
        drawn = users[rng.integers(0, len(users), size=len(users))]
        at = np.concatenate([np.flatnonzero(rows["floor", 0].user == user) for user in drawn])
        found.append(gap(at))
    return np.array(found), gap(np.arange(len(rows["floor", 0])))


@pytest.mark.parametrize("name", ["auc", "logloss"])
def test_the_paired_interval_is_that_of_a_direct_bootstrap(compared, name: str) -> None:
    def loss(label: np.ndarray, logit: np.ndarray) -> float:
        return log_loss(label, 1 / (1 + np.exp(-logit.astype(np.float64))))

    metric = roc_auc_score if name == "auc" else loss
    summary = summary_of(compared.layout, baseline="the floor")
    (agents,) = [model for model in summary.models if model.name == "the agents"]
    draws = agents.cells[0].identity.draws
    expected, value = direct_bootstrap(compared, metric, draws)
    found = agents.differences[name].estimate
    assert found.value == pytest.approx(value, abs=3e-6)
    low, high = np.quantile(expected, [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low, abs=3e-6), pytest.approx(high, abs=3e-6))
    assert found.high - found.low > 1e-4
    better = [
        (a < b) if name == "logloss" else (a > b)
        for a, b in (
            [metric(p.label, p.logit) for p in (predictions(compared, m, s) for m in GOOD)]
            for s in SEEDS
        )
    ]
    assert (agents.differences[name].ahead, agents.differences[name].seeds) == (sum(better), 2)


def test_the_report_comes_from_the_cells_alone(compared, copy: Layout) -> None:
    result = compare("--report-only", "--out", copy.out)
    assert result.exit_code == 0
    for name in ("report.md", "report.html"):
        assert (copy.out / name).read_bytes() == (compared.layout.out / name).read_bytes()
    for figure in (compared.layout.out / "figures").iterdir():
        assert (copy.out / "figures" / figure.name).read_bytes() == figure.read_bytes()
    table = pq.read_table(copy.out / "results.parquet")
    assert table.equals(pq.read_table(compared.layout.out / "results.parquet"))
    rows = table.to_pylist()
    (auc,) = [
        row["value"]
        for row in rows
        if (row["model"], row["seed"], row["group"], row["metric"])
        == ("agents", 1, "metric", "auc")
    ]
    assert auc == read(copy.cell(compared.name, "agents", 1), Cell).scores.metrics["auc"]
    keys = [tuple(v for k, v in row.items() if k != "value") for row in rows]
    assert len(set(keys)) == len(keys)


class Loads(HTMLParser):
    """Everything in a page that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attributes:
            text = value or ""
            if name in ("src", "href", "xlink:href", "data") and not text.startswith("#"):
                self.found.append(f"{tag} {name}={text}")
            if "url(" in text.replace("url(#", ""):
                self.found.append(f"{tag} {name}={text}")
            if name == "id":
                self.ids.append(text)


def test_the_page_loads_nothing(compared) -> None:
    text = (compared.layout.out / "report.html").read_text()
    page = Loads()
    page.feed(text)
    assert page.found == []
    assert page.tags.isdisjoint({"script", "link", "iframe", "img", "object"})
    assert "@import" not in text
    assert text.count("<svg") == 3
    assert len(set(page.ids)) == len(page.ids)
    for reference in set(text.split('xlink:href="#')[1:]):
        assert reference.partition('"')[0] in page.ids
    assert "the agents" in text


def test_going_on_runs_what_is_missing_and_finds_the_same(compared, copy: Layout) -> None:
    before = read(copy.cell(compared.name, "floor", 1), Cell)
    copy.cell(compared.name, "floor", 1).unlink()
    kept = copy.cell(compared.name, "floor", 0).stat().st_mtime_ns
    shutil.rmtree(copy.cell(compared.name, "agents", 0).parent)
    result = compare(
        compared.models["floor"],
        *("--data", compared.data.root, "--out", copy.out, "--seeds", "2"),
        *("--draws", str(before.identity.draws)),
    )
    assert result.exit_code == 0
    assert copy.cell(compared.name, "floor", 0).stat().st_mtime_ns == kept
    again = read(copy.cell(compared.name, "floor", 1), Cell)
    # One cell at a time has more threads than two had, and sums in another order.
    assert again.scores.metrics == pytest.approx(before.scores.metrics, abs=1e-3)
    assert [point["auc"] for point in again.training.curve] == pytest.approx(
        [point["auc"] for point in before.training.curve], abs=1e-3
    )
    assert not copy.runs.exists()


def test_changed_settings_are_refused_unless_redone(compared, copy: Layout) -> None:
    models = load_models([str(compared.models["agents"])], ["history.tau=0.3"])
    data = open_data([compared.data.root])
    draws = copy.read_cells()[0].identity.draws
    with pytest.raises(UserError, match=r"config.history.tau = 0.1 there, 0.3 now.*--redo"):
        make_grid(copy, models, data, seeds=2, split="test", draws=draws)
    grid = make_grid(copy, models, data, seeds=2, split="test", draws=draws, redo=True)
    assert [task.config.train.seed for task in grid.tasks] == [0, 1]
    same = load_models([str(compared.models["agents"])], ["train.log_every=7"])
    grid = make_grid(copy, same, data, seeds=3, split="test", draws=draws)
    assert (grid.done, [task.config.train.seed for task in grid.tasks]) == (2, [2])
    with pytest.raises(UserError, match=r"split = 'test' there, 'valid'"):
        make_grid(copy, same, data, seeds=1, split="valid", draws=draws)


def test_a_key_that_came_later_is_its_default_in_older_cells(compared, copy: Layout) -> None:
    path = copy.cell(compared.name, "agents", 0)
    cell = read(path, Cell)
    older = cell.identity.model_dump()
    assert older["config"]["history"].pop("tau") == 0.1  # the default
    del older["config"]["train"]["max_candidates"]
    write(path, cell.model_copy(update={"identity": Identity(**older)}))
    data, draws = open_data([compared.data.root]), cell.identity.draws
    same = load_models([str(compared.models["agents"])], [])
    assert make_grid(copy, same, data, seeds=2, split="test", draws=draws).tasks == []
    other = load_models([str(compared.models["agents"])], ["history.tau=0.2"])
    with pytest.raises(UserError, match=r"config.history.tau = 0.1 there, 0.2 now"):
        make_grid(copy, other, data, seeds=2, split="test", draws=draws)


def test_cells_of_other_rows_are_not_compared(compared, copy: Layout) -> None:
    path = copy.cell(compared.name, "floor", 1)
    path.write_text(path.read_text().replace('"digest": "', '"digest": "f'))
    with pytest.raises(UserError, match="predicted other rows"):
        summarise(copy)


def test_the_models_budgets_are_compared(compared) -> None:
    page = (compared.layout.out / "report.md").read_text()
    assert '| inputs.history | ["id", "sid"] (the agents); [] (the floor) |' in page
    assert "train.seed" not in page


def test_distance_to_the_oracle(compared) -> None:
    summary = summary_of(compared.layout)
    aucs = {model.name: model.metric("auc").mean for model in summary.models}
    oracle = summary.reference.predictors["oracle"].metrics["auc"]
    (agents,) = [model for model in summary.models if model.name == "the agents"]
    share = (aucs["the agents"] - aucs["the floor"]) / (oracle - aucs["the floor"])
    assert agents.closed.value == pytest.approx(share, abs=1e-9)
    assert agents.closed.low <= agents.closed.value <= agents.closed.high
    assert summary.floor == summary.baseline == "the floor"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["agents", "--baseline", "agent"], r"--baseline agent: is none .*did you mean 'agents'"),
        (["hisack"], r"hisack: neither a file nor the name"),
        (["agents", "agents"], r"two models are called 'agents'"),
        (["agents", "floor", "--set", "name=x"], r"name = 'x' is also the name of model 'agents'"),
        (["agents", "--set", "train.seed=3"], r"the comparison sets the seeds; say --seeds"),
        (["agents", "--set", "train.epoch=3"], r"unknown key 'train.epoch'"),
        (["agents", "--set", "history.keep=[4]"], r"model 'agents' on data '.*': history.keep"),
        (["agents", "--split", "tset"], r"--split tset: no such split; did you mean 'test'"),
        (["agents", "--data", "DATA"], r"another data set is called"),
        (["agents", "--report-only"], r"--report-only takes neither models nor --data"),
    ],
    ids=str,
)
def test_refusals_leave_nothing_behind(
    small_data: PreparedData,
    model_files: dict[str, Path],
    tmp_path: Path,
    arguments: list[str],
    message: str,
) -> None:
    named = {**model_files, "DATA": small_data.root}
    words = [named.get(word, word) for word in arguments]
    with pytest.raises(UserError, match=message):
        compare(*words, "--data", small_data.root, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_without_semantic_ids(
    small_data: PreparedData, model_files: dict[str, Path], tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(small_data.root, bare, ignore=shutil.ignore_patterns("semantic*", "codebook*"))
    with pytest.raises(UserError, match=r"model 'agents' on data 'bare': .*no semantic ids; run"):
        compare(model_files["agents"], "--data", bare, "--out", tmp_path / "out")


def test_a_folder_without_cells(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished cell; run 'hisac-rec compare"):
        compare("--report-only", "--out", tmp_path)
