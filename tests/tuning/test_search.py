"""Whole searches: budgets, going on, failures, pruning, and what is left behind."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
from training import one_process, torchrun, train_run
from typer.testing import CliRunner

from hisac_rec.cli.app import app
from hisac_rec.config import validate
from hisac_rec.data.contract import PreparedData
from hisac_rec.errors import UserError
from hisac_rec.ranker.config import load_model_config
from hisac_rec.tuning import search as search_module
from hisac_rec.tuning.results import ModelResult, summary
from hisac_rec.tuning.search import Budget, tune
from hisac_rec.tuning.space import Search, SearchSpace, open_search

SPACE = """
[keys]
"train.sparse_lr" = { low = 0.1, high = 1.0, log = true }
"""
TRIALS = 3


class PowerFailureError(Exception):
    pass


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def trials_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def search_of(model: Path, *overrides: str, **keys: Any) -> Search:
    found = {key.replace("__", "."): value for key, value in keys.items()}
    space = validate(SearchSpace, {"keys": found}, "s.toml")
    return open_search(model, space, overrides, "s.toml")


def tune_here(
    searches: list[Search], data: PreparedData, out: Path, trials: int, **options: Any
) -> list[ModelResult]:
    with one_process() as ranks:
        return tune(searches, data, ranks, out, Budget(trials, **options))


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "own.toml"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="module")
def without_test(small_data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small data set with a test split that cannot be read."""
    copy = tmp_path_factory.mktemp("blind") / "data"
    shutil.copytree(small_data.root, copy)
    for path in (copy / "test").iterdir():
        path.write_bytes(b"not to be opened")
    return copy


@pytest.fixture(scope="module")
def command(models: dict[str, Path], without_test: Path, space: Path) -> list[object]:
    wanted = [models["small_hisac"], models["small_none"]]
    return ["tune", *wanted, "--data", without_test, "--space", space, "--seed", 4]


