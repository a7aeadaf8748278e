"""Six data sets on which a metric is undefined, from the definition to the comparison."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from training import logged
from typer.testing import CliRunner

from hisac_rec.checkpoints.saving import read_manifest
from hisac_rec.cli.app import app
from hisac_rec.data.contract import PreparedData
from hisac_rec.evaluation.deciding import deciding, defined_metrics_of, undefined_in_words
from hisac_rec.evaluation.results import Report
from hisac_rec.train.run import RunFolder

USERS, EVENTS = 24, 20
DEFINITION = """
name = "undefined"
[source]
files = ["log.csv"]
events = '''SELECT "user", item, time, label, late, split FROM read_csv('{{raw}}/log.csv')'''
[history]
min_events = 2
[requests]
label = "{label}"
{tasks}
[split]
by = "column"
column = "split"
"""
SETS = {
    "leave one out": {},
    "valid of one class": {},
    "one user in valid and test": {},
    "no request in valid": {},
    "training labels all 0": {},
    "a task that valid lacks": {"tasks": 'task = "click"\ntasks = { late = "late = 1" }'},
}
QUICK = ["tables.dim=8", "ranker.over_layers=[8]", "train.epochs=1", "loader.max_candidates=64"]
NOT_A_NUMBER = re.compile(r"\bnan\b", re.IGNORECASE)


def log_of(name: str) -> Iterator[tuple[int, int, int, int, str, str]]:
    """(user, item, time, label, late, split) of every event; late is empty where unknown."""
    for user in range(1, USERS + 1):
        for time in range(EVENTS):
            item, label = (user * 7 + time * 5) % 30, (user + time * time) % 2
            split = "train" if time < 14 else "valid" if time < 17 else "test"
            late = str((user + time) % 2)
            if name == "leave one out":
                split = {EVENTS - 2: "valid", EVENTS - 1: "test"}.get(time, "train")
            elif name == "valid of one class":
                label = 1 if split == "valid" else label
            elif (name == "one user in valid and test" and split != "train" and user > 1) or (
                name == "no request in valid" and split == "valid"
            ):
                continue
            elif name == "training labels all 0":
                label = 0 if split == "train" else label
            elif name == "a task that valid lacks" and split == "valid":
                late = "0"
            yield user, item, time, label, late, split


def invoke(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module", params=SETS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(name, folder of the prepared data)."""
    root = tmp_path_factory.mktemp("undefined")
    lines = ["user,item,time,label,late,split"]
    lines += [",".join(map(str, row)) for row in log_of(request.param)]
    (root / "log.csv").write_text("\n".join(lines))
    keys = {"label": "label = 1", "tasks": ""} | SETS[request.param]
    (root / "set.toml").write_text(DEFINITION.format(**keys))
    invoke("prepare", root / "set.toml", "--raw", root, "--out", root / "data")
    codes = ("codes=[4, 4]", "dim=4", "collaborative.views=2", "collaborative.min_support=1")
    invoke("semantic-ids", root / "data", *[word for key in codes for word in ("--set", key)])
    return request.param, root / "data"


def texts_under(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".md", ".html", ".toml"):
            yield path, path.read_text()


def test_from_training_to_a_comparison(made: tuple[str, Path], tmp_path: Path) -> None:
    name, data = made
    run = tmp_path / "run"
    quick = [word for key in QUICK for word in ("--set", key)]
    tasks = ["--set", 'tasks.train=["*"]'] if "task" in SETS[name].get("tasks", "") else []
    invoke("train", "mean_pooling", data, "--out", run, *quick, *tasks)
    folder = RunFolder(run)
    best = folder.checkpoints().find("best")
    manifest = read_manifest(best)
    assert manifest.position.step > 0
    wanted = defined_metrics_of(PreparedData(data), "valid")
    assert {"auc", "gauc", "logloss"} & manifest.metrics.keys() == set(wanted)
    if wanted:
        assert logged(run, "valid", "logloss")
    invoke("evaluate", run, "--draws", "20", *(["--task", "click"] if tasks else []))
    report = Report.load(run)
    assert report.predictors[0].metrics["logloss"].value is not None
    models = ["mean_pooling", "no_history"]
    out = tmp_path / "compared"
    invoke(
        "compare", *models, "--data", data, "--out", out, "--seeds", "1", "--draws", "20", *quick
    )
    for path, text in [*texts_under(run), *texts_under(out)]:
        assert not NOT_A_NUMBER.search(text), path
        if path.suffix == ".json":
            json.loads(text, parse_constant=pytest.fail)


def test_what_each_set_leaves_undefined(made: tuple[str, Path]) -> None:
    name, data = made
    defined = defined_metrics_of(PreparedData(data), "valid")
    assert defined == {
        "leave one out": ("logloss", "auc"),
        "valid of one class": ("logloss",),
        "no request in valid": (),
    }.get(name, ("logloss", "auc", "gauc"))


def test_the_next_defined_metric_decides() -> None:
    assert deciding(["auc", "gauc", "logloss"], "gauc") == "gauc"
    assert deciding(["auc", "logloss"], "gauc") == "logloss"
    assert deciding(["auc"], "gauc") == "auc"
    assert deciding([], "gauc") is None
    assert undefined_in_words(["auc", "gauc", "logloss"], "auc", "valid") == ""
    said = undefined_in_words(["logloss"], "auc", "valid")
    assert "auc is undefined, because all labels are equal" in said
    assert "logloss decides instead of auc" in said
    assert "newest checkpoint is kept" in undefined_in_words([], "auc", "valid")