@pytest.fixture(scope="module")
def searched(command: list[object], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("searched") / "out"
    return out, invoke(*command, "--out", out, "--trials", TRIALS)


def test_every_model_has_the_same_budget_and_its_own_keys(searched: tuple[Path, str]) -> None:
    out, _ = searched
    hisac, none = trials_of(out / "small_hisac"), trials_of(out / "small_none")
    for rows in (hisac, none):
        assert [row["trial"] for row in rows] == ["0", "1", "2"]
        assert {row["state"] for row in rows} == {"complete"}
        assert all(0 < float(row["value"]) == float(row["auc"]) < 1 for row in rows)
        assert all(float(row["seconds"]) > 0 and row["evaluations"] == "1" for row in rows)
    assert {"history.keep", "history.tau", "train.sparse_lr"} <= hisac[0].keys()
    assert not [key for key in none[0] if key.startswith("history.")]
    # The common key is drawn alike: a model is not ahead by luckier draws.
    assert [row["train.sparse_lr"] for row in hisac] == [row["train.sparse_lr"] for row in none]


def test_the_first_trial_is_the_model_file(
    searched: tuple[Path, str], models: dict[str, Path], small_data: PreparedData, tmp_path: Path
) -> None:
    first = trials_of(searched[0] / "small_hisac")[0]
    assert (first["history.keep"], first["train.sparse_lr"]) == ("[3, 2]", "0.3")
    config = load_model_config(models["small_hisac"])
    assert train_run(config, small_data, tmp_path / "run")["auc"] == float(first["auc"])


def test_best_toml_is_a_whole_model_file_that_trains(
    searched: tuple[Path, str], small_data: PreparedData, tmp_path: Path
) -> None:
    folder = searched[0] / "small_hisac"
    rows = trials_of(folder)
    best = max(rows, key=lambda row: float(row["value"]))
    metrics = train_run(load_model_config(folder / "best.toml"), small_data, tmp_path / "run")
    assert metrics["auc"] == float(best["auc"])
    assert (folder / "best.toml").read_text().startswith("# ")


def test_what_is_shown_and_kept(searched: tuple[Path, str]) -> None:
    out, text = searched
    page = (out / "tuning.md").read_text()
    for shown in (text, page):
        assert "small_hisac" in shown
        assert "small_none" in shown
    best = max(float(row["value"]) for row in trials_of(out / "small_hisac"))
    assert f"{best:.4f}" in page
    assert f"{best:.4f}" in text
    assert f"hisac-rec train {out}/small_hisac/best.toml" in page
    assert "| `history.keep` | [3, 2] |" in page
    assert not list(out.rglob("checkpoints"))  # weights are thrown away
    assert len(list(out.rglob("metrics.jsonl"))) == 2 * TRIALS


def test_a_cut_off_search_ends_like_one_in_a_piece(
    searched: tuple[Path, str],
    command: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    train, calls = search_module.train, []

    def dies(*arguments: Any, **options: Any) -> dict[str, float]:
        calls.append(arguments[2])
        if len(calls) == 2:
            arguments[2].mkdir(parents=True)
            (arguments[2] / "config.toml").write_text("half a run")
            raise PowerFailureError
        return train(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(search_module, "train", dies)
        with pytest.raises(PowerFailureError):
            invoke(*command, "--out", out, "--trials", TRIALS)
    assert len(trials_of(out / "small_hisac")) == 1
    invoke(*command, "--out", out, "--trials", 2)
    invoke(*command, "--out", out, "--trials", TRIALS)
    for name in ("small_hisac", "small_none"):
        whole, pieces = trials_of(searched[0] / name), trials_of(out / name)
        for row in (*whole, *pieces):
            del row["seconds"]
        assert pieces == whole
    before = (out / "small_none" / "trials.csv").read_text()
    monkeypatch.setattr(search_module, "train", None)  # nothing is left to do
    invoke(*command, "--out", out, "--trials", TRIALS)
    assert (out / "small_none" / "trials.csv").read_text() == before


def test_other_settings_need_another_folder(
    searched: tuple[Path, str], command: list[object]
) -> None:
    out, _ = searched
    for change, message in (
        (["--seed", 5], r"settings.json: another search is kept there: seed = 4 there, 5 now"),
        (["--no-prune"], r"prune = True there, False now"),
        (["--set", "tables.dim=4"], r"model.tables.dim = 8 there, 4 now"),
        (["--space", "common"], r"search.ranker.dropout.* = None there"),
    ):
        with pytest.raises(UserError, match=message):
            invoke(*command, "--out", out, "--trials", TRIALS, *change)


def test_a_failed_trial_is_written_down_and_counts(
    models: dict[str, Path], small_data: PreparedData, tmp_path: Path
) -> None:
    heads = {"history__heads": {"values": [3]}}  # does not divide tables.dim = 8
    fixed = ("history.events=7",)
    search = search_of(models["small_recent"], *fixed, **heads)
    (result,) = tune_here([search], small_data, tmp_path / "out", 4, seed=1)
    states = {(row.values["history.heads"], row.state) for row in result.rows}
    assert states == {(2, "complete"), (3, "failed")}
    rows = trials_of(tmp_path / "out" / "small_recent")
    assert len(rows) == 4
    failed = [row for row in rows if row["state"] == "failed"]
    assert all("history.heads = 3 does not divide" in row["error"] for row in failed)
    assert all(row["value"] == "" for row in failed)
    assert result.best is not None
    assert result.best.values == {"history.heads": 2}
    assert [result.cells()[i] for i in (5, 7)] == ["4", str(len(failed))]


def test_a_loss_that_explodes_is_a_failed_trial(
    models: dict[str, Path], small_data: PreparedData, tmp_path: Path
) -> None:
    rates = {"train__dense_lr": {"values": [1e30, 1e29, 1e28, 1e27]}}
    search = search_of(models["small_none"], "train.clip_norm=0", **rates)
    (result,) = tune_here([search], small_data, tmp_path / "out", 3)
    assert result.rows[0].state == "complete"
    exploded = [row for row in result.rows if row.values["train.dense_lr"] > 1]
    assert exploded
    assert {row.state for row in exploded} == {"failed"}
    assert "not finite" in exploded[0].error


def test_all_failed_is_an_error_after_the_other_models(
    models: dict[str, Path], small_data: PreparedData, tmp_path: Path
) -> None:
    broken = search_of(models["small_recent"], "history.heads=3")
    sound = search_of(models["small_none"])
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"small_recent: every trial failed.*heads = 3 does not"):
        tune_here([broken, sound], small_data, out, 1)
    assert not (out / "small_recent" / "best.toml").exists()
    assert (out / "small_none" / "best.toml").is_file()
    assert "Every trial failed" in (out / "tuning.md").read_text()


@pytest.mark.parametrize(("prune", "expected"), [(True, "pruned"), (False, "complete")])
def test_a_hopeless_trial_is_stopped_early(
    models: dict[str, Path],
    small_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prune: bool,
    expected: str,
) -> None:
    """Six trials of known curves: the sixth is below the median of the five before it."""
    curves = [[0.60, 0.61], [0.62, 0.63], [0.64, 0.65], [0.66, 0.67], [0.68, 0.69], [0.51, 0.99]]
    ended: list[int] = []

    def pretend(job: Any, ranks: Any, out: Path, *, watcher: Any) -> dict[str, float]:
        curve = curves[int(out.name)]
        for epoch, auc in enumerate(curve, start=1):
            ended.append(epoch)
            watcher(search_module.Position(step=epoch, epoch=epoch), {"auc": auc})
        return {"auc": max(curve), "gauc": 0.5, "logloss": 0.6}

    monkeypatch.setattr(search_module, "train", pretend)
    monkeypatch.setattr(search_module, "open_job", lambda *_: None)
    search = search_of(
        models["small_none"], "train.epochs=2", train__dense_lr={"low": 1e-4, "high": 1e-2}
    )
    (result,) = tune_here([search], small_data, tmp_path / "out", 6, prune=prune)
    assert result.rows[5].state == expected
    assert ended[-1] == (1 if prune else 2)
    assert result.best is not None
    assert (result.best.number, result.best.value) == ((4, 0.69) if prune else (5, 0.99))
    assert result.rows[5].value == (0.51 if prune else 0.99)
    # Only the third of the trials that ends below the median at its last evaluation may go on.
    assert [row.state for row in result.rows[:5]] == ["complete"] * 5


def test_logloss_is_minimised(
    models: dict[str, Path],
    small_data: PreparedData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = [0.7, 0.5, 0.6]

    def pretend(job: Any, ranks: Any, out: Path, *, watcher: Any) -> dict[str, float]:
        metrics = {"auc": 0.5, "gauc": 0.5, "logloss": losses[int(out.name)]}
        watcher(search_module.Position(step=1, epoch=1), metrics)
        return metrics

    monkeypatch.setattr(search_module, "train", pretend)
    monkeypatch.setattr(search_module, "open_job", lambda *_: None)
    rate = {"train__dense_lr": {"low": 1e-4, "high": 1e-2}}
    search = search_of(models["small_none"], "train.metric=logloss", **rate)
    (result,) = tune_here([search], small_data, tmp_path / "out", 3)
    assert result.best is not None
    assert result.best.number == 1
    assert "| small_none | logloss | 0.7000 | 0.5000 | 1 |" in summary(
        [result], small_data, 3, tmp_path
    )


def test_two_models_of_one_name(
    models: dict[str, Path], small_data: PreparedData, tmp_path: Path
) -> None:
    search = search_of(models["small_none"])
    with pytest.raises(UserError, match="two of the models are called 'small_none'"):
        tune_here([search, search], small_data, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_before_it_trains(
    models: dict[str, Path], small_data: PreparedData, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text('[keys]\n"train.sparse_lrr" = { low = 0.1, high = 1.0 }\n')
    common = ["--data", small_data.root, "--out", tmp_path / "out"]
    for arguments, message in (
        ([models["small_none"], "--space", wrong], "unknown key .*did you mean 'sparse_lr'"),
        ([models["small_none"], "--space", "comon"], "did you mean 'common'"),
        (["hisack"], "did you mean 'hisac'"),
        (["hisac", "--set", "history.kep=1"], "unknown key 'kep'; did you mean 'keep'"),
    ):
        with pytest.raises(UserError, match=message):
            invoke("tune", *arguments, *common)
    assert not (tmp_path / "out").exists()


@pytest.mark.distributed
def test_two_ranks_run_the_same_trials(
    models: dict[str, Path], small_data: PreparedData, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["tune", models["small_recent"], "--data", small_data.root, "--out", out]
    # The second trial fails on both ranks, or they would wait for each other for ever.
    space = tmp_path / "space.toml"
    space.write_text('[keys]\n"history.heads" = { values = [3, 5] }\n')
    fixed = ["--set", "history.events=7", "--space", space, "--trials", "2", "--seed", "1"]
    torchrun("-m", "hisac_rec", *arguments, *fixed)
    rows = trials_of(out / "small_recent")
    assert [row["state"] for row in rows] == ["complete", "failed"]
    assert "does not divide" in rows[1]["error"]
    assert load_model_config(out / "small_recent" / "best.toml").history["heads"] == 2
